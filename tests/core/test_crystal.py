"""CrystalBatch: its properties, its checks, and its structures."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from cfx.core.crystal import CrystalBatch, concatenate, validate
from cfx.errors import DataError


def batch() -> CrystalBatch:
    """Rock salt, wurtzite ZnO and the general position of P1, in 4 slots."""
    coords = np.zeros((3, 4, 3), np.float32)
    coords[0, 1] = 0.5
    coords[1, :2] = [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.382]]
    coords[2, :3] = [[0, 0, 0], [0.1, 0.2, 0.3], [0.6, 0.7, 0.8]]
    return CrystalBatch(
        space_group=np.array([225, 186, 1], np.int32),
        lattice=np.array(
            [[5.64, 5.64, 5.64, 90, 90, 90], [3.25, 3.25, 5.2, 90, 90, 120], [4, 5, 6, 80, 85, 95]],
            np.float32,
        ),
        frac_coords=coords,
        species=np.array([[11, 17, 0, 0], [30, 8, 0, 0], [3, 8, 9, 0]], np.int32),
        wyckoff=np.array([[1, 2, 0, 0], [2, 2, 0, 0], [1, 1, 1, 0]], np.int32),
    )


def changed(**fields) -> CrystalBatch:
    """The batch with some entries of crystal 1 replaced: field=(index, value)."""
    replaced = {}
    for name, (index, value) in fields.items():
        array = np.array(getattr(batch(), name))
        array[(1, *index) if isinstance(index, tuple) else (1, index)] = value
        replaced[name] = array
    return dataclasses.replace(batch(), **replaced)


def test_sizes():
    crystals = batch()
    assert len(crystals) == 3
    assert crystals.num_slots == 4
    assert crystals.num_sites.tolist() == [2, 2, 3]
    assert crystals.multiplicity.tolist() == [[4, 4, 0, 0], [2, 2, 0, 0], [1, 1, 1, 0]]
    assert crystals.num_atoms.tolist() == [8, 4, 3]


def test_it_is_a_pytree():
    crystals = jax.tree.map(jnp.asarray, batch())
    assert isinstance(crystals, CrystalBatch)
    assert jax.jit(lambda x: x.num_atoms)(crystals).tolist() == [8, 4, 3]


@pytest.mark.parametrize("rows", [slice(1, 3), np.array([False, True, True]), np.array([1, 2])])
def test_picking_rows(rows):
    picked = batch()[rows]
    assert picked.space_group.tolist() == [186, 1]
    assert picked.species[0].tolist() == [30, 8, 0, 0]


def test_with_slots_keeps_the_crystals():
    wide = batch().with_slots(7)
    assert wide.wyckoff.shape == (3, 7)
    assert wide.frac_coords.shape == (3, 7, 3)
    assert not wide.wyckoff[:, 4:].any()
    for there, back in zip(jax.tree.leaves(batch()), jax.tree.leaves(wide.with_slots(4)), strict=True):
        np.testing.assert_array_equal(there, back)
    assert batch().with_slots(3).num_sites.tolist() == [2, 2, 3]


def test_with_slots_refuses_to_lose_a_site():
    with pytest.raises(DataError, match="3 sites do not fit 2 slots"):
        batch().with_slots(2)


def test_with_slots_of_no_crystals():
    assert batch()[:0].with_slots(2).wyckoff.shape == (0, 2)


def test_concatenate():
    joined = concatenate([batch()[:1], batch()[1:]])
    for one, other in zip(jax.tree.leaves(joined), jax.tree.leaves(batch()), strict=True):
        np.testing.assert_array_equal(one, other)


def test_numpy_sets_the_types():
    crystals = jax.tree.map(lambda leaf: jnp.asarray(leaf), batch()).numpy()
    assert [leaf.dtype.name for leaf in jax.tree.leaves(crystals)] == [
        "int32",
        "float32",
        "float32",
        "int32",
        "int32",
    ]
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(crystals))


def test_valid_crystals_pass():
    validate(batch())
    validate(jax.tree.map(jnp.asarray, batch()))
    validate(batch()[:0])


@pytest.mark.parametrize(
    ("fault", "fields"),
    [
        ("a space group outside 1..230", {"space_group": ((), 231)}),
        ("a space group outside 1..230", {"space_group": ((), 0)}),
        ("a letter that its space group lacks", {"wyckoff": (1, 5)}),  # 186 ends at d
        ("a letter that its space group lacks", {"wyckoff": (1, -1)}),
        ("no sites", {"wyckoff": (slice(None), 0), "species": (slice(None), 0)}),
        ("a pad before a site", {"wyckoff": (0, 0), "species": (0, 0)}),
        ("an atomic number out of range", {"species": (1, 119)}),
        ("an atomic number out of range", {"species": (1, 0)}),  # a site without an element
        ("an atomic number out of range", {"species": (2, 8)}),  # an element without a site
        ("coordinates outside [0, 1)", {"frac_coords": ((1, 2), 1.0)}),
        ("coordinates outside [0, 1)", {"frac_coords": ((1, 2), -0.1)}),
        ("coordinates outside [0, 1)", {"frac_coords": ((1, 2), np.nan)}),
        ("a lattice that is not finite", {"lattice": (0, np.inf)}),
    ],
)
def test_faults_are_named(fault, fields):
    with pytest.raises(DataError) as error:
        validate(changed(**fields))
    assert error.value.message == f"crystal 1 has {fault}"


def test_a_pad_must_be_left():
    full = batch().with_slots(3)
    with pytest.raises(DataError, match="crystal 2 has no pad left"):
        validate(full)


def test_number_of_species_is_that_of_the_model():
    with pytest.raises(DataError, match="crystal 1 has an atomic number"):
        validate(batch(), num_species=20)


def test_structures_are_the_textbook_crystals():
    rock_salt, wurtzite, triclinic = batch().to_structures()
    expected = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert rock_salt.composition.reduced_formula == "NaCl"
    assert len(rock_salt) == 8
    assert StructureMatcher(scale=False, primitive_cell=False).fit(rock_salt, expected)
    assert wurtzite.composition.formula == "Zn2 O2"
    np.testing.assert_allclose(wurtzite.lattice.parameters, [3.25, 3.25, 5.2, 90, 90, 120], rtol=1e-6)
    assert min(wurtzite.get_distance(0, i) for i in (2, 3)) == pytest.approx(1.974, abs=0.02)
    np.testing.assert_allclose(triclinic.frac_coords, batch().frac_coords[2, :3], atol=1e-6)


def test_primitive_cells_are_those_of_the_centring():
    rock_salt, wurtzite, triclinic = batch().to_structures(primitive=True)
    whole = batch().to_structures()
    assert len(rock_salt) == 2 and rock_salt.lattice.abc == pytest.approx([5.64 / 2**0.5] * 3)
    assert rock_salt.site_properties["wyckoff"] == [whole[0][i].properties["wyckoff"] for i in (0, 4)]
    assert StructureMatcher(scale=False, primitive_cell=True).fit(rock_salt, whole[0])
    assert (wurtzite, triclinic) == tuple(whole[1:]), "without a centring, the cell itself"


def test_structures_name_their_orbits():
    wurtzite = batch().to_structures()[1]
    assert wurtzite.site_properties["wyckoff"] == ["b"] * 4
    assert wurtzite.site_properties["site"] == [0, 0, 1, 1]
    rock_salt = batch().to_structures()[0]
    assert rock_salt.site_properties["wyckoff"] == ["a"] * 4 + ["b"] * 4
    assert [site.specie.symbol for site in rock_salt] == ["Na"] * 4 + ["Cl"] * 4
