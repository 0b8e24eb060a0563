"""Hulls: building one from crystals with a potential, and what one holds."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cfx.core import Structure
from cfx.core.elements import SYMBOLS
from cfx.data.formats.tables import read_rows
from cfx.data.structures import load_crystals
from cfx.errors import DataError, UsageError
from cfx.evaluation.corrections import UNCORRECTABLE, correct
from cfx.evaluation.hull import Hull, HullFailure, HullInfo, build_table, missing_phases
from cfx.evaluation.hull_files import read_hull, write_hull
from cfx.evaluation.phases import LEAST_SHARED, count_atoms, fill
from cfx.fetch.names import data_path, hull_path
from cfx.predictors.base import Potential
from cfx.predictors.load import load_potential
from cfx.reporter import Interrupted, Reporter, StopRequest, counted

FORMULAS = ("formula", "pretty_formula", "formula_pretty", "reduced_formula", "composition")
"""Columns that hold formulas, as Materials Project and others call them."""

CHUNK = 512
"""Crystals given to the potential at once: enough for batches of crystals of one size, seconds between two reports."""


def build(
    names: list[str],
    potential: str,
    target: Path,
    title: str,
    device: str,
    workers: int,
    reporter: Reporter,
    fill_from: str | None = None,
    systems_of: str | None = None,
) -> Hull:
    """Computes the energies of crystals and keeps the lowest of each composition.

    Args:
        names: files or data sets.
        target: where the table goes.
        title: what the hull is called.
        fill_from: hull of another potential, whose other phases are added; see `evaluation.phases.fill`. The result is
            on its scale.
        systems_of: crystals whose chemical systems alone matter.

    Raises:
        DataError: if no crystal has an energy, or too few to tell what another potential is off by.
        Interrupted: after a signal; nothing is written.
        UsageError: if the energies cannot be brought to the scale of the other hull.
    """
    model = load_potential(potential, device)
    other = None if fill_from is None else read_hull(hull_path(fill_from, reporter))
    if other is not None:
        other.check_potential(model.scale)
    crystals = [one for name in names for one in load_crystals(data_path(name, reporter), workers)]
    systems = None if systems_of is None else find_systems(data_path(systems_of, reporter), workers)
    if systems is not None:
        crystals = [one for one in crystals if one.structure is None or _is_within(one.structure, systems)]
    structures = [one.structure for one in crystals]
    energies, reasons = _evaluate(model, structures, reporter)
    scale = model.scale if other is None else other.scale
    if scale != model.scale:
        _correct(structures, energies, reasons)
    kept = [i for i, energy in enumerate(energies) if math.isfinite(energy)]
    _tell_left_out([one.reason or why for one, why in zip(crystals, reasons, strict=True)], kept, reporter)
    sources = ", ".join(Path(name).name for name in names)
    made = f"{len(kept):,} crystals of {sources}, by cfx {version('cfx-crystal')}"
    info = HullInfo(title, scale, model.name, provenance=made)
    hull = build_table(
        [structures[i] for i in kept], [energies[i] for i in kept], [crystals[i].name for i in kept], info
    )
    if other is not None:
        hull = _fill(hull, other, systems, reporter)
    if lacking := without_terminal(hull):
        reporter.warning(
            f"no phase of the pure element for {', '.join(lacking)}: crystals that contain one will have no "
            "energy above the hull; add crystals of the pure elements"
        )
    write_hull(target, hull)
    return hull


def _tell_left_out(reasons: list[str], kept: list[int], reporter: Reporter) -> None:
    """Warns of crystals without an energy; raises DataError if none has one."""
    with_energy = set(kept)
    left_out = Counter(reason for i, reason in enumerate(reasons) if i not in with_energy)
    if not kept:
        reason = left_out.most_common(1)[0][0] if left_out else "none is of the chemical systems"
        raise DataError(f"none of the {len(reasons)} crystals has an energy: {reason}")
    if left_out:
        said = ", ".join(f"{count} x {reason}" for reason, count in left_out.most_common(5))
        reporter.warning(f"left out {counted(left_out.total(), 'crystal')}: {said}")


def find_systems(path: Path, workers: int) -> set[frozenset[int]]:
    """The chemical systems of the crystals of a file, as atomic numbers, without those that are part of another."""
    found = {_system(one.structure) for one in load_crystals(path, workers) if one.structure is not None}
    return {system for system in found if not any(system < other for other in found)}


def _system(structure: Structure) -> frozenset[int]:
    return frozenset(count_atoms(structure.composition))


def _is_within(structure: Structure, systems: set[frozenset[int]]) -> bool:
    own = _system(structure)
    return any(own <= system for system in systems)


def _evaluate(
    model: Potential, structures: list[Structure | None], reporter: Reporter
) -> tuple[list[float], list[str]]:
    """Energies of the crystals (eV; NaN without one) and why some have none."""
    energies: list[float] = []
    reasons: list[str] = []
    with StopRequest() as stop, reporter.progress(f"energies by {model.name}", len(structures)) as progress:
        for first in range(0, len(structures), CHUNK):
            batch = model.evaluate(structures[first : first + CHUNK], forces=False)
            energies += batch.energy.tolist()
            reasons += batch.reasons
            progress.update(len(energies))
            if stop.signum is not None:
                raise Interrupted(stop.signum, "stopped; nothing was written")
    return energies, reasons


def _correct(structures: list[Structure | None], energies: list[float], reasons: list[str]) -> None:
    """Brings raw energies of crystals to the scale mp2020, in place."""
    for i, structure in enumerate(structures):
        if structure is not None and math.isfinite(energies[i]):
            try:
                energies[i] = correct(structure, energies[i])
            except UNCORRECTABLE:
                energies[i], reasons[i] = math.nan, "the MP2020 corrections do not cover it"


def _fill(hull: Hull, other: Hull, systems: set[frozenset[int]] | None, reporter: Reporter) -> Hull:
    """A hull with the phases of another one added, of some chemical systems or all."""
    rows: Iterable[int] = range(len(other.phases))
    if systems is not None:
        rows = sorted({int(row) for system in systems for row in other.phases.within(sorted(system))})
    filled = fill(hull.phases, other.phases, rows)
    if filled is None:
        raise DataError(
            f"the crystals share too few compositions with {other.name} to tell how the energies differ",
            f"add crystals: an element must be in {LEAST_SHARED} compositions that both have",
        )
    said = f"{filled.added:,} phases of {other.name}, shifted by offsets of the elements"
    reporter.message(
        f"added {said}: fitted to {filled.shared:,} compositions that both have; mean absolute error where they are "
        f"not fitted {filled.error:.3f} eV/atom"
    )
    if filled.lacking:
        reporter.warning(
            f"phases of {other.name} with {', '.join(filled.lacking)} were not added: fewer than {LEAST_SHARED} of the "
            "crystals' compositions tell how the energies differ"
        )
    return Hull(filled.phases, replace(hull.info, provenance=f"{hull.info.provenance}; {said}"))


def without_terminal(hull: Hull) -> list[str]:
    """Symbols of elements in the phases of a hull that have no phase of their own, in order of atomic number."""
    pure = set(hull.phases.terminals)
    return [SYMBOLS[number] for number in sorted(set(map(int, hull.phases.species)) - set(map(int, pure)))]


def describe(
    name: str, scale: str | None, reference: Path | None, reporter: Reporter, system: str | None = None
) -> dict[str, Any]:
    """What a hull holds, ready for JSON.

    Args:
        name: a file, or a name of the catalog.
        scale: of its energies, where the file does not say.
        reference: a .csv with a column `formula`, of phases that it should have.
        system: elements as Cs-Zn-F: the phases made of them, one by one, and only what is missing there.

    Raises:
        DataError: if a file cannot be read.
        UsageError: if the system does not consist of elements.
    """
    numbers = None if system is None else parse_system(system)
    with reporter.progress(f"reading {name}", None) as progress:
        hull = read_hull(hull_path(name, reporter), scale, progress.update)
    elements = Counter(int(size) for size in hull.phases.sizes)
    content: dict[str, Any] = {
        "name": hull.info.name,
        "scale": hull.scale,
        "potential": hull.info.potential,
        "version": hull.info.version,
        "provenance": hull.info.provenance,
        "phases": len(hull.phases),
        "phases_by_number_of_elements": {str(size): elements[size] for size in sorted(elements)},
        "phases_by_origin_of_energy": dict(sorted(Counter(hull.phases.origins).items())),
        "elements": len(hull.phases.terminals),
        "elements_without_a_pure_phase": without_terminal(hull),
    }
    if numbers is not None:
        content |= {"system": "-".join(SYMBOLS[z] for z in numbers), "phases_of_the_system": list_phases(hull, numbers)}
    if reference is not None:
        formulas = read_formulas(reference)
        if numbers is not None:
            own = {SYMBOLS[z] for z in numbers}
            formulas = [formula for formula in formulas if set(re.findall("[A-Z][a-z]?", formula)) <= own]
        missing = missing_phases(hull, formulas)
        content |= {"reference": reference.name, "reference_phases": len(set(formulas)), "missing": missing}
    return content


def parse_system(text: str) -> list[int]:
    """Atomic numbers of the elements of a chemical system, such as Cs-Zn-F.

    Raises:
        UsageError: if one is not an element.
    """
    symbols = re.split(r"[-,\s]+", text.strip())
    if wrong := [symbol for symbol in symbols if symbol not in SYMBOLS[1:]]:
        raise UsageError(f"{wrong[0]!r} is not an element", "write a chemical system as Cs-Zn-F")
    return [SYMBOLS.index(symbol) for symbol in dict.fromkeys(symbols)]


def list_phases(hull: Hull, numbers: list[int]) -> list[dict[str, Any]]:
    """The phases of a hull that are made of some elements: those of fewest elements first, then by formula.

    Returns:
        Of each its formula, energy, formation energy and e_above_hull (eV/atom; None without phases of the pure
        elements), its id, and its origin.
    """
    found = []
    rows = sorted(map(int, hull.phases.within(numbers)), key=lambda row: (hull.phases.sizes[row], hull.formula(row)))
    for row in rows:
        energy, counts = float(hull.phases.energies[row]), dict(hull.phases.composition(row))
        try:
            height = energy - hull.energy_at(counts)
            pure = sum(n * hull.phases.terminals[z] for z, n in counts.items()) / sum(counts.values())
        except HullFailure:
            height = pure = None
        found.append({
            "formula": hull.formula(row),
            "energy_per_atom": energy,
            "formation_energy_per_atom": None if pure is None else energy - pure,
            "e_above_hull": height,
            "id": hull.phases.ids[row],
            "origin": hull.phases.origins[row],
        })  # fmt: skip
    return found


def read_formulas(path: Path) -> list[str]:
    """The formulas of a .csv or .csv.gz, from the first of FORMULAS that it has.

    Raises:
        DataError: if it cannot be read, or has no such column.
    """
    rows = list(read_rows(path))
    column = next((name for name in FORMULAS if rows and name in rows[0]), None)
    if column is None:
        raise DataError(f"{path} has no column `formula`", f"or one of: {', '.join(FORMULAS[1:])}")
    return [row[column] for row in rows if row[column]]
