"""Rollouts: primitive cells and fingerprints."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

import cfx
from cfx.evaluation.matching import same_crystal
from cfx.rl.rollout import fingerprint, primitive_cells

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.692), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
PEROVSKITE = Structure.from_spacegroup(
    "Pm-3m", Lattice.cubic(3.9), ["Sr", "Ti", "O"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]
)
BISMUTH = Structure.from_spacegroup("R-3m", Lattice.hexagonal(4.6, 11.9), ["Bi"], [[0, 0, 0.234]])


@pytest.mark.parametrize("structure, atoms", [(SALT, 2), (PEROVSKITE, 5), (BISMUTH, 2)])
def test_primitive_cells_are_the_same_crystals(structure, atoms):
    batch = cfx.encode([structure]).batch
    [primitive] = primitive_cells(batch)
    assert len(primitive) == atoms
    assert same_crystal(primitive, structure)


def test_a_lattice_that_closes_no_cell_has_no_structure():
    batch = cfx.encode([SALT, PEROVSKITE]).batch.numpy()
    batch.lattice[0, 3:] = [150, 150, 150]
    first, second = primitive_cells(batch)
    assert first is None
    assert len(second) == 5


def test_fingerprints_tell_crystals_apart_beyond_their_steps():
    batch = cfx.encode([BISMUTH] * 4).batch.numpy()
    batch.frac_coords[1, 0, 2] += 1e-5
    batch.frac_coords[2, 0, 2] += 5e-3
    batch.species[3, 0] = 51
    keys = [fingerprint(batch, row) for row in range(4)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert np.isfinite(batch.lattice).all()
