"""CHGNet against known numbers and against its own calculator."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from ..needs import needs

pytestmark = pytest.mark.integration

needs("chgnet")


@pytest.fixture(scope="module")
def chgnet(get_potential):
    return get_potential("chgnet")


def test_rock_salt(chgnet):
    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    charged = salt.copy().add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    batch = chgnet.evaluate([salt, charged])
    np.testing.assert_allclose(batch.energy / 8, -3.67, atol=0.005)
    assert chgnet.scale == "mp2020" and chgnet.name.startswith("chgnet 0.") and chgnet.name.endswith("(0.3.0)")


def test_as_its_own_calculator(chgnet, alloys):
    from chgnet.model.dynamics import CHGNetCalculator

    batch = chgnet.evaluate(alloys)
    calculator = CHGNetCalculator(use_device="cpu", verbose=False)
    for i in (1, 3):
        atoms = alloys[i].to_ase_atoms()
        atoms.calc = calculator
        assert batch.energy[i] == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        np.testing.assert_allclose(batch.forces[i], atoms.get_forces(), atol=1e-3)
        np.testing.assert_allclose(batch.stress[i], atoms.get_stress(voigt=False), atol=1e-4)


def test_crystals_on_which_its_graphs_fail_leave_no_file(chgnet, tmp_path, monkeypatch):
    """Atoms so close to 6 angstrom apart that rounding puts one neighbour of a pair inside the cutoff."""
    monkeypatch.chdir(tmp_path)
    start = np.array([0.6369616873214543, 0.2697867137638703, 0.04097352393619469])
    coords = start + np.array([[0, 0, 0], [0.5, 0, 0], [0, 0.3, 0.3], [0.5, 0.3, 0.3]])
    crystals = [
        Structure(Lattice.orthorhombic(2 * edge, 7.1, 7.3), ["Na", "Cl", "Na", "Cl"], coords)
        for edge in np.linspace(6.000000000833325, 6.000000000833337, 27)
    ]
    batch = chgnet.evaluate(crystals, forces=False)
    if batch.ok.all():
        pytest.skip("numbers round differently here")
    assert batch.ok.any() and list(tmp_path.iterdir()) == []
    assert "Failed creating bond graph" in next(reason for reason in batch.reasons if reason)


def test_lonely_atoms_have_a_reason(chgnet):
    lonely = Structure(Lattice.rhombohedral(6.1, 60), ["Ar"], [[0, 0, 0]])
    batch = chgnet.evaluate([lonely])
    assert "1 isolated atom" in batch.reasons[0] and not batch.ok[0]
