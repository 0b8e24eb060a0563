"""How far atoms moved."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cfx.evaluation.matching import rms_displacement

from .crystals import another_origin, build, caesium_chloride, displaced, rock_salt, supercell


def test_one_atom_that_moves():
    """Of two atoms one moves by d: about their common centre each moves by d / 2."""
    still = Structure(Lattice.tetragonal(4, 6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    moved = Structure(Lattice.tetragonal(4, 6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.55]])
    assert rms_displacement(still, moved) == pytest.approx(0.3 / 2)
    assert rms_displacement(moved, still) == pytest.approx(0.3 / 2)


def test_nothing_moves_by_another_origin_or_size(golden_structures):
    rng = np.random.default_rng(0)
    for structure in golden_structures[:8]:
        assert rms_displacement(structure, another_origin(structure, rng)) == pytest.approx(0, abs=1e-4)
    assert rms_displacement(rock_salt(5.6), rock_salt(5.8)) == pytest.approx(0, abs=1e-6)


def test_displacements_in_angstrom_whatever_the_size_of_the_cell(golden_structures):
    """Random displacements, less what a common shift takes away."""
    rng = np.random.default_rng(1)
    for structure in golden_structures[8:14]:
        moved = displaced(structure, rng, 0.1)
        steps = (moved.frac_coords - structure.frac_coords) @ structure.lattice.matrix
        expected = np.sqrt(((steps - steps.mean(0)) ** 2).sum(1).mean())
        assert rms_displacement(structure, moved) == pytest.approx(expected, rel=1e-3)


def test_small_displacements_are_not_averaged_away():
    """In a supercell, where a search for a smaller cell would find one and take means."""
    large = rock_salt().make_supercell([2, 1, 1], in_place=False)
    moved = displaced(large, np.random.default_rng(2), 0.05)
    assert rms_displacement(large, moved) > 0.045


def test_other_cells_of_the_same_crystal_are_matched():
    assert rms_displacement(supercell(rock_salt(), np.random.default_rng(0)), rock_salt()) == pytest.approx(0, abs=1e-6)


def test_none_where_they_no_longer_match():
    assert rms_displacement(rock_salt().get_primitive_structure(), caesium_chloride()) is None
    assert rms_displacement(rock_salt(), rock_salt(cation="K")) is None
    assert rms_displacement(None, rock_salt()) is None and rms_displacement(rock_salt(), None) is None


def test_oxidation_states_do_not_matter():
    decorated = rock_salt()
    decorated.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    relaxed = build(rock_salt(), rock_salt().lattice.matrix, rock_salt().frac_coords)
    assert rms_displacement(decorated, relaxed) == pytest.approx(0, abs=1e-6)
