"""What training minimises."""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp

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
