"""A step of fine-tuning in kernels: log-probabilities of a batch, gradients of its objective, the update.

Only the first two depend on the length of a batch, and are compiled for each length.
"""

from __future__ import annotations

import functools
import operator
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from cfx.config import ModelConfig
from cfx.core.crystal import CrystalBatch
from cfx.core.likelihood import LogProb, log_prob
from cfx.sampling.policy import Policy, policy_log_prob
from cfx.training.objectives import Rollout, dpo_terms, ppo_terms


class FineTuneState(NamedTuple):
    """All that an update changes.

    Attributes:
        params: weights of the policy.
        opt_state: of the optimiser.
    """

    params: hk.Params
    opt_state: optax.OptState


class Sums(NamedTuple):
    """Sums over crystals or pairs.

    Attributes:
        gradient: of the loss.
        watched: by name, what to watch; with `loss`, and `count`, how many there are.
    """

    gradient: hk.Params
    watched: dict[str, jax.Array]


def make_optimizer(learning_rate: float, clip_norm: float) -> optax.GradientTransformation:
    """Adam on gradients clipped by their global norm."""
    return optax.chain(optax.clip_by_global_norm(clip_norm), optax.adam(learning_rate))


def init_state(params: hk.Params, learning_rate: float, clip_norm: float) -> FineTuneState:
    """The state before the first update."""
    params = jax.tree.map(jnp.asarray, params)
    return FineTuneState(params, make_optimizer(learning_rate, clip_norm).init(params))


def likelihood(params: hk.Params, config: ModelConfig, batch: CrystalBatch, policy: Policy | None) -> LogProb:
    """Log-probability of crystals as drawn, nats: the policy's, or the published one where there is no policy."""
    if policy is None:
        return log_prob(params, config, batch)
    return policy_log_prob(params, config, batch, policy)


score = jax.jit(likelihood, static_argnames="config")


@functools.partial(jax.jit, static_argnames="config")
def ppo_gradient(
    params: hk.Params,
    batch: CrystalBatch,
    weight: jax.Array,
    rollout: Rollout,
    policy: Policy | None,
    kl_coef: jax.Array,
    clip_range: jax.Array,
    *,
    config: ModelConfig,
) -> Sums:
    """Gradient of minus the clipped objective, summed over B crystals that weigh 1 (0: only fill the batch)."""

    def loss(params: hk.Params) -> tuple[jax.Array, dict[str, jax.Array]]:
        logp = likelihood(params, config, batch, policy).total
        objective, watched = ppo_terms(logp, rollout, kl_coef, clip_range)
        return _weighted(-objective, watched, weight)

    (_, sums), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return Sums(gradient, sums)


@functools.partial(jax.jit, static_argnames="config")
def dpo_gradient(
    params: hk.Params,
    chosen: CrystalBatch,
    rejected: CrystalBatch,
    weight: jax.Array,
    reference: tuple[jax.Array, jax.Array],
    beta: jax.Array,
    *,
    config: ModelConfig,
) -> Sums:
    """Gradient of the loss of pairs, summed over those that weigh 1."""

    def loss(params: hk.Params) -> tuple[jax.Array, dict[str, jax.Array]]:
        better, worse = (log_prob(params, config, batch).total for batch in (chosen, rejected))
        each, watched = dpo_terms(better, worse, *reference, beta)
        return _weighted(each, watched, weight)

    (_, sums), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return Sums(gradient, sums)


def _weighted(
    loss: jax.Array, watched: dict[str, jax.Array], weight: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The sum of the losses [B] that weigh 1; and of all that is watched, with `loss` and `count`."""
    watched = watched | {"loss": loss, "count": jnp.ones_like(weight)}
    sums = {name: jnp.where(weight > 0, weight * value, 0.0).sum() for name, value in watched.items()}
    return sums["loss"], sums


@jax.jit
def add(one: Any, other: Any) -> Any:
    """The sum of two trees."""
    return jax.tree.map(operator.add, one, other)


@functools.partial(jax.jit, static_argnames=("learning_rate", "clip_norm"))
def update(
    state: FineTuneState, sums: Sums, *, learning_rate: float, clip_norm: float
) -> tuple[FineTuneState, jax.Array]:
    """The state after an update by the mean gradient, and that gradient's norm.

    A gradient that is not finite changes nothing; its norm tells.
    """
    mean = jax.tree.map(lambda leaf: leaf / sums.watched["count"], sums.gradient)
    norm = optax.tree.norm(mean)
    updates, opt_state = make_optimizer(learning_rate, clip_norm).update(mean, state.opt_state, state.params)
    new = FineTuneState(optax.apply_updates(state.params, updates), opt_state)
    good = jnp.isfinite(norm)
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state), norm
