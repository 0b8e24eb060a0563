"""When two structures are one crystal."""

from __future__ import annotations

from pymatgen.core import Lattice, Structure

from cfx.metrics.duplicates import same_crystal


def rock_salt(a: float, cation: str = "Na") -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), [cation, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_another_cell_and_another_origin_are_the_same_crystal():
    moved = rock_salt(5.64).get_primitive_structure().translate_sites(range(2), [0.1, 0.2, 0.3])
    assert same_crystal(rock_salt(5.64), moved)


def test_another_arrangement_or_element_is_another_crystal():
    caesium_chloride = Structure(Lattice.cubic(3.5), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert not same_crystal(rock_salt(5.64), caesium_chloride)
    assert not same_crystal(rock_salt(5.64), rock_salt(5.64, "K"))
