"""A second opinion through ASE: SevenNet's 7net-0, whose weights are in its wheel."""

from __future__ import annotations

import pytest
from pymatgen.core import Lattice, Structure

from cfx.evaluation.setup import open_hull
from cfx.predictors.load import load_potential
from cfx.predictors.self_check import check_energy_scale
from cfx.reporter import Silent

pytestmark = pytest.mark.integration

pytest.importorskip("sevenn", reason="pip install sevenn")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sevennet_is_raw_and_proves_it():
    potential = load_potential("ase:sevenn.calculator:SevenNetCalculator")
    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.692), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    [energy] = potential.evaluate([salt], forces=False).energy / len(salt)
    assert energy == pytest.approx(-3.38, abs=0.05)
    assert check_energy_scale(potential)
    hull = open_hull("7net-mp", None, potential, Silent(), own=True)
    squeezed = salt.copy()
    squeezed.scale_lattice(0.8 * salt.volume)
    energies = potential.evaluate([salt, squeezed], forces=False).energy
    near, far = hull.evaluate([salt, squeezed], energies, potential.scale).e_above_hull
    assert abs(near) < 0.01 and far > 0.05
