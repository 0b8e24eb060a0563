"""Baselines: the published average, and one for each space group."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cfx.config import RLConfig
from cfx.data.dataset import encode
from cfx.evaluation.validity import CLASSES, composition_validity
from cfx.rl.quotas import classes_of
from cfx.rl.rollout import PRIOR, Baseline

KINDS = ["charge-neutral", "intermetallic", "element"]
GROUPS = np.array([225, 225, 1, 1, 1, 1])


def test_the_published_average():
    baseline = Baseline(RLConfig(baseline="ema"))
    np.testing.assert_allclose(baseline.update(np.array([1.0, 3.0]), np.array([1, 2])), 2.0)
    np.testing.assert_allclose(baseline.update(np.array([4.0, 6.0]), np.array([1, 2])), 0.95 * 2 + 0.05 * 5)


def test_the_mean_of_the_batch():
    baseline = Baseline(RLConfig(baseline="batch"))
    baseline.update(np.array([100.0]), np.array([1]))
    np.testing.assert_allclose(baseline.update(np.array([4.0, 6.0]), np.array([1, 2])), 5)


def test_a_group_is_held_against_itself_once_it_is_known():
    rng = np.random.default_rng(0)
    baseline = Baseline(RLConfig(baseline="group"))
    for _ in range(100):
        found = baseline.update(np.where(GROUPS == 225, 0.0, -1.0) + rng.normal(0, 0.1, 6), GROUPS)
    mean = baseline.mean
    seen = {225: 2 / 0.05, 1: 4 / 0.05}  # crystals in memory: n each step, fading by 0.95
    for group, own in ((225, 0.0), (1, -1.0)):
        expected = (seen[group] * own + PRIOR * mean) / (seen[group] + PRIOR)
        assert found[group == GROUPS] == pytest.approx(expected, abs=0.05)


def test_a_group_that_is_new_is_drawn_towards_all():
    baseline = Baseline(RLConfig(baseline="group"))
    baseline.update(np.zeros(100), np.full(100, 225))
    found = baseline.update(np.array([-1.0]), np.array([5]))
    assert found[0] == pytest.approx((-1 + PRIOR * baseline.mean) / (1 + PRIOR))


def rock_salt(first: str, second: str) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), [first, second], [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_advantages_of_a_class_add_up_to_zero():
    rng, kinds = np.random.default_rng(0), np.array([2, 1, 1, 2, 2, 0])
    baseline = Baseline(RLConfig(baseline="class"))
    for step in range(3):
        reward = rng.normal(step, 1.0, 6) + 5.0 * kinds
        advantage = reward - baseline.update(reward, kinds)
        assert [advantage[kinds == kind].sum() for kind in range(3)] == pytest.approx([0, 0, 0], abs=1e-12)
        assert np.ptp(advantage[kinds == 2]) == pytest.approx(np.ptp(reward[kinds == 2]))


def test_classes_are_those_of_an_evaluation():
    crystals = encode([rock_salt("Na", "Cl"), rock_salt("Yb", "Ni"), rock_salt("Na", "Na")], n_max=5).batch
    assert [CLASSES[place] for place in classes_of(crystals)] == KINDS
    told = composition_validity(crystals.to_structures())
    assert [one.kind for one in told] == KINDS


def test_what_is_saved_is_all_there_is():
    rng = np.random.default_rng(1)
    one = Baseline(RLConfig(baseline="group"))
    one.update(rng.normal(size=6), GROUPS)
    other = Baseline(RLConfig(baseline="group"))
    other.restore(json.loads(json.dumps(one.saved())))
    reward = rng.normal(size=6)
    np.testing.assert_array_equal(one.update(reward, GROUPS), other.update(reward, GROUPS))
