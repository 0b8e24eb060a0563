"""The reduction that StructureMatcher makes, and the short cut past its search for smaller cells."""

from __future__ import annotations

import numpy as np
from pymatgen.core import Lattice, Structure

from cfx.evaluation.matching import plain, reduced_crystal, surely_primitive

from .crystals import DISGUISES, displaced, rock_salt


def searched(structure: Structure) -> Structure:
    """By pymatgen, without the short cut."""
    return structure.get_reduced_structure().get_primitive_structure()


def assert_equal(one: Structure, other: Structure) -> None:
    assert np.array_equal(one.lattice.matrix, other.lattice.matrix)
    assert np.array_equal(one.frac_coords, other.frac_coords)
    assert [site.species_string for site in one] == [site.species_string for site in other]


def test_the_short_cut_changes_no_digit(golden_structures):
    rng = np.random.default_rng(0)
    for i, base in enumerate(golden_structures[:60]):
        for structure in (base, DISGUISES[i % 4](base, rng)):
            assert_equal(reduced_crystal(structure), searched(structure))


def test_nearly_smaller_cells_are_left_to_pymatgen(golden_structures):
    """Supercells with displaced atoms, on both sides of the tolerance."""
    rng = np.random.default_rng(1)
    shrunk = 0
    for i, base in enumerate(golden_structures[:40]):
        structure = displaced(base.make_supercell([2, 1, 1], in_place=False), rng, 0.05 + 0.04 * (i % 6))
        assert_equal(reduced_crystal(structure), searched(structure))
        shrunk += len(searched(structure)) < len(structure)
    assert 5 < shrunk < 35


def test_most_crystals_take_the_short_cut(golden_structures):
    primitive = [structure for structure in golden_structures[:60] if len(searched(structure)) == len(structure)]
    taken = sum(surely_primitive(structure.get_reduced_structure()) for structure in primitive)
    assert taken > 0.8 * len(primitive)


def test_a_conventional_cell_is_not_primitive():
    assert not surely_primitive(rock_salt())
    assert len(reduced_crystal(rock_salt())) == 2


def test_plain_takes_charges_and_directions_away():
    structure = rock_salt()
    structure.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    assert [str(site.specie) for site in plain(structure)][::4] == ["Na", "Cl"]
    slab = Structure(Lattice(np.eye(3) * 4, pbc=(True, True, False)), ["Fe"], [[0, 0, 0]])
    assert plain(slab).lattice.pbc == (True, True, True)
    assert plain(rock_salt()) == rock_salt()
