"""The published log-probability of crystals under a model (2403.15734, Eq. 1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
from jax.scipy.special import i0e, logsumexp

from cfx.config import ModelConfig
from cfx.core import heads, lattice, network
from cfx.core.batches import num_tokens
from cfx.core.crystal import CrystalBatch
from cfx.core.symmetry import symmetry_table


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LogProb:
    """Log-probabilities in nats, each [B], by what they are the probability of."""

    wyckoff: jax.Array
    species: jax.Array
    coords: jax.Array
    lattice: jax.Array

    @property
    def total(self) -> jax.Array:
        """Their sum, [B]."""
        return self.wyckoff + self.species + self.coords + self.lattice

    def parts(self) -> dict[str, jax.Array]:
        """By name, see `PARTS`."""
        return {name: getattr(self, name) for name in PARTS}


PARTS = tuple(field.name for field in dataclasses.fields(LogProb))
"""What a log-probability, a loss and an entropy are the sum of: wyckoff, species, coords, lattice."""


class OutputRows(NamedTuple):
    """Raw rows of the network over whole crystals; see `heads` for their meaning.

    Attributes:
        first: [B, letters], for the first letter.
        rows: [B, 5 N - 4, output_size]; row 5 i follows the letter of slot i.
    """

    first: jax.Array
    rows: jax.Array

    def after(self, kind: str) -> jax.Array:
        """Rows [B, N or N - 1, output_size] after the tokens of a kind; the last slot has its letter only."""
        return self.rows[:, network.TOKEN_KINDS.index(kind) :: network.TOKENS_PER_SITE]

    def for_lattice(self, batch: CrystalBatch) -> jax.Array:
        """Rows [B, output_size] after the letter of the first pad, which predict the lattice."""
        return jnp.take_along_axis(self.after("letter"), batch.num_sites[:, None, None], axis=1)[:, 0]


def output_rows(
    params: hk.Params,
    config: ModelConfig,
    batch: CrystalBatch,
    rng_key: jax.Array | None = None,
    dropout: network.Dropout = network.NO_DROPOUT,
) -> OutputRows:
    """Raw output rows of a batch whose crystals leave their last slot to a pad.

    The tokens after the last slot's letter predict nothing that is used, and are not computed.
    """
    return _forward(config, batch, dropout).apply(params, rng_key)


def _forward(config: ModelConfig, batch: CrystalBatch, dropout: network.Dropout) -> hk.Transformed:
    def forward():
        tokens = network.embed_sites(
            config, batch.space_group, batch.wyckoff, batch.multiplicity, batch.species, batch.frac_coords
        )[:, : num_tokens(batch.num_slots)]
        return OutputRows(network.first_letter(config, batch.space_group), network.transformer(config, tokens, dropout))

    return hk.transform(forward)


def init_params(config: ModelConfig, rng_key: jax.Array) -> hk.Params:
    """Random weights of a network."""
    one = jnp.ones((1, 2), jnp.int32)
    batch = CrystalBatch(one[:, 0], jnp.ones((1, 6)), jnp.zeros((1, 2, 3)), one, one)
    return jax.jit(_forward(config, batch, network.NO_DROPOUT).init)(rng_key)


def log_prob(
    params: hk.Params,
    config: ModelConfig,
    batch: CrystalBatch,
    rng_key: jax.Array | None = None,
    dropout: network.Dropout = network.NO_DROPOUT,
) -> LogProb:
    """Published log-probability of each crystal, nats.

    Args:
        params: of the network.
        config: its architecture.
        batch: B crystals; the last slot of each must be a pad.
        rng_key: for dropout.
        dropout: rates; none outside training.
    """
    raw = output_rows(params, config, batch, rng_key, dropout)
    species_logits = heads.species_logits(raw.after("letter"), batch.wyckoff, config.num_species)
    free = jnp.asarray(symmetry_table().free_mask)[batch.space_group[:, None] - 1, batch.wyckoff]
    model_frame = lattice.to_model_frame(batch.lattice, batch.num_atoms, jnp)
    return LogProb(
        wyckoff=_letters_log_prob(raw, config, batch),
        species=pick(species_logits, batch.species).sum(1),
        coords=coords_log_prob(raw, config, batch, free),
        lattice=lattice_log_prob(heads.lattice_mixture(raw.for_lattice(batch), config), model_frame, batch.space_group),
    )


def pick(log_probs: jax.Array, index: jax.Array) -> jax.Array:
    """Entries [...] of log-probabilities [..., n] at integer `index` [...]."""
    return jnp.take_along_axis(log_probs, index[..., None], axis=-1)[..., 0]


def _letters_log_prob(raw: OutputRows, config: ModelConfig, batch: CrystalBatch) -> jax.Array:
    first_logits = heads.first_letter_logits(raw.first, batch.space_group)
    next_logits = heads.next_letter_logits(
        raw.after("z"), batch.space_group[:, None], batch.wyckoff[:, :-1], config.num_letters
    )
    return pick(first_logits, batch.wyckoff[:, 0]) + pick(next_logits, batch.wyckoff[:, 1:]).sum(1)


def coords_log_prob(
    raw: OutputRows,
    config: ModelConfig,
    batch: CrystalBatch,
    counted: jax.Array,
    adapt: Callable[[heads.VonMisesMixture], heads.VonMisesMixture] = lambda mixture: mixture,
) -> jax.Array:
    """Log-density [B], in the angles, of coordinates.

    Args:
        raw: rows of the network.
        config: the architecture.
        batch: B crystals in N slots.
        counted: bool [B, N, 3], the coordinates that count.
        adapt: what is done to each mixture of the model.
    """
    total = 0.0
    for axis, token in enumerate(("species", "x", "y")):
        mixture = adapt(heads.coordinate_mixture(raw.after(token), config))
        # Slots before the last: that one is a pad, and its rows are not computed.
        density = von_mises_log_prob(mixture, batch.frac_coords[:, :-1, axis])
        total = total + jnp.where(counted[:, :-1, axis], density, 0.0).sum(1)
    return total


def lattice_log_prob(mixture: heads.LatticeMixture, model_frame: jax.Array, space_group: jax.Array) -> jax.Array:
    """Log-density [B] of the free parameters of lattices [B, 6] in the model frame; dimensions are independent."""
    free = jnp.asarray(lattice.FREE_DIMENSIONS)[lattice.crystal_family(space_group)]
    return jnp.where(free, normal_log_prob(mixture, model_frame), 0.0).sum(1)


def von_mises_log_prob(mixture: heads.VonMisesMixture, x: jax.Array) -> jax.Array:
    """Log-density, in the angle, of fractional coordinates x [...] under mixtures [..., Kx]."""
    angle = 2 * jnp.pi * (x[..., None] - 0.5) - mixture.loc
    deviation = -2.0 * jnp.sin(angle / 2) ** 2  # cos - 1, without the cancellation
    component = mixture.kappa * deviation - jnp.log(2 * jnp.pi * i0e(mixture.kappa))
    return logsumexp(mixture.logits + component, axis=-1)


def normal_log_prob(mixture: heads.LatticeMixture, value: jax.Array) -> jax.Array:
    """Log-density of each lattice parameter on its own, [..., 6], under mixtures [..., Kl, 6]."""
    return logsumexp(mixture.logits[..., None] + normal_components(mixture, value), axis=-2)


def normal_components(mixture: heads.LatticeMixture, value: jax.Array) -> jax.Array:
    """Log-density of lattice parameters [..., 6] under each component by itself, [..., Kl, 6]."""
    z = (value[..., None, :] - mixture.mean) / mixture.sigma
    return -0.5 * z**2 - jnp.log(mixture.sigma) - 0.5 * jnp.log(2 * jnp.pi)
