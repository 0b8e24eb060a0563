"""Any calculator of ASE as a potential, one crystal after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cfx.errors import UsageError
from cfx.predictors.base import load_attribute
from cfx.predictors.batching import BatchedPotential, Output

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator
    from pymatgen.core import Structure

FORM = "say ase:MODULE:FACTORY, like ase:ase.calculators.emt:EMT"


def load_calculator(text: str, scale: str) -> BatchedPotential:
    """The potential of a calculator.

    Args:
        text: MODULE:FACTORY; FACTORY is a calculator, or is called without arguments and returns one.
        scale: of its energies.

    Raises:
        UsageError: if there is no such thing in the module, or it is no calculator.
        DependencyError: if the module cannot be imported.
    """
    factory = load_attribute(text, f"ase:{text} does not name a calculator", FORM)
    module, _, attribute = text.partition(":")
    try:
        made = factory() if isinstance(factory, type) or not hasattr(factory, "get_potential_energy") else factory
    except TypeError as error:
        raise UsageError(f"{attribute} of {module} cannot be called without arguments: {error}", FORM) from error
    if not hasattr(made, "get_potential_energy"):
        raise UsageError(f"{attribute} of {module} gives no calculator of ASE", FORM)
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


def to_atoms(structure: Structure) -> Atoms:
    """Elements, positions and cell of an ordered Structure, and nothing else of it."""
    from ase import Atoms

    numbers = [site.specie.Z for site in structure]
    return Atoms(numbers=numbers, positions=structure.cart_coords, cell=structure.lattice.matrix, pbc=True)
