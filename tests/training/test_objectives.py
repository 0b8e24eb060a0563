"""Objectives of fine-tuning against the public implementation and against their definitions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfx.core.likelihood import log_prob
from cfx.io import upstream
from cfx.training.objectives import PPOBatch, dpo_terms, group_advantage, ppo_terms

CLIP, TAU = 0.2, 0.1


@pytest.fixture
def rollout(golden_gradient):
    names = ("ppo_advantage", "ppo_old_logp", "ppo_ref_logp")
    return PPOBatch(*(golden_gradient[name].astype(np.float64) for name in names))


def published_objective(params, config, batch, rollout):
    """As the public program has it: the gradient flows through the KL term of the advantage."""
    logp = log_prob(params, config, batch).total
    advantage = rollout.advantage - TAU * (logp - rollout.reference)
    ratio = jnp.exp(logp - rollout.old)
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage).mean()


@pytest.mark.integration
def test_ppo_is_that_of_the_public_implementation(rotary, golden_gradient, rollout, cast):
    with jax.enable_x64(True):
        params, batch = cast(rotary.params, np.float64), rotary.batch[:64]
        logp = jax.jit(log_prob, static_argnums=1)(params, rotary.config, batch).total
        objective, watched = ppo_terms(logp, rollout, TAU, CLIP)
        value, gradient = jax.jit(jax.value_and_grad(published_objective), static_argnums=1)(
            params, rotary.config, batch, rollout
        )
    assert float(objective.mean()) == pytest.approx(float(golden_gradient["ppo_objective"]), rel=1e-6)
    assert float(watched["kl_reference"].mean()) == pytest.approx(float(golden_gradient["ppo_kl"]), rel=1e-5)
    assert float(value) == pytest.approx(float(golden_gradient["ppo_objective"]), rel=1e-6)
    published: dict[str, dict[str, np.ndarray]] = {}
    for key, leaf in golden_gradient.items():
        if key.startswith("ppo_grad/"):
            module, _, name = key.removeprefix("ppo_grad/").rpartition("/")
            published.setdefault(module, {})[name] = leaf
    expected = jax.tree.leaves(upstream.convert(published, rotary.config))
    scale = max(np.abs(leaf).max() for leaf in expected)
    for one, other in zip(jax.tree.leaves(gradient), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * scale)


def test_no_gradient_flows_through_the_advantage(rollout):
    """d/dx of min(rho A, clip(rho) A): A rho where the ratio is free, 0 where it is clipped."""
    logp = rollout.old + np.linspace(-0.5, 0.5, len(rollout.old))
    with jax.enable_x64(True):
        gradient = jax.grad(lambda x: ppo_terms(x, rollout, TAU, CLIP)[0].sum())(jnp.asarray(logp))
    advantage = rollout.advantage - TAU * (logp - rollout.reference)
    ratio = np.exp(logp - rollout.old)
    clipped = ((ratio > 1 + CLIP) & (advantage > 0)) | ((ratio < 1 - CLIP) & (advantage < 0))
    assert 5 < clipped.sum() < 59
    np.testing.assert_allclose(gradient, np.where(clipped, 0, ratio * advantage), rtol=1e-6, atol=1e-9)


def test_what_is_watched(rollout):
    watched = ppo_terms(jnp.asarray(rollout.old), rollout, TAU, CLIP)[1]
    assert not watched["clipped"].any()
    np.testing.assert_allclose(watched["kl_old"], 0, atol=1e-7)
    moved = ppo_terms(jnp.asarray(rollout.old + 0.3), rollout, TAU, CLIP)[1]
    assert moved["clipped"].all()
    assert (np.asarray(moved["kl_old"]) > 0).all()


def test_group_advantages_have_no_mean_and_unit_spread_in_each_group():
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(4, 8)) * [[1], [10], [100], [0]] + [[0], [5], [-7], [3]]
    advantage = group_advantage(reward.reshape(-1), 8).reshape(4, 8)
    np.testing.assert_allclose(advantage.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(advantage.std(1), [1, 1, 1, 0], atol=1e-12)
    assert (np.argsort(advantage[:3]) == np.argsort(reward[:3])).all()


def test_dpo_prefers_what_was_chosen():
    """At the reference the loss is log 2 and its gradient beta / 2, up for the better crystal, down for the worse."""
    chosen, rejected = jnp.array([-10.0, -20.0]), jnp.array([-12.0, -15.0])
    loss = lambda one, other: dpo_terms(one, other, chosen, rejected, 0.4)[0].sum()  # noqa: E731
    value, (up, down) = jax.value_and_grad(loss, argnums=(0, 1))(chosen, rejected)
    assert float(value) == pytest.approx(2 * np.log(2), rel=1e-6)
    np.testing.assert_allclose(up, -0.2, rtol=1e-6)
    np.testing.assert_allclose(down, 0.2, rtol=1e-6)
    _, watched = dpo_terms(chosen + 1, rejected, chosen, rejected, 0.4)
    np.testing.assert_allclose(watched["margin"], 1, rtol=1e-6)
    assert watched["right"].all()
