"""The likeliest oxidation states of a composition, as pymatgen guesses them, without trying all combinations.

pymatgen's own search goes through every combination of sums of oxidation states, half a minute for some compositions of
five elements. Likelihoods add up, so the best combination is found element by element instead. A tie goes to the
combination that pymatgen comes to first.
"""

from __future__ import annotations

import functools

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
