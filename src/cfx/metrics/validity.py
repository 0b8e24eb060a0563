"""Whether a structure can be one of matter, and a composition be neutral: the validity of CDVAE (2110.06197).

A structure is valid if no two atoms, periodic images included, are within 0.5 angstrom and the cell is larger than
0.1 cubic angstrom. A composition is valid if SMACT finds oxidation states that balance, the more electronegative
element being the negative one; elements and alloys are valid as they are.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from cfx.errors import DependencyError
from cfx.metrics.distance import closest_approach
from cfx.metrics.screen import UNREAD, what_is_wrong

MIN_DISTANCE = 0.5
"""Distance (angstrom) that two atoms keep in a valid structure."""

OXIDATION_STATES = "smact14"
"""SMACT's set of oxidation states that was its only one when the convention was published."""

SMACT_SETTING = f"SMACT, oxidation states {OXIDATION_STATES}, Pauling test, alloys valid"
"""The setting in words, for reports."""

MAX_COMBINATIONS = 2_000_000
"""Most combinations of oxidation states that are tried, in a second or two; eight elements may have more."""


@dataclass(frozen=True)
class Validity:
    """Whether a structure or a composition is valid, and if not, the reason."""

    valid: bool
    reason: str = ""


def structure_validity(structures: Iterable) -> list[Validity]:
    """Of each pymatgen Structure, or None for a row that could not be read: whether it is valid."""
    reasons = map(_wrong_structure, structures)
    return [Validity(not reason, reason) for reason in reasons]


def _wrong_structure(structure) -> str:
    if reason := what_is_wrong(structure):
        return reason
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        close = closest_approach(structure) <= MIN_DISTANCE
    return f"atoms within {MIN_DISTANCE} angstrom" if close else ""


def composition_validity(structures: Iterable) -> list[Validity]:
    """Of each pymatgen Structure, or None for a row that could not be read: whether its composition is valid.

    Raises:
        DependencyError: if SMACT is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import smact.screening  # noqa: F401
    except ImportError as error:
        raise DependencyError("the validity of compositions needs smact", "pip install 'cfx-crystal[eval]'") from error
    reasons = map(_wrong_composition, structures)
    return [Validity(not reason, reason) for reason in reasons]


def _wrong_composition(structure) -> str:
    if structure is None:
        return UNREAD
    if not len(structure):
        return "no atoms"
    if not structure.is_ordered:
        return "partial occupancies have no oxidation states"
    counts = Counter(site.specie.symbol for site in structure)
    divisor = math.gcd(*counts.values())
    return wrong_formula(tuple(sorted((symbol, count // divisor) for symbol, count in counts.items())))


@functools.lru_cache(maxsize=100_000)
def wrong_formula(formula: tuple[tuple[str, int], ...]) -> str:
    """Why SMACT finds a formula, of (symbol, count), invalid; "" if it is valid."""
    from pymatgen.core import Composition
    from smact.screening import smact_validity

    if _valid_as_it_is(formula):
        return ""
    if reason := _cannot_be_asked(formula):
        return reason
    ask = functools.partial(smact_validity, Composition(dict(formula)), oxidation_states_set=OXIDATION_STATES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if ask(use_pauling_test=True, include_alloys=True):
            return ""
        neutral = ask(use_pauling_test=False, include_alloys=True)
    return "charges balance only against electronegativity" if neutral else "charges do not balance"


def _valid_as_it_is(formula: tuple[tuple[str, int], ...]) -> bool:
    """Whether this is an element or an alloy, which SMACT's rules take as valid."""
    from smact import metals

    return len(formula) == 1 or all(symbol in metals for symbol, _ in formula)


def _cannot_be_asked(formula: tuple[tuple[str, int], ...]) -> str:
    """Why SMACT has no answer: it lacks data, or it would try combinations for ever."""
    combinations = 1
    for symbol, _ in formula:
        states = _oxidation_states(symbol)
        if states is None:
            return f"SMACT does not know {symbol}"
        if not states:
            return f"{symbol} has no oxidation states"
        combinations *= len(states)
    if combinations > MAX_COMBINATIONS:
        return f"more than {MAX_COMBINATIONS:,} combinations of oxidation states"
    return ""


@functools.cache
def _oxidation_states(symbol: str) -> tuple[int, ...] | None:
    from smact import Element

    try:
        return tuple(getattr(Element(symbol), f"oxidation_states_{OXIDATION_STATES}") or ())
    except KeyError:
        return None
