"""Random draws from the distributions of `heads`, one key a row.

A row's draw depends on its own key and on nothing else in the batch, so that a crystal is the same in a batch of 7
and in one of 256.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Integer, Key

from cfx.core import AnyArray
from cfx.core.heads import LatticeMixture, VonMisesMixture
from cfx.core.symmetry import wrap

_WIDTH = 119


def categorical(keys: Key[Array, " B"], log_probs: Float[Array, "B n"]) -> Int32[Array, " B"]:
    """Draws from log-probabilities."""
    # Letters, species and components are filled up to one width, so that all of them share one trace.
    empty = max(_WIDTH - log_probs.shape[-1], 0)
    return _categorical(keys, jnp.pad(log_probs, ((0, 0), (0, empty)), constant_values=-jnp.inf))


@jax.jit
def _categorical(keys: Key[Array, " B"], log_probs: Float[Array, "B n"]) -> Int32[Array, " B"]:
    return jax.vmap(jax.random.categorical)(keys, log_probs).astype(jnp.int32)


def coordinate(keys: Key[Array, " B"], mixture: VonMisesMixture) -> Float[Array, " B"]:
    """Draws fractional coordinates in [0, 1)."""
    component_keys, angle_keys = split_each(keys, 2)
    component = categorical(component_keys, mixture.logits)[:, None]
    loc = jnp.take_along_axis(mixture.loc, component, axis=1)[:, 0]
    kappa = jnp.take_along_axis(mixture.kappa, component, axis=1)[:, 0]
    return wrap((loc + von_mises(angle_keys, kappa)) / (2 * jnp.pi) + 0.5, jnp)


def lattice(keys: Key[Array, " B"], mixture: LatticeMixture) -> Float[Array, "B 6"]:
    """Draws lattices in the model frame; one component serves all six parameters."""
    component_keys, value_keys = split_each(keys, 2)
    component = categorical(component_keys, mixture.logits)[:, None, None]
    mean = jnp.take_along_axis(mixture.mean, component, axis=1)[:, 0]
    sigma = jnp.take_along_axis(mixture.sigma, component, axis=1)[:, 0]
    return mean + sigma * jax.vmap(lambda key: jax.random.normal(key, (6,), mean.dtype))(value_keys)


def von_mises(keys: Key[Array, " B"], kappa: Float[Array, " B"]) -> Float[Array, " B"]:
    """Draws angles in [-pi, pi] around 0 with concentrations kappa, by rejection (Best and Fisher 1979).

    Written in u = 1 - cos, which keeps float32 exact at any concentration.
    """
    kappa = jnp.clip(kappa, 1e-6, 1e15)  # uniform below, a point above, to the precision of float32
    root = jnp.sqrt(1 + 4 * kappa**2)
    r = 1 + root
    one_minus_rho = (jnp.sqrt(2 * r) - 1 - 1 / (2 * kappa + root)) / (2 * kappa)
    excess = jnp.where(kappa > 0.1, one_minus_rho**2 / (2 * (1 - one_minus_rho)), 1 / kappa - 1)

    def propose(state):
        attempt, angle, accepted = state
        uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, attempt), (3,), kappa.dtype))(keys)
        u = 2 * jnp.sin(jnp.pi / 2 * uniform[:, 0]) ** 2
        versine = excess * u / (excess + 2 - u)
        y = kappa * (excess + versine)
        # A concentration that is nan accepts at once, and gives nan: rejection would never end.
        fits = (jnp.log(y / uniform[:, 1]) + 1 - y >= 0) | jnp.isnan(y)
        new = jnp.sign(uniform[:, 2] - 0.5) * 2 * jnp.arcsin(jnp.sqrt(jnp.clip(versine / 2, 0, 1)))
        new = jnp.where(jnp.isnan(y), jnp.nan, new)
        return attempt + 1, jnp.where(accepted, angle, new), accepted | fits

    state = (jnp.zeros((), jnp.int32), jnp.zeros_like(kappa), jnp.zeros(kappa.shape, bool))
    return jax.lax.while_loop(lambda state: ~state[-1].all(), propose, state)[1]


def request_key(seed: int) -> Key[Array, ""]:
    """jax.random.key(seed), without dropping the upper half of a seed beyond 32 bits."""
    return jax.random.wrap_key_data(jnp.asarray(np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)))


def crystal_keys(
    rng_key: Key[Array, ""], number: Integer[AnyArray, " B"], attempt: Integer[AnyArray, " B"]
) -> Key[Array, " B"]:
    """Keys of attempts at the crystals of a request, by their numbers."""
    return fold_each(jax.vmap(jax.random.fold_in, (None, 0))(rng_key, number), attempt)


def fold_each(keys: Key[Array, " B"], data: Integer[AnyArray, " B"] | Integer[AnyArray, ""] | int) -> Key[Array, " B"]:
    """Keys with a number folded into each: its own, or one for all."""
    return jax.vmap(jax.random.fold_in, (0, 0 if jnp.ndim(data) else None))(keys, data)


def split_each(keys: Key[Array, " B"], num: int) -> list[Key[Array, " B"]]:
    """Keys as `num` arrays of keys."""
    return list(jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, num))(keys), 1, 0))
