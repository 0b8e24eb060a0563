"""What a raw output row means: masked, normalised distributions with names (2403.15734, Section "Heads").

Logits that come out of here are log-probabilities: masked entries are -inf and the rest sums to one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cfx.config import ModelConfig
from cfx.core import AnyArray
from cfx.core.composition import elements_of
from cfx.core.symmetry import symmetry_table


class VonMisesMixture(NamedTuple):
    """Mixture over the angle 2 pi (x - 1/2) of a fractional coordinate.

    Attributes:
        logits: normalised.
        loc: radian.
        kappa: concentrations.
    """

    logits: Float[AnyArray, "... C"]
    loc: Float[AnyArray, "... C"]
    kappa: Float[AnyArray, "... C"]


class LatticeMixture(NamedTuple):
    """Gaussian mixture over the six lattice parameters in the model frame; the logits are normalised."""

    logits: Float[AnyArray, "... C"]
    mean: Float[AnyArray, "... C 6"]
    sigma: Float[AnyArray, "... C 6"]


def first_letter_logits(raw: Float[AnyArray, "B W"], space_group: Int[AnyArray, " B"]) -> Float[Array, "B W"]:
    """Log-probabilities of the first site's letter: no pad, and only letters the group has."""
    letters = jnp.arange(raw.shape[-1])
    last = jnp.asarray(symmetry_table().last_letter)[space_group - 1]
    return normalise(raw, (letters > 0) & (letters <= last[..., None]))


def next_letter_logits(
    row: Float[AnyArray, "... output_size"],
    space_group: Int[AnyArray, "..."],
    letter: Int[AnyArray, "..."],
    num_letters: int,
) -> Float[Array, "... W"]:
    """Log-probabilities of the letter after `letter`.

    A pad is always allowed and follows a pad for certain; letters never decrease, and one without a free
    coordinate never repeats.

    Args:
        row: of the network, after the site's Z token.
        space_group: 1 to 230.
        letter: of that site.
        num_letters: size of the alphabet, pad included.
    """
    table = symmetry_table()
    letters = jnp.arange(num_letters)
    fixed = jnp.asarray(table.is_fixed)[space_group - 1, letter]
    last = jnp.asarray(table.last_letter)[space_group - 1]
    lowest = (letter + fixed)[..., None]
    mask = (letters == 0) | ((letters >= lowest) & (letters <= last[..., None]) & (letter > 0)[..., None])
    return normalise(row[..., :num_letters], mask)


def species_logits(
    row: Float[AnyArray, "... output_size"],
    letter: Int[AnyArray, "..."],
    num_species: int,
    composition: Float[AnyArray, "... S"] | None = None,
) -> Float[Array, "... S"]:
    """Log-probabilities of a site's species, from the row after the letter: the pad exactly on a pad.

    Args:
        row: of the network, after the site's letter.
        letter: of that site.
        num_species: atomic numbers, pad included.
        composition: if the network has one as input, only its elements are possible.
    """
    is_pad = jnp.arange(num_species) == 0
    mask = is_pad == (letter == 0)[..., None]
    if composition is not None:
        mask &= is_pad | elements_of(composition)
    return normalise(row[..., :num_species], mask)


def coordinate_mixture(row: Float[AnyArray, "... output_size"], config: ModelConfig) -> VonMisesMixture:
    """Mixture of the next coordinate, from the row after A, X or Y."""
    logits, loc, kappa = jnp.split(row[..., : 3 * config.coord_components], 3, axis=-1)
    return VonMisesMixture(jax.nn.log_softmax(logits), loc, jax.nn.softplus(kappa))


def lattice_mixture(row: Float[AnyArray, "... output_size"], config: ModelConfig) -> LatticeMixture:
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


def normalise(logits: Float[AnyArray, "... n"], mask: Bool[AnyArray, "... n"]) -> Float[Array, "... n"]:
    """Log-softmax over the entries where `mask` is True; -inf elsewhere."""
    # -inf and not merely a large number: it survives every temperature, and gives a probability of exactly 0.
    return jax.nn.log_softmax(jnp.where(mask, logits, -jnp.inf), axis=-1)
