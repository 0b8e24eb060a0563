"""Space groups found and asked for."""

from __future__ import annotations

import numpy as np
from pymatgen.core import Lattice, Structure

from cfx.evaluation.validity import SpaceGroup, find_space_groups

from .crystals import caesium_chloride, displaced, rock_salt


def test_found_and_asked_for():
    records = find_space_groups([rock_salt(), caesium_chloride(), rock_salt(), None], [225, 225, None, 225])
    assert [record.found for record in records] == [225, 221, 225, None]
    assert [record.as_asked for record in records] == [True, False, None, False]
    assert records[3].reason


def test_nothing_need_be_asked_for():
    assert find_space_groups([rock_salt()]) == [SpaceGroup(225)]


def test_the_tolerance_is_that_of_the_search():
    moved = displaced(rock_salt(), np.random.default_rng(0), 0.03)
    loose, tight = find_space_groups([moved], symprec=0.2), find_space_groups([moved])
    assert loose[0].found == 225 and tight[0].found < 225


def test_structures_without_a_space_group():
    alloy = Structure(Lattice.cubic(3), [{"Fe": 0.5, "Co": 0.5}], [[0, 0, 0]])
    twice = Structure(Lattice.cubic(3), ["Fe", "Fe"], [[0, 0, 0], [0, 0, 0]])
    records = find_space_groups([alloy, twice], [229, 221])
    assert [record.found for record in records] == [None, None]
    assert "partial" in records[0].reason and "spglib" in records[1].reason
    assert not any(record.as_asked for record in records)


def test_many_on_two_cores_come_in_order():
    structures = [rock_salt(), caesium_chloride(), None] * 50
    alone = find_space_groups(structures)
    assert [record.found for record in alone] == [225, 221, None] * 50
    done: list[int] = []
    assert find_space_groups(structures, n_jobs=2, on_done=done.append) == alone
    assert done == [1, 2, 3]
