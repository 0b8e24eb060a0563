"""What comes before a reward: classes, relaxation."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cfx.predictors.load import load_potential
from cfx.reporter import Interrupted, StopRequest
from cfx.rl.judging import CLASS_WANTED, of_classes, relaxed
from cfx.rl.rewards import EVALUATIONS, NamedReward, make_batch
from cfx.rl.rollout import RewardCache

from ..needs import needs

needs("smact")


def cubic(symbol: str, edge: float) -> Structure:
    return Structure(Lattice.rhombohedral(edge / 2**0.5, 60), [symbol], [[0, 0, 0]])


def salt(cation: str, anion: str) -> Structure:
    cell = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])
    return cell.get_primitive_structure()


class Volumes:
    """A reward that is the volume per atom, and notes what it is asked for."""

    def __init__(self):
        self.asked: list[Structure | None] = []

    def __call__(self, structures):
        self.asked = list(structures)
        value = np.array([np.nan if one is None else one.volume / len(one) for one in structures])
        return make_batch(value, ["no structure" * (one is None) for one in structures])


@pytest.fixture
def volumes() -> Volumes:
    return Volumes()


@pytest.fixture
def reward(volumes) -> NamedReward:
    return NamedReward("volume", "the volume of an atom", "angstrom^3", -3.0, volumes)


class TestClasses:
    CRYSTALS = (salt("Na", "Cl"), cubic("Cu", 3.6), None, salt("Ba", "Cl"), salt("Cu", "Au"))

    def test_others_count_as_failures_and_are_not_evaluated(self, reward, volumes):
        batch = of_classes(reward, ("charge-neutral",), None).evaluate(self.CRYSTALS)
        volume = self.CRYSTALS[0].volume / 2
        np.testing.assert_allclose(batch.value, [volume, -3, np.nan, -3, -3])
        assert batch.reasons == ["", "", "no structure", "", ""], "they do not end a run"
        np.testing.assert_array_equal(batch.metrics[CLASS_WANTED], [1, 0, np.nan, 0, 0])
        assert [one is not None for one in volumes.asked] == [True, False, False, False, False]

    def test_others_lose_a_penalty_at_most_down_to_a_failure(self, reward):
        batch = of_classes(reward, ("element", "intermetallic"), 5.0).evaluate(self.CRYSTALS)
        volume = np.array([np.nan if one is None else one.volume / len(one) for one in self.CRYSTALS])
        np.testing.assert_allclose(batch.value, volume - [5, 0, 0, 5, 0])
        batch = of_classes(reward, ("element",), 1000.0).evaluate(self.CRYSTALS)
        np.testing.assert_allclose(batch.value, [-3, volume[1], np.nan, -3, -3])


@pytest.fixture(scope="module")
def emt():
    return load_potential("ase:ase.calculators.emt:EMT")


class TestRelaxation:
    def test_what_is_judged_is_relaxed_with_its_symmetry(self, emt, reward, volumes):
        crystals = [cubic("Cu", 3.9), None, cubic("Au", 4.06), cubic("Na", 4.0)]
        batch = relaxed(reward, emt, 40).evaluate(crystals)
        assert batch.ok.tolist() == [True, False, True, False]
        assert batch.reasons[1] == "no structure" and batch.reasons[3].startswith("its relaxation fails: ")
        assert volumes.asked[0].volume == pytest.approx(3.59**3 / 4, rel=0.02)
        assert crystals[0].volume == pytest.approx(3.9**3 / 4)
        before, after = (
            emt.evaluate(crystals[:1], forces=False).energy[0],
            emt.evaluate(volumes.asked[:1]).energy[0],
        )
        assert batch.metrics["energy before relaxation (eV/atom)"][0] == pytest.approx(before) and after < before - 0.05
        assert batch.metrics["converged"][[0, 2]].tolist() == [1, 1]

    def test_evaluations_are_counted(self, emt, reward):
        calls = []

        class Counted:
            name, scale = emt.name, emt.scale

            def evaluate(self, structures, forces=True):
                calls.append(len(structures))
                return emt.evaluate(structures, forces)

        batch = relaxed(reward, Counted(), 3).evaluate([cubic("Cu", 3.9), cubic("Au", 4.06), cubic("Ag", 4.3)])
        assert batch.metrics[EVALUATIONS].sum() == sum(calls)
        assert batch.metrics[EVALUATIONS].max() == 4 and batch.metrics["converged"].tolist() == [0, 1, 0]

    def test_a_signal_ends_it_within(self, emt, reward):
        class Signalling:
            name, scale, calls = emt.name, emt.scale, 0

            def evaluate(self, structures, forces=True):
                self.calls += 1
                if self.calls == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                return emt.evaluate(structures, forces)

        potential = Signalling()
        with StopRequest(), pytest.raises(Interrupted) as stopped:
            relaxed(reward, potential, 100).evaluate([cubic("Cu", 3.9)])
        assert stopped.value.signum == signal.SIGTERM and potential.calls == 2
        assert StopRequest.heard() is None

    def test_a_crystal_that_is_known_costs_nothing(self, emt, reward):
        cache, crystals = RewardCache(), [cubic("Cu", 3.9), cubic("Cu", 3.9), cubic("Au", 4.06)]
        found = [
            cache.evaluate(relaxed(reward, emt, 3), keys, crystals)[2] for keys in ([b"a", b"a", b"b"], [b"a"] * 3)
        ]
        assert [(metrics[EVALUATIONS] > 0).tolist() for metrics in found] == [[True, False, True], [False] * 3]
