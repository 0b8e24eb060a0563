"""The symmetry of a crystal, found once, for steps that keep it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Structure

SYMPREC = 0.01
"""Tolerance of the search, angstrom."""


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
        dataset = spglib.get_symmetry_dataset(cell, SYMPREC)
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
