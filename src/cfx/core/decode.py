"""The sampler: crystals drawn site by site with a cache of keys (MODEL: 2403.15734, Algorithm 1).

Draw number j of a seed has a key of its own, from which all its random numbers derive: it is the same crystal
whatever else is drawn beside it. Space groups, seed and sharpness are traced, so that one compilation of a batch
size serves every request.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from cfx.config import ModelConfig
from cfx.core import heads, lattice, network, random
from cfx.core.crystal import CrystalBatch
from cfx.core.likelihood import LogProb, lattice_log_prob, pick, von_mises_log_prob
from cfx.core.symmetry import symmetry_table


class Drawn(NamedTuple):
    """Crystals fresh from the model.

    Attributes:
        crystals: B of them in n_max slots. Lattices are as drawn and may be unphysical (`lattice.is_physical`).
        log_prob: their published log-probability, at temperature 1 and without top-p, whatever they were drawn at.
    """

    crystals: CrystalBatch
    log_prob: LogProb


class _State(NamedTuple):
    """Between two sites.

    Attributes:
        site: int32 scalar, the site to draw next.
        cache: what the network remembers.
        next_letter: log-probabilities [B, letters] of the site's letter.
        lattice_row: [B, output_size], the row after the first pad of crystals that have one.
        crystals, log_prob: so far.
    """

    site: jax.Array
    cache: network.Cache
    next_letter: jax.Array
    lattice_row: jax.Array
    crystals: CrystalBatch
    log_prob: LogProb


@functools.partial(jax.jit, static_argnames="config")
def decode(
    params: hk.Params,
    config: ModelConfig,
    rng_key: jax.Array,
    draws: jax.Array,
    space_group: jax.Array,
    sharpness: random.Sharpness,
) -> Drawn:
    """Draws one crystal for each number in `draws`.

    Args:
        params: of the network.
        config: its architecture.
        rng_key: of the request.
        draws: uint32 [B], numbers of the draws within the request.
        space_group: int32 [B].
        sharpness: temperature and top-p.
    """
    crystal_keys = jax.vmap(jax.random.fold_in, (None, 0))(rng_key, draws)

    def unfinished(state: _State) -> jax.Array:
        is_open = (state.crystals.wyckoff > 0).sum(1) == state.site
        return (state.site < config.n_max) & is_open.any()

    step = functools.partial(_draw_site, params, config, crystal_keys, sharpness)
    state = jax.lax.while_loop(unfinished, step, _start(params, config, space_group))
    crystals = state.crystals
    lattice_keys = jax.vmap(jax.random.fold_in, (0, None))(crystal_keys, config.n_max)
    mixture = heads.lattice_mixture(state.lattice_row, config)
    drawn = random.lattice(lattice_keys, mixture, sharpness)
    cell = lattice.to_physical_frame(drawn, crystals.num_atoms, jnp)
    crystals = dataclasses.replace(crystals, lattice=lattice.impose_system(cell, space_group, jnp))
    return Drawn(crystals, dataclasses.replace(state.log_prob, lattice=lattice_log_prob(mixture, drawn, space_group)))


def _start(params: hk.Params, config: ModelConfig, space_group: jax.Array) -> _State:
    size, dtype = space_group.shape[0], params["output"]["w"].dtype
    raw = hk.transform(lambda: network.first_letter(config, space_group)).apply(params, None)
    slots = jnp.zeros((size, config.n_max), jnp.int32)
    return _State(
        site=jnp.zeros((), jnp.int32),
        cache=network.empty_cache(config, size, network.TOKENS_PER_SITE * config.n_max, dtype),
        next_letter=heads.first_letter_logits(raw, space_group),
        lattice_row=jnp.zeros((size, config.output_size), dtype),
        crystals=CrystalBatch(
            space_group, jnp.zeros((size, 6), dtype), jnp.zeros((size, config.n_max, 3), dtype), slots, slots
        ),
        log_prob=LogProb(*jnp.zeros((4, size), dtype)),
    )


def _draw_site(params, config: ModelConfig, crystal_keys, sharpness, state: _State) -> _State:
    """Draws site `state.site` of every crystal; finished crystals draw one more pad."""
    crystals, site, cache, log_prob = state.crystals, state.site, state.cache, state.log_prob
    group = crystals.space_group
    keys = random.split_each(jax.vmap(jax.random.fold_in, (0, None))(crystal_keys, site), network.TOKENS_PER_SITE)

    letter = random.categorical(keys[0], state.next_letter, sharpness)
    letter = jnp.where(site == config.n_max - 1, 0, letter)
    was_open = (crystals.wyckoff > 0).sum(1) == site
    letter = jnp.where(was_open, letter, 0)
    letter_log_prob = jnp.where(was_open, pick(state.next_letter, letter), 0.0)
    multiplicity = jnp.asarray(symmetry_table().multiplicity)[group - 1, letter]
    row, cache = next_row(params, config, cache, "letter", group, letter, multiplicity)
    lattice_row = jnp.where((was_open & (letter == 0))[:, None], row, state.lattice_row)

    species_log_probs = heads.species_logits(row, letter, config.num_species)
    species = random.categorical(keys[1], species_log_probs, sharpness)
    row, cache = next_row(params, config, cache, "species", group, species)

    point = jnp.zeros((group.shape[0], 3), state.lattice_row.dtype)
    coords_log_prob = log_prob.coords
    for axis, kind in enumerate("xyz"):
        value, value_log_prob = _draw_coordinate(config, keys[2 + axis], row, group, letter, point, axis, sharpness)
        point, coords_log_prob = point.at[:, axis].set(value), coords_log_prob + value_log_prob
        row, cache = next_row(params, config, cache, kind, group, value)

    return _State(
        site + 1,
        cache,
        heads.next_letter_logits(row, group, letter, config.num_letters),
        lattice_row,
        CrystalBatch(
            group,
            crystals.lattice,
            crystals.frac_coords.at[:, site].set(point),
            crystals.species.at[:, site].set(species),
            crystals.wyckoff.at[:, site].set(letter),
        ),
        LogProb(
            log_prob.wyckoff + letter_log_prob,
            log_prob.species + pick(species_log_probs, species),
            coords_log_prob,
            log_prob.lattice,
        ),
    )


@functools.partial(jax.jit, static_argnames="config")  # traced once for the three coordinates
def _draw_coordinate(config: ModelConfig, keys, row, group, letter, point, axis, sharpness):
    """Draws coordinate `axis` of the points [B, 3], those before it given; also its log-density, 0 where tied down."""
    mixture = heads.coordinate_mixture(row, config)
    point = point.at[:, axis].set(random.coordinate(keys, mixture, sharpness))
    value = project(group, letter, point)[:, axis]
    free = jnp.asarray(symmetry_table().free_mask)[group - 1, letter, axis]
    return value, jnp.where(free, von_mises_log_prob(mixture, value), 0.0)


def next_row(params, config: ModelConfig, cache: network.Cache, kind: str, space_group, value, multiplicity=None):
    """Feeds one token to the network: its raw output row [B, output_size] and the cache that now holds it."""
    embed = hk.transform(lambda: network.embed_token(config, kind, space_group, value, multiplicity))
    return _advance(params, config, cache, embed.apply(params, None)[:, None])


@functools.partial(jax.jit, static_argnames="config")  # traced once for the five tokens of a site
def _advance(params, config: ModelConfig, cache: network.Cache, token: jax.Array):
    transformer = hk.transform(lambda: network.transform(config, token, cache))
    rows, keys, inputs = transformer.apply(params, None)
    return rows[:, 0], network.append(cache, keys, inputs)


def project(space_group: jax.Array, letter: jax.Array, point: jax.Array) -> jax.Array:
    """Op 0 of the Wyckoff positions [B] applied to points [B, 3], wrapped into [0, 1); zero for pads."""
    op = jnp.asarray(symmetry_table().projector, point.dtype)[space_group - 1, letter]
    return random.wrap(jnp.einsum("bij,bj->bi", op[..., :3], point) + op[..., 3])
