"""Materials Project's energy corrections of 2020, as pymatgen has them, for crystals that were not computed there.

An amount for each atom of an anion, which depends for oxygen and sulphur on how they are bonded, and another for each
atom of a transition metal that Materials Project would have computed with a Hubbard U.

Which element is the anion, oxidation states tell.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING

from cfx.core.elements import likeliest_states

if TYPE_CHECKING:
    from pymatgen.core import Composition, Structure

UNCORRECTABLE = (KeyError, ValueError, IndexError)
"""What is raised on crystals that the rules do not foresee, disordered ones among them."""

MP2020, PUBLISHED = "mp2020", "published"
"""All corrections of 2020; those of the public program of CrystalFormer-RL (arXiv 2504.02367), which leaves crystals
without a Hubbard U uncorrected, for it does not say of them by which functional they were computed."""


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
