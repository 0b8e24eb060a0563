"""The optimiser, and a step of learning in three kernels: gradients of batches, their sum, the update.

Only the first depends on the length of a batch, and is compiled for each length. Training and fine-tuning differ in the
loss, and in what an update keeps beside the weights.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Bool, Float, Int, Key

from cfx.config import ModelConfig, TrainConfig
from cfx.core import AnyArray, Params
from cfx.core.crystal import CrystalBatch
from cfx.core.likelihood import PARTS
from cfx.core.network import Dropout
from cfx.training.objectives import likelihood, negative_log_likelihood

PRECISIONS = {"float32": "float32", "bfloat16": "BF16_BF16_F32"}
"""JAX's names of how matrix products are computed; by itself it would take less than float32 on some GPUs."""


class Gradient(NamedTuple):
    """Sums over the crystals (or pairs) of one or more batches.

    Attributes:
        params: gradient of the loss.
        sums: by name: in training the parts of the loss (nats) and `crystals`, their number; in fine-tuning what is
            watched, with `loss` and `count`, the number of crystals or pairs.
    """

    params: Params
    sums: dict[str, Float[Array, ""]]


class TrainState(NamedTuple):
    """All that changes during training.

    Attributes:
        params: weights.
        opt_state: of the optimiser.
        average: moving average of the weights, or None.
        step: updates made. An update with a loss or gradient that is not finite is not made, nor any after it:
            the state stays the last good one, and `step` stays behind.
        totals: sums since the metrics were last written: those of `Gradient`, `steps` and `grad_norm`.
    """

    params: Params
    opt_state: optax.OptState
    average: Params | None
    step: Int[Array, ""]
    totals: dict[str, Float[Array, ""]]

    @property
    def best_params(self) -> Params:
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


def make_optimizer(
    learning_rate: float | optax.Schedule, clip_norm: float, kind: str = "adam", weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Adam, AdamW or Muon on gradients clipped by their global norm.

    Under AdamW weights decay, but no biases or norms. Muon (Jordan et al. 2024) makes the updates of the blocks'
    matrices orthogonal; scaled to the size of Adam's (2502.16982, Eq. 4), they take the same learning rate. These
    matrices decay; all other weights are NAdam's, and do not.
    """
    if kind == "adam":
        optimizer = optax.adam(learning_rate)
    elif kind == "adamw":
        optimizer = optax.adamw(learning_rate, weight_decay=weight_decay, mask=_decays)
    else:
        optimizer = optax.contrib.muon(
            learning_rate,
            weight_decay=weight_decay,
            muon_weight_dimension_numbers=cast(Any, _matrices),
            consistent_rms=0.2,
        )
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)


def _training_optimizer(config: TrainConfig, num_steps: int) -> optax.GradientTransformation:
    schedule = learning_rate_schedule(config, num_steps)
    return make_optimizer(schedule, config.clip_norm, config.optimizer, config.weight_decay)


def _decays(params: Params) -> dict[str, dict[str, bool]]:
    return {
        module: {name: module == "~" or name in ("w", "value_w") for name in values}
        for module, values in params.items()
    }


def _matrices(params: Params) -> dict[str, dict[str, Any]]:
    """The axes of the blocks' matrices, which are stacked: [layers, in, out] or [layers, in, heads, out]."""
    axes = {"w": optax.contrib.MuonDimensionNumbers(1, 2), "value_w": optax.contrib.MuonDimensionNumbers(1, (2, 3))}
    return {
        module: {name: axes.get(name) if module.startswith("blocks/") else None for name in values}
        for module, values in params.items()
    }


def choose_precision(precision: str) -> str:
    """How matrix products of training are computed on this machine: float32 or bfloat16."""
    if precision == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return precision


def init_state(params: Params, config: TrainConfig, num_steps: int) -> TrainState:
    """The state before the first step."""
    average = jax.tree.map(jnp.array, params) if config.ema_decay else None
    opt_state = _training_optimizer(config, num_steps).init(params)
    return TrainState(params, opt_state, average, jnp.zeros((), jnp.int32), no_totals())


class PolicyState(NamedTuple):
    """All that an update of fine-tuning changes.

    Attributes:
        params: weights of the policy.
        opt_state: of the optimiser.
    """

    params: Params
    opt_state: optax.OptState


def init_policy(params: Params, learning_rate: float, clip_norm: float) -> PolicyState:
    """The state before the first update."""
    params = jax.tree.map(jnp.asarray, params)
    return PolicyState(params, make_optimizer(learning_rate, clip_norm).init(params))


def no_totals() -> dict[str, Float[Array, ""]]:
    """Totals of no steps."""
    return {name: jnp.zeros(()) for name in (*PARTS, "crystals", "steps", "grad_norm")}


# Gradients, and their sum.


@functools.partial(jax.jit, static_argnames=("config", "dropout", "precision"))
def gradient(
    params: Params,
    batch: CrystalBatch,
    weight: Float[AnyArray, " B"],
    rng_key: Key[Array, ""],
    *,
    config: ModelConfig,
    dropout: Dropout,
    precision: str,
) -> Gradient:
    """Gradient of the negative log-likelihood of a batch.

    Its rows weigh 1, or 0 where they only fill it.
    """
    with jax.default_matmul_precision(PRECISIONS[precision]):
        found = _differentiate(negative_log_likelihood, params, config, batch, weight, rng_key, dropout)
    return found._replace(sums={**found.sums, "crystals": weight.sum()})


def _differentiate(loss: Callable[..., Any], params: Params, config: ModelConfig, *arguments: Any) -> Gradient:
    (_, sums), params_gradient = jax.value_and_grad(loss, has_aux=True)(params, config, *arguments)
    return Gradient(params_gradient, sums)


loss_gradient = jax.jit(_differentiate, static_argnums=(0, 2))
"""Gradient of one of the summed losses of `objectives`; it takes what the loss takes, after the loss."""


@functools.partial(jax.jit, donate_argnums=0)
def add(one: Gradient, other: Gradient) -> Gradient:
    """The gradient of both."""
    return jax.tree.map(operator.add, one, other)


# Updates.


@functools.partial(jax.jit, static_argnames=("train", "num_steps"), donate_argnames="state")
def update(
    state: TrainState,
    total: Gradient,
    step: Int[AnyArray, ""],
    crystals_per_step: Float[AnyArray, ""],
    *,
    train: TrainConfig,
    num_steps: int,
) -> TrainState:
    """Step number `step` (from 0) of training.

    The gradient is divided by the mean number of crystals in a step, not by that in this step, so that over an epoch
    every crystal weighs the same.
    """
    optimizer = _training_optimizer(train, num_steps)
    params, opt_state, norm = _descend(optimizer, state.params, state.opt_state, total.params, crystals_per_step)
    loss = sum(total.sums[name] for name in PARTS)
    # After a bad step `state.step` stays behind for good: without the host's knowing, no later update is made.
    good = jnp.isfinite(loss) & jnp.isfinite(norm) & (state.step == step)
    average = state.average
    if average is not None:
        keep = jnp.minimum(train.ema_decay, (1 + step) / (10 + step))  # short at first: the start is soon forgotten
        average = cast(Params, optax.incremental_update(params, average, 1 - keep))
    added = {**total.sums, "steps": jnp.ones(()), "grad_norm": norm}
    new = TrainState(params, opt_state, average, state.step + 1, jax.tree.map(operator.add, state.totals, added))
    return _choose(good, new, state)


@functools.partial(jax.jit, static_argnames=("learning_rate", "clip_norm"))
def update_policy(
    state: PolicyState,
    total: Gradient,
    scale: Float[AnyArray, ""] | float = 1.0,
    *,
    learning_rate: float,
    clip_norm: float,
) -> tuple[PolicyState, Float[Array, ""]]:
    """The state after an update by the mean gradient at `scale` of the learning rate, and that gradient's norm.

    A gradient that is not finite changes nothing; its norm tells.
    """
    optimizer, count = make_optimizer(learning_rate, clip_norm), total.sums["count"]
    params, opt_state, norm = _descend(optimizer, state.params, state.opt_state, total.params, count, scale)
    return _choose(jnp.isfinite(norm), PolicyState(params, opt_state), state), norm


def _descend(
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: optax.OptState,
    total: Params,
    count: Float[AnyArray, ""],
    scale: Float[AnyArray, ""] | float = 1.0,
) -> tuple[Params, optax.OptState, Float[Array, ""]]:
    """Weights and optimiser after an update by a gradient divided by `count`, times `scale`; and the norm of that."""
    mean = jax.tree.map(lambda leaf: leaf / count, total)
    updates, opt_state = optimizer.update(mean, opt_state, params)
    updates = jax.tree.map(lambda leaf: scale * leaf, updates)
    return cast(Params, optax.apply_updates(params, updates)), opt_state, optax.tree.norm(mean)


def _choose(condition: Bool[Array, ""], one: Any, other: Any) -> Any:
    return jax.tree.map(functools.partial(jnp.where, condition), one, other)


# Losses and log-probabilities without a gradient.


@functools.partial(jax.jit, static_argnames="config")
def loss_sums(
    params: Params, batch: CrystalBatch, weight: Float[AnyArray, " B"], *, config: ModelConfig
) -> dict[str, Float[Array, ""]]:
    """The parts of the loss of a batch without dropout, nats, summed over its rows that weigh 1; and their number."""
    return {**negative_log_likelihood(params, config, batch, weight)[1], "crystals": weight.sum()}


score = jax.jit(likelihood, static_argnames="config")
