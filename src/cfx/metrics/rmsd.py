"""How far atoms moved in a relaxation."""

from __future__ import annotations

import functools
import warnings

from cfx.metrics.reduction import plain
from cfx.metrics.screen import what_is_wrong


@functools.cache
def _matcher(primitive: bool):
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(primitive_cell=primitive)


def rms_displacement(structure, relaxed) -> float | None:
    """Root mean square displacement of the atoms, angstrom; None where StructureMatcher no longer matches the two.

    Both are brought to one volume, the geometric mean of theirs, and laid over each other as well as possible, so a
    change of volume alone is no displacement. Cells with equally many atoms are compared as they are: to look for
    smaller ones averages over the atoms that become one.

    Args:
        structure: pymatgen Structure before, or None.
        relaxed: after, or None.
    """
    if what_is_wrong(structure) or what_is_wrong(relaxed):
        return None
    before, after = plain(structure), plain(relaxed)
    if before.composition.reduced_composition != after.composition.reduced_composition:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distances = _matcher(len(before) != len(after)).get_rms_dist(before, after)
    if distances is None:
        return None
    # pymatgen's unit of length: the cube root of the volume per atom, the geometric mean of both crystals'.
    unit = (before.volume / len(before) * after.volume / len(after)) ** (1 / 6)
    return float(distances[0]) * unit
