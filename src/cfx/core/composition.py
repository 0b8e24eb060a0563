"""Compositions as a model reads them that has one as input: atoms of each element in a formula unit (2512.18251).

Zeros stand for no composition, for models that can do without one.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from cfx.core import AnyArray
from cfx.core.crystal import CrystalBatch
from cfx.core.elements import lowest_terms


def composition_vector(counts: Mapping[int, int], num_species: int) -> Float[np.ndarray, " S"]:
    """The composition of atomic number -> atoms, in lowest terms."""
    vector = np.zeros(num_species, np.float32)
    if counts:
        vector[list(counts)] = list(lowest_terms(counts).values())
    return vector


def compositions(crystals: CrystalBatch, num_species: int) -> Float[Array, "B S"]:
    """The composition of each crystal, in lowest terms."""
    is_element = jnp.asarray(crystals.species)[..., None] == jnp.arange(num_species)
    atoms = jnp.where(is_element, crystals.multiplicity[..., None], 0).sum(1)  # of pads: none
    divisor, _ = jax.lax.scan(lambda divisor, some: (jnp.gcd(divisor, some), None), atoms[:, 0], atoms.T)
    return (atoms // jnp.maximum(divisor, 1)[:, None]).astype(jnp.float32)


def is_given(composition: Float[AnyArray, "... S"]) -> Bool[Array, "... 1"]:
    """Whether there is a composition at all."""
    return (jnp.asarray(composition) > 0).any(-1, keepdims=True)


def elements_of(composition: Float[AnyArray, "... S"]) -> Bool[Array, "... S"]:
    """The species that a composition leaves: its own, or all where none is given."""
    return (jnp.asarray(composition) > 0) | ~is_given(composition)
