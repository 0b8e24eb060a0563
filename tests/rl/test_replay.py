"""Replay: what is chosen, and of what an average over it is one."""

from __future__ import annotations

import numpy as np
import pytest

from cfx.config import RLConfig
from cfx.core.crystal import CrystalBatch
from cfx.rl.replay import Experience, Replay, effective_share
from cfx.rl.updates import Lesson, kl_estimate

OLD = np.array([[0.4, 0.3, 0.2, 0.1], [0.3, 0.4, 0.1, 0.2], [0.25, 0.25, 0.25, 0.25]])
NOW = np.array([0.1, 0.2, 0.3, 0.4])
REWARD = np.array([0.0, 1.0, 2.0, 3.0])
DRAWS = 4000


def drawn_from(p: np.ndarray, rng: np.random.Generator, num: int = DRAWS) -> Experience:
    """Crystals that are numbers from 0 to 3, kept as their species."""
    kinds = rng.choice(len(p), num, p=p)
    species = np.zeros((num, 1), np.int32)
    species[:, 0] = kinds
    zeros = np.zeros((num, 1, 3), np.float32)
    crystals = CrystalBatch(np.ones(num, np.int32), np.ones((num, 6), np.float32), zeros, species, species)
    reward, log_prob = REWARD[kinds], np.log(p[kinds]).astype(np.float32)
    return Experience(crystals, reward, reward.astype(np.float32), log_prob, np.log(np.float32(0.25)) + 0 * log_prob)


def replayed(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """What is replayed of three steps, as numbers, and the weights under NOW."""
    rng, replay = np.random.default_rng(5), Replay(RLConfig(replay=kind, replay_steps=3, batch_size=DRAWS))
    for p in OLD:
        replay.add(drawn_from(p, rng))
    again = replay.choose(3)
    kinds = again.crystals.species[:, 0]
    lesson = Lesson.of(again, np.log(NOW[kinds]).astype(np.float32), np.zeros(len(kinds), np.float32))
    return kinds, lesson.weight


def test_averages_over_a_uniform_replay_are_those_of_the_present_policy():
    """Of rewards, within 4 standard errors: once in 16,000 seeds beyond; the seed is fixed."""
    kinds, weight = replayed("uniform")
    assert len(kinds) == DRAWS
    error = (weight * REWARD[kinds]).std() / np.sqrt(DRAWS)
    assert abs((weight * REWARD[kinds]).mean() - NOW @ REWARD) < 4 * error
    assert abs(REWARD[kinds].mean() - NOW @ REWARD) > 10 * error  # without weights they are those of the old ones
    assert effective_share(weight) == pytest.approx(1 / (NOW**2 / OLD).sum(1).mean(), rel=0.1)


def test_averages_over_the_best_are_not():
    """Whatever their weights: the best 4,000 of 12,000 draws have two rewards only."""
    kinds, weight = replayed("best")
    assert len(kinds) == DRAWS and set(kinds) == {2, 3}
    assert (weight * REWARD[kinds]).sum() / weight.sum() > NOW @ REWARD + 0.4


def test_a_replay_reaches_so_many_steps_back_and_is_chosen_by_seed_and_step():
    rng = np.random.default_rng(0)
    replay = Replay(RLConfig(replay="uniform", replay_steps=2, batch_size=6))
    assert replay.choose(0) is None
    for number, p in enumerate(np.eye(4)):
        replay.add(drawn_from(np.clip(p, 1e-9, 1) / np.clip(p, 1e-9, 1).sum(), rng, num=4))
        assert set(replay.choose(number).crystals.species[:, 0]) == {max(number - 1, 0), number}
    chosen = [replay.choose(step).crystals.species[:, 0].tolist() for step in (7, 7, *range(8, 20))]
    assert chosen[0] == chosen[1] and len({tuple(one) for one in chosen}) > 1
    none = Replay(RLConfig())
    none.add(drawn_from(NOW, rng))
    assert none.choose(1) is None


def test_the_kl_is_estimated_on_draws_of_the_policy():
    """Against the exact one, within 4 of the errors that are told: once in 16,000 seeds beyond; the seed is fixed."""
    told = kl_estimate(drawn_from(NOW, np.random.default_rng(3)))
    exact = float(NOW @ np.log(NOW / 0.25))
    assert abs(told["kl_reference"] - exact) < 4 * told["kl_error"] < 0.1 * exact + 0.05
    spread = np.sqrt(NOW @ (np.log(NOW / 0.25) - exact) ** 2)
    assert told["kl_error"] == pytest.approx(spread / np.sqrt(DRAWS), rel=0.1)
