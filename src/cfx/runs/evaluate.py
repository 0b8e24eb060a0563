"""Evaluating crystals: what is valid, unique, novel and stable, crystal by crystal and in sum."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from cfx.core import Structure
from cfx.data.structures import Loaded, load_crystals
from cfx.evaluation import matching, novelty, summary, validity
from cfx.evaluation.hull import Hull, HullBatch
from cfx.evaluation.setup import Energy, EvaluationSetup, energies_as_they_are, energies_of_relaxed
from cfx.fetch.names import data_path
from cfx.predictors.base import Potential
from cfx.report import GALLERY, as_drawn
from cfx.reporter import Interrupted, Noting, Reporter, StopRequest

Update = Callable[[int], None]
Step = Callable[[str, int | None], AbstractContextManager[Update]]
"""Begins a step of the work: a title and the size of it, if known; gives what is told how much is done."""

SHOWN = (
    *("name", "formula", "valid", "unique", "duplicate_of", "novel", "matched", "converged"),
    *("e_above_hull", "e_above_hull_unrelaxed", "verdict", "decomposition"),
    *("second_e_above_hull", "second_verdict", "second_decomposition"),
)
"""What the gallery says of a crystal."""

IMPLAUSIBLE = "in a gap of the hull, or the potential is wrong"
"""What it means to be below the floor."""

BELOW = 0.1
"""eV/atom. Few real crystals are this far below all known phases; many such ones speak of a hull with gaps."""


RELAXATION = ("energy_per_atom_unrelaxed", "e_above_hull_unrelaxed", "space_group_relaxed", "converged", "steps")
"""What a record says of a relaxation."""


class Evaluated(NamedTuple):
    """An evaluated file.

    Attributes:
        result: ready for JSON: name, crystals, settings, warnings, summary (metric -> value with its interval), classes
            (class of compositions -> its summary), floor (eV/atom), reasons, records (one for each crystal), reference
            (its distributions) and gallery (crystals to look at).
        structures: the crystals that have the energies: relaxed, if that was asked for; None where there is none.
        model: the name of the potential, "" without one.
    """

    result: dict[str, Any]
    structures: list[Structure | None]
    model: str


def evaluate(name: str, setup: EvaluationSetup, reporter: Reporter) -> Evaluated:
    """Evaluates a file.

    Raises:
        DataError: if nothing in it can be evaluated.
        Interrupted: after a signal.
    """
    reporter = Noting(reporter)
    path = data_path(name, reporter)
    with StopRequest() as stop, warnings.catch_warnings(action="ignore"):
        with _steps(path.name, stop, reporter)("reading", None) as update:
            crystals = load_crystals(path, setup.config.workers, update)
        return evaluate_crystals(path.name if path == Path(name) else name, crystals, setup, reporter, path.name)


def evaluate_crystals(
    name: str, crystals: list[Loaded], setup: EvaluationSetup, reporter: Reporter, title: str = ""
) -> Evaluated:
    """Evaluates crystals in memory.

    Args:
        name: what they are called in the result.
        crystals: those that could not be read among them.
        setup: what they are evaluated with.
        reporter: receives progress and warnings.
        title: what they are called while the work goes on; by default their name.

    Raises:
        Interrupted: after a signal.
    """
    reporter = reporter if isinstance(reporter, Noting) else Noting(reporter)
    with StopRequest() as stop, warnings.catch_warnings(action="ignore"):
        found = _find(crystals, setup, _steps(title or name, stop, reporter))
        records = [found.record(i) for i in range(len(crystals))]
        _warn_of_gaps(records, setup.thresholds, reporter)
    reference = None
    if setup.reference is not None:
        known = setup.reference
        reference = {"density": known.density().tolist(), "num_elements": known.num_elements().tolist()}
    structures = [one.structure for one in found.energies]
    result = {
        "name": name,
        "crystals": len(crystals),
        "settings": setup.settings(),
        "warnings": [*setup.warnings, *reporter.warnings],
        "summary": summary.summarize(records, setup.thresholds, reference),
        "classes": summary.summarize_classes(records, setup.thresholds),
        "floor": setup.thresholds.floor,
        "reasons": _count_reasons(records),
        "records": records,
        "reference": reference,
        "gallery": _gallery(records, structures),
    }
    return Evaluated(result, structures, "" if setup.potential is None else setup.potential.name)


def _steps(title: str, stop: StopRequest, reporter: Reporter) -> Step:
    """What begins steps that end when a signal has come."""

    @contextmanager
    def step(name: str, total: int | None) -> Iterator[Update]:
        with reporter.progress(f"{title}: {name}", total) as progress:

            def update(done: int) -> None:
                progress.update(done)
                look()

            yield update
            look()

    def look() -> None:
        if stop.signum is not None:
            raise Interrupted(stop.signum, f"stopped evaluating {title}")

    return step


def as_result(files: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Evaluated files as one result."""
    return {"version": version("cfx-crystal"), "files": list(files)}


def _find(crystals: list[Loaded], setup: EvaluationSetup, step: Step) -> _Findings:
    """Runs every check on every crystal; duplicates, novelty and stability are those of relaxed structures if any."""
    structures, config = [one.structure for one in crystals], setup.config
    with step("structures", len(structures)) as update:
        structure_ok = validity.structure_validity(_counted(structures, update))
    with step("compositions", len(structures)) as update:
        composition_ok = validity.composition_validity(_counted(structures, update), config.mixed_valence)
    with step("space groups", math.ceil(len(structures) / validity.CHUNK)) as update:
        asked = [one.space_group_asked for one in crystals]
        groups = validity.find_space_groups(structures, asked, n_jobs=config.workers, on_done=update)
    energies = _energies(structures, setup, step)
    final = [one.structure for one in energies]
    second = None if setup.second is None else _second_opinion(final, *setup.second, step)
    with step("unique", None) as update:
        unique = matching.find_duplicates(final, config.workers, update)
    with step("novel", None) as update:
        novel = novelty.find_novel(final, setup.reference, config.workers, update)
    hull = initial_hull = None
    relaxed = [one.relaxed for one in energies if one.relaxed is not None]
    if setup.hull is not None and setup.potential is not None:
        hull = setup.hull.evaluate(final, [one.energy for one in energies], setup.potential.scale)
        if relaxed:
            initial_energies = [one.initial_energy for one in relaxed]
            initial_hull = setup.hull.evaluate(structures, initial_energies, setup.potential.scale)
    final_groups = []
    if relaxed:
        with step("space groups of relaxed crystals", math.ceil(len(final) / validity.CHUNK)) as update:
            final_groups = validity.find_space_groups(final, n_jobs=config.workers, on_done=update)
    judged = (structure_ok, composition_ok, groups, energies, unique, novel, hull)
    return _Findings(crystals, setup, *judged, initial_hull, final_groups, second)


def _energies(structures: list[Structure | None], setup: EvaluationSetup, step: Step) -> list[Energy]:
    """The energy of each crystal; NaN without a potential."""
    potential, config = setup.potential, setup.config
    if potential is None:
        return [Energy(math.nan, structure, "") for structure in structures]
    with step("relaxing" if config.relax else "energies", len(structures)) as update:
        if config.relax:
            limits = config.fmax, config.steps
            return list(energies_of_relaxed(potential, structures, *limits, update, config.fix_symmetry))
        return list(energies_as_they_are(potential, structures, update))


def _second_opinion(
    structures: list[Structure | None], potential: Potential, hull: Hull, step: Step
) -> tuple[list[Energy], HullBatch]:
    """Energies by a second potential of the crystals as the first one left them, and distances to its own hull."""
    with step("energies by the second potential", len(structures)) as update:
        energies = list(energies_as_they_are(potential, structures, update))
    return energies, hull.evaluate(structures, [one.energy for one in energies], potential.scale)


def _counted(structures: Sequence[Structure | None], update: Update) -> Iterator[Structure | None]:
    """The structures, each counted when the next one is asked for."""
    for done, structure in enumerate(structures):
        update(done)
        yield structure


@dataclass(frozen=True)
class _Findings:
    """What the checks found, a list over the crystals each.

    Attributes:
        setup: what they were evaluated with.
        hull: distances to the hull, if there is one.
        initial_hull: those before the relaxation, if there was one.
        final_groups: space groups after it.
        second: energies by the second potential and distances to its own hull, if there is one.
    """

    crystals: list[Loaded]
    setup: EvaluationSetup
    structure: list[validity.Validity]
    composition: list[validity.CompositionValidity]
    groups: list[validity.SpaceGroup]
    energies: list[Energy]
    unique: list[matching.Uniqueness]
    novel: list[novelty.Novelty]
    hull: HullBatch | None
    initial_hull: HullBatch | None = None
    final_groups: list[validity.SpaceGroup] = field(default_factory=list)
    second: tuple[list[Energy], HullBatch] | None = None

    def record(self, i: int) -> dict[str, Any]:
        """Everything known about one crystal, ready for JSON."""
        one, final, match = self.crystals[i], self.energies[i].structure, self.unique[i].match
        height = None if self.hull is None else _if_finite(self.hull.e_above_hull[i])
        return {
            "name": one.name,
            **facts(one.structure),
            "class": self.composition[i].kind,
            "space_group": self.groups[i].found,
            "space_group_asked": one.space_group_asked,
            "valid_structure": self.structure[i].valid,
            "valid_composition": self.composition[i].valid,
            "valid_composition_without_alloys": self.composition[i].without_alloys,
            "valid": self.structure[i].valid and self.composition[i].valid,
            "unique": self.unique[i].unique,
            "duplicate_of": None if match is None else self.crystals[match].name,
            "novel": self.novel[i].novel,
            "matched": self._matched(i),
            "energy_per_atom": None if final is None else _if_finite(self.energies[i].energy / (len(final) or 1)),
            "e_above_hull": height,
            "verdict": None if height is None else self.setup.thresholds.verdict(height),
            "decomposition": None if self.hull is None else self.hull.decompositions[i] or None,
            **self._second(i, height),
            "rmsd_to_relaxed": matching.rms_displacement(one.structure, final) if self.setup.config.relax else None,
            **self._relaxation(i),
            "reason": self._reason(i),
        }

    def _relaxation(self, i: int) -> dict[str, Any]:
        """What a relaxation did to a crystal; all is None where there was none."""
        energy, structure, _, relaxed = self.energies[i]
        if relaxed is None or structure is None or not math.isfinite(energy):
            return dict.fromkeys(RELAXATION)
        height = None if self.initial_hull is None else _if_finite(self.initial_hull.e_above_hull[i])
        initial = _if_finite(relaxed.initial_energy / len(structure))
        values = (initial, height, self.final_groups[i].found, relaxed.converged, relaxed.steps)
        return dict(zip(RELAXATION, values, strict=True))

    def _second(self, i: int, height: float | None) -> dict[str, Any]:
        """What the second potential says of a crystal, and its distance to the hull less that by the first one."""
        if self.second is None:
            return {}
        energies, hull = self.second
        final, own = energies[i].structure, _if_finite(hull.e_above_hull[i])
        return {
            "second_energy_per_atom": None if final is None else _if_finite(energies[i].energy / (len(final) or 1)),
            "second_e_above_hull": own,
            "second_verdict": None if own is None else self.setup.thresholds.verdict(own),
            "second_decomposition": hull.decompositions[i] or None,
            "e_above_hull_difference": None if own is None or height is None else own - height,
        }

    def _matched(self, i: int) -> str | None:
        """The name of the known crystal that a crystal matches."""
        row, reference = self.novel[i].match, self.setup.reference
        return None if row is None or reference is None else reference.name(row)

    def _reason(self, i: int) -> str:
        """The reasons of all steps in one line, without repetitions."""
        if self.crystals[i].structure is None:
            return f"read: {self.crystals[i].reason}"
        said = {
            "structure": self.structure[i].reason,
            "composition": self.composition[i].reason,
            "space group": self.groups[i].reason,
            "energy": self.energies[i].reason,
            "unique": self.unique[i].reason if self.structure[i].valid else "",
        }
        said |= self._reasons_of_hull("hull", self.energies, self.hull, i)
        if self.second is not None:
            said["second energy"] = self.second[0][i].reason
            said |= self._reasons_of_hull("second hull", *self.second, i)
        first = {reason: step for step, reason in reversed(said.items())}
        return "; ".join(f"{step}: {reason}" for step, reason in said.items() if reason and first[reason] == step)

    def _reasons_of_hull(self, name: str, energies: list[Energy], hull: HullBatch | None, i: int) -> dict[str, str]:
        """Why a crystal with an energy has no distance to a hull, or none that can be believed."""
        if hull is None or not math.isfinite(energies[i].energy):
            return {}
        limits = self.setup.thresholds
        below = limits.verdict(hull.e_above_hull[i]) == summary.BELOW_FLOOR
        return {name: hull.reasons[i] or below * f"more than {-limits.floor:g} eV/atom below it: {IMPLAUSIBLE}"}


def _if_finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def facts(structure: Structure | None) -> dict[str, Any]:
    """What a structure tells by itself."""
    if structure is None:
        return dict.fromkeys(("formula", "num_atoms", "num_elements", "density", "hhi_production", "hhi_reserve"))
    production, reserve = summary.scarcity(structure)
    return {
        "formula": structure.composition.reduced_formula,
        "num_atoms": len(structure),
        "num_elements": summary.num_elements(structure),
        "density": summary.density(structure),
        "hhi_production": production,
        "hhi_reserve": reserve,
    }


def _warn_of_gaps(records: Sequence[dict[str, Any]], limits: summary.Thresholds, reporter: Reporter) -> None:
    """Warns if crystals are more stable than can be, which tells of gaps in a hull."""
    for key, whose in (("e_above_hull", ""), ("second_e_above_hull", "second potential: ")):
        heights = [record[key] for record in records if record.get(key) is not None]
        if low := sum(height < -BELOW for height in heights):
            reporter.warning(
                f"{whose}{low} of {len(heights)} crystals are more than {BELOW:g} eV/atom below the hull, which few "
                "real crystals are: it lacks phases, or the energies are wrong"
            )
        if lowest := sum(limits.verdict(height) == summary.BELOW_FLOOR for height in heights):
            reporter.warning(
                f"{whose}{lowest} of {len(heights)} crystals are below the floor of {limits.floor:g} eV/atom "
                f"({IMPLAUSIBLE}): they count as neither stable nor S.U.N."
            )


def _count_reasons(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reasons, the most frequent first, each with an example."""
    counts: Counter[str] = Counter()
    example: dict[str, str] = {}
    for record in records:
        for reason in filter(None, record["reason"].split("; ")):
            counts[reason] += 1
            example.setdefault(reason, record["name"])
    return [{"reason": key, "count": count, "example": example[key]} for key, count in counts.most_common()]


def _gallery(records: Sequence[dict[str, Any]], structures: Sequence[Structure | None]) -> list[dict[str, Any]]:
    """Crystals to look at, those of the lowest energy above the hull first, but those below the floor last of all.

    Where energies are not known: valid ones first, then those that are unique and new, then as in the file.
    """

    def place(i: int) -> tuple:
        record = records[i]
        height = math.inf if record["e_above_hull"] is None else record["e_above_hull"]
        implausible = summary.is_below_floor(record)
        return implausible, height, not record["valid"], not record["unique"], record["novel"] is False, i

    drawn = {i: one for i, one in enumerate(structures) if one is not None}
    return [as_shown(records[i], drawn[i]) for i in sorted(drawn, key=place)[:GALLERY]]


def as_shown(record: dict[str, Any], structure: Structure) -> dict[str, Any]:
    """A crystal as galleries have it: relaxed, if it was, with its space group before as well."""
    before = {} if record["converged"] is None else {"space_group_unrelaxed": record["space_group"]}
    return {key: record[key] for key in SHOWN if key in record} | before | as_drawn(structure)
