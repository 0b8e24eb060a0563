"""Requests as constraints: what is refused and why, and the feasibility check against brute force."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re

import numpy as np
import pytest

from cfx.config import ModelConfig, SampleConfig, Template
from cfx.core.symmetry import LETTERS, symmetry_table
from cfx.errors import UsageError
from cfx.sampling.constraints import unconstrained
from cfx.sampling.request import (
    FORMULA_ATOMS,
    RADIOACTIVE,
    allowed_elements,
    another_group,
    atomic_number,
    build_constraints,
    prepare,
    why_impossible,
)

TABLE = symmetry_table()
CONFIG = ModelConfig()
FEW = ModelConfig(n_max=5)
PEROVSKITE = (("Sr", 1), ("Ti", 1), ("O", 3))


def build(group: int | tuple[int, ...] = 221, config: ModelConfig = CONFIG, **options):
    groups = group if isinstance(group, tuple) else (group,)
    return build_constraints(SampleConfig(space_groups=groups, **options), config)


def why(group: int, config: ModelConfig = CONFIG, **options) -> str | None:
    return why_impossible(build(group, config, **options), group)


def test_atomic_numbers():
    assert [atomic_number(symbol) for symbol in ("H", "O", "La", "Og")] == [1, 8, 57, 118]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"elements": ("La", "Xx")}, "there is no element 'Xx'"),
        ({"exclude": ("o",)}, "there is no element 'o'"),
        ({"require": ("",)}, "there is no element ''"),
        ({"bias": (("Zz", 1.0),)}, "there is no element 'Zz'"),
        ({"formula": (("Qq", 1),)}, "there is no element 'Qq'"),
        ({"template": Template(species=(("Jj",),))}, "there is no element 'Jj'"),
        ({"require": ("O",), "exclude": ("O",)}, "O is both requested and excluded"),
        ({"require": ("O",), "elements": ("La",)}, "O is both requested and excluded"),
        ({"formula": PEROVSKITE, "exclude": ("Ti",)}, "Ti is both requested and excluded"),
        ({"formula": PEROVSKITE, "elements": ("Sr", "O")}, "Ti is both requested and excluded"),
        ({"formula": (("U", 1), ("O", 2)), "radioactive": False}, "U is both requested and excluded"),
        ({"formula": PEROVSKITE, "require": ("La",)}, "La is required but not part of the formula"),
        ({"elements": ("O",), "exclude": ("O",)}, "leave no element"),
        ({"elements": ("U", "Tc"), "radioactive": False}, "leave no element"),
        ({"require": ("Sr", "Ti", "O"), "max_sites": 2}, "3 required elements do not fit 2 sites"),
        (
            {"require": ("Sr", "Ti", "O"), "template": Template(letters=("a", "b"))},
            "3 required elements do not fit 2 sites",
        ),
        ({"any_of": ("F", "Xx")}, "there is no element 'Xx'"),
        ({"any_of": ("F", "Cl"), "exclude": ("F", "Cl")}, "none of F, Cl is allowed"),
        ({"any_of": ("F", "Cl"), "elements": ("La", "O")}, "none of F, Cl is allowed"),
        ({"any_of": ("U", "Th"), "radioactive": False}, "none of U, Th is allowed"),
        ({"any_of": ("F", "Cl"), "formula": PEROVSKITE}, "none of F, Cl is part of the formula"),
        ({"any_of": ("F", "Cl"), "template": Template(letters=("a",), species=(("Na",),))}, "can hold any of F, Cl"),
        ({"require": ("K",), "template": Template(letters=("a",), species=(("Na",),))}, "no site can hold K"),
        ({"any_of": ("F", "Cl"), "require": ("Na",), "max_sites": 1}, "hold all of these together: Na; any of F, Cl"),
        (
            {"require": ("Na", "Cl"), "template": Template(letters=("a", "b"), tied=((0, 1),))},
            "cannot hold all of these together: Na; Cl",
        ),
        ({"template": Template(letters=("e",) * 21)}, "a template has at most 20 sites"),
        ({"template": Template(species=((),) * 21)}, "a template has at most 20 sites"),
        ({"template": Template(letters=("a", "B"))}, "'B' is not a Wyckoff letter"),
        ({"template": Template(letters=("ab",))}, "'ab' is not a Wyckoff letter"),
        ({"template": Template(letters=(" ",))}, "' ' is not a Wyckoff letter"),
        ({"template": Template(letters=("",))}, "'' is not a Wyckoff letter"),
        ({"template": Template(letters=("b", "a"))}, "must not decrease"),
        ({"template": Template(letters=("a", "f", "e"))}, "must not decrease"),
        (
            {"elements": ("La", "O"), "template": Template(species=((), ("Sr", "Ba")))},
            "no element is left for site 2: Sr, Ba",
        ),
        ({"template": Template(tied=((0, 20),))}, r"there are no sites \(0, 20\) to tie"),
        ({"template": Template(tied=((-1, 0),))}, r"there are no sites \(-1, 0\) to tie"),
        (
            {"template": Template(species=(("Sr",), ("Ba",)), tied=((0, 1),))},
            "sites 0, 1 are tied but have no element in common",
        ),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        build(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"any_of": ("F", "Cl"), "exclude": ("F",)},
        {"any_of": ("F", "O"), "formula": PEROVSKITE},
        {"any_of": ("F", "Na"), "require": ("Na",), "max_sites": 1},
        {"any_of": ("F", "Cl"), "template": Template(letters=("a", "b"), species=(("Na",), ("F", "O")))},
        {"require": ("Na", "Cl"), "template": Template(letters=("a", "b", "c"), tied=((0, 1),))},
    ],
)
def test_what_can_be_met(options):
    assert build(**options).max_sites


def test_allowed_elements():
    def found(**options) -> list[int]:
        return np.flatnonzero(allowed_elements(SampleConfig(space_groups=(1,), **options), 119)[1:]) + 1

    assert list(found()) == list(range(1, 119))
    assert list(found(elements=("O", "La"))) == [8, 57]
    assert list(found(exclude=("H",))) == list(range(2, 119))
    assert set(found(radioactive=False)) == set(range(1, 119)) - RADIOACTIVE
    assert 83 in found(radioactive=False)
    assert list(found(formula=PEROVSKITE)) == [8, 22, 38]
    assert list(found(formula=PEROVSKITE, elements=("O", "La", "Sr", "Ti"))) == [8, 22, 38]


def test_constraints_say_what_was_asked_for():
    built = build(
        62,
        require=("O", "La"),
        any_of=("F", "Cl"),
        bias=(("Ni", 1.5), ("H", -2.0)),
        max_atoms=40,
        max_sites=6,
        template=Template(species=((), ("Ni", "Fe", "O"), (), ("Ni", "O")), tied=((3, 1), (2, 4))),
    )
    assert built.max_sites == 6
    assert built.allowed_letters[:6].all() and built.allowed_letters[6:, 0].all()
    assert np.flatnonzero(built.required).tolist() == [8, 57]
    assert np.flatnonzero(built.any_of).tolist() == [9, 17]
    assert built.species_bias[[28, 1, 8]].tolist() == [1.5, -2.0, 0.0]
    assert (built.max_atoms == 40).all()
    assert built.tied_to.tolist() == [0, 1, 2, 1, 2, *range(5, 21)]
    assert np.flatnonzero(built.allowed_species[1]).tolist() == np.flatnonzero(built.allowed_species[3]).tolist()
    assert np.flatnonzero(built.allowed_species[3]).tolist() == [8, 28]
    assert built.allowed_species[0, 1:].all()
    assert built.formula is None and built.prototype is None


def test_letters_of_a_template_leave_no_choice():
    built = build(template=Template(letters=("a", "b", "e")))
    assert built.max_sites == 3
    assert [np.flatnonzero(row).tolist() for row in built.allowed_letters[:4]] == [[1], [2], [5], [0]]


def test_sites_that_share_a_tied_site_are_all_tied():
    """0 with 1 and 1 with 2, in either order: refused, or all three are one group."""
    for tied in (((0, 1), (1, 2)), ((1, 2), (0, 1))):
        template = Template(species=(("O", "F"), (), ("O", "S")), tied=tied)
        try:
            built = build(template=template)
        except UsageError:
            continue
        assert built.tied_to[:3].tolist() == [0, 0, 0], tied
        for site in range(3):
            assert np.flatnonzero(built.allowed_species[site]).tolist() == [8], tied


def test_a_template_does_not_exceed_max_sites():
    """Three letters and at most two sites: refused, or impossible."""
    try:
        built = build(max_sites=2, template=Template(letters=("a", "b", "c")))
    except UsageError:
        return
    assert why_impossible(built, 221) is not None


def test_a_prototype_is_kept():
    coords, cell = ((0.0, 0.0, 0.0), (0.25, 0.0, 0.0)), (4.0, 4.0, 4.0, 90.0, 90.0, 90.0)
    for given in ({"frac_coords": coords}, {"lattice": cell}, {"frac_coords": coords, "lattice": cell}):
        kept = build(template=Template(letters=("a", "e"), **given)).prototype
        assert np.shape(kept.keep_coords) == np.shape(kept.keep_lattice) == ()
        assert bool(kept.keep_coords) == ("frac_coords" in given)
        assert bool(kept.keep_lattice) == ("lattice" in given)
        if kept.keep_coords:
            np.testing.assert_array_equal(kept.frac_coords[:2], np.float32(coords))
        if kept.keep_lattice:
            np.testing.assert_array_equal(kept.lattice, np.float32(cell))
    assert kept.frac_coords.shape == (CONFIG.n_max, 3)


def test_a_formula_limits_the_primitive_cell():
    built = build((221, 225, 166, 139), formula=PEROVSKITE)
    assert built.max_atoms[[220, 224, 165, 138]].tolist() == [FORMULA_ATOMS * points for points in (1, 4, 3, 2)]
    assert (build(formula=PEROVSKITE, max_atoms=5).max_atoms == 5).all()
    assert built.formula.counts[:3].tolist() == [1, 1, 3]


# Feasibility.


def test_every_space_group_can_do_without_constraints():
    for group in range(1, 231):
        assert why_impossible(unconstrained(CONFIG), group) is None


@pytest.mark.parametrize(
    ("group", "options", "message"),
    [
        (1, {"template": Template(letters=("b",))}, "space group 1 has no Wyckoff letter b .its last is a"),
        (221, {"template": Template(letters=("a", "z"))}, "no Wyckoff letter z .its last is n"),
        (221, {"template": Template(letters=("A",))}, "no Wyckoff letter A"),
        (221, {"template": Template(letters=("a", "a"))}, "letter a has no free coordinate and can be taken only once"),
        (47, {"template": Template(letters=("h", "h", "i"))}, "letter h has no free coordinate"),
        (225, {"max_atoms": 3}, "needs at least 4 atoms in its conventional cell, more than 3"),
        (221, {"max_atoms": 7, "template": Template(letters=("a", "b", "e"))}, "needs at least 8 atoms"),
        (61, {"formula": PEROVSKITE}, "no combination of letters of space group 61 .* within 20 sites and 20 atoms"),
        (221, {"formula": PEROVSKITE, "max_atoms": 4}, "may have 4 atoms .* the formula has 5"),
        (221, {"formula": PEROVSKITE, "max_sites": 2}, "within 2 sites"),
        (221, {"formula": PEROVSKITE, "template": Template(letters=("a", "b", "e"))}, "no combination of letters"),
        (227, {"formula": (("Na", 1), ("Cl", 3)), "max_atoms": 20}, "no combination of letters"),
    ],
)
def test_what_is_impossible(group, options, message):
    reason = why(group, **options)
    assert reason is not None
    assert re.search(message, reason), reason
    with pytest.raises(UsageError, match=message):
        prepare(SampleConfig(space_groups=(group,), **options), CONFIG)


@pytest.mark.parametrize(
    ("group", "options", "hint", "change"),
    [
        (225, {"max_atoms": 3}, "`max_atoms=4`", {"max_atoms": 4}),
        (61, {"formula": PEROVSKITE}, "`max_atoms=40`", {"max_atoms": 40}),
        (227, {"formula": (("Mg", 3), ("Al", 2), ("O", 12))}, "136 atoms: .* `max_atoms=136`", {"max_atoms": 136}),
        (221, {"formula": PEROVSKITE, "max_atoms": 4}, "5 atoms: .* `max_atoms=5`", {"max_atoms": 5}),
        (221, {"formula": PEROVSKITE, "max_sites": 2}, "`max_sites=3`", {"max_sites": 3}),
        (221, {"formula": PEROVSKITE, "max_sites": 2, "max_atoms": 4}, "`max_sites` and `max_atoms`", None),
        (221, {"template": Template(letters=("a", "z"))}, "of space group 221 are a to n: .*`wyckoff`", None),
        (221, {"formula": PEROVSKITE, "template": Template(letters=("a", "b", "e"))}, "leave `wyckoff` out", None),
        (221, {"template": Template(letters=("a", "a"))}, "leave `wyckoff` out", None),
        (
            19,
            {"formula": (("Y", 3), ("Al", 5), ("O", 13), ("H", 7), ("Na", 11))},
            "another space group, or relax",
            None,
        ),
    ],
)
def test_the_hint_names_the_option_that_stands_in_the_way(group, options, hint, change):
    """And its smallest value that will do."""
    request = SampleConfig(space_groups=(group,), **options)
    with pytest.raises(UsageError) as caught:
        prepare(request, CONFIG)
    assert re.search(hint, caught.value.hint)
    if change is not None:
        prepare(dataclasses.replace(request, **change), CONFIG)
        [(name, value)] = change.items()
        with pytest.raises(UsageError):
            prepare(dataclasses.replace(request, **{name: value - 1}), CONFIG)


@pytest.mark.parametrize(
    ("group", "options"),
    [
        (221, {"formula": PEROVSKITE}),
        (62, {"formula": PEROVSKITE}),
        (140, {"formula": PEROVSKITE}),
        (221, {"formula": PEROVSKITE, "template": Template(letters=("a", "b", "c"))}),
        (221, {"formula": PEROVSKITE, "max_sites": 3, "max_atoms": 5}),
        (225, {"formula": (("Na", 1), ("Cl", 1)), "max_sites": 2, "max_atoms": 8}),
        (227, {"formula": (("Mg", 1), ("Al", 2), ("O", 4))}),
        (221, {"template": Template(letters=("a", "e", "e"))}),
        (99, {"template": Template(letters=("a", "a"))}),
        (225, {"max_atoms": 4}),
        (47, {"template": Template(letters=("A",))}),
    ],
)
def test_what_is_possible(group, options):
    assert why(group, **options) is None


def test_impossible_space_groups_are_left_out():
    request = SampleConfig(space_groups=(221, 61, 62, 221), formula=PEROVSKITE)
    assert list(prepare(request, CONFIG).impossible) == [61]
    request = SampleConfig(space_groups=(61, 205), formula=PEROVSKITE)
    with pytest.raises(UsageError, match="1 other space group cannot meet the request either"):
        prepare(request, CONFIG)


def shares(choose, exhausted: tuple[int, ...], n: int = 4000) -> dict[int, float]:
    groups = [choose(number, exhausted) for number in range(n)]
    return {group: groups.count(group) / n for group in sorted(set(groups))}


def test_crystals_of_exhausted_groups_go_to_others_by_their_weights():
    request = SampleConfig(space_groups=(2, 14, 62, 194, 225), weights=(1.0, 2.0, 0.0, 3.0, 4.0))
    choose = another_group(request, {14: "impossible"})
    assert shares(choose, (225,)) == {2: pytest.approx(1 / 4, abs=0.03), 194: pytest.approx(3 / 4, abs=0.03)}
    assert shares(choose, (194,)) == {2: pytest.approx(1 / 5, abs=0.03), 225: pytest.approx(4 / 5, abs=0.03)}
    assert shares(choose, (225, 2)) == {194: 1.0}
    assert choose(7, (225, 2, 194)) is None, "never to one that is impossible or has no weight"


def test_crystals_of_exhausted_groups_go_to_others_in_turn_without_weights():
    choose = another_group(SampleConfig(space_groups=(2, 14, 225)), {})
    assert shares(choose, (225,), 600) == {2: 0.5, 14: 0.5}
    assert shares(choose, (225, 2), 600) == {14: 1.0}
    assert choose(0, (14, 225, 2)) is None


@functools.cache
def orbits(group: int, most_sites: int, most_atoms: int) -> list[tuple[int, ...]]:
    """Letters of all crystals of a space group within so many sites and atoms."""
    found = []
    for sites in range(1, most_sites + 1):
        for sequence in itertools.combinations_with_replacement(range(1, TABLE.last_letter[group - 1] + 1), sites):
            repeats = any(TABLE.is_fixed[group - 1, w] and sequence.count(w) > 1 for w in sequence)
            if not repeats and TABLE.multiplicity[group - 1, list(sequence)].sum() <= most_atoms:
                found.append(sequence)
    return found


def can_be_made(group: int, counts: tuple[int, ...], most_sites: int, most_atoms: int, letters: str = "") -> bool:
    """Tries every way to give letters to elements."""
    for sequence in orbits(group, most_sites, most_atoms):
        if letters and "".join(LETTERS[w] for w in sequence) != letters:
            continue
        sizes = TABLE.multiplicity[group - 1, list(sequence)]
        units = sizes.sum() / sum(counts)
        if units != int(units):
            continue
        for owner in itertools.product(range(len(counts)), repeat=len(sequence)):
            if np.array_equal(np.bincount(owner, sizes, len(counts)), units * np.array(counts)):
                return True
    return False


COUNTS = ((1,), (1, 1), (1, 2), (1, 3), (2, 3), (1, 1, 2), (1, 1, 3), (1, 2, 4), (2, 2, 1))
SYMBOLS = ("Mg", "Al", "O")


@pytest.mark.parametrize("group", [2, 12, 61, 62, 99, 139, 166, 194, 205, 216, 221, 225, 227])
def test_formulas_against_brute_force(group):
    """Up to four sites, two limits of atoms."""
    smallest = int(TABLE.multiplicity[group - 1, 1 : TABLE.last_letter[group - 1] + 1].min())
    for counts in COUNTS:
        for most in (3 * smallest, 24):
            formula = tuple(zip(SYMBOLS, counts, strict=False))
            reason = why(group, FEW, formula=formula, max_atoms=most)
            assert (reason is None) == can_be_made(group, counts, 4, most), (counts, most, reason)


@pytest.mark.parametrize("letters", ["ab", "abc", "abd", "acd", "abe", "cd", "e", "aef", "abcd", "ag", "agg"])
def test_formulas_with_given_letters_against_brute_force(letters):
    answers = []
    for counts in COUNTS:
        formula = tuple(zip(SYMBOLS, counts, strict=False))
        options = {"formula": formula, "max_atoms": 24, "template": Template(letters=tuple(letters))}
        answers.append(can_be_made(221, counts, 4, 24, letters))
        assert (why(221, FEW, **options) is None) == answers[-1], counts
    assert not all(answers)
