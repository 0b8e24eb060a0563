"""What a raw output row means: masked, normalised distributions with names (2403.15734, Section "Heads").

Logits that come out of here are log-probabilities: masked entries are -inf and the rest sums to one.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cfx.config import ModelConfig
from cfx.core.symmetry import symmetry_table


class VonMisesMixture(NamedTuple):
    """Mixture over the angle 2 pi (x - 1/2) of a fractional coordinate.

    Attributes:
        logits: [..., Kx], normalised.
        loc: [..., Kx], radian.
        kappa: [..., Kx], concentrations.
    """

    logits: jax.Array
    loc: jax.Array
    kappa: jax.Array


class LatticeMixture(NamedTuple):
    """Gaussian mixture over the six lattice parameters in the model frame.

    Attributes:
        logits: [..., Kl], normalised.
        mean: [..., Kl, 6].
        sigma: [..., Kl, 6].
    """

    logits: jax.Array
    mean: jax.Array
    sigma: jax.Array


def first_letter_logits(raw: jax.Array, space_group: jax.Array) -> jax.Array:
    """Log-probabilities [B, letters] of the first site's letter: no pad, and only letters the group has."""
    letters = jnp.arange(raw.shape[-1])
    last = jnp.asarray(symmetry_table().last_letter)[space_group - 1]
    return normalise(raw, (letters > 0) & (letters <= last[..., None]))


def next_letter_logits(row: jax.Array, space_group: jax.Array, letter: jax.Array, num_letters: int) -> jax.Array:
    """Log-probabilities [..., letters] of the letter after `letter`.

    A pad is always allowed and follows a pad for certain; letters never decrease, and one without a free
    coordinate never repeats.

    Args:
        row: [..., output_size], after the site's Z token.
        space_group: int [...].
        letter: int [...], of that site.
        num_letters: size of the alphabet, pad included.
    """
    table = symmetry_table()
    letters = jnp.arange(num_letters)
    fixed = jnp.asarray(table.is_fixed)[space_group - 1, letter]
    last = jnp.asarray(table.last_letter)[space_group - 1]
    lowest = (letter + fixed)[..., None]
    mask = (letters == 0) | ((letters >= lowest) & (letters <= last[..., None]) & (letter > 0)[..., None])
    return normalise(row[..., :num_letters], mask)


def species_logits(row: jax.Array, letter: jax.Array, num_species: int) -> jax.Array:
    """Log-probabilities [..., species] from the row after the letter: the pad exactly on a pad."""
    is_pad = jnp.arange(num_species) == 0
    return normalise(row[..., :num_species], is_pad == (letter == 0)[..., None])


def coordinate_mixture(row: jax.Array, config: ModelConfig) -> VonMisesMixture:
    """Mixture of the next coordinate, from the row after A, X or Y."""
    logits, loc, kappa = jnp.split(row[..., : 3 * config.coord_components], 3, axis=-1)
    return VonMisesMixture(jax.nn.log_softmax(logits), loc, jax.nn.softplus(kappa))


def lattice_mixture(row: jax.Array, config: ModelConfig) -> LatticeMixture:
    """Mixture of the lattice, from the row after the first pad's letter."""
    size = config.lattice_components
    raw = row[..., config.num_species : config.output_size]
    mean, sigma = raw[..., size : 7 * size], raw[..., 7 * size :]
    shape = (*row.shape[:-1], size, 6)
    return LatticeMixture(
        jax.nn.log_softmax(raw[..., :size]),
        mean.reshape(shape),
        jax.nn.softplus(sigma.reshape(shape)) + config.sigma_min,
    )


def normalise(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Log-softmax over the entries where `mask` is True; -inf elsewhere."""
    return jax.nn.log_softmax(jnp.where(mask, logits, -jnp.inf), axis=-1)
