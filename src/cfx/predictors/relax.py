"""Relaxation of many crystals at once, atoms and cell, by FIRE, with or without their symmetry.

Each crystal follows the path of ASE's FIRE with a FrechetCellFilter: the coordinates are those of the atoms and the
logarithm of the strain times the number of atoms, the forces on the latter the virial over the number of atoms. Here
the strain is counted from the cell of the step before, not from the first cell.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cfx.config import SYMPREC
from cfx.core import Structure
from cfx.predictors.base import Potential
from cfx.predictors.batching import why_unsuitable

CRYSTALS_AT_ONCE = 64
"""Under way together by default; a crystal that is finished makes room for the next."""

FIRST_STEP, LONGEST_STEP, MOST_MOVED = 0.1, 1.0, 0.2
"""Time steps, in ASE's units, and the longest move of all coordinates together, angstrom."""

PATIENCE, FASTER, SLOWER, MIXING, LESS_MIXING = 5, 1.1, 0.5, 0.1, 0.99
"""N_min, f_inc, f_dec, alpha_start and f_alpha of FIRE (Bitzek et al., Phys. Rev. Lett. 97, 170201, 2006)."""


@dataclass(frozen=True)
class Relaxed:
    """What became of a crystal.

    Attributes:
        structure: its last state that was evaluated; as it was given (or None) if none was.
        energy: of that state, eV, whole cell; NaN if none was evaluated.
        converged: whether `fmax` was reached.
        steps: that were made.
        fmax: largest force of that state, eV/angstrom, as `relax` counts it.
        reason: why the relaxation ended early; "" if it converged or made all its steps.
        initial_energy: of the first state, eV, whole cell; NaN if it was not evaluated.
    """

    structure: Structure | None
    energy: float
    converged: bool
    steps: int
    fmax: float
    reason: str
    initial_energy: float = np.nan


def relax(
    potential: Potential,
    structures: Sequence[Structure | None],
    fmax: float = 0.05,
    steps: int = 500,
    fix_symmetry: bool = False,
    on_done: Callable[[int, Relaxed], None] | None = None,
    stop: Callable[[], bool] | None = None,
    at_once: int = CRYSTALS_AT_ONCE,
) -> list[Relaxed]:
    """Relaxes crystals, positions and cell.

    Args:
        potential: gives energies, forces and stresses.
        structures: are left as they are. None gets a reason.
        fmax: largest force on an atom, and largest row of the virial over the number of atoms, eV/angstrom.
        steps: most steps for a crystal; none means that it is only evaluated.
        fix_symmetry: keep the space group of the start, found with a tolerance of 0.01 angstrom.
        on_done: called with the number and the result of each crystal as soon as it is finished.
        stop: asked before every step of all; True ends the relaxation, and crystals under way are given as they are.
        at_once: how many are under way together.

    Returns:
        Results in the order of the structures.
    """
    results: dict[int, Relaxed] = {}
    waiting, active = list(range(len(structures)))[::-1], []
    while (waiting or active) and not (stop is not None and stop()):
        while waiting and len(active) < at_once:
            number = waiting.pop()
            active.append(_Relaxation(number, structures[number], fix_symmetry))
        for relaxation in _evaluate(potential, active, fmax, steps):
            results[relaxation.number] = relaxation.result()
            active.remove(relaxation)
            if on_done is not None:
                on_done(relaxation.number, results[relaxation.number])
    for relaxation in active:
        relaxation.reason = "stopped"
        results[relaxation.number] = relaxation.result()
    for number in waiting:
        results[number] = Relaxed(structures[number], np.nan, False, 0, np.nan, "stopped before it began")
    return [results[i] for i in range(len(structures))]


def _evaluate(potential: Potential, under_way: list[_Relaxation], fmax: float, steps: int) -> list[_Relaxation]:
    """Evaluates all crystals under way and moves those that go on; returns the others."""
    batch = potential.evaluate([relaxation.structure for relaxation in under_way])
    done = []
    for i, relaxation in enumerate(under_way):
        if batch.reasons[i]:
            before = f"after {relaxation.steps} steps: " if relaxation.steps else ""
            relaxation.reason = relaxation.reason or before + batch.reasons[i]
            relaxation.steps = max(0, relaxation.steps - 1)  # the step that led here is not part of the result
            done.append(relaxation)
            continue
        forces = batch.forces[i]
        assert forces is not None  # a crystal without a reason has forces
        relaxation.look(float(batch.energy[i]), forces, batch.stress[i])
        relaxation.converged = relaxation.fmax <= fmax
        if relaxation.converged or relaxation.steps >= steps:
            done.append(relaxation)
        else:
            relaxation.step()
    return done


class _Relaxation:
    """A crystal on its way.

    Attributes:
        number: its place among the structures.
        structure: to be evaluated next.
        seen, energy, fmax, steps, converged, reason, initial_energy: see `Relaxed`; `seen` is its structure.
    """

    def __init__(self, number: int, structure: Structure | None, fix_symmetry: bool):
        self.number, self.structure, self.seen = number, structure, structure
        self.energy, self.fmax, self.steps, self.converged, self.reason = np.nan, np.nan, 0, False, ""
        self.initial_energy = np.nan
        self._symmetry: Symmetry | None = None
        self._forces = np.zeros((0, 3))
        self._velocity: np.ndarray | None = None
        self._time, self._mixing, self._downhill = FIRST_STEP, MIXING, 0
        if fix_symmetry and structure is not None and not why_unsuitable(structure, None):
            try:
                self.structure, self._symmetry = find_symmetry(structure)
            except ValueError as error:
                self.structure, self.reason = None, f"its symmetry cannot be kept: {error}"

    def result(self) -> Relaxed:
        """What there is to say of it now."""
        parts = (self.seen, self.energy, self.converged, self.steps, self.fmax, self.reason, self.initial_energy)
        return Relaxed(*parts)

    def look(self, energy: float, forces: np.ndarray, stress: np.ndarray) -> None:
        """Takes note of what the potential says of its present state."""
        assert self.structure is not None
        virial = -self.structure.volume * (stress + stress.T) / 2
        if self._symmetry is not None:
            forces, virial = self._symmetry.symmetrize_vectors(forces), self._symmetry.symmetrize_tensor(virial)
        self._forces = np.concatenate([forces, virial / len(forces)])
        self.seen, self.energy = self.structure, energy
        if not self.steps:
            self.initial_energy = energy
        self.fmax = float(np.linalg.norm(self._forces, axis=1).max())

    def step(self) -> None:
        """One step of FIRE."""
        forces = self._forces
        if self._velocity is None:
            self._velocity = np.zeros_like(forces)
        elif np.vdot(forces, self._velocity) > 0:
            along = forces * (np.linalg.norm(self._velocity) / np.linalg.norm(forces))
            self._velocity = (1 - self._mixing) * self._velocity + self._mixing * along
            if self._downhill > PATIENCE:
                self._time = min(self._time * FASTER, LONGEST_STEP)
                self._mixing *= LESS_MIXING
            self._downhill += 1
        else:
            self._velocity = np.zeros_like(forces)
            self._time, self._mixing, self._downhill = self._time * SLOWER, MIXING, 0
        self._velocity = self._velocity + self._time * forces
        move = self._time * self._velocity
        self._move(move * min(1.0, MOST_MOVED / np.linalg.norm(move)))
        self.steps += 1

    def _move(self, move: np.ndarray) -> None:
        """Moves atoms by the first n rows, angstrom, and strains everything by the last three over n."""
        from pymatgen.core import Lattice, Structure

        now = self.structure
        assert now is not None
        count = len(now)
        coords = now.frac_coords + move[:count] @ np.linalg.inv(now.lattice.matrix)
        lengths, axes = np.linalg.eigh(move[count:] / count)
        cell = now.lattice.matrix @ (axes * np.exp(lengths)) @ axes.T
        self.structure = Structure(Lattice(cell), now.species, coords, site_properties=now.site_properties)


@dataclass(frozen=True)
class Symmetry:
    """The operations of a crystal of n atoms; those of a cell that is not primitive include its translations.

    Attributes:
        rotations: [operations, 3, 3], of Cartesian columns.
        images: [operations, n]; operation g moves atom i to images[g, i].
    """

    rotations: np.ndarray
    images: np.ndarray

    def symmetrize_vectors(self, vectors: np.ndarray) -> np.ndarray:
        """The part of one vector per atom [n, 3] that all operations leave as it is."""
        total = np.zeros_like(vectors)
        for rotation, images in zip(self.rotations, self.images, strict=True):
            total[images] += vectors @ rotation.T
        return total / len(self.images)

    def symmetrize_tensor(self, tensor: np.ndarray) -> np.ndarray:
        """The part of a tensor [3, 3] that all operations leave as it is."""
        return np.mean(self.rotations @ tensor @ self.rotations.transpose(0, 2, 1), axis=0)


def find_symmetry(structure: Structure) -> tuple[Structure, Symmetry]:
    """A crystal whose cell and positions obey its symmetry to rounding, at most SYMPREC or so away, and the symmetry.

    Args:
        structure: ordered.

    Raises:
        ValueError: if spglib finds no symmetry that maps atoms to atoms.
    """
    from pymatgen.core import Lattice, Structure

    turns, shifts = _operations(structure)
    cell, coords = _exact_cell(structure.lattice.matrix, turns), structure.frac_coords
    numbers = np.array([site.specie.Z for site in structure])
    images = np.array(
        [_images(coords, coords @ turn.T + shift, numbers, cell) for turn, shift in zip(turns, shifts, strict=True)]
    )
    exact = np.zeros_like(coords)
    for turn, shift, to in zip(turns, shifts, images, strict=True):
        moved = coords @ turn.T + shift
        exact[to] += moved - np.rint(moved - coords[to])
    exact /= len(turns)
    rotations = cell.T @ turns @ np.linalg.inv(cell.T)
    properties = structure.site_properties
    return Structure(Lattice(cell), structure.species, exact, site_properties=properties), Symmetry(rotations, images)


def _operations(structure: Structure) -> tuple[np.ndarray, np.ndarray]:
    """Rotations [g, 3, 3] of fractional columns, and translations [g, 3]."""
    os.environ.setdefault("SPGLIB_WARNING", "OFF")
    import spglib

    cell = (structure.lattice.matrix, structure.frac_coords, [site.specie.Z for site in structure])
    try:
        # The stubs want lists of lists; spglib takes arrays.
        dataset = spglib.get_symmetry_dataset(cell, SYMPREC)  # pyright: ignore[reportArgumentType]
    except spglib.SpglibError as error:
        raise ValueError(f"spglib: {error}") from error
    if dataset is None:
        raise ValueError("spglib finds no symmetry")
    return np.asarray(dataset.rotations, float), np.asarray(dataset.translations)


def _exact_cell(cell: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Row vectors [3, 3] whose dot products all rotations keep: those of the cell, strained a little."""
    metric = np.mean(turns.transpose(0, 2, 1) @ (cell @ cell.T) @ turns, axis=0)
    inverse = np.linalg.inv(cell)
    squares, axes = np.linalg.eigh(inverse @ metric @ inverse.T)
    return cell @ (axes * np.sqrt(squares)) @ axes.T


def _images(coords: np.ndarray, moved: np.ndarray, numbers: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Which atom each moved atom falls on [n]."""
    difference = moved[:, None] - coords[None]
    distance = np.linalg.norm((difference - np.rint(difference)) @ cell, axis=-1)
    distance[numbers[:, None] != numbers[None]] = np.inf
    images = distance.argmin(1)
    if len(set(images.tolist())) < len(images):
        raise ValueError("the symmetry found does not map atoms to atoms")
    return images
