"""The phases of a hull as arrays, and the mixture of them with the lowest energy.

A hull's programmes have a row for each element, so a basis is a matrix of at most a dozen rows, and the pure elements
are a mixture to start from. scipy's general solver needs milliseconds for what takes a few steps of small matrices
here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from cfx.core.elements import SYMBOLS, lowest_terms

if TYPE_CHECKING:
    from pymatgen.core import Composition

TOLERANCE = 1e-10
"""eV/atom. No compound that would lower the energy of a mixture by more is left out."""

NUDGE = 1e-10
"""Atomic fractions are moved by about this much, unevenly, so that no two mixtures tie and the steps cannot circle."""

TRACE = 1e-7
"""Shares of a mixture below this are rounding."""

MAX_STEPS = 20_000
"""Most exchanges of a phase before the search gives up."""

STRUCTURE = "structure"
"""Origin of an energy that was computed for a structure as it was given."""

OFFSET = "offset"
"""Origin of an energy of another potential, shifted by what that is off by elsewhere."""

LEAST_SHARED = 3
"""Compositions with an element that tell what another potential is off by for it."""

FOLDS, FEW = 5, 50
"""Parts of the shared compositions, each of which tests offsets fitted to the others; of few, one at a time."""

ROUNDS, SMALLEST_RESIDUAL, PRIOR = 20, 0.02, 1e-3
"""Of the fit of elements' energies: how often it is reweighted; eV/atom below which deviations count alike; the weight
of what is known beforehand."""

Reduced = tuple[tuple[int, int], ...]
"""(atomic number, atoms) in order of atomic number, without a common divisor."""


def reduce_counts(counts: Mapping[int, float]) -> Reduced:
    """Atomic number -> atoms, divided by their greatest common divisor.

    Raises:
        ValueError: if there is none, or they are not whole numbers.
    """
    whole = {z: round(n) for z, n in counts.items() if n}
    if not whole or any(z < 1 or n < 1 or abs(n - counts[z]) > 1e-6 for z, n in whole.items()):
        raise ValueError("has fractions of atoms")
    return tuple(sorted(lowest_terms(whole).items()))


def count_atoms(composition: Composition) -> dict[int, float]:
    """Atomic number -> atoms of a pymatgen Composition; isotopes and ions as their element, no element as 0."""
    counts: dict[int, float] = {}
    for element, n in composition.items():
        z = int(element.Z)
        z = z if 0 < z < len(SYMBOLS) else 0
        counts[z] = counts.get(z, 0.0) + n
    return counts


@dataclass(frozen=True)
class Phases:
    """Phases of different compositions.

    Attributes:
        sizes: uint8 [n], elements of each.
        species: uint8 [sizes.sum()], atomic numbers, phase after phase, in ascending order within one.
        counts: int32 [sizes.sum()], atoms of each of them in the reduced formula.
        energies: float64 [n], eV/atom.
        ids: [n], names of the crystals they are.
        origins: [n], what their energies were computed from: "structure", as published, "relaxed" and so on.
    """

    sizes: np.ndarray
    species: np.ndarray
    counts: np.ndarray
    energies: np.ndarray
    ids: list[str]
    origins: list[str]

    @classmethod
    def lowest(
        cls,
        compositions: Iterable[Reduced],
        energies: Iterable[float],
        ids: Iterable[str],
        origins: Iterable[str] | None = None,
    ) -> Phases:
        """The phase of lowest energy (eV/atom) for each composition, in order of composition.

        Args:
            compositions: [m].
            energies: [m], eV/atom.
            ids: [m].
            origins: [m]; "structure" by default.
        """
        best: dict[Reduced, tuple[float, str, str]] = {}
        names = list(ids)
        origins = [STRUCTURE] * len(names) if origins is None else origins
        for composition, energy, name, origin in zip(compositions, energies, names, origins, strict=True):
            if composition not in best or energy < best[composition][0]:
                best[composition] = (float(energy), name, origin)
        order = sorted(best)
        pairs = np.array([pair for composition in order for pair in composition], np.int32).reshape(-1, 2)
        return cls(
            sizes=np.array([len(composition) for composition in order], np.uint8),
            species=pairs[:, 0].astype(np.uint8),
            counts=pairs[:, 1],
            energies=np.array([best[composition][0] for composition in order], np.float64),
            ids=[best[composition][1] for composition in order],
            origins=[best[composition][2] for composition in order],
        )

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def _start(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)])

    @cached_property
    def _masks(self) -> tuple[np.ndarray, np.ndarray]:
        """uint64 [n] twice: a bit for each element, up to 63 and from 64."""
        masks = []
        for first in (0, 64):
            own = (self.species >= first) & (self.species < first + 64)
            bits = np.where(own, np.uint64(1) << (self.species % 64).astype(np.uint64), np.uint64(0))
            masks.append(np.bitwise_or.reduceat(bits, self._start[:-1]) if len(self) else bits)
        return masks[0], masks[1]

    @cached_property
    def elements(self) -> frozenset[int]:
        """Atomic numbers of all that any phase holds."""
        return frozenset(self.species.tolist())

    @cached_property
    def pure(self) -> dict[int, int]:
        """Atomic number -> the phase of that element alone."""
        return {int(self.species[self._start[row]]): int(row) for row in np.flatnonzero(self.sizes == 1)}

    @cached_property
    def terminals(self) -> dict[int, float]:
        """Atomic number -> energy (eV/atom) of the phases of one element."""
        return {z: float(self.energies[row]) for z, row in self.pure.items()}

    def within(self, numbers: Sequence[int]) -> np.ndarray:
        """int [m], the phases made of these elements only."""
        low = sum(1 << z for z in numbers if z < 64)
        high = sum(1 << z - 64 for z in numbers if z >= 64)
        everything = (1 << 64) - 1
        rows = np.flatnonzero(self._masks[0] & np.uint64(everything - low) == 0)
        return rows[self._masks[1][rows] & np.uint64(everything - high) == 0]

    def fractions(self, rows: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
        """float64 [len(numbers), len(rows)], atomic fractions of phases made of these elements only."""
        column = np.zeros(len(SYMBOLS), int)
        column[list(numbers)] = np.arange(len(numbers))
        table = np.zeros((len(rows), len(numbers)))
        sizes = self.sizes[rows].astype(np.int64)
        of_phase = np.repeat(np.arange(len(rows)), sizes)
        place = np.arange(len(of_phase)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        entries = np.repeat(self._start[rows], sizes) + place
        table[of_phase, column[self.species[entries]]] = self.counts[entries]
        return (table / table.sum(1, keepdims=True)).T

    def composition(self, row: int) -> Reduced:
        """The reduced composition of a phase."""
        entries = slice(self._start[row], self._start[row + 1])
        return tuple(zip(self.species[entries].tolist(), self.counts[entries].tolist(), strict=True))


def fit_elements(compositions: Sequence[Reduced], energies: np.ndarray, prior: np.ndarray | None = None) -> np.ndarray:
    """Energies of the elements whose mixtures come nearest to energies of compositions.

    Least squares, reweighted towards absolute deviations, so that outliers move the fit little.

    Args:
        compositions: n of them.
        energies: float64 [n], eV/atom.
        prior: float64 [len(SYMBOLS)], eV/atom by atomic number, for elements that hardly occur; 0 by default.

    Returns:
        float64 [len(SYMBOLS)], eV/atom by atomic number.
    """
    x = fractions_of(compositions)
    prior = np.zeros(x.shape[1]) if prior is None else prior
    weights, found = np.ones(len(x)), prior
    for _ in range(ROUNDS):
        a = x * weights[:, None]
        found = np.linalg.solve(a.T @ x + PRIOR * np.eye(x.shape[1]), a.T @ energies + PRIOR * prior)
        weights = 1 / np.maximum(np.abs(energies - x @ found), SMALLEST_RESIDUAL)
    return found


def fractions_of(compositions: Sequence[Reduced]) -> np.ndarray:
    """Atomic fractions, float64 [n, len(SYMBOLS)], by atomic number."""
    table = np.zeros((len(compositions), len(SYMBOLS)))
    for row, composition in enumerate(compositions):
        for z, n in composition:
            table[row, z] = n
    return table / table.sum(1, keepdims=True)


@dataclass(frozen=True)
class Filled:
    """Phases of one potential with those that only another one knows.

    Attributes:
        phases: own phases, and added ones.
        shared: number of compositions of both.
        added: number of added phases.
        lacking: symbols of elements that too few shared compositions have; phases with one were not added.
        error: mean absolute error, eV/atom, of offsets at shared compositions that they were not fitted to.
    """

    phases: Phases
    shared: int
    added: int
    lacking: list[str]
    error: float


def fill(own: Phases, other: Phases, rows: Iterable[int]) -> Filled | None:
    """Adds phases of compositions that only another potential knows, with energies shifted by what it is off by.

    That is an amount for each element, fitted to all compositions that both know. At those, own energies count.

    Args:
        own: their energies are on the scale of the other's.
        other: phases by another potential.
        rows: which of the other's phases to add.

    Returns:
        None if they share too little to tell what the other is off by, for any element.
    """
    at = {own.composition(row): float(own.energies[row]) for row in range(len(own))}
    its = {other.composition(row): float(other.energies[row]) for row in range(len(other))}
    shared = [composition for composition in at if composition in its]
    off = np.array([at[composition] - its[composition] for composition in shared])
    seen = Counter(z for composition in shared for z, _ in composition)
    known = {z for z, count in seen.items() if count >= LEAST_SHARED}
    if not known:
        return None
    wanted = {row: other.composition(row) for row in rows if other.composition(row) not in at}
    lacking = sorted({z for composition in wanted.values() for z, _ in composition} - known)
    added = {row: one for row, one in wanted.items() if all(z in known for z, _ in one)}
    shifted = other.energies[list(added)] + fractions_of(list(added.values())) @ fit_elements(shared, off)
    phases = Phases.lowest(
        [*at, *added.values()],
        [*at.values(), *shifted],
        [*own.ids, *(other.ids[row] for row in added)],
        [*own.origins, *[OFFSET] * len(added)],
    )
    return Filled(phases, len(shared), len(added), [SYMBOLS[z] for z in lacking], _error_of_offsets(shared, off))


def _error_of_offsets(compositions: Sequence[Reduced], off: np.ndarray) -> float:
    """Mean absolute error, eV/atom, of energies of elements at compositions that they are not fitted to."""
    x, numbers, errors = fractions_of(compositions), np.arange(len(off)), []
    folds = FOLDS if len(off) > FEW else len(off)
    for fold in range(folds):
        others = [one for i, one in enumerate(compositions) if i % folds != fold]
        tests = numbers % folds == fold
        errors.append(np.abs(off[tests] - x[tests] @ fit_elements(others, off[~tests])))
    return float(np.concatenate(errors).mean())


class NoSolution(ArithmeticError):
    """The steps did not come to an end."""


def best_mixture(fractions: np.ndarray, gains: np.ndarray, x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The mixture of lowest energy at a composition: its formation energy, and what it consists of.

    The energy is the value of chemical potentials at which no compound gains more than TOLERANCE: a lower bound, which
    the best mixture reaches.

    Args:
        fractions: float64 [k, m], atomic fractions of compounds.
        gains: float64 [m], their formation energies from the pure elements, eV/atom.
        x: float64 [k], atomic fractions to mix, positive, with the sum 1.

    Returns:
        The formation energy (eV/atom, 0 or negative); the phases of the final basis, int [k], first the k elements,
        then the m compounds; their shares of the atoms, float64 [k], with the sum 1, none above 0 by less than TRACE.

    Raises:
        NoSolution: if it is not found in MAX_STEPS.
    """
    k = len(x)
    columns = np.concatenate([np.eye(k), fractions], axis=1)
    costs = np.concatenate([np.zeros(k), gains])
    nudged = x + NUDGE * (1 + np.modf(np.arange(1, k + 1) * np.sqrt(2.0))[0])
    basis, inverse = np.arange(k), np.eye(k)
    for _ in range(MAX_STEPS):
        potentials = costs[basis] @ inverse
        margins = costs - potentials @ columns
        enters = int(margins.argmin())
        if margins[enters] >= -TOLERANCE:
            shares = inverse @ x
            return float(potentials @ x), basis, np.where(shares < TRACE, 0.0, shares)
        change = inverse @ columns[:, enters]
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(change > 1e-12, (inverse @ nudged) / change, np.inf)
        basis[room.argmin()] = enters
        inverse = np.linalg.inv(columns[:, basis])
    raise NoSolution("no lowest-energy mixture of phases found")
