"""Materials Project's energy corrections of 2020, as pymatgen has them, for crystals that were not computed there.

An amount for each atom of an anion, which depends for oxygen and sulphur on how they are bonded, and another for each
atom of a transition metal that Materials Project would have computed with a Hubbard U.

Which element is the anion, oxidation states tell. pymatgen's own guess goes through every combination of sums of
oxidation states, half a minute for some compositions of five elements. Likelihoods add up, so the best combination is
found element by element instead. A tie goes to the combination that pymatgen comes to first.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pymatgen.core import Composition, Structure

UNCORRECTABLE = (KeyError, ValueError, IndexError)
"""What is raised on crystals that the rules do not foresee, disordered ones among them."""

MP2020, PUBLISHED = "mp2020", "published"
"""All corrections of 2020; those of the public program of CrystalFormer-RL (arXiv 2504.02367), which leaves crystals
without a Hubbard U uncorrected, for it does not say of them by which functional they were computed."""

MAX_ATOMS = 20
"""Largest reduced formula whose oxidation states are guessed, as in pymatgen's corrections."""


def correct(structure: Structure, energy: float, corrections: str = MP2020) -> float:
    """The corrected energy (total, eV) of a pymatgen Structure whose energy DFT gives as `energy` (total, eV).

    Args:
        structure: of an ordered crystal.
        energy: of all its atoms.
        corrections: MP2020, or PUBLISHED.

    Raises:
        KeyError, ValueError, IndexError: as `correction`.
    """
    if corrections == PUBLISHED and not hubbard_values(_without_charges(structure).composition):
        return energy
    return energy + correction(structure)


def correction(structure: Structure) -> float:
    """What MP2020 adds to the energy of all atoms of a pymatgen Structure, eV.

    The energy is supposed to be as Materials Project's own settings give it (PBE, with a Hubbard U where it uses one),
    which is what potentials on the raw scale are trained on.

    Raises:
        KeyError, ValueError, IndexError: if the rules do not cover the crystal (UNCORRECTABLE).
    """
    from pymatgen.entries.computed_entries import ComputedStructureEntry

    if not structure.is_ordered:
        raise ValueError("the bonds of a disordered crystal are not known")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of guessed oxidation states and of elements without an electronegativity
        bare = _without_charges(structure)
        hubbards = hubbard_values(bare.composition)
        parameters = {"run_type": "GGA+U" if hubbards else "GGA", "hubbards": hubbards}
        data = {"oxidation_states": likeliest_states(bare.composition)}
        entry = ComputedStructureEntry(bare, 0.0, parameters=parameters, data=data)
        return float(sum(adjustment.value for adjustment in _scheme().get_adjustments(entry)))


def _without_charges(structure: Structure) -> Structure:
    """The structure with plain elements instead of ions."""
    if any(hasattr(species, "oxi_state") for species in structure.composition):
        return structure.copy().remove_oxidation_states()
    return structure


@functools.cache
def _scheme():
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility

    return MaterialsProject2020Compatibility(check_potcar=False)


def hubbard_values(composition: Composition) -> dict[str, float]:
    """Symbol -> U (eV) of what Materials Project computes with one in a pymatgen Composition.

    Those are some transition metals, where oxygen or fluorine is the most electronegative element.
    """
    elements = sorted(composition.elements, key=lambda element: element.X)
    settings = _scheme().u_settings.get(elements[-1].symbol, {})
    return {element.symbol: settings[element.symbol] for element in elements if settings.get(element.symbol)}


def likeliest_states(composition: Composition) -> dict[str, float]:
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
