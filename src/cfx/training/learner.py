"""The optimiser, and a step of training in three kernels: gradients of batches, their sum, the update.

Only the first depends on the length of a batch, and is compiled for each length.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from cfx.config import ModelConfig, TrainConfig
from cfx.core.crystal import CrystalBatch
from cfx.core.likelihood import LogProb
from cfx.core.network import Dropout
from cfx.training.objectives import negative_log_likelihood

PRECISIONS = {"float32": "float32", "bfloat16": "BF16_BF16_F32"}
"""JAX's names of how matrix products are computed; by itself it would take less than float32 on some GPUs."""

LOSS_PARTS = tuple(field.name for field in dataclasses.fields(LogProb))
"""What the loss is the sum of."""


class Gradient(NamedTuple):
    """Sums over the crystals of one or more batches.

    Attributes:
        params: gradient of the loss.
        sums: by name, the parts of the loss (nats) and `crystals`, their number.
    """

    params: hk.Params
    sums: dict[str, jax.Array]


class TrainState(NamedTuple):
    """All that changes during training.

    Attributes:
        params: weights.
        opt_state: of the optimiser.
        average: moving average of the weights, or None.
        step: int32, updates made. An update with a loss or gradient that is not finite is not made, nor any after it:
            the state stays the last good one, and `step` stays behind.
        totals: sums since the metrics were last written: those of `Gradient`, `steps` and `grad_norm`.
    """

    params: hk.Params
    opt_state: optax.OptState
    average: hk.Params | None
    step: jax.Array
    totals: dict[str, jax.Array]

    @property
    def best_params(self) -> hk.Params:
        """The weights to validate and to keep: the moving average where there is one."""
        return self.params if self.average is None else self.average


def learning_rate_schedule(config: TrainConfig, num_steps: int) -> optax.Schedule:
    """Learning rate by step, for a run of `num_steps` steps."""
    if config.schedule == "constant":
        return optax.constant_schedule(config.learning_rate)
    if config.schedule == "inverse":
        return lambda step: config.learning_rate / (1 + config.decay * step)
    warmup = min(config.warmup_steps, max(num_steps // 10, 1))
    cosine = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, max(num_steps, warmup + 1), 0.01 * config.learning_rate
    )
    return lambda step: cosine(step + 1)  # no step without effect; the last one has the smallest rate


def make_optimizer(config: TrainConfig, num_steps: int) -> optax.GradientTransformation:
    """Adam or AdamW on gradients clipped by their global norm; only weights decay, no bias and no norm."""
    schedule = learning_rate_schedule(config, num_steps)
    if config.optimizer == "adam":
        adam = optax.adam(schedule)
    else:
        adam = optax.adamw(schedule, weight_decay=config.weight_decay, mask=_decays)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)


def _decays(params: hk.Params) -> hk.Params:
    return {
        module: {name: module == "~" or name in ("w", "value_w") for name in values}
        for module, values in params.items()
    }


def init_state(params: hk.Params, config: TrainConfig, num_steps: int) -> TrainState:
    """The state before the first step."""
    average = jax.tree.map(jnp.array, params) if config.ema_decay else None
    opt_state = make_optimizer(config, num_steps).init(params)
    return TrainState(params, opt_state, average, jnp.zeros((), jnp.int32), no_totals())


def no_totals() -> dict[str, jax.Array]:
    """Totals of no steps."""
    return {name: jnp.zeros(()) for name in (*LOSS_PARTS, "crystals", "steps", "grad_norm")}


@functools.partial(jax.jit, static_argnames=("config", "dropout", "precision"))
def gradient(
    params: hk.Params,
    batch: CrystalBatch,
    weight: jax.Array,
    rng_key: jax.Array,
    *,
    config: ModelConfig,
    dropout: Dropout,
    precision: str,
) -> Gradient:
    """Gradient of a batch [B]; its rows weigh 1, or 0 where they only fill it (float32 [B])."""
    with jax.default_matmul_precision(PRECISIONS[precision]):
        (_, parts), params_gradient = jax.value_and_grad(negative_log_likelihood, has_aux=True)(
            params, config, batch, weight, rng_key, dropout
        )
    return Gradient(params_gradient, {**parts, "crystals": weight.sum()})


@functools.partial(jax.jit, donate_argnums=0)
def add(one: Gradient, other: Gradient) -> Gradient:
    """The gradient of both."""
    return jax.tree.map(operator.add, one, other)


@functools.partial(jax.jit, static_argnames=("train", "num_steps"), donate_argnames="state")
def update(
    state: TrainState,
    total: Gradient,
    step: jax.Array,
    crystals_per_step: jax.Array,
    *,
    train: TrainConfig,
    num_steps: int,
) -> TrainState:
    """Step number `step` (from 0).

    The gradient is divided by the mean number of crystals in a step, not by that in this step, so that over an epoch
    every crystal weighs the same.
    """
    mean = jax.tree.map(lambda leaf: leaf / crystals_per_step, total.params)
    norm = optax.tree.norm(mean)
    loss = sum(total.sums[name] for name in LOSS_PARTS)
    good = jnp.isfinite(loss) & jnp.isfinite(norm) & (state.step == step)
    updates, opt_state = make_optimizer(train, num_steps).update(mean, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
        keep = jnp.minimum(train.ema_decay, (1 + step) / (10 + step))  # short at first: the start is soon forgotten
        average = optax.incremental_update(params, average, 1 - keep)
    added = {**total.sums, "steps": jnp.ones(()), "grad_norm": norm}
    new = TrainState(params, opt_state, average, state.step + 1, jax.tree.map(operator.add, state.totals, added))
    return _choose(good, new, state)


def _choose(condition: jax.Array, one: Any, other: Any) -> Any:
    return jax.tree.map(functools.partial(jnp.where, condition), one, other)


@functools.partial(jax.jit, static_argnames="config")
def loss_sums(
    params: hk.Params, batch: CrystalBatch, weight: jax.Array, *, config: ModelConfig
) -> dict[str, jax.Array]:
    """The parts of the loss of a batch without dropout, nats, summed over its rows that weigh 1; and their number."""
    return {**negative_log_likelihood(params, config, batch, weight)[1], "crystals": weight.sum()}
