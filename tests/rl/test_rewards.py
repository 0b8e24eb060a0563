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
    np.testing.assert_allclose(evaluate("gap=5").value, evaluate("gap", target=5.0).value)
    in_range = load_reward(RewardConfig(reward="gap=3..6,gap=0..1:2", distance="absolute"), hull_of)
    assert in_range.name == "gap=3..6,gap=0..1:2" and in_range.failure == -30
    np.testing.assert_allclose(in_range.evaluate(CRYSTALS).value, -2 * (plain.value - 1))


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


def test_ehull_needs_a_hull_that_covers_the_crystal():
    """Gaps of a hull are failures, be they elements that it lacks or compounds."""
    hull = hull_of(None)
    phases = hull.phases
    sodium = [
        (phases.composition(row), energy) for row, energy in enumerate(phases.energies) if phases.pure.get(11) == row
    ]
    lacking = Hull(Phases.lowest([one for one, _ in sodium], [energy for _, energy in sodium], ["Na"]), hull.info)
    batch = load_reward(RewardConfig(reward="ehull"), lambda potential: lacking).evaluate([SALT])
    assert batch.reasons == ["the hull has no phase with Cl"] and np.isnan(batch.value[0])


def test_crystals_on_which_two_potentials_disagree_are_not_believed():
    """The same potential on another hull: its salt is far below that hull, its squeezed salt far above the first."""

    def ehull(hull=hull_of_elements, **options):
        config = RewardConfig(reward="ehull", second_potential="chgnet", second_hull="any", **options)
        return load_reward(config, hull_of, hull).evaluate(CRYSTALS)

    plain, far = evaluate("ehull"), ehull()
    difference = far.metrics["disagreement (eV/atom)"]
    np.testing.assert_allclose(
        difference[0], plain.metrics["E_hull (eV/atom)"][0] - far.metrics["second E_hull (eV/atom)"][0]
    )
    assert difference[0] > 1.5 and far.ok.tolist() == plain.ok.tolist()
    assert far.value[0] == -2.0, "as a failure, but none that ends a run"
    penalised = ehull(disagreement_penalty=0.5).value
    assert penalised[0] == pytest.approx(plain.value[0] - 0.5 * (difference[0] - 0.1), abs=1e-6)
    np.testing.assert_allclose(ehull(hull_of).value, plain.value, atol=1e-6)
    np.testing.assert_allclose(ehull(max_disagreement=5.0).value, plain.value, atol=1e-6)


def test_rewards_of_the_same_crystals_share_their_features(monkeypatch):
    """One forward pass for the gap, the dielectric constant and the energy."""
    from cfx.predictors.chgnet import FeatureExtractor

    seen = []
    compute = FeatureExtractor._compute
    monkeypatch.setattr(FeatureExtractor, "_compute", lambda self, part: seen.extend(part) or compute(self, part))
    changed = [SALT.copy().scale_lattice(45.7 + i / 7) for i in range(2)]
    both = load_reward(RewardConfig(reward="ehull,fom,gap", gap_model="bundled", dielectric_model="bundled"), hull_of)
    batch = both.evaluate([*changed, None])
    assert len(seen) == 2
    alone = load_reward(RewardConfig(reward="ehull"), hull_of).evaluate(changed)
    np.testing.assert_allclose(batch.metrics["ehull reward"][:2], alone.value, atol=1e-5)
    assert len(seen) == 2, "without a property, energies are those of the potential itself"


def test_a_relaxed_crystal_is_judged():
    relaxed = load_reward(RewardConfig(reward="ehull", relax_steps=25), hull_of).evaluate([SQUEEZED, None])
    before = relaxed.metrics["energy before relaxation (eV/atom)"][0] - relaxed.metrics["energy (eV/atom)"][0]
    assert relaxed.value[0] > evaluate("ehull").value[1] + 0.1
    assert before == pytest.approx(
        evaluate("ehull").metrics["E_hull (eV/atom)"][1] - relaxed.metrics["E_hull (eV/atom)"][0], abs=1e-3
    )
    assert 5 < relaxed.metrics["evaluations"][0] <= 26 and relaxed.metrics["evaluations"][1] == 0


def test_a_crystal_unlike_all_that_is_known_is_worth_nothing():
    crystals = [rock_salt("Xe", "Pu", 6.0), MAGNESIA]
    for name, failure in (("gap", 0.0), ("gap=4..5", -100.0), ("dielectric=1..", -100.0)):
        batch = load_reward(RewardConfig(reward=name), hull_of).evaluate(crystals)
        assert batch.ok.all() and batch.value[0] == failure < batch.value[1], name
        [told] = [values for part, values in batch.metrics.items() if "unlike" in part]
        assert told.tolist() == [1, 0]
