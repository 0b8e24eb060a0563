"""Small crystals, and one crystal in many disguises."""

from __future__ import annotations

import numpy as np
from pymatgen.core import Lattice, Structure


def rock_salt(a: float = 5.64, cation: str = "Na", anion: str = "Cl") -> Structure:
    corners = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    return Structure(Lattice.cubic(a), [cation] * 4 + [anion] * 4, [*corners, *(corners + 0.5)])


def caesium_chloride(a: float = 3.5) -> Structure:
    return Structure(Lattice.cubic(a), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def build(structure: Structure, matrix: np.ndarray, coords: np.ndarray, order=slice(None)) -> Structure:
    """The atoms of a structure, in another order, at other coordinates of another lattice."""
    symbols = np.array([site.specie.symbol for site in structure])
    return Structure(Lattice(matrix), list(symbols[order]), coords[order])


def supercell(structure: Structure, rng: np.random.Generator) -> Structure:
    scale = [1, 1, 1]
    scale[rng.integers(3)] = 2
    return structure.make_supercell(scale, in_place=False)


def another_setting(structure: Structure, rng: np.random.Generator) -> Structure:
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    setting = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 1]])[rng.permutation(3)]
    matrix = setting @ structure.lattice.matrix @ rotation
    return build(structure, matrix, structure.frac_coords @ np.linalg.inv(setting))


def another_origin(structure: Structure, rng: np.random.Generator) -> Structure:
    order = rng.permutation(len(structure))
    return build(structure, structure.lattice.matrix, structure.frac_coords + rng.random(3), order)


def strained(structure: Structure, rng: np.random.Generator) -> Structure:
    strain = np.eye(3) + np.diag(rng.uniform(-0.02, 0.02, 3))
    return build(structure, structure.lattice.matrix @ strain, structure.frac_coords)


def displaced(structure: Structure, rng: np.random.Generator, size: float) -> Structure:
    """Every atom moved by `size` angstrom, in a direction of its own."""
    steps = rng.normal(size=(len(structure), 3))
    steps *= size / np.linalg.norm(steps, axis=1, keepdims=True)
    coords = structure.frac_coords + steps @ np.linalg.inv(structure.lattice.matrix)
    return build(structure, structure.lattice.matrix, coords)


DISGUISES = (supercell, another_setting, another_origin, strained)
"""Each gives another structure of the same crystal."""
