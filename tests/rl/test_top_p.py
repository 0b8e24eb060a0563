"""Reinforcement under top-p, on a model whose eight crystals can be enumerated."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfx.config import RLConfig
from cfx.core.crystal import CrystalBatch
from cfx.core.elements import SYMBOLS
from cfx.errors import UsageError
from cfx.model import Model, load_model
from cfx.sampling.policy import policy_log_prob
from cfx.sampling.request import prepare
from cfx.training.objectives import PPOBatch, ppo_loss

from .test_reinforce import (
    GENTLE,
    LATTICE,
    PAIR_REWARDS,
    PAIRS,
    TINY,
    TWO_SITES,
    PairLookup,
    lines,
    pair_probabilities,
    run_it,
    tilt,
)

pytestmark = pytest.mark.integration

TOP_P = dataclasses.replace(TWO_SITES, top_p=0.8)


@pytest.fixture(scope="module")
def models() -> tuple[Model, Model]:
    """One that keeps six of the eight crystals, and another that keeps others."""
    return dataclasses.replace(Model.init(TINY, seed=3), name="tiny"), Model.init(TINY, seed=6)


def all_pairs() -> CrystalBatch:
    n = len(PAIRS)
    species, letters, coords = np.zeros((n, 3), np.int32), np.zeros((n, 3), np.int32), np.zeros((n, 3, 3), np.float32)
    species[:, :2], letters[:, :2], coords[:, 1] = [[SYMBOLS.index(z) for z in pair] for pair in PAIRS], [1, 2], 0.5
    lattice = np.tile(np.array(LATTICE, np.float32), (n, 1))
    return CrystalBatch(np.full(n, 221, np.int32), lattice, coords, species, letters)


def log_probs(model: Model, keeping: Model | None = None) -> np.ndarray:
    policy = prepare(TOP_P, TINY).policy
    params = None if keeping is None else keeping.params
    return np.asarray(policy_log_prob(model.params, TINY, all_pairs(), policy, params).total)


def test_ratios_are_those_of_distributions_on_what_the_policy_that_drew_keeps(models):
    """Their mean is 1, which it would not be if each kept its own."""
    drew, learns = models
    p, own = np.exp(log_probs(drew)), np.exp(log_probs(learns))
    support = p > 0
    assert p.sum() == pytest.approx(1, abs=1e-5) and 2 < support.sum() < 8
    np.testing.assert_allclose(np.exp(log_probs(drew, drew))[support], p[support], rtol=1e-5)
    ratio = np.exp(log_probs(learns, drew))[support] / p[support]
    assert p[support] @ ratio == pytest.approx(1, abs=1e-5) and (ratio > 0).all()
    assert own[support].sum() < 0.9 and np.abs(ratio - 1).max() > 0.1


def test_the_gradient_of_a_step_is_that_of_the_objective(models):
    """E[r] - tau KL(p || p_ref), summed over all crystals that top-p keeps; p_ref keeps all."""
    model, reference = models
    policy, tau, crystals = prepare(TOP_P, TINY).policy, 0.4, all_pairs()
    whole = np.asarray(policy_log_prob(reference.params, TINY, crystals, prepare(TWO_SITES, TINY).policy).total)
    support = np.flatnonzero(np.isfinite(log_probs(model)))
    kept, rewards, before = crystals[support], PAIR_REWARDS[support], whole[support]
    params = jax.tree.map(jnp.asarray, model.params)

    def objective(weights):
        log_p = policy_log_prob(weights, TINY, kept, policy, params).total
        return (jnp.exp(log_p) * (rewards - tau * (log_p - before))).sum()

    exact = jax.jit(jax.grad(objective))(params)
    old = log_probs(model)[support]
    known = PPOBatch(rewards.astype(np.float32), old, before)

    def loss(weights):
        return ppo_loss(weights, TINY, kept, np.exp(old), known, policy, tau, 0.2, params)[0]

    found = jax.jit(jax.grad(loss))(params)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(exact))
    assert largest > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(-a, b, atol=1e-4 * largest), found, exact)


def test_a_run_under_top_p_begins_at_ratios_of_one(models, tmp_path):
    """One update a step is none that is clipped; the KL is that from a reference that keeps all."""
    model, _ = models
    rl = RLConfig(steps=2, batch_size=64, learning_rate=1e-3)
    run_it(tmp_path / "run", model, dataclasses.replace(rl, inner_epochs=1), TOP_P, PairLookup())
    first = lines(tmp_path / "run")[0]
    assert first["clipped"] == 0 and abs(first["kl_old"]) < 1e-6
    p, q = pair_probabilities(model, TOP_P), pair_probabilities(model)
    exact = float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))
    assert exact > 0.1 and first["kl_reference"] == pytest.approx(exact, abs=4 * first["kl_error"] + 1e-4)
    with pytest.raises(UsageError, match="no exact ratios under top-p"):
        run_it(tmp_path / "no", model, dataclasses.replace(rl, replay="uniform"), TOP_P, PairLookup())


@pytest.mark.slow
def test_under_top_p_it_converges_to_the_tilt_of_what_is_kept(models, tmp_path):
    """p_ref exp(r / tau) among the crystals that the policy still draws: within 0.08 of every probability."""
    model, sample = models[0], dataclasses.replace(TWO_SITES, top_p=0.95)
    run_it(tmp_path / "run", model, dataclasses.replace(GENTLE, steps=120, inner_epochs=2), sample, PairLookup())
    after = pair_probabilities(load_model(tmp_path / "run" / "final"), sample)
    before = np.where(after > 0, pair_probabilities(model), 0)
    tilted = tilt(before, PAIR_REWARDS)
    assert 1 < np.sum(after > 0) < 8 and np.abs(before / before.sum() - tilted).max() > 0.2
    np.testing.assert_allclose(after, tilted, atol=0.08)
