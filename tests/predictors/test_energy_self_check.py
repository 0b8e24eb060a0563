"""Known crystals that tell on which scale energies are."""

from __future__ import annotations

import dataclasses

import pytest
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from cfx.errors import CheckpointError
from cfx.evaluation.corrections import correction
from cfx.predictors.load import load_potential
from cfx.predictors.self_check import KNOWN_ENERGIES, check_energy_scale

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("crystal", KNOWN_ENERGIES, ids=lambda crystal: crystal.formula)
def test_the_crystals_are_what_they_are_called(crystal):
    structure = crystal.structure()
    assert structure.composition.reduced_formula == crystal.formula
    assert SpacegroupAnalyzer(structure).get_space_group_symbol() == crystal.space_group
    gap = (crystal.energies["mp2020"] - crystal.energies["raw"]) * len(structure)
    assert gap == pytest.approx(correction(structure), abs=0.02)


@dataclasses.dataclass
class Relabelled:
    """A real potential that claims another scale, or has lost its zero."""

    potential: object
    name: str = "relabelled"
    scale: str = "raw"
    shift: float = 0.0

    def evaluate(self, structures, forces=True):
        batch = self.potential.evaluate(structures, forces)
        atoms = [len(structure) for structure in structures]
        return dataclasses.replace(batch, energy=batch.energy + [self.shift * number for number in atoms])


def test_a_potential_proves_its_scale():
    pytest.importorskip("chgnet")
    chgnet = load_potential("chgnet")
    assert check_energy_scale(chgnet)
    with pytest.raises(CheckpointError, match=r"Fe2O3, where energies on the scale raw are -6\.75"):
        check_energy_scale(Relabelled(chgnet))
    with pytest.raises(CheckpointError, match=r"MgO|Fe2O3"):
        check_energy_scale(Relabelled(chgnet, scale="mp2020", shift=0.5))


def test_a_potential_that_knows_none_of_them_proves_nothing():
    assert not check_energy_scale(load_potential("ase:ase.calculators.emt:EMT"))
