"""Potentials and property models by name, among them any calculator of ASE."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cfx.catalog import CATALOG
from cfx.errors import UsageError
from cfx.fetch.names import is_here
from cfx.predictors.base import SCALES, Potential, PropertyModel, load_attribute, to_atoms
from cfx.predictors.batching import BatchedPotential, Output

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator
    from pymatgen.core import Structure


POTENTIAL_NAMES = "chgnet; orb, orb:NAME or orb:/path/to/weights; matgl:NAME or matgl:/directory; ase:MODULE:FACTORY"

PROPERTY_NAMES = "auto; bundled; matgl:NAME or matgl:/directory"

BUNDLED = ("band_gap", "dielectric")
"""Properties with a bundled model: the band gap, eV, as PBE gives it; the mean eigenvalue (trace / 3) of the total
dielectric tensor, that of electrons and ions."""


PUBLISHED = {"band_gap": "megnet-bandgap", "dielectric": "dielectric-total"}
"""Names, in the catalog, of published models that are used where they are at hand."""


def load_potential(text: str, device: str = "cpu") -> Potential:
    """The potential of a name.

    Args:
        text: `chgnet`; `orb`, `orb:NAME`, `orb:/path` or `orb:NAME:/path` (weights of that model in a file);
            `matgl:NAME` or `matgl:/directory`, with `:mp2020` after it if the energies are on that scale;
            `ase:MODULE:FACTORY`, likewise.
        device: `cpu`, `cuda` or `cuda:N`. A calculator of ASE decides for itself.

    Raises:
        UsageError: for a name or a device that does not exist.
        DependencyError: for a library or a device that is not there.
        CheckpointError: for weights that are not there or belong to something else.
        NetworkError: for weights that cannot be downloaded.
    """
    _let_threads_sleep()
    kind, _, rest = text.partition(":")
    if kind == "chgnet":
        from cfx.predictors.chgnet import load_chgnet

        if rest:
            raise UsageError(f"chgnet does not take a model name, but was given {rest}", "use: chgnet")
        return load_chgnet(device)
    if kind == "orb":
        from cfx.predictors.orb import load_orb

        return load_orb(rest, device)
    if kind == "matgl":
        from cfx.predictors.matgl import load_matgl

        return load_matgl(*split_scale(rest), device)
    if kind == "ase":
        return load_calculator(*split_scale(rest))
    raise UsageError(f"there is no potential called {text}", f"there are: {POTENTIAL_NAMES}")


def load_property(property: str, text: str = "bundled", device: str = "cpu") -> PropertyModel:
    """The model of a property.

    Args:
        property: `band_gap`, `dielectric`, or any other that a model named in `text` predicts.
        text: `auto`, `bundled`, `matgl:NAME` or `matgl:/directory`.
        device: `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: for a name, a property or a device that does not exist.
        DependencyError: for a library or a device that is not there.
        CheckpointError: for weights that are not there, belong to something else, or predict what is known to be wrong.
        NetworkError: for weights that cannot be downloaded.
    """
    _let_threads_sleep()
    text = choose_property_model(property) if text == "auto" else text
    kind, _, rest = text.partition(":")
    if kind == "matgl" and rest:
        from cfx.predictors.matgl import load_matgl_property

        return load_matgl_property(rest, property, device)
    if text != "bundled":
        raise UsageError(f"there is no property model called {text}", f"there are: {PROPERTY_NAMES}")
    if property not in BUNDLED:
        raise UsageError(
            f"there is no bundled model of {property}", f"there are: {', '.join(BUNDLED)}; or use matgl:NAME"
        )
    from cfx.predictors.bundled import load_bundled

    return load_bundled(property, device)


def choose_property_model(property: str) -> str:
    """What `auto` means here and now: a published model that is on this machine, or else the bundled one."""
    name = PUBLISHED.get(property)
    if name is not None and importlib.util.find_spec("matgl") is not None and is_here(CATALOG[name]):
        return f"matgl:{name}"
    return "bundled"


def _let_threads_sleep() -> None:
    """Keeps waiting threads of torch from spinning: where other programs run too, that makes torch ten times slower.

    OpenMP reads the setting once, when torch is first imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def split_scale(text: str) -> tuple[str, str]:
    """A name and the scale after its last colon; "raw" where no scale is given."""
    name, _, last = text.rpartition(":")
    return (name, last) if last in SCALES else (text, "raw")


ASE_FORM = "say ase:MODULE:FACTORY, like ase:ase.calculators.emt:EMT"


def load_calculator(text: str, scale: str) -> BatchedPotential:
    """The potential of a calculator.

    Args:
        text: MODULE:FACTORY; FACTORY is a calculator, or is called without arguments and returns one.
        scale: of its energies.

    Raises:
        UsageError: if there is no such thing in the module, or it is not a calculator.
        DependencyError: if the module cannot be imported.
    """
    factory = load_attribute(text, f"ase:{text} does not name a calculator", ASE_FORM)
    module, _, attribute = text.partition(":")
    try:
        made = factory() if isinstance(factory, type) or not hasattr(factory, "get_potential_energy") else factory
    except TypeError as error:
        raise UsageError(f"{attribute} of {module} cannot be called without arguments: {error}", ASE_FORM) from error
    if not hasattr(made, "get_potential_energy"):
        raise UsageError(f"{attribute} of {module} does not return an ASE calculator", ASE_FORM)
    return BatchedPotential(_Model(made, f"ase {module}:{attribute}", scale))


class _Model:
    """A calculator as a `Model`."""

    elements: frozenset[int] | None = None

    def __init__(self, calculator: Calculator, name: str, scale: str):
        self.name, self.scale = name, scale
        self._calculator = calculator

    def compute(self, structures: Sequence[Structure], forces: bool) -> list[Output]:
        """See `Model.compute`."""
        return [self._one(to_atoms(structure), forces) for structure in structures]

    def _one(self, atoms: Atoms, forces: bool) -> Output:
        # Neighbours and results of the crystal before must not matter.
        if hasattr(self._calculator, "reset"):
            self._calculator.reset()
        atoms.calc = self._calculator
        energy = float(atoms.get_potential_energy())
        return Output(energy, *((atoms.get_forces(), atoms.get_stress(voigt=False)) if forces else (None, None)))
