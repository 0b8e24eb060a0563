"""What training minimises, and what fine-tuning maximises."""

from __future__ import annotations

from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from cfx.config import ModelConfig
from cfx.core.crystal import CrystalBatch
from cfx.core.likelihood import log_prob
from cfx.core.network import NO_DROPOUT, Dropout


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
    # A row without weight counts nothing, whatever its value.
    sums = {name: -jnp.where(weight > 0, weight * value, 0.0).sum() for name, value in parts.items()}
    return sum(sums.values(), jnp.zeros(())), sums


class Rollout(NamedTuple):
    """What a step of fine-tuning knows of B crystals, apart from the crystals.

    Attributes:
        advantage: reward less baseline, without the KL term; float [B].
        old: log-probability under the policy that drew them, nats.
        reference: log-probability under the reference policy, nats.
    """

    advantage: jax.Array
    old: jax.Array
    reference: jax.Array


def ppo_terms(
    log_prob: jax.Array, rollout: Rollout, kl_coef: jax.Array | float, clip_range: jax.Array | float
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
    chosen: jax.Array, rejected: jax.Array, chosen_reference: jax.Array, rejected_reference: jax.Array, beta: float
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
