"""Formulas are written in one way."""

import math

import pytest
from pymatgen.core import Composition, Element

from cfx.core.elements import PLACES_IN_FORMULAS, formula


@pytest.mark.parametrize("text", ["LaNiO3", "PbCl3", "RbMnF3", "ScCd", "BaSrTi2O6", "XeF2", "Na2He", "H3C"])
def test_formulas_are_pymatgens(text):
    counts = {element.Z: 3 * int(count) for element, count in Composition(text).items()}
    assert formula(counts) == formula(dict(reversed(counts.items()))) == Composition(text).reduced_formula == text


def test_formulas_have_no_parentheses():
    """They are names, of blocks and of files."""
    assert formula({56: 1, 7: 2, 8: 6}) == "BaN2O6" and Composition("BaN2O6").reduced_formula == "Ba(NO3)2"


def test_the_order_is_that_of_electronegativities():
    known = [element for element in map(Element, PLACES_IN_FORMULAS) if not math.isnan(element.X)]
    ordered = sorted(known, key=lambda element: (element.X, element.symbol))
    assert list(PLACES_IN_FORMULAS) == [element.symbol for element in ordered]
