"""The energies of many crystals, as they are or relaxed, with a look at the clock now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cfx.predictors.base import Potential
from cfx.predictors.relax import relax

if TYPE_CHECKING:
    from pymatgen.core import Structure

CHUNKS = (64, 1024)
"""Crystals given to a potential at once, at first and at most: among many there are more alike, which fill a batch."""

CHUNK_SECONDS = 1.0
"""Chunks grow while one takes less."""


class Energy(NamedTuple):
    """The energy of a crystal.

    Attributes:
        energy: of the whole cell, eV; NaN if there is none.
        structure: the pymatgen Structure that has it, or None.
        reason: what went wrong, or "".
    """

    energy: float
    structure: Structure | None
    reason: str


def energies_as_they_are(
    potential: Potential, structures: Sequence[Structure | None], on_done: Callable[[int], None]
) -> Iterator[Energy]:
    """The energy of each crystal.

    Args:
        potential: gives energies.
        structures: pymatgen Structures, None for rows that could not be read.
        on_done: told how many crystals are done, after each chunk; what it raises ends the work.
    """
    size, first = CHUNKS[0], 0
    while first < len(structures):
        part, began = structures[first : first + size], time.monotonic()
        batch = potential.evaluate(part, forces=False)
        first += len(part)
        on_done(first)
        size = next_chunk(size, time.monotonic() - began)
        for energy, structure, reason in zip(batch.energy, part, batch.reasons, strict=True):
            yield Energy(float(energy), structure, "" if structure is None else reason)


def next_chunk(size: int, seconds: float) -> int:
    """How many crystals to take at once, after `size` took `seconds`."""
    return min(2 * size, CHUNKS[1]) if seconds < CHUNK_SECONDS else size


def energies_of_relaxed(
    potential: Potential,
    structures: Sequence[Structure | None],
    fmax: float,
    steps: int,
    on_done: Callable[[int], None],
) -> Iterator[Energy]:
    """The energy of each crystal at its nearest minimum, and the relaxed structure.

    Args:
        potential: gives energies, forces and stresses.
        structures: pymatgen Structures, None for rows that could not be read.
        fmax: largest force left, eV/angstrom.
        steps: at most.
        on_done: told how many crystals are done, before every step of all; what it raises ends the work.
    """
    done = 0

    def count(number: int, result: object) -> None:
        nonlocal done
        done += 1

    def look() -> bool:
        on_done(done)
        return False

    for one in relax(potential, structures, fmax, steps, on_done=count, stop=look):
        stuck = "" if one.converged or one.structure is None else one.reason or "the relaxation did not converge"
        yield Energy(float(one.energy), one.structure, stuck)
    on_done(done)
