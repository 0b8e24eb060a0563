"""Known prototypes: what counts as one, how often they occur, and elements in their roles."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest

from cfx.core.crystal import CrystalBatch, all_settings, concatenate
from cfx.core.elements import SYMBOLS, lowest_terms
from cfx.core.prototypes import (
    MOST_ATOMS,
    KnownPrototype,
    PrototypeTable,
    count_prototypes,
    occupation_of,
    prototype_key,
    prototype_table,
    prototypes_of,
)
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
            crystal(192, "m", "C"),  # 24 atoms
            crystal(192, "mm", "C Si"),  # 48 atoms
        ]
    )
    table = count_prototypes(batch, {"source": "these"})
    rows = {(int(table.space_group[row]), table.sites(row)): row for row in range(len(table))}
    counts = {key: (int(table.crystals[row]), int(table.formulas[row])) for key, row in rows.items()}
    assert counts == {
        (225, ((1, 2), (0, 1))): (3, 2),
        (221, ((1, 2, 3), (0, 1, 2))): (2, 1),
        (221, ((1, 3, 4), (0, 1, 2))): (1, 1),
        (192, ((13,), (0,))): (1, 1),
    }
    assert table.info == {"source": "these", "crystals_too_large": 1}


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
    for name in ("space_group", "num_sites", "crystals", "formulas", "letter", "role"):
        assert np.array_equal(getattr(again, name), getattr(table, name))


def test_bundled_prototypes_are_sound():
    table = prototype_table()
    assert 6000 < len(table) < 10_000
    assert (table.formulas >= 1).all() and (table.formulas <= table.crystals).all()
    assert table.crystals.sum() == table.info["crystals"] - table.info["crystals_too_large"]
    assert table.num_sites.sum() == len(table.letter) == len(table.role)
    for row in range(0, len(table), 7):
        group, (letters, roles) = int(table.space_group[row]), table.sites(row)
        size, fixed = TABLE.multiplicity[group - 1], TABLE.is_fixed[group - 1]
        assert list(letters) == sorted(letters) and all(size[letter] for letter in letters)
        assert not any(fixed[letter] and count > 1 for letter, count in Counter(letters).items())
        assert list(dict.fromkeys(roles)) == list(range(max(roles) + 1))
        assert sum(size[letter] for letter in letters) <= MOST_ATOMS * TABLE.num_lattice_points(group)
