"""Evaluating crystals: what is valid, unique, novel and stable, crystal by crystal and in sum."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cfx.data.structures import Loaded, load_crystals
from cfx.evaluation import matching, novelty, summary, symmetry, validity
from cfx.evaluation.hull import HullBatch
from cfx.evaluation.judges import Judges, energies_as_they_are, energies_of_relaxed
from cfx.evaluation.matching import rms_displacement
from cfx.evaluation.novelty import Reference
from cfx.evaluation.summary import summarize
from cfx.fetch.names import data_path
from cfx.report import as_drawn
from cfx.reporter import Reporter
from cfx.signals import Interrupted, StopRequest

BELOW = 0.1
"""eV/atom. Few real crystals are this far below all known phases; many such ones speak of a hull with gaps."""

GALLERY = 60
"""Crystals of a file that a report shows."""


def evaluate(name: str, judges: Judges, reporter: Reporter) -> dict[str, Any]:
    """Evaluates a file.

    Returns:
        Ready for JSON: name, crystals, settings, summary (metric -> value with its interval), reasons, records (one for
        each crystal), reference (its distributions) and gallery (crystals to look at).

    Raises:
        DataError: if nothing in it can be evaluated.
        Interrupted: after a signal.
    """
    path, workers = data_path(name, reporter), judges.config.workers
    with StopRequest() as stop, warnings.catch_warnings(action="ignore"):

        def look() -> None:
            if stop.signum is not None:
                raise Interrupted(stop.signum, f"stopped evaluating {path.name}")

        @contextmanager
        def task(title: str, total: int | None):
            """A task that ends when a signal has come."""
            with reporter.progress(f"{path.name}: {title}", total) as progress:

                def update(done: int) -> None:
                    progress.update(done)
                    look()

                yield update
                look()

        with task("reading", None) as update:
            crystals = load_crystals(path, workers, update)
        records, final = _judge(crystals, judges, task)
        _doubt(records, reporter)
    reference = _distributions(judges.reference)
    return {
        "name": path.name if path == Path(name) else name,
        "crystals": len(crystals),
        "settings": judges.settings(),
        "summary": summarize(records, reference=reference),
        "reasons": _count_reasons(records),
        "records": records,
        "reference": reference,
        "gallery": _gallery(records, final),
    }


def as_result(files: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Evaluated files as one result."""
    return {"version": version("cfx-crystal"), "files": list(files)}


@dataclass(frozen=True)
class Findings:
    """What was found of n crystals: lists of the metrics' own records, energies (total, eV) and distances to the hull.

    Attributes:
        judged: the structures that energies belong to: relaxed ones where there are.
        faults: why there is no energy.
    """

    structure: list[validity.Validity]
    composition: list[validity.Validity]
    groups: list[symmetry.SpaceGroup]
    energies: list[float]
    judged: list
    faults: list[str]
    unique: list[matching.Uniqueness]
    novel: list[novelty.Novelty]
    heights: HullBatch | None

    def record(self, i: int, crystals: list[Loaded], relaxed: bool) -> dict[str, Any]:
        """All that is known of one crystal, ready for JSON."""
        one, match = crystals[i], self.unique[i].match
        height = math.nan if self.heights is None else float(self.heights.e_above_hull[i])
        return {
            "name": one.name,
            **_facts(one.structure),
            "space_group": self.groups[i].found,
            "space_group_asked": one.space_group_asked,
            "valid_structure": self.structure[i].valid,
            "valid_composition": self.composition[i].valid,
            "valid": self.structure[i].valid and self.composition[i].valid,
            "unique": self.unique[i].unique,
            "duplicate_of": None if match is None else crystals[match].name,
            "novel": self.novel[i].novel,
            "energy_per_atom": _per_atom(self.energies[i], self.judged[i]),
            "e_above_hull": height if math.isfinite(height) else None,
            "rmsd_to_relaxed": rms_displacement(one.structure, self.judged[i]) if relaxed else None,
            "reason": self._reason(i, one),
        }

    def _reason(self, i: int, one: Loaded) -> str:
        """Every step's reason, in one line; what was said by an earlier step is not said again."""
        if one.structure is None:
            return f"read: {one.reason}"
        said = {
            "structure": self.structure[i].reason,
            "composition": self.composition[i].reason,
            "space group": self.groups[i].reason,
            "energy": self.faults[i],
            "unique": self.unique[i].reason if self.structure[i].valid else "",
        }
        if self.heights is not None and math.isfinite(self.energies[i]):
            said["hull"] = self.heights.reasons[i]
        first = {reason: step for step, reason in reversed(said.items())}
        return "; ".join(f"{step}: {reason}" for step, reason in said.items() if reason and first[reason] == step)


def _judge(crystals: list[Loaded], judges: Judges, task: Callable) -> tuple[list[dict[str, Any]], list]:
    """A record for each crystal, and the structure that is judged."""
    structures, config = [one.structure for one in crystals], judges.config
    asked = [one.space_group_asked for one in crystals]
    with task("structures", len(structures)) as update:
        structure_ok = validity.structure_validity(_counted(structures, update))
    with task("compositions", len(structures)) as update:
        composition_ok = validity.composition_validity(_counted(structures, update))
    with task("space groups", math.ceil(len(structures) / symmetry.CHUNK)) as update:
        groups = symmetry.find_space_groups(structures, asked, n_jobs=config.workers, on_done=update)
    energies, judged, faults = _energies(structures, judges, task)
    with task("unique", None) as update:
        unique = matching.find_duplicates(judged, config.workers, update)
    with task("novel", None) as update:
        novel = novelty.find_novel(judged, judges.reference, config.workers, update)
    heights = None
    if judges.hull is not None and judges.potential is not None:
        heights = judges.hull.evaluate(judged, energies, judges.potential.scale)
    found = Findings(structure_ok, composition_ok, groups, energies, judged, faults, unique, novel, heights)
    return [found.record(i, crystals, config.relax) for i in range(len(crystals))], judged


def _facts(structure) -> dict[str, Any]:
    """What a structure tells by itself."""
    if structure is None:
        return dict.fromkeys(("formula", "num_atoms", "num_elements", "density"))
    return {
        "formula": structure.composition.reduced_formula,
        "num_atoms": len(structure),
        "num_elements": summary.num_elements(structure),
        "density": summary.density(structure),
    }


def _per_atom(energy: float, structure) -> float | None:
    return float(energy) / len(structure) if structure is not None and math.isfinite(energy) else None


def _energies(structures: list, judges: Judges, task: Callable) -> tuple[list[float], list, list[str]]:
    """Energies (total, eV; NaN where there is none), the structures that have them, and reasons."""
    potential, config = judges.potential, judges.config
    if potential is None:
        return [math.nan] * len(structures), structures, [""] * len(structures)
    with task("relaxing" if config.relax else "energies", len(structures)) as update:
        if config.relax:
            found = list(energies_of_relaxed(potential, structures, config.fmax, config.steps, update))
        else:
            found = list(energies_as_they_are(potential, structures, update))
    energies, final, faults = map(list, zip(*found, strict=True))
    return energies, final, faults


def _counted(structures: Sequence, update: Callable[[int], None]) -> Iterator:
    """The structures, each counted when the next one is asked for."""
    for done, structure in enumerate(structures):
        update(done)
        yield structure


def _doubt(records: Sequence[dict[str, Any]], reporter: Reporter) -> None:
    """Warns if crystals are more stable than can be."""
    heights = [record["e_above_hull"] for record in records if record["e_above_hull"] is not None]
    low = sum(height < -BELOW for height in heights)
    if low:
        reporter.warning(
            f"{low} of {len(heights)} crystals are more than {BELOW:g} eV/atom below the hull, as few real ones are: "
            "it lacks phases, or the energies are wrong"
        )


def _count_reasons(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reasons, the most frequent first, each with an example."""
    counts, example = Counter(), {}
    for record in records:
        for reason in filter(None, record["reason"].split("; ")):
            counts[reason] += 1
            example.setdefault(reason, record["name"])
    return [{"reason": key, "count": count, "example": example[key]} for key, count in counts.most_common()]


def _distributions(reference: Reference | None) -> dict[str, list[float]] | None:
    if reference is None:
        return None
    return {"density": reference.density().tolist(), "num_elements": reference.num_elements().tolist()}


def _gallery(records: Sequence[dict[str, Any]], structures: Sequence) -> list[dict[str, Any]]:
    """Crystals to look at: valid ones first, then new ones, then those of low energy, then as in the file."""

    def worth(i: int) -> tuple:
        record = records[i]
        height = math.inf if record["e_above_hull"] is None else record["e_above_hull"]
        return not record["valid"], not record["unique"], record["novel"] is False, height, i

    best = sorted((i for i, one in enumerate(structures) if one is not None), key=worth)[:GALLERY]
    return [
        {
            **{key: records[i][key] for key in ("name", "formula", "space_group", "e_above_hull")},
            **as_drawn(structures[i]),
        }
        for i in best
    ]
