"""Known crystals that tell on which scale energies are."""

from __future__ import annotations

import dataclasses

import pytest
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from cfx.errors import CheckpointError
from cfx.evaluation.entries import correction
from cfx.predictors.canaries import KNOWN_ENERGIES, prove_scale
from cfx.predictors.load import load_potential

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("canary", KNOWN_ENERGIES, ids=lambda canary: canary.formula)
def test_the_crystals_are_what_they_are_called(canary):
    structure = canary.structure()
    assert structure.composition.reduced_formula == canary.formula
    assert SpacegroupAnalyzer(structure).get_space_group_symbol() == canary.space_group
    gap = (canary.energies["mp2020"] - canary.energies["raw"]) * len(structure)
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
    assert prove_scale(chgnet)
    with pytest.raises(CheckpointError, match=r"Fe2O3, where energies on the scale raw are -6\.75"):
        prove_scale(Relabelled(chgnet))
    with pytest.raises(CheckpointError, match=r"MgO|Fe2O3"):
        prove_scale(Relabelled(chgnet, scale="mp2020", shift=0.5))


def test_a_potential_that_knows_none_of_them_proves_nothing():
    assert not prove_scale(load_potential("ase:ase.calculators.emt:EMT"))
