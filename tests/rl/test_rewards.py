"""Rewards of a real potential and of the bundled models, on crystals of which one is known to be better."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cfx.config import RewardConfig
from cfx.core.elements import SYMBOLS
from cfx.evaluation.hull import Hull
from cfx.evaluation.hull_files import read_hull
from cfx.evaluation.phases import Phases
from cfx.fetch.names import hull_path
from cfx.predictors.base import Potential
from cfx.reporter import Mute
from cfx.rl.named_rewards import load_reward

from ..needs import needs

needs("chgnet")


def rock_salt(cation: str, anion: str, edge: float) -> Structure:
    cell = Structure.from_spacegroup("Fm-3m", Lattice.cubic(edge), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])
    return cell.get_primitive_structure()


SALT, MAGNESIA = rock_salt("Na", "Cl", 5.69), rock_salt("Mg", "O", 4.26)
SQUEEZED = rock_salt("Na", "Cl", 4.9)
BROKEN = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0, 0, 0]])
CRYSTALS = [SALT, SQUEEZED, None, BROKEN, MAGNESIA]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)


def hull_of(potential: Potential):
    return read_hull(hull_path("chgnet-mp", Mute()), None)


def hull_of_elements(potential: Potential):
    hull = hull_of(potential)
    terminals = hull.phases.terminals
    names = [SYMBOLS[z] for z in terminals]
    return Hull(Phases.lowest([((z, 1),) for z in terminals], terminals.values(), names), hull.info)


def evaluate(name: str, **options):
    return load_reward(RewardConfig(reward=name, **options), hull_of).evaluate(CRYSTALS)


@pytest.mark.parametrize("name", ["ehull", "energy", "force"])
def test_a_crystal_at_rest_beats_a_squeezed_one(name):
    batch = evaluate(name)
    assert batch.ok.tolist() == [True, True, False, False, True] and all(batch.reasons[i] for i in (2, 3))
    assert np.isnan(batch.value[2:4]).all()
    assert batch.value[0] > batch.value[1] + 0.1


def test_ehull_is_minus_the_height_up_to_the_limit():
    batch = evaluate("ehull", e_hull_limit=0.3)
    height = batch.metrics["E_hull (eV/atom)"]
    assert abs(height[0]) < 0.03 and height[1] > 0.3
    np.testing.assert_allclose(batch.value[:2], [-height[0], -0.3])
    assert load_reward(RewardConfig(reward="ehull", e_hull_limit=0.3), hull_of).failure == -0.3


def test_what_lies_far_below_all_known_phases_is_not_believed():
    """A hull that knows no compound of sodium and fluorine: what a policy finds out first."""
    salt = rock_salt("Na", "F", 4.7)
    reward = load_reward(RewardConfig(reward="ehull"), hull_of_elements)
    batch = reward.evaluate([salt])
    assert not batch.ok[0] and batch.reasons == ["more than 0.2 eV/atom below all known phases"]
    assert batch.metrics["E_hull (eV/atom)"][0] < -1
    believed = load_reward(RewardConfig(reward="ehull", e_hull_floor=-10.0), hull_of_elements).evaluate([salt])
    assert believed.ok[0] and believed.value[0] > 1


def test_energy_is_that_of_the_potential_for_an_atom():
    from cfx.predictors.load import load_potential

    energy = load_potential("chgnet").evaluate([SALT]).energy[0] / len(SALT)
    batch = evaluate("energy")
    assert batch.value[0] == pytest.approx(-energy, abs=1e-4) and batch.metrics["energy (eV/atom)"][0] < 0


def test_force_knows_stress_where_symmetry_leaves_no_force():
    batch = evaluate("force")
    force, stress = (batch.metrics[key] for key in ("mean force (eV/angstrom)", "mean stress (eV/angstrom^3)"))
    assert force[1] < 1e-3 and stress[1] > 10 * stress[0]
    assert batch.value[1] == pytest.approx(-np.log(force[1] + 10 * stress[1]))


def test_gap_and_its_distance_from_a_target():
    plain = evaluate("gap")
    assert plain.value[[0, 4]] == pytest.approx([5.0, 4.5], abs=0.8)
    np.testing.assert_allclose(evaluate("gap", target=5.0).value, -((plain.value - 5) ** 2))
    np.testing.assert_allclose(evaluate("gap", target=5.0, distance="absolute").value, -abs(plain.value - 5))
    assert load_reward(RewardConfig(reward="gap", target=5.0), hull_of).failure < -50


def test_figure_of_merit_is_the_product():
    batch, gap, dielectric = evaluate("fom"), evaluate("gap"), evaluate("dielectric")
    np.testing.assert_allclose(batch.value, gap.value * dielectric.value)
    assert batch.ok[4] and batch.value[4] == pytest.approx(4.5 * 10, rel=0.4)
    assert {"band gap (eV)", "dielectric constant", "band gap (eV), std"} <= set(batch.metrics)


def test_a_crystal_unlike_all_that_is_known_has_no_merit():
    strange = rock_salt("Xe", "Pu", 6.0)
    batch = load_reward(RewardConfig(reward="fom"), hull_of).evaluate([strange, MAGNESIA])
    assert batch.ok.all() and batch.value[0] == 0 < batch.value[1]
    assert batch.metrics["unlike known crystals"].tolist() == [1, 0]
