"""Whether a structure can be one of matter, and a composition be neutral: the validity of CDVAE (2110.06197).

A structure is valid if no two atoms, periodic images included, are within 0.5 angstrom and the cell is larger than
0.1 cubic angstrom. A composition is valid if SMACT finds oxidation states that balance, the more electronegative
element being the negative one; elements and alloys are valid as they are.

pymatgen's own search goes through every combination of sums of oxidation states, half a minute for some compositions of
five elements. Likelihoods add up, so the best combination is found element by element instead. A tie goes to the
combination that pymatgen comes to first.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from cfx.data.sanity import MIN_DISTANCE, UNREAD, closest_approach, why_malformed
from cfx.errors import DependencyError

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
    if reason := why_malformed(structure):
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


MAX_ATOMS = 20
"""Larger reduced formulas are not guessed, as in pymatgen's corrections."""


def likeliest_states(composition) -> dict[str, float]:
    """What `composition.oxi_state_guesses(max_sites=-20)` of a pymatgen Composition begins with.

    Returns:
        symbol -> mean oxidation state; empty if no states are neutral together, or none can be guessed.
    """
    reduced = composition.reduced_composition
    amounts = reduced.get_el_amt_dict()
    if reduced.num_atoms > MAX_ATOMS or any(n != int(n) for n in amounts.values()):
        return {}
    best: dict[int, tuple[float, tuple[int, ...], tuple[int, ...]]] = {0: (0, (), ())}
    for symbol, n in amounts.items():
        further: dict[int, tuple[float, tuple[int, ...], tuple[int, ...]]] = {}
        for total, (penalty, places, sums) in best.items():
            for place, (own, score) in enumerate(_sums(symbol, int(n))):
                candidate = (penalty - score, (*places, place), (*sums, own))
                if total + own not in further or candidate < further[total + own]:
                    further[total + own] = candidate
        best = further
    if 0 not in best:
        return {}
    return {symbol: total / n for (symbol, n), total in zip(amounts.items(), best[0][2], strict=True)}


@functools.cache
def _occurrences() -> dict:
    """How often each species occurs in the ICSD."""
    from pymatgen.core import Composition

    Composition("NaCl").oxi_state_guesses()  # which loads them
    return Composition.oxi_prob


@functools.lru_cache(maxsize=4096)
def _sums(symbol: str, n: int) -> list[tuple[int, float]]:
    """Sums of the oxidation states that n atoms can have, each with its likeliest score, in pymatgen's order.

    That is the order in which sorted combinations of the element's states first have the sum: a combination comes
    before another if it has more atoms in the first state in which they differ.
    """
    from pymatgen.core import Element, Species

    element, occurrences = Element(symbol), _occurrences()
    states = element.icsd_oxidation_states or element.common_oxidation_states
    # tables[m]: sum -> (first combination, as negative numbers of atoms in the states so far; best score), for m atoms
    tables: list[dict[int, tuple[tuple[int, ...], float]]] = [{0: ((), 0)}, *({} for _ in range(n))]
    for state in reversed(states):
        score = occurrences.get(Species(symbol, state), 0)
        grown: list[dict[int, tuple[tuple[int, ...], float]]] = [{} for _ in range(n + 1)]
        for m, table in enumerate(tables):
            for total, (first, best) in table.items():
                for k in range(n - m + 1):
                    one, other = ((-k, *first), best + k * score), grown[m + k].get(total + k * state)
                    grown[m + k][total + k * state] = (min(one[0], other[0]), max(one[1], other[1])) if other else one
        tables = grown
    return [(total, best) for total, (_, best) in sorted(tables[n].items(), key=lambda item: item[1][0])]
