"""Whether two structures are the same crystal, and which of many are duplicates.

The answer is always that of pymatgen's StructureMatcher with its own tolerances. What it does anew for every pair,
reducing both cells, is done once for every crystal here, and only where another crystal has the same composition;
crystals whose primitive cells hold different numbers of atoms are told apart without it, as it would. It is not quite
symmetric: the earlier crystal, or the known one, is its first argument. Oxidation states are taken off before.
"""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from cfx.core.elements import SYMBOLS
from cfx.metrics.parallel import spread
from cfx.metrics.reduction import reduced_crystal

UNREAD = "could not be read"
"""Why a row without a structure fails."""

MIN_VOLUME = 0.1
"""Volume of a cell (cubic angstrom) from which on it is one."""


@dataclass(frozen=True)
class Uniqueness:
    """Whether a crystal matches no kept crystal of an earlier row.

    Attributes:
        unique: it does not; it is kept.
        match: row of a kept crystal that it matches, if it does.
        reason: why it could not be compared, or "".
    """

    unique: bool
    match: int | None = None
    reason: str = ""


@functools.cache
def _matcher():
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher()


def same_crystal(one, other) -> bool:
    """Whether pymatgen's StructureMatcher, with its own tolerances, maps one Structure to the other."""
    return bool(_matcher().fit(one, other))


def what_is_wrong(structure) -> str:
    """Why a structure cannot be compared with others, or ""."""
    if structure is None:
        return UNREAD
    if not len(structure):
        return "no atoms"
    if not (np.isfinite(structure.lattice.matrix).all() and np.isfinite(structure.frac_coords).all()):
        return "a lattice or coordinates that are not finite"
    if not structure.volume > MIN_VOLUME:
        return f"a cell of at most {MIN_VOLUME} cubic angstrom"
    if not all(0 < getattr(kind, "Z", 0) < len(SYMBOLS) for site in structure for kind in site.species):
        return "a species that is no element"
    return ""


def composition_key(structure) -> Hashable:
    """What two structures share if they can be the same crystal: the reduced formula by atomic number.

    Of structures with partial occupancies it is the set of elements; these are never the same as ordered ones.
    """
    if not structure.is_ordered:
        return ("partial occupancies", *sorted({kind.Z for site in structure for kind in site.species}))
    counts = Counter(site.specie.Z for site in structure)
    divisor = math.gcd(*counts.values())
    return tuple(sorted((number, count // divisor) for number, count in counts.items()))


def find_match(one, kept: Sequence) -> int | None:
    """Which of the reduced crystals `kept` is the reduced crystal `one`, by index, or None.

    Those of the most similar volume come first, and the first that matches is the answer.
    """

    def difference(i: int) -> float:
        return abs(kept[i].volume / len(kept[i]) - one.volume / len(one))

    alike = sorted((i for i in range(len(kept)) if len(kept[i]) == len(one)), key=difference)
    return next((i for i in alike if _matcher().fit(kept[i], one, skip_structure_reduction=True)), None)


def find_duplicates(
    structures: Sequence, n_jobs: int | None = None, on_done: Callable[[int], None] | None = None
) -> list[Uniqueness]:
    """Which of the crystals match an earlier one that is kept.

    Args:
        structures: pymatgen Structures, None for rows that could not be read; these are not unique.
        n_jobs: processes, see `spread`; they do not change the result.
        on_done: told how many compositions that occur more than once are done.
    """
    reasons = [what_is_wrong(structure) for structure in structures]
    records = [Uniqueness(not reason, None, reason) for reason in reasons]
    groups = [rows for rows in by_composition(structures, reasons).values() if len(rows) > 1]
    answers = spread(_compare_all, (([structures[row] for row in rows],) for rows in groups), n_jobs, on_done)
    for rows, answer in zip(groups, answers, strict=True):
        for row, (match, reason) in zip(rows, answer, strict=True):
            records[row] = Uniqueness(match is None and not reason, None if match is None else rows[match], reason)
    return records


def by_composition(structures: Sequence, reasons: Sequence[str]) -> dict[Hashable, list[int]]:
    """Rows of equal composition, of those that nothing is wrong with."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row, (structure, reason) in enumerate(zip(structures, reasons, strict=True)):
        if not reason:
            groups[composition_key(structure)].append(row)
    return groups


def _compare_all(structures: Sequence) -> list[tuple[int | None, str]]:
    """For crystals of one composition: which earlier one each matches, and why it could not be compared."""
    answers: list[tuple[int | None, str]] = []
    rows, kept = [], []
    for row, one in enumerate(map(reduce_or_say_why, structures)):
        if isinstance(one, str):
            answers.append((None, one))
            continue
        match = find_match(one, kept)
        if match is None:
            rows.append(row)
            kept.append(one)
        answers.append((None if match is None else rows[match], ""))
    return answers


def reduce_or_say_why(structure):
    """The reduced crystal, or the reason why there is none."""
    try:
        return reduced_crystal(structure)
    except (ValueError, ArithmeticError) as error:
        return f"pymatgen cannot reduce the cell ({type(error).__name__})"
