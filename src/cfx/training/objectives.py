"""What training and fine-tuning minimise: the likelihood, PPO with its advantages, and DPO."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from cfx.config import ModelConfig
from cfx.core import AnyArray, Params
from cfx.core.crystal import CrystalBatch
from cfx.core.likelihood import LogProb, log_prob
from cfx.core.network import NO_DROPOUT, Dropout
from cfx.sampling.policy import Policy, policy_log_prob

Terms = tuple[Float[Array, " B"], dict[str, Float[Array, " B"]]]
"""What is minimised or maximised of each crystal or pair, and by name what to watch."""

Sums = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]
"""A loss summed over a batch, and the sums of what to watch or of its parts."""


def negative_log_likelihood(
    params: Params,
    config: ModelConfig,
    batch: CrystalBatch,
    weight: Float[AnyArray, " B"],
    rng_key: Key[Array, ""] | None = None,
    dropout: Dropout = NO_DROPOUT,
) -> Sums:
    """Weighted sum of -log p over crystals, and of its parts, nats (2403.15734, Eq. 2).

    Args:
        batch: B crystals.
        weight: 0 for rows that only fill the batch.
    """
    parts = log_prob(params, config, batch, rng_key, dropout).parts()
    sums = {name: -_weighted_sum(value, weight) for name, value in parts.items()}
    return sum(sums.values(), jnp.zeros(())), sums


def _weighted_sum(values: Float[Array, " B"], weight: Float[AnyArray, " B"]) -> Float[Array, ""]:
    # Rows that only fill a batch may hold anything, NaN too, which 0 times does not make 0.
    return jnp.where(weight > 0, weight * values, 0.0).sum()


class PPOBatch(NamedTuple):
    """What PPO knows of B crystals, apart from the crystals.

    Attributes:
        advantage: reward less baseline, without the KL term.
        old: log-probability under the policy that drew them, nats.
        reference: log-probability under the reference policy, nats.
    """

    advantage: Float[AnyArray, " B"]
    old: Float[AnyArray, " B"]
    reference: Float[AnyArray, " B"]


def ppo_terms(
    log_prob: Float[Array, " B"],
    rollout: PPOBatch,
    kl_coef: Float[AnyArray, ""] | float,
    clip_range: Float[AnyArray, ""] | float,
) -> Terms:
    """The clipped objective of each crystal, to be maximised, and what to watch (2504.02367, Section "Method").

    A = advantage - kl_coef * (log p - log p_ref); min(rho A, clip(rho, 1 - eps, 1 + eps) A) with rho = p / p_old. No
    gradient flows through A. Where rho = 1 its gradient is that of E[reward] - kl_coef * KL(p || p_ref).

    Args:
        log_prob: under the policy being trained, nats.
        rollout: of the same crystals.
        kl_coef: tau, in units of the reward.
        clip_range: epsilon.

    Returns:
        The objective; and `kl_reference` (nats), `kl_old` (an estimate of KL(p_old || p) that is never
        negative, nats) and `clipped` (0 or 1).
    """
    kl = log_prob - rollout.reference
    advantage = jax.lax.stop_gradient(rollout.advantage - kl_coef * kl)
    log_ratio = log_prob - rollout.old
    ratio = jnp.exp(log_ratio)
    bounded = jnp.clip(ratio, 1 - clip_range, 1 + clip_range)
    watched = {
        "kl_reference": kl,
        # Unbiased, since E_old[ratio] = 1, with far less spread than -log_ratio, and no crystal makes it negative.
        "kl_old": ratio - 1 - log_ratio,
        "clipped": (jnp.abs(ratio - 1) > clip_range).astype(jnp.float32),
    }
    return jnp.minimum(ratio * advantage, bounded * advantage), watched


def ppo_loss(
    params: Params,
    config: ModelConfig,
    batch: CrystalBatch,
    weight: Float[AnyArray, " B"],
    rollout: PPOBatch,
    policy: Policy | None,
    kl_coef: Float[AnyArray, ""] | float,
    clip_range: Float[AnyArray, ""] | float,
    keeping: Params | None = None,
) -> Sums:
    """Minus the weighted sum of `ppo_terms` over a batch, and the sums of what is watched; see `dpo_loss`."""
    log_probs = likelihood(params, config, batch, policy, keeping).total
    objective, watched = ppo_terms(log_probs, rollout, kl_coef, clip_range)
    return _watched_loss(-objective, watched, weight)


def likelihood(
    params: Params, config: ModelConfig, batch: CrystalBatch, policy: Policy | None, keeping: Params | None = None
) -> LogProb:
    """Log-probability of crystals as drawn, nats: the policy's, or the published one where there is no policy."""
    if policy is None:
        return log_prob(params, config, batch)
    return policy_log_prob(params, config, batch, policy, keeping)


def group_advantage(reward: Float[np.ndarray, " B"], group_size: int) -> Float[np.ndarray, " B"]:
    """Rewards in units of their group's spread, about its mean (GRPO, 2402.03300, Section 4.1.2).

    Args:
        reward: of the crystals, groups one after the other.
        group_size: crystals in a group.
    """
    groups = reward.reshape(-1, group_size)
    spread = groups.std(axis=1, keepdims=True)
    return ((groups - groups.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1.0)).reshape(-1)


def dpo_terms(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    chosen_reference: Float[AnyArray, " B"],
    rejected_reference: Float[AnyArray, " B"],
    beta: Float[AnyArray, ""] | float,
) -> Terms:
    """The loss of each pair, and what to watch (Direct preference optimisation, 2305.18290, Eq. 7).

    Args:
        chosen: log-probability of the better crystal of each pair under the policy being trained, nats.
        rejected: of the worse one.
        chosen_reference: of the better one under the reference policy.
        rejected_reference: of the worse one.
        beta: weight of the reference.

    Returns:
        The loss; and `margin` (nats) and `right`, 1 where the policy moved towards the better crystal.
    """
    margin = (chosen - chosen_reference) - (rejected - rejected_reference)
    return -jax.nn.log_sigmoid(beta * margin), {"margin": margin, "right": (margin > 0).astype(jnp.float32)}


def dpo_loss(
    params: Params,
    config: ModelConfig,
    pairs: tuple[CrystalBatch, CrystalBatch],
    weight: Float[AnyArray, " B"],
    reference: tuple[Float[AnyArray, " B"], Float[AnyArray, " B"]],
    beta: Float[AnyArray, ""] | float,
) -> Sums:
    """The weighted sum of the losses of B pairs.

    Args:
        pairs: the better crystals, and the worse ones.
        weight: 0 for rows that only fill the batch.
        reference: log-probabilities of both under the reference policy, nats.
        beta: weight of the reference.

    Returns:
        The loss; and the sums of what `dpo_terms` gives to watch, with `loss` and `count`, the number of pairs.
    """
    better, worse = (log_prob(params, config, side).total for side in pairs)
    loss, watched = dpo_terms(better, worse, *reference, beta)
    return _watched_loss(loss, watched, weight)


def _watched_loss(
    loss: Float[Array, " B"], watched: dict[str, Float[Array, " B"]], weight: Float[AnyArray, " B"]
) -> Sums:
    """The weighted sum of losses; and those of all that is watched, with `loss` and `count`."""
    watched = watched | {"loss": loss, "count": jnp.ones_like(weight)}
    sums = {name: _weighted_sum(value, weight) for name, value in watched.items()}
    return sums["loss"], sums
