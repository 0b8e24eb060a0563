"""The two frames of a lattice, and what a crystal system does to it."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice

from cfx.core import lattice

CELL = np.array([[3.0, 4.0, 5.0, 80.0, 95.0, 110.0]])
SYSTEMS = {
    "triclinic": (1, 2, [3, 4, 5, 80, 95, 110]),
    "monoclinic": (3, 15, [3, 4, 5, 90, 95, 90]),
    "orthorhombic": (16, 74, [3, 4, 5, 90, 90, 90]),
    "tetragonal": (75, 142, [3, 3, 5, 90, 90, 90]),
    "hexagonal": (143, 194, [3, 3, 5, 90, 90, 120]),
    "cubic": (195, 230, [3, 3, 3, 90, 90, 90]),
}

cells = st.tuples(*[st.floats(0.5, 100.0)] * 3, *[st.floats(20.0, 160.0)] * 3)


@settings(deadline=None)
@given(st.lists(st.tuples(cells, st.integers(1, 2000)), min_size=1, max_size=5))
def test_frames_are_inverse(crystals):
    physical = np.array([cell for cell, _ in crystals])
    num_atoms = np.array([count for _, count in crystals], np.int32)
    model = lattice.to_model_frame(physical, num_atoms)
    np.testing.assert_allclose(lattice.to_physical_frame(model, num_atoms), physical, rtol=1e-12)
    there = lattice.to_physical_frame(physical, num_atoms)
    np.testing.assert_allclose(lattice.to_model_frame(there, num_atoms), physical, rtol=1e-12)


def test_model_frame_of_a_textbook_cell():
    """Rock salt: 8 atoms in the cell, so that lengths are halved."""
    model = lattice.to_model_frame(np.array([[5.64, 5.64, 5.64, 90.0, 90.0, 90.0]]), np.array([8]))
    np.testing.assert_allclose(model, [[2.82, 2.82, 2.82, np.pi / 2, np.pi / 2, np.pi / 2]], rtol=1e-12)


def test_frames_agree_between_numpy_and_jax():
    num_atoms = np.array([12])
    np.testing.assert_allclose(
        lattice.to_model_frame(jnp.asarray(CELL), jnp.asarray(num_atoms), jnp),
        lattice.to_model_frame(CELL, num_atoms),
        rtol=1e-6,
    )


@pytest.mark.parametrize("name", SYSTEMS)
def test_impose_family(name):
    first, last, expected = SYSTEMS[name]
    groups = np.array([first, last])
    imposed = lattice.impose_family(np.repeat(CELL, 2, axis=0), groups)
    np.testing.assert_array_equal(imposed, [expected, expected])
    np.testing.assert_array_equal(lattice.impose_family(imposed, groups), imposed)
    in_jax = lattice.impose_family(jnp.asarray(np.repeat(CELL, 2, axis=0)), jnp.asarray(groups), jnp)
    np.testing.assert_allclose(in_jax, imposed, rtol=1e-6)


def test_free_dimensions_by_space_group():
    """Free entries of (a, b, c, alpha, beta, gamma): MODEL, log-probability of the lattice."""
    expected = {1: "111111", 2: "111111", 3: "111010", 15: "111010", 16: "111000", 74: "111000", 75: "101000"}
    expected |= {142: "101000", 143: "101000", 194: "101000", 195: "100000", 230: "100000"}
    groups = np.array(list(expected))
    free = lattice.FREE_DIMENSIONS[lattice.crystal_family(groups)]
    assert ["".join(map(str, row.astype(int))) for row in free] == list(expected.values())


@given(cells, st.integers(1, 230))
@settings(deadline=None)
def test_only_free_dimensions_matter(cell, group):
    """What impose_family keeps is what the likelihood counts."""
    cell = np.array([cell])
    free = lattice.FREE_DIMENSIONS[lattice.crystal_family(np.array([group]))]
    other = np.where(free, cell, 77.0)
    np.testing.assert_array_equal(
        lattice.impose_family(cell, np.array([group])), lattice.impose_family(other, np.array([group]))
    )


GOOD = {
    "cubic": [4, 4, 4, 90, 90, 90],
    "hexagonal": [3, 3, 5, 90, 90, 120],
    "rhombohedral": [4, 4, 4, 33, 33, 33],
    "triclinic": [3, 4, 5, 80, 95, 110],
}
BAD = {
    "nan length": [np.nan, 4, 4, 90, 90, 90],
    "nan angle": [4, 4, 4, 90, np.nan, 90],
    "infinite length": [4, np.inf, 4, 90, 90, 90],
    "negative length": [4, 4, -4, 90, 90, 90],
    "two negative lengths": [-4, 4, -4, 90, 90, 90],
    "zero length": [4, 0, 4, 90, 90, 90],
    "zero angle": [4, 4, 4, 90, 90, 0],
    "straight angle": [4, 4, 4, 90, 180, 90],
    "reflex angle": [4, 4, 4, 90, 90, 250],
    "negative angle": [4, 4, 4, -90, 90, 90],
    "flat cell": [4, 4, 4, 120, 120, 120],
    "angles that sum to more than 360": [4, 4, 4, 130, 130, 130],
    "an angle above the sum of the others": [4, 4, 4, 40, 50, 100],
}


@pytest.mark.parametrize("name", GOOD)
def test_physical_cells(name):
    assert lattice.is_physical(np.array([GOOD[name]], float)).tolist() == [True]


@pytest.mark.parametrize("name", BAD)
def test_unphysical_cells(name):
    assert lattice.is_physical(np.array([BAD[name]], float)).tolist() == [False]


def test_is_physical_judges_each_row():
    rows = np.array([GOOD["cubic"], BAD["nan length"], GOOD["triclinic"], BAD["flat cell"]], float)
    assert lattice.is_physical(rows).tolist() == [True, False, True, False]


def test_volume_and_vectors_are_those_of_pymatgen():
    rows = np.array([*GOOD.values(), *CELL], float)
    expected = [Lattice.from_parameters(*row) for row in rows]
    np.testing.assert_allclose(lattice.volume(rows), [cell.volume for cell in expected], rtol=1e-10)
    np.testing.assert_allclose(lattice.cell_vectors(rows), [cell.matrix for cell in expected], atol=1e-10)
