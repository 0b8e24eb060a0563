"""Whether crystals have the space group that was asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cfx.config import SYMPREC
from cfx.data.sanity import why_malformed
from cfx.evaluation.parallel import spread

ANGLE_TOLERANCE = 5.0
"""Angle tolerance (degree), pymatgen's."""

CHUNK = 64
"""Crystals a process takes at once."""


@dataclass(frozen=True)
class SpaceGroup:
    """The space group of a crystal.

    Attributes:
        found: by spglib, or None.
        asked: what was asked for, or None.
        reason: why none was found, or "".
    """

    found: int | None
    asked: int | None = None
    reason: str = ""

    @property
    def as_asked(self) -> bool | None:
        """Whether both are the same; None if none was asked for."""
        return None if self.asked is None else self.found == self.asked


def find_space_groups(
    structures: Sequence,
    asked: Sequence[int | None] | None = None,
    symprec: float = SYMPREC,
    n_jobs: int | None = None,
    on_done: Callable[[int], None] | None = None,
) -> list[SpaceGroup]:
    """The space group of each pymatgen Structure, or None for a row that could not be read.

    Searched by spglib, as in published figures. (moyo is faster; on relaxed crystals, which keep to a group within
    about the tolerance only, it finds another one in 3 of 100 cases.)

    Args:
        structures: the crystals.
        asked: the space group asked for, for every row, or None.
        symprec: distance tolerance of the search, angstrom.
        n_jobs: processes, see `spread`.
        on_done: told how many chunks of `CHUNK` crystals are done.
    """
    wishes = [None] * len(structures) if asked is None else asked
    chunks = ((structures[start : start + CHUNK], symprec) for start in range(0, len(structures), CHUNK))
    found = [one for chunk in spread(_search_all, chunks, n_jobs, on_done) for one in chunk]
    return [SpaceGroup(group, wish, reason) for (group, reason), wish in zip(found, wishes, strict=True)]


def _search_all(structures: Sequence, symprec: float) -> list[tuple[int | None, str]]:
    """Space group and reason of each."""
    return [_search(structure, symprec) for structure in structures]


def _search(structure, symprec: float) -> tuple[int | None, str]:
    os.environ.setdefault("SPGLIB_WARNING", "OFF")
    import spglib

    reason = why_malformed(structure)
    if not reason and not structure.is_ordered:
        reason = "partial occupancies: no symmetry search"
    if reason:
        return None, reason
    cell = (structure.lattice.matrix, structure.frac_coords, [site.specie.Z for site in structure])
    try:
        dataset = spglib.get_symmetry_dataset(cell, symprec, ANGLE_TOLERANCE)
    except spglib.SpglibError:
        dataset = None
    return (None, "spglib finds no symmetry") if dataset is None else (int(dataset.number), "")
