"""When two structures are one crystal, and which are crystals at all."""

from __future__ import annotations

import pytest

from cfx.data.structures import why_malformed
from cfx.evaluation.matching import composition_key, same_crystal

from .crystals import caesium_chloride, rock_salt


def test_another_cell_and_another_origin_are_the_same_crystal():
    moved = rock_salt(5.64).get_primitive_structure().translate_sites(range(2), [0.1, 0.2, 0.3])
    assert same_crystal(rock_salt(5.64), moved)


def test_another_arrangement_or_element_is_another_crystal():
    assert not same_crystal(rock_salt(5.64), caesium_chloride())
    assert not same_crystal(rock_salt(5.64), rock_salt(5.64, "K"))


def test_composition_key_is_of_the_reduced_formula():
    small = rock_salt().get_primitive_structure()
    assert composition_key(rock_salt()) == composition_key(small) == ((11, 1), (17, 1))
    assert composition_key(rock_salt(cation="K")) != composition_key(small)


@pytest.mark.parametrize("structure", [rock_salt(), caesium_chloride()])
def test_nothing_is_wrong_with_a_crystal(structure):
    assert why_malformed(structure) == ""
