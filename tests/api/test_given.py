"""Crystals of every kind are the same crystals, whatever they are given as."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import IStructure, Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor

import cfx
from cfx.data.given import NO_CELL, given_crystals, given_file
from cfx.data.structures import load_crystals
from cfx.errors import DataError, UsageError
from cfx.reporter import Silent

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.69), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
ALLOY = Structure(Lattice.cubic(3.6), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])


class Result:
    """Something that has a structure, as a prediction does."""

    structure = SALT


@pytest.mark.parametrize(
    "crystal",
    [
        SALT,
        IStructure.from_sites(list(SALT)),
        AseAtomsAdaptor.get_atoms(SALT),
        Result(),
        cfx.encode([SALT]).batch,
        [SALT],
        (one for one in [SALT]),
    ],
    ids=["Structure", "IStructure", "Atoms", "with a structure", "CrystalBatch", "list", "generator"],
)
def test_one_crystal(crystal):
    [found] = given_crystals(crystal)
    assert found.name == "NaCl_0" and not found.reason
    assert isinstance(found.structure, Structure) and found.structure.matches(SALT)


def test_files_keep_their_names_and_batches_the_groups_that_were_asked(tmp_path):
    (tmp_path / "POSCAR").write_text(SALT.to(fmt="poscar"))
    found = given_crystals([tmp_path / "POSCAR", cfx.encode([SALT]).batch, [str(tmp_path / "POSCAR")]], workers=1)
    assert [one.name for one in found] == ["POSCAR", "NaCl_1", "POSCAR"]
    assert [one.space_group_asked for one in found] == [None, 225, None]


def test_what_is_no_crystal_keeps_its_place():
    batch = cfx.encode([SALT, SALT]).batch
    batch.lattice[1, 3:] = 10, 10, 170
    found = given_crystals([None, ALLOY, batch])
    assert [one.structure is None for one in found] == [True, True, False, True]
    assert found[0].reason and "occupancy" in found[1].reason and found[3].reason == NO_CELL


@pytest.mark.parametrize("nothing", [[], [[]]])
def test_no_crystals(nothing):
    with pytest.raises(DataError, match="there are no crystals"):
        given_crystals(nothing)


@pytest.mark.parametrize("wrong", [3, [SALT, 3.5]])
def test_what_are_no_crystals(wrong):
    with pytest.raises(UsageError, match=r"crystals cannot be made of (int|float)"):
        given_crystals(wrong)


def test_a_file_of_crystals_in_memory_gives_them_back(own_cache):
    atoms = AseAtomsAdaptor.get_atoms(SALT)
    path = given_file([SALT, None, atoms], Silent())
    assert path == given_file([SALT, None, atoms], Silent()) != given_file([SALT], Silent())
    first, missing, last = load_crystals(path, num_workers=1)
    assert missing.structure is None and missing.reason
    assert [first.name, last.name] == ["NaCl_0", "NaCl_2"]
    assert np.array_equal(first.structure.lattice.matrix, SALT.lattice.matrix)
    assert np.array_equal(first.structure.frac_coords, SALT.frac_coords) and last.structure == first.structure
    assert given_file("mp-20", Silent()) == "mp-20"
