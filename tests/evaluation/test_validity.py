"""Which structures and compositions are valid."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from pymatgen.core import Composition, DummySpecies, Lattice, Structure

from cfx.data.structures import UNREAD
from cfx.evaluation import validity
from cfx.evaluation.validity import composition_validity, structure_validity, wrong_formula

from .crystals import rock_salt

smact = pytest.importorskip("smact", reason="composition validity needs smact")


def pair(distance: float) -> Structure:
    return Structure(Lattice.cubic(10), ["Fe", "O"], [[0, 0, 0], [distance / 10, 0, 0]])


def of(formula: str) -> Structure:
    """Any structure of a formula."""
    symbols = [kind.symbol for kind, count in Composition(formula).items() for _ in range(int(count))]
    points = list(itertools.islice(itertools.product(np.arange(0, 1, 0.25), repeat=3), len(symbols)))
    return Structure(Lattice.cubic(12), symbols, points)


def reason(formula: str) -> str:
    (record,) = composition_validity([of(formula)])
    assert record.valid == (record.reason == "")
    return record.reason


def test_structures_on_both_sides_of_half_an_angstrom():
    close, apart = structure_validity([pair(0.49), pair(0.51)])
    assert not close.valid and close.reason == "atoms within 0.5 angstrom"
    assert apart.valid and apart.reason == ""


def test_atoms_can_be_too_close_to_their_own_images():
    (record,) = structure_validity([Structure(Lattice.orthorhombic(0.4, 5, 5), ["Fe"], [[0, 0, 0]])])
    assert record.reason == "atoms within 0.5 angstrom"


def test_structures_that_are_none():
    tiny = Structure(Lattice.cubic(0.4), ["Fe"], [[0, 0, 0]])
    flat = Structure(Lattice([[3, 0, 0], [0, 3, 0], [3, 3, 0]]), ["Fe"], [[0, 0, 0]])
    nowhere = Structure(Lattice.cubic(4), ["Fe"], [[math.nan, 0, 0]])
    reasons = [record.reason for record in structure_validity([None, tiny, flat, nowhere, rock_salt()])]
    assert reasons[0] == UNREAD
    assert reasons[1] == reasons[2] == "a cell of at most 0.1 cubic angstrom"
    assert reasons[3] == "a lattice or coordinates that are not finite"
    assert reasons[4] == ""


@pytest.mark.parametrize("formula", ["NaCl", "Fe2O3", "CaTiO3", "Fe3Al", "Si", "He", "BaTiO3", "CuS2"])
def test_valid_compositions(formula):
    assert reason(formula) == ""


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("NaCl2", "charges do not balance"),
        ("XeO5", "charges do not balance"),
        ("CsHe", "He has no oxidation states"),
        ("RfO2", "SMACT does not know Rf"),
    ],
)
def test_invalid_compositions_have_a_reason(formula, expected):
    assert reason(formula) == expected


def test_charges_against_electronegativity():
    """The only balance is with the less electronegative element as the anion."""
    found = {reason(formula) for formula in ("HfAsRu", "SiC2", "PtCl7", "Cl2O8", "AsRu", "Si3Br", "NI", "BH2P3")}
    assert "charges balance only against electronegativity" in found


def test_oxidation_states_of_a_cif_are_not_asked_for():
    decorated = rock_salt()
    decorated.add_oxidation_state_by_element({"Na": 3, "Cl": -2})
    assert composition_validity([decorated])[0].valid


def test_compositions_that_cannot_be_asked():
    alloy = Structure(Lattice.cubic(3), [{"Fe": 0.5, "O": 0.5}], [[0, 0, 0]])
    dummy = Structure(Lattice.cubic(3), [DummySpecies("X"), "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    unread, mixed, unknown = composition_validity([None, alloy, dummy])
    assert unread.reason == UNREAD
    assert mixed.reason == "partial occupancies have no oxidation states"
    assert unknown.reason == "SMACT does not know X"


def test_many_elements_are_refused_by_a_rule_before_they_are_tried():
    assert "combinations of oxidation states" in reason("MnFeCrVRuOsNS")
    assert reason("MnFeCrVRuOsNbMoW") == ""  # an alloy is valid as it is


def test_the_rule_is_about_combinations(monkeypatch):
    """One more or one less than there are."""
    formula = (("Fe", 2), ("O", 3))
    states = math.prod(len(validity._oxidation_states(symbol)) for symbol, _ in formula)
    for limit, expected in ((states, ""), (states - 1, f"more than {states - 1} combinations of oxidation states")):
        wrong_formula.cache_clear()
        validity._unbalanced.cache_clear()
        monkeypatch.setattr(validity, "MAX_COMBINATIONS", limit)
        assert wrong_formula(formula) == expected
    wrong_formula.cache_clear()
    validity._unbalanced.cache_clear()


@pytest.mark.parametrize(
    ("formula", "kind", "valid", "without_alloys"),
    [
        ("Si", "element", True, True),
        ("MgZn2", "intermetallic", True, False),
        ("AlSb", "intermetallic", True, True),  # whose charges balance
        ("NaCl", "charge-neutral", True, True),
        ("CsHe", "other", False, False),
        ("NaCl2", "other", False, False),
        ("Fe5C", "other", False, False),
    ],
)
def test_classes_of_compositions(formula, kind, valid, without_alloys):
    (record,) = composition_validity([of(formula)])
    assert (record.kind, record.valid, record.without_alloys) == (kind, valid, without_alloys)


@pytest.mark.parametrize(
    ("formula", "as_usual", "mixed"),
    [
        ("Fe3O4", "other", "charge-neutral"),
        ("Cs2SbCl6", "other", "charge-neutral"),
        ("Ti4O7", "other", "charge-neutral"),
        ("Fe2O3", "charge-neutral", "charge-neutral"),
        ("NaCl2", "other", "other"),
        ("Fe3O20", "other", "other"),
        ("Fe3Xe", "other", "other"),
    ],
)
def test_mixed_valence(formula, as_usual, mixed):
    for option, kind in ((False, as_usual), (True, mixed)):
        (record,) = composition_validity([of(formula)], option)
        assert (record.kind, record.valid) == (kind, kind == "charge-neutral")


def test_what_has_no_composition_is_of_no_class():
    (record,) = composition_validity([None])
    assert record.kind is None and not record.without_alloys


def test_the_convention_is_cdvaes():
    """The loop of the published metric, on data of today."""
    formulas = [
        "NaCl",
        "NaCl2",
        "Fe2O3",
        "HfAsRu",
        "CaTiO3",
        "AsRu",
        "GaAs",
        "SiC",
        "Bi8Pt5I3",
        "Ti2O",
        "CuS2",
        "LiAsRh2",
    ]
    assert [reason(formula) == "" for formula in formulas] == [published(formula) for formula in formulas]
    assert {published(formula) for formula in formulas} == {True, False}


def published(formula: str) -> bool:
    counts = {kind.symbol: int(count) for kind, count in Composition(formula).items()}
    elements = [smact.Element(symbol) for symbol in counts]
    if all(symbol in smact.metals for symbol in counts):
        return True
    for states in itertools.product(*(element.oxidation_states_smact14 for element in elements)):
        if sum(state * count for state, count in zip(states, counts.values(), strict=True)):
            continue
        ions = list(zip(states, (element.pauling_eneg for element in elements), strict=True))
        if all(low < high for charge, low in ions for other, high in ions if charge > 0 > other):
            return True
    return False
