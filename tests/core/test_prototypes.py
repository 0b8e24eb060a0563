"""Known prototypes: what counts as one, how often they occur, and elements in their roles."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest

from cfx.core.crystal import CrystalBatch, all_settings, concatenate, row_checks
from cfx.core.elements import SYMBOLS, lowest_terms
from cfx.core.known_prototypes import KnownPrototype, likeliest, prototypes_of, typical_crystals
from cfx.core.lattice import volume
from cfx.core.prototype_counts import MOST_ATOMS, count_prototypes
from cfx.core.prototypes import PrototypeTable, occupation_of, prototype_key, prototype_table
from cfx.core.symmetry import LETTERS, symmetry_table

TABLE = symmetry_table()


def crystal(space_group: int, letters: str, species: str) -> CrystalBatch:
    """One crystal with a site somewhere on each position, species as "Na Cl"."""
    wyckoff, numbers, coords = np.zeros((1, 6), np.int32), np.zeros((1, 6), np.int32), np.zeros((1, 6, 3), np.float32)
    for i, (letter, symbol) in enumerate(zip(letters, species.split(), strict=True)):
        wyckoff[0, i], numbers[0, i] = LETTERS.index(letter), SYMBOLS.index(symbol)
        op = TABLE.projector[space_group - 1, wyckoff[0, i]]
        coords[0, i] = np.mod(op[:, :3] @ np.array([0.13, 0.27, 0.41]) + op[:, 3], 1)
    cell = np.array([[5, 5, 5, 90, 90, 90]], np.float32)
    return CrystalBatch(np.array([space_group], np.int32), cell, coords, numbers, wyckoff)


def sites(found: list[KnownPrototype]) -> list[tuple[str, str]]:
    return [("".join(one.letters), " ".join(one.species)) for one in found]


def test_perovskite_has_both_assignments_and_no_third():
    found = prototypes_of({"Sr": 1, "Ti": 1, "O": 3}, space_groups=[221])
    perovskites = [one for one in found if one.letters == ("a", "b", "c")]
    # Ti at a with O at c, or at b with O at d, is one crystal; what differs is which cation has the octahedron.
    assert sites(perovskites) == [("abc", "Sr Ti O"), ("abc", "Ti Sr O")]
    assert all(one.formulas > 500 and one.crystals >= one.formulas for one in perovskites)
    assert not [one for one in found if one.letters in (("a", "b", "d"), ("b", "a", "d"))]


def test_an_exchange_that_is_a_change_of_setting_is_no_second_assignment():
    rock_salt = [one for one in prototypes_of({"Na": 1, "Cl": 1}, [225]) if one.letters == ("a", "b")]
    assert sites(rock_salt) == [("ab", "Na Cl")]
    half_heusler = [one for one in prototypes_of({"Ni": 1, "Ti": 1, "Sn": 1}, [216]) if one.letters == ("a", "c", "d")]
    assert sites(half_heusler) == [
        ("acd", "Ni Ti Sn"),
        ("acd", "Ti Ni Sn"),
        ("acd", "Sn Ni Ti"),
    ]  # what is in the middle


@pytest.mark.parametrize("formula", [{"Sr": 1, "Ti": 1, "O": 3}, {"Li": 2, "Fe": 2, "P": 2, "O": 8}, {"Si": 4}])
def test_assigned_prototypes_have_the_formula_and_each_is_there_once(formula):
    found, seen = prototypes_of(formula), set()
    assert len(found) > 20
    assert [one.formulas for one in found] == sorted((one.formulas for one in found), reverse=True)
    for one in found:
        counts: Counter[str] = Counter()
        for letter, symbol in zip(one.letters, one.species, strict=True):
            counts[symbol] += int(TABLE.multiplicity[one.space_group - 1, LETTERS.index(letter)])
        assert lowest_terms(counts) == lowest_terms(formula)
        seen.add((one.space_group, one.letters, one.species))
    assert len(seen) == len(found)


def test_of_an_unknown_composition_there_is_none():
    assert prototypes_of({"H": 17, "He": 31}) == []


def test_template_forces_the_sites():
    [first, *_] = prototypes_of({"Sr": 1, "Ti": 1, "O": 3}, [221])
    assert first.template.letters == ("a", "b", "c")
    assert first.template.species == (("Sr",), ("Ti",), ("O",))


def test_counts_crystals_and_formulas_whatever_the_setting():
    batch = concatenate(
        [
            crystal(225, "ab", "Na Cl"),
            crystal(225, "ab", "Cl Na"),  # the other setting
            crystal(225, "ab", "K Cl"),
            crystal(221, "abc", "Sr Ti O"),
            crystal(221, "abd", "Sr Ti O"),  # perovskite as well, with Sr in the octahedron
            crystal(221, "acd", "Ti O Sr"),  # no perovskite
            crystal(192, "m", "C"),  # 24 atoms, of two formulas
            crystal(192, "m", "Si"),
            crystal(192, "mm", "C Si"),  # 48 atoms, of one formula
            crystal(192, "mmmmm", "C Si C Si C"),  # 120 atoms
        ]
    )
    table = count_prototypes(batch, {"source": "these"})
    rows = {(int(table.space_group[row]), table.sites(row)): row for row in range(len(table))}
    counts = {key: (int(table.crystals[row]), int(table.formulas[row])) for key, row in rows.items()}
    assert counts == {
        (225, ((1, 2), (0, 1))): (3, 2),
        (221, ((1, 2, 3), (0, 1, 2))): (2, 1),
        (221, ((1, 3, 4), (0, 1, 2))): (1, 1),
        (192, ((13,), (0,))): (2, 2),
    }
    assert table.info == {"source": "these", "crystals_left_out": 2}


def test_every_setting_of_a_crystal_has_its_key():
    for one in prototypes_of({"Mg": 1, "Al": 2, "O": 4})[:40]:
        if len(one.letters) > 5:
            continue
        found, _ = all_settings(crystal(one.space_group, "".join(one.letters), " ".join(one.species)))
        keys = {
            prototype_key(one.space_group, tuple(sorted(letters for _, letters in occupation_of(found, row))))
            for row in range(len(found))
        }
        assert len(keys) == 1


def test_file_gives_back_the_table_and_is_the_same_each_time():
    table, one, other = prototype_table(), io.BytesIO(), io.BytesIO()
    table.write(one)
    table.write(other)
    assert one.getvalue() == other.getvalue()
    one.seek(0)
    again = PrototypeTable.read(one)
    assert again.info == table.info
    for name in (
        "space_group",
        "num_sites",
        "crystals",
        "formulas",
        "letter",
        "role",
        "frac_coords",
        "cell",
        "element_volume",
    ):
        assert np.array_equal(getattr(again, name), getattr(table, name))


def test_bundled_prototypes_are_sound():
    table = prototype_table()
    assert 6000 < len(table) < 10_000
    assert (table.formulas >= 1).all() and (table.formulas <= table.crystals).all()
    assert table.crystals.sum() == table.info["crystals"] - table.info["crystals_left_out"]
    assert table.num_sites.sum() == len(table.letter) == len(table.role)
    for row in range(0, len(table), 7):
        group, (letters, roles) = int(table.space_group[row]), table.sites(row)
        size, fixed = TABLE.multiplicity[group - 1], TABLE.is_fixed[group - 1]
        assert list(letters) == sorted(letters) and all(size[letter] for letter in letters)
        assert not any(fixed[letter] and count > 1 for letter, count in Counter(letters).items())
        assert list(dict.fromkeys(roles)) == list(range(max(roles) + 1))
        assert sum(size[letter] for letter in letters) <= MOST_ATOMS * TABLE.num_lattice_points(group)
        coords, cell = table.geometry(row)
        assert len(coords) == len(letters) and (coords >= 0).all() and (coords < 1).all()
        assert volume(cell[None])[0] == pytest.approx(1, rel=0.01)  # stored in 16 bits


def test_the_geometry_of_a_prototype_is_that_of_its_most_typical_crystal():
    """Rutile: oxygen at (u, u, 0) with u = 0.305 and c/a = 0.644 in TiO2, nearly so in all its compounds."""
    batch = concatenate([crystal(136, "af", "Ti O") for _ in range(5)])
    batch.frac_coords[:, 1] = np.array([0.30, 0.306, 0.305, 0.31, 0.2])[:, None] * [1, 1, 0]
    batch.lattice[:] = np.array([[4.6, 4.6, 2.96, 90, 90, 90]])
    batch.lattice[3, 2] = 3.5
    [found] = [count_prototypes(batch, {}).geometry(0)]
    assert found.frac_coords.tolist() == batch.frac_coords[2, :2].tolist()
    assert found.cell[2] / found.cell[0] == pytest.approx(2.96 / 4.6)
    rutile = next(one for one in prototypes_of("TiO2", [136]) if one.letters == ("a", "f"))
    assert rutile.geometry.frac_coords[1] == pytest.approx([0.305, 0.305, 0], abs=0.01)
    assert rutile.geometry.cell[2] / rutile.geometry.cell[0] == pytest.approx(0.644, abs=0.05)


@pytest.mark.parametrize(
    ("formula", "space_group", "letters", "length"),
    [
        ("NaCl", 225, "ab", 5.64),
        ("KBr", 225, "ab", 6.60),
        ("SrTiO3", 221, "abc", 3.905),
        ("MgAl2O4", 227, "ade", 8.08),
        ("GaAs", 216, "ad", 5.65),
        ("Y3Al5O12", 230, "acdh", 12.0),
    ],
)
def test_lengths_of_typical_crystals_are_nearly_those_that_were_measured(formula, space_group, letters, length):
    """Lattice constants as measured, angstrom; relaxation does the rest."""
    one = next(one for one in prototypes_of(formula, [space_group]) if "".join(one.letters) == letters)
    lattice = typical_crystals([one], 7).lattice[0]
    assert lattice[0] == pytest.approx(length, rel=0.1)
    assert lattice.tolist() == pytest.approx([lattice[0]] * 3 + [90] * 3)


def test_typical_crystals_have_the_sites_of_their_prototypes():
    known = [*prototypes_of("Mg2SiO4")[:150], *prototypes_of("TiO2")[:150]]
    batch = typical_crystals(known, 21)
    assert all(fine.all() for fine in row_checks(batch).values())
    for row, one in enumerate(known):
        count = len(one.letters)
        assert tuple(LETTERS[letter] for letter in batch.wyckoff[row, :count]) == one.letters
        operator = TABLE.projector[one.space_group - 1, batch.wyckoff[row, :count]]
        coords = batch.frac_coords[row, :count]
        moved = (operator[..., :3] @ coords[..., None])[..., 0] + operator[..., 3] - coords
        assert np.abs(moved - np.rint(moved)).max() < 1e-3  # on the position, as far as the files are precise
    assert len(typical_crystals([], 5)) == 0


def test_every_fourth_place_is_for_a_cell_larger_than_models_have_seen():
    """Of such cells, which the model finds unlikely beside any smaller one, it only compares the assignments."""
    known = prototypes_of("LiFePO4")
    log_prob = np.array([-one.num_atoms / 2 - 5 * (one.species[0] != "Li") for one in known])
    ordered = [known[row] for row in likeliest(known, log_prob)]
    assert sorted(map(id, ordered)) == sorted(map(id, known))
    places = [place for place, one in enumerate(ordered, start=1) if one.is_large]
    assert places == list(range(4, 4 * len(places) + 1, 4))
    small = [one for one in known if not one.is_large]
    alone = [known.index(one) for one in small]
    assert [one for one in ordered if not one.is_large] == [small[row] for row in likeliest(small, log_prob[alone])]
    olivine = [one.species[0] for one in ordered if (one.space_group, one.letters) == (62, tuple("accccd"))]
    assert olivine[:2] == ["Li", "Li"] and len(olivine) == 6


def test_elements_that_share_a_letter_are_exchanged_where_that_makes_another_crystal():
    """Phosphorus in the tetrahedra of olivine and iron in its octahedra, on 4c both; and the other way round."""
    olivines = [one for one in prototypes_of("LiFePO4", [62]) if one.letters == tuple("accccd")]
    lithium = [one for one in olivines if one.species[0] == "Li"]
    assert len(olivines) == 6 and len(lithium) == 2
    by_bond = sorted(lithium, key=lambda one: closest(one, "P", "O"))
    assert closest(by_bond[0], "P", "O") == pytest.approx(1.54, abs=0.08)
    assert closest(by_bond[1], "Fe", "O") < 1.7 and closest(by_bond[1], "P", "O") > 1.9


def closest(prototype: KnownPrototype, one: str, other: str) -> float:
    [structure] = typical_crystals([prototype], 20).to_structures()
    rows = {name: [i for i, site in enumerate(structure) if site.specie.symbol == name] for name in (one, other)}
    return structure.distance_matrix[np.ix_(rows[one], rows[other])].min()


def test_roles_with_the_same_surroundings_are_not_exchanged():
    """As in zincblende, whose elements a change of origin exchanges: it is there once."""
    table = prototype_table()
    [zincblende] = [
        row
        for row in table.rows_by_counts[1, 1]
        if table.sites(row) == ((1, 4), (0, 1)) and table.space_group[row] == 216
    ]
    distances = table.role_distances(zincblende)
    assert np.allclose(distances[0, 1], distances[1, 0]) and np.allclose(distances[0, 0], distances[1, 1])
    assert np.allclose(distances[0, 1], 3**0.5 / 4, atol=1e-3)  # four at a quarter of the diagonal
    assert np.allclose(distances[0, 0], 0.5**0.5, atol=1e-3)
    assert [one.species for one in prototypes_of("ZnS", [216]) if one.letters == ("a", "d")] == [("Zn", "S")]


def test_volumes_of_elements_are_those_that_explain_the_volumes_of_crystals():
    batch = concatenate([crystal(221, "ab", pair) for pair in ("Na Cl", "Na Na", "Cl Cl") for _ in range(500)])
    batch.lattice[:, :3] = np.cbrt(np.repeat([40.0, 30.0, 50.0], 500))[:, None]  # 15 for Na, 25 for Cl
    volumes = count_prototypes(batch, {}).element_volume
    assert volumes[[11, 17, 92]] == pytest.approx([15, 25, 15], rel=0.01)
