"""Whether two structures are the same crystal, by pymatgen's StructureMatcher with its own tolerances.

`same_crystal` asks it for a pair. Among many crystals, what it does anew for every pair, taking both to their reduced
primitive cells, is done once for each (`reduce_or_say_why`), and only where another one has the same composition;
oxidation states are taken off before. `find_match` compares these cells, and tells those with different numbers of
atoms apart without asking, as it would. It is not quite symmetric: the earlier crystal, or the known one, comes first.
"""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from cfx.metrics.reduction import reduced_crystal


@functools.cache
def _matcher():
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher()


def same_crystal(one, other) -> bool:
    """Whether pymatgen's StructureMatcher, with its own tolerances, maps one Structure to the other."""
    return bool(_matcher().fit(one, other))


def composition_key(structure) -> Hashable:
    """What two structures share if they can be the same crystal: the reduced formula by atomic number.

    Of structures with partial occupancies it is the set of elements; these are never the same as ordered ones.
    """
    if not structure.is_ordered:
        return ("partial occupancies", *sorted({kind.Z for site in structure for kind in site.species}))
    counts = Counter(site.specie.Z for site in structure)
    divisor = math.gcd(*counts.values())
    return tuple(sorted((number, count // divisor) for number, count in counts.items()))


def by_composition(structures: Sequence, reasons: Sequence[str]) -> dict[Hashable, list[int]]:
    """Rows of equal composition, of those that nothing is wrong with."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row, (structure, reason) in enumerate(zip(structures, reasons, strict=True)):
        if not reason:
            groups[composition_key(structure)].append(row)
    return groups


def reduce_or_say_why(structure):
    """The reduced crystal, or the reason why there is none."""
    try:
        return reduced_crystal(structure)
    except (ValueError, ArithmeticError) as error:
        return f"pymatgen cannot reduce the cell ({type(error).__name__})"


def find_match(one, kept: Sequence) -> int | None:
    """Which of the reduced crystals `kept` is the reduced crystal `one`, by index, or None.

    Those of the most similar volume come first, and the first that matches is the answer.
    """

    def difference(i: int) -> float:
        return abs(kept[i].volume / len(kept[i]) - one.volume / len(one))

    alike = sorted((i for i in range(len(kept)) if len(kept[i]) == len(one)), key=difference)
    return next((i for i in alike if _matcher().fit(kept[i], one, skip_structure_reduction=True)), None)
