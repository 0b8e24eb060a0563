"""Chemical symbols by atomic number, formulas, families of elements, and oxidation states."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from cfx.config.symbols import SYMBOLS as SYMBOLS  # those of config, under the name that everything above has for them

if TYPE_CHECKING:
    from pymatgen.core import Composition

K = TypeVar("K")


def lowest_terms(counts: Mapping[K, int]) -> dict[K, int]:
    """Numbers of atoms of a formula, divided by their greatest common divisor."""
    divisor = math.gcd(*counts.values())
    return {kind: count // divisor for kind, count in counts.items()}


_ELECTROPOSITIVE_FIRST = """
    Fr Cs K Rb Ba Ra Na Sr Li Ca Ac La Tb Yb Ce Pm Pr Nd Sm Eu Gd Dy Y Ho Er Tm Lu Pu Am Bk Cf Cm Es Fm Hf Lr Md No Th
    Mg Zr Np Sc U Pa Ta Ti Mn Be Nb Al Tl V Zn Cr Cd In Ga Fe Co Cu Re Si Tc Ni Ag Sn Hg Po Ge Bi B Sb Te Mo As P At H
    Ir Os Pd Rn Ru Pt Rh Pb W Au C Se S Xe I Br Kr N Cl O F
"""
PLACES_IN_FORMULAS = {symbol: place for place, symbol in enumerate(_ELECTROPOSITIVE_FIRST.split())}
"""Elements in the order of Pauling's electronegativities as pymatgen has them, equal ones by symbol."""


def formula(counts: Mapping[int, int]) -> str:
    """Reduced formula of atomic number -> count, in pymatgen's order but without parentheses: LaNiO3, BaN2O6.

    Elements without an electronegativity come last.
    """
    symbols = {SYMBOLS[z]: n for z, n in sorted(lowest_terms(counts).items())}
    ordered = sorted(symbols, key=lambda symbol: PLACES_IN_FORMULAS.get(symbol, len(PLACES_IN_FORMULAS)))
    return "".join(symbol + str(symbols[symbol]) * (symbols[symbol] > 1) for symbol in ordered)


NOBLE_GASES = (2, 10, 18, 36, 54, 86, 118)
"""The last element of each period."""

LANTHANIDES, ACTINIDES = range(57, 72), range(89, 104)


def group_number(number: int) -> int:
    """Group 1 to 18 of the periodic table; 0 for lanthanides and actinides, which are blocks of their own."""
    if number in LANTHANIDES or number in ACTINIDES:
        return 0
    last = next(last for last in NOBLE_GASES if number <= last)
    before = max((noble for noble in NOBLE_GASES if noble < number), default=0)
    from_left, from_right = number - before, last - number
    return from_left if from_left <= 2 and from_right else 18 - from_right


def _group(group: int) -> tuple[int, ...]:
    return tuple(z for z in range(2, len(SYMBOLS)) if group_number(z) == group)  # without hydrogen


FAMILIES = {
    "alkali metals": _group(1),
    "alkaline earths": _group(2),
    "3d metals": tuple(range(21, 31)),
    "coinage metals": (29, 47, 79),
    "chalcogens": _group(16),
    "halogens": _group(17),
    "noble gases": _group(18),
    "lanthanides": tuple(LANTHANIDES),
    "actinides": tuple(ACTINIDES),
}
"""Atomic numbers by what chemists call them; an element can be of two families."""

MAX_ATOMS = 20
"""Largest reduced formula whose oxidation states are guessed, as in pymatgen's corrections."""


def likeliest_states(composition: Composition) -> dict[str, float]:
    """What `composition.oxi_state_guesses(max_sites=-20)` of a pymatgen Composition begins with.

    pymatgen goes through every combination of sums of oxidation states, half a minute for some compositions of five
    elements. Likelihoods add up, so the best combination is found element by element instead. A tie goes to the
    combination that pymatgen comes to first.

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
    return Composition.oxi_prob or {}


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
    tables: list[dict[int, tuple[tuple[int, ...], float]]] = [{0: ((), 0.0)}, *({} for _ in range(n))]
    for state in reversed(states):
        score = float(occurrences.get(Species(symbol, state), 0))
        grown: list[dict[int, tuple[tuple[int, ...], float]]] = [{} for _ in range(n + 1)]
        for m, table in enumerate(tables):
            for total, (first, best) in table.items():
                for k in range(n - m + 1):
                    one, other = ((-k, *first), best + k * score), grown[m + k].get(total + k * state)
                    grown[m + k][total + k * state] = (min(one[0], other[0]), max(one[1], other[1])) if other else one
        tables = grown
    return [(total, best) for total, (_, best) in sorted(tables[n].items(), key=lambda item: item[1][0])]
