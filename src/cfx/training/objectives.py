"""What training and fine-tuning minimise: the likelihood, PPO with its advantages, and DPO."""

from __future__ import annotations

from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from cfx.config import ModelConfig
from cfx.core.crystal import CrystalBatch
from cfx.core.likelihood import LogProb, log_prob
from cfx.core.network import NO_DROPOUT, Dropout
from cfx.sampling.policy import Policy, policy_log_prob


def negative_log_likelihood(
    params: hk.Params,
    config: ModelConfig,
    batch: CrystalBatch,
    weight: jax.Array,
    rng_key: jax.Array | None = None,
    dropout: Dropout = NO_DROPOUT,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted sum of -log p over crystals, and of its parts, nats (2403.15734, Eq. 2).

    Args:
        params: of the network.
        config: its architecture.
        batch: B crystals.
        weight: float [B], 0 for rows that only fill the batch.
        rng_key: for dropout.
        dropout: rates.
    """
    parts = log_prob(params, config, batch, rng_key, dropout).parts()
    sums = {name: -_weighted_sum(value, weight) for name, value in parts.items()}
    return sum(sums.values(), jnp.zeros(())), sums


def _weighted_sum(values: jax.Array, weight: jax.Array) -> jax.Array:
    # Rows that only fill a batch may hold anything, NaN too, which 0 times does not make 0.
    return jnp.where(weight > 0, weight * values, 0.0).sum()


class PPOBatch(NamedTuple):
    """What PPO knows of B crystals, apart from the crystals.

    Attributes:
        advantage: reward less baseline, without the KL term; float [B].
        old: log-probability under the policy that drew them, nats.
        reference: log-probability under the reference policy, nats.
    """

    advantage: jax.Array | np.ndarray
    old: jax.Array | np.ndarray
    reference: jax.Array | np.ndarray


def ppo_terms(
    log_prob: jax.Array, rollout: PPOBatch, kl_coef: jax.Array | float, clip_range: jax.Array | float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The clipped objective of each crystal, to be maximised, and what to watch (2504.02367, Section "Method").

    A = advantage - kl_coef * (log p - log p_ref); min(rho A, clip(rho, 1 - eps, 1 + eps) A) with rho = p / p_old. No
    gradient flows through A. Where rho = 1 its gradient is that of E[reward] - kl_coef * KL(p || p_ref).

    Args:
        log_prob: under the policy being trained, nats [B].
        rollout: of the same crystals.
        kl_coef: tau, in units of the reward.
        clip_range: epsilon.

    Returns:
        The objective [B]; and, each [B], `kl_reference` (nats), `kl_old` (an estimate of KL(p_old || p) that is never
        negative, nats) and `clipped` (0 or 1).
    """
    kl = log_prob - rollout.reference
    advantage = jax.lax.stop_gradient(rollout.advantage - kl_coef * kl)
    log_ratio = log_prob - rollout.old
    ratio = jnp.exp(log_ratio)
    bounded = jnp.clip(ratio, 1 - clip_range, 1 + clip_range)
    watched = {
        "kl_reference": kl,
        "kl_old": ratio - 1 - log_ratio,
        "clipped": (jnp.abs(ratio - 1) > clip_range).astype(jnp.float32),
    }
    return jnp.minimum(ratio * advantage, bounded * advantage), watched


def ppo_loss(
    params: hk.Params,
    config: ModelConfig,
    batch: CrystalBatch,
    weight: jax.Array,
    rollout: PPOBatch,
    policy: Policy | None,
    kl_coef: jax.Array,
    clip_range: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Minus the weighted sum of `ppo_terms` over a batch [B], and the sums of what is watched; see `dpo_loss`."""
    objective, watched = ppo_terms(likelihood(params, config, batch, policy).total, rollout, kl_coef, clip_range)
    return _watched_loss(-objective, watched, weight)


def likelihood(params: hk.Params, config: ModelConfig, batch: CrystalBatch, policy: Policy | None) -> LogProb:
    """Log-probability of crystals as drawn, nats: the policy's, or the published one where there is no policy."""
    if policy is None:
        return log_prob(params, config, batch)
    return policy_log_prob(params, config, batch, policy)


def group_advantage(reward: np.ndarray, group_size: int) -> np.ndarray:
    """Rewards in units of their group's spread, about its mean (GRPO, 2402.03300, Section 4.1.2).

    Args:
        reward: float [groups * group_size], groups one after the other.
        group_size: crystals in a group.
    """
    groups = reward.reshape(-1, group_size)
    spread = groups.std(axis=1, keepdims=True)
    return ((groups - groups.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1.0)).reshape(-1)


def dpo_terms(
    chosen: jax.Array,
    rejected: jax.Array,
    chosen_reference: jax.Array,
    rejected_reference: jax.Array,
    beta: jax.Array | float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of each pair, and what to watch (Direct preference optimisation, 2305.18290, Eq. 7).

    Args:
        chosen: log-probability of the better crystal of each pair under the policy being trained, nats [B].
        rejected: of the worse one.
        chosen_reference: of the better one under the reference policy.
        rejected_reference: of the worse one.
        beta: weight of the reference.

    Returns:
        The loss [B]; and, each [B], `margin` (nats) and `right`, 1 where the policy moved towards the better crystal.
    """
    margin = (chosen - chosen_reference) - (rejected - rejected_reference)
    return -jax.nn.log_sigmoid(beta * margin), {"margin": margin, "right": (margin > 0).astype(jnp.float32)}


def dpo_loss(
    params: hk.Params,
    config: ModelConfig,
    pairs: tuple[CrystalBatch, CrystalBatch],
    weight: jax.Array,
    reference: tuple[jax.Array, jax.Array],
    beta: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of the losses of B pairs.

    Args:
        params: of the network.
        config: its architecture.
        pairs: the better crystals, and the worse ones.
        weight: float [B], 0 for rows that only fill the batch.
        reference: log-probabilities of both under the reference policy, nats, each [B].
        beta: weight of the reference.

    Returns:
        The loss; and the sums of what `dpo_terms` gives to watch, with `loss` and `count`, the number of pairs.
    """
    better, worse = (log_prob(params, config, side).total for side in pairs)
    loss, watched = dpo_terms(better, worse, *reference, beta)
    return _watched_loss(loss, watched, weight)


def _watched_loss(
    loss: jax.Array, watched: dict[str, jax.Array], weight: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of losses [B]; and those of all that is watched, with `loss` and `count`."""
    watched = watched | {"loss": loss, "count": jnp.ones_like(weight)}
    sums = {name: _weighted_sum(value, weight) for name, value in watched.items()}
    return sums["loss"], sums
