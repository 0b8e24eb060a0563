"""What texts stand for, on the command line and in Python: formulas, lists, space groups by symbol."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import spglib
from pymatgen.core import Composition

from cfx.config import RewardConfig, SampleConfig, SelfTrainConfig, Shape, Template, texts
from cfx.config.symbols import FORMER_SYMBOLS, OTHER_SETTINGS, SPACE_GROUPS, space_group_number
from cfx.errors import UsageError

HALL_NUMBERS = range(1, 531)


def request(**given: Any) -> SampleConfig:
    """A request of texts, lists and mappings; declared are the tuples that fields hold."""
    return SampleConfig(**given)


def symbols_of_spglib() -> dict[str, set[int]]:
    """Short symbols of every setting, with the space groups that have them."""
    found: dict[str, set[int]] = {}
    for hall in HALL_NUMBERS:
        kind = spglib.get_spacegroup_type(hall)
        assert kind is not None
        found.setdefault(kind.international_short, set()).add(kind.number)
    return found


def test_symbols_are_those_of_spglib():
    known = symbols_of_spglib()
    assert list(SPACE_GROUPS) == list(range(1, 231))
    assert all(known[symbol] == {number} for number, symbol in SPACE_GROUPS.items())
    orthorhombic = {symbol: number for symbol, number in OTHER_SETTINGS.items() if number == 62}
    assert all(known[symbol] == {number} for symbol, number in orthorhombic.items())


def test_a_symbol_is_read_without_underscores_and_however_it_is_capitalised():
    for number, symbol in SPACE_GROUPS.items():
        plain = symbol.replace("_", "")
        for written in (symbol, plain, plain.lower(), symbol.upper(), f" {symbol[0]} {symbol[1:]}"):
            assert space_group_number(written) == number
    assert {symbol: space_group_number(symbol) for symbol in FORMER_SYMBOLS} == FORMER_SYMBOLS


@pytest.mark.parametrize(
    ("symbol", "message", "hint"),
    [
        ("Pm3m", "Pm3m is not a space group: did you mean Pm-3m?", None),
        ("fm3m", "fm3m is not a space group: did you mean Fm-3m?", None),
        ("P6_3/mmd", "P6_3/mmd is not a space group: did you mean P6_3/mmc", None),
        ("Pbnm", "Pbnm is not a space group in its standard setting", "Pnma, number 62"),
        ("P21/n", "P21/n is not a space group in its standard setting", "P2_1/c, number 14"),
        ("perovskite", "perovskite is not a space group", "P6_3/mmc"),
    ],
)
def test_a_symbol_that_is_none_is_told_what_it_may_be(symbol, message, hint):
    with pytest.raises(UsageError) as error:
        texts.space_groups(f"1,{symbol}")
    assert error.value.message.startswith(message)
    assert hint is None or hint in str(error.value.hint)


def test_symbols_stand_among_numbers_and_ranges():
    assert texts.space_groups("Fm-3m,221,225-227") == ((225, 221, 225, 226, 227), ())
    assert texts.space_groups("uniform") == (tuple(range(1, 231)), (1.0,) * 230)


@pytest.mark.parametrize(
    "text",
    [
        *("SrTiO3", "Cs2ZnFe(CN)6", "Y3Al5O12", "Fe", "OFe", "Ca5(PO4)3(OH)", "Li[Ni(O2)2]3", "{FeO}2Ti"),
        *("Fe2.0O3", "(Fe0.5O)2", "H2 O", " NaCl ", "NaClNa", "Al2(SO4)3", "Fe10", "Fe0O2"),
    ],
)
def test_a_formula_is_what_pymatgen_reads(text):
    counts = Composition(text).get_el_amt_dict()
    assert dict(texts.formula(text)) == counts and list(dict(texts.formula(text))) == list(counts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SrTiO3.5", "'SrTiO3.5' does not have whole numbers of atoms"),
        ("", "'' does not have whole numbers of atoms"),
        ("SrTxO3", "'SrTxO3' is not a formula: there is no element 'Tx'"),
        *[
            (text, "is not a formula")
            for text in ("srtio3", "Sr(TiO3", "SrTiO3)", "(2SrO)", "Sr-Ti", "3", "Sr+2", "(Sr")
        ],
    ],
)
def test_what_is_no_formula(text, message):
    with pytest.raises(UsageError) as error:
        texts.formula(text)
    assert message in error.value.message and repr(text) in error.value.message


def test_a_request_takes_the_texts_of_the_command_line():
    written = request(
        space_groups="Pm-3m,P6_3/mmc",
        formula="SrTiO3",
        elements="Sr, Ti,O",
        require="Ti",
        exclude="Pb,Cd",
        bias="Sr:2,O:-1.5",
        shard="3/16",
        template=Template(**{"letters": "a,b,e"}),
    )
    assert written == SampleConfig(
        space_groups=(221, 194),
        formula=(("Sr", 1), ("Ti", 1), ("O", 3)),
        elements=("Sr", "Ti", "O"),
        require=("Ti",),
        exclude=("Pb", "Cd"),
        bias=(("Sr", 2.0), ("O", -1.5)),
        shard=(3, 16),
        template=Template(letters=("a", "b", "e")),
    )
    assert hash(written)
    assert RewardConfig(reward="gap", shape=Shape(**{"clip": "-1,1"})).shape.clip == (-1.0, 1.0)


def test_a_request_takes_lists_and_mappings():
    found = request(
        space_groups=[221, "Fm-3m"], elements=["La", "O"], formula={"La": 2, "O": 3}, bias=[["La", 1]], weights=[1, 2]
    )
    assert (found.space_groups, found.elements, found.weights) == ((221, 225), ("La", "O"), (1, 2))
    assert (found.formula, found.bias) == ((("La", 2), ("O", 3)), (("La", 1),))


@pytest.mark.parametrize(("given", "groups"), [(3, (3,)), (np.int64(3), (3,)), (np.array([3, 4]), (3, 4)), ("3", (3,))])
def test_space_groups_of_a_request(given, groups):
    found = request(space_groups=given)
    assert (found.space_groups, found.weights) == (groups, ())


def test_uniform_brings_its_weights():
    assert request(space_groups="uniform") == request(space_groups=range(1, 231), weights=(1.0,) * 230)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"elements": 8}, "elements must be a list, each text, not 8"),
        ({"elements": ("La", 8)}, r"elements must be a list, each text, not \('La', 8\)"),
        ({"formula": ("Sr", "Ti")}, r"formula must be a list, each \(text, a whole number\), not"),
        ({"formula": "SrTiO3.5"}, r"'SrTiO3\.5' does not have whole numbers of atoms"),
        ({"bias": "Fe=2"}, "'Fe=2' is not a bias"),
        ({"require": ""}, "empty value"),
        ({"space_groups": 2.5}, "space_groups must be a list, each a whole number"),
        ({"space_groups": "Pm3m"}, r"did you mean Pm-3m\?"),
    ],
)
def test_what_a_request_refuses(given, message):
    with pytest.raises(UsageError, match=message):
        request(**{"space_groups": (1,), **given})


def test_classes_are_named_or_left_out():
    assert texts.classes("neutral, other") == ("charge-neutral", "other")
    assert texts.classes("not:element,other") == ("intermetallic", "charge-neutral")
    assert SelfTrainConfig(classes="not:other").classes == RewardConfig(classes="not:other").classes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("salts", "no class of compositions 'salts'"),
        ("element,not:other", "no class of compositions 'not:other'"),
        ("not:element,intermetallic,neutral,other", "leaves no class"),
    ],
)
def test_classes_that_cannot_be_meant(text, words):
    with pytest.raises(UsageError, match=words):
        texts.classes(text)
