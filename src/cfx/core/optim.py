"""The optimiser, and one step of training."""

from __future__ import annotations

import functools
from typing import NamedTuple

import haiku as hk
import jax
import optax

from cfx.config import ModelConfig, TrainConfig
from cfx.core.crystal import CrystalBatch
from cfx.core.network import Dropout
from cfx.core.objectives import negative_log_likelihood


class TrainState(NamedTuple):
    """All that changes during training."""

    params: hk.Params
    opt_state: optax.OptState


def learning_rate_schedule(config: TrainConfig, num_steps: int) -> optax.Schedule:
    """Learning rate by step, for a run of `num_steps` steps."""
    if config.schedule == "constant":
        return optax.constant_schedule(config.learning_rate)
    warmup = min(config.warmup_steps, max(num_steps // 10, 1))
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, max(num_steps, warmup + 1), 0.01 * config.learning_rate
    )


def make_optimizer(config: TrainConfig, num_steps: int) -> optax.GradientTransformation:
    """Adam (AdamW with weight decay) on gradients clipped by their global norm."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(learning_rate_schedule(config, num_steps), weight_decay=config.weight_decay),
    )


@functools.partial(jax.jit, static_argnames=("config", "train", "num_steps"), donate_argnames="state")
def train_step(
    state: TrainState,
    batch: CrystalBatch,
    weight: jax.Array,
    rng_key: jax.Array,
    *,
    config: ModelConfig,
    train: TrainConfig,
    num_steps: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step on a batch [B] with weights [B].

    Returns:
        The new state, and loss, its parts (nats a crystal) and the gradient norm before clipping, as scalars.
    """
    dropout = Dropout(train.dropout, train.attention_dropout)
    (loss, parts), gradient = jax.value_and_grad(negative_log_likelihood, has_aux=True)(
        state.params, config, batch, weight, rng_key, dropout
    )
    updates, opt_state = make_optimizer(train, num_steps).update(gradient, state.opt_state, state.params)
    metrics = {"loss": loss, **parts, "grad_norm": optax.tree.norm(gradient)}
    return TrainState(optax.apply_updates(state.params, updates), opt_state), metrics


@functools.partial(jax.jit, static_argnames="config")
def evaluate_step(
    params: hk.Params, batch: CrystalBatch, weight: jax.Array, *, config: ModelConfig
) -> dict[str, jax.Array]:
    """Loss and its parts on a batch without dropout, nats a crystal."""
    loss, parts = negative_log_likelihood(params, config, batch, weight)
    return {"loss": loss, **parts}
