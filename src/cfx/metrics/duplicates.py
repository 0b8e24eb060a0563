"""Whether two structures are the same crystal."""

from __future__ import annotations

import functools


@functools.cache
def _matcher():
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher()


def same_crystal(one, other) -> bool:
    """Whether pymatgen's StructureMatcher, with its own tolerances, maps one Structure to the other."""
    return bool(_matcher().fit(one, other))
