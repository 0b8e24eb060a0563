"""The closest approach of atoms, images included."""

import itertools

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cfx.data.structures import closest_approach


def test_rock_salt():
    structure = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert closest_approach(structure) == pytest.approx(2.82)


def test_one_atom_meets_its_own_image():
    structure = Structure(Lattice.from_parameters(3, 4, 5, 90, 90, 60), ["Fe"], [[0.1, 0.2, 0.3]])
    assert closest_approach(structure) == pytest.approx(3.0)


def test_a_pair_across_the_boundary():
    structure = Structure(Lattice.cubic(10), ["Fe", "O"], [[0.01, 0, 0], [0.96, 0, 0]])
    assert closest_approach(structure) == pytest.approx(0.5)


def test_skewed_cells_against_all_images():
    """The shortest vector need not be an edge of the cell."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        matrix = rng.normal(size=(3, 3)) @ np.diag([1.0, 3.0, 9.0])
        steps = np.array([step for step in itertools.product(range(-12, 13), repeat=3) if any(step)])
        shortest = np.linalg.norm(steps @ matrix, axis=1).min()
        assert closest_approach(Structure(Lattice(matrix), ["Fe"], [[0, 0, 0]])) <= shortest + 1e-9
