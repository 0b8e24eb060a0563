"""The sampler: crystals drawn token by token with a cache of keys (MODEL: 2403.15734, Algorithm 1).

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
    """Between two tokens.

    Attributes:
        step: int32 scalar, tokens drawn so far; the next is of kind step % 5 and belongs to site step // 5.
        is_open: bool [B], crystals that have not drawn their pad yet.
        row: [B, output_size], the network's row after the last token.
        lattice_row: [B, output_size], the row after the pad of crystals that have one.
        crystals, log_prob: so far.
    """

    step: jax.Array
    is_open: jax.Array
    row: jax.Array
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
    num_tokens = network.TOKENS_PER_SITE * config.n_max
    state = _start(params, config, space_group)
    raw = hk.transform(lambda: network.first_letter(config, space_group)).apply(params, None)
    first_letter = heads.first_letter_logits(raw, space_group)

    def draw_token(carry: tuple[_State, network.Cache]) -> tuple[_State, network.Cache]:
        """Draws the next token of every crystal and shows it to the network."""
        state, cache = carry
        keys = jax.vmap(jax.random.fold_in, (0, None))(crystal_keys, state.step)
        kinds = (
            lambda state: _draw_letter(params, config, first_letter, keys, sharpness, state),
            lambda state: _draw_species(params, config, keys, sharpness, state),
            lambda state: _draw_coordinate(params, config, keys, sharpness, state),
        )
        was_open = state.is_open
        kind = jnp.minimum(state.step % network.TOKENS_PER_SITE, 2)
        state, token = jax.lax.switch(kind, kinds, state)
        transformer = hk.transform(lambda: network.transform(config, token[:, None], cache))
        rows, keys, inputs = transformer.apply(params, None)
        row, closed = rows[:, 0], was_open & ~state.is_open
        lattice_row = jnp.where(closed[:, None], row, state.lattice_row)
        state = state._replace(step=state.step + 1, row=row, lattice_row=lattice_row)
        return state, network.append(cache, keys, inputs)

    cache = network.empty_cache(config, len(draws), num_tokens, state.row.dtype)
    state, _ = jax.lax.while_loop(lambda carry: carry[0].is_open.any(), draw_token, (state, cache))
    lattice_keys = jax.vmap(jax.random.fold_in, (0, None))(crystal_keys, num_tokens)
    mixture = heads.lattice_mixture(state.lattice_row, config)
    drawn = random.lattice(lattice_keys, mixture, sharpness)
    cell = lattice.to_physical_frame(drawn, state.crystals.num_atoms, jnp)
    crystals = dataclasses.replace(state.crystals, lattice=lattice.impose_system(cell, space_group, jnp))
    return Drawn(crystals, dataclasses.replace(state.log_prob, lattice=lattice_log_prob(mixture, drawn, space_group)))


def _start(params: hk.Params, config: ModelConfig, space_group: jax.Array) -> _State:
    size, dtype = space_group.shape[0], params["output"]["w"].dtype
    slots, row = jnp.zeros((size, config.n_max), jnp.int32), jnp.zeros((size, config.output_size), dtype)
    coords = jnp.zeros((size, config.n_max, 3), dtype)
    return _State(
        step=jnp.zeros((), jnp.int32),
        is_open=jnp.ones(size, bool),
        row=row,
        lattice_row=row,
        crystals=CrystalBatch(space_group, jnp.zeros((size, 6), dtype), coords, slots, slots),
        log_prob=LogProb(*jnp.zeros((4, size), dtype)),
    )


# Each kind of draw takes the state to the next, and gives the token [B, model_size] that tells the network of it.
# Finished crystals draw pads.


def _draw_letter(params, config: ModelConfig, first_letter, keys, sharpness, state: _State):
    crystals, site = state.crystals, state.step // network.TOKENS_PER_SITE
    group, before = crystals.space_group, crystals.wyckoff[:, site - 1]
    following = heads.next_letter_logits(state.row, group, before, config.num_letters)
    log_probs = jnp.where(site == 0, first_letter, following)
    drawn = random.categorical(keys, log_probs, sharpness)
    letter = jnp.where(state.is_open & (site < config.n_max - 1), drawn, 0)
    log_prob = state.log_prob.wyckoff + jnp.where(state.is_open, pick(log_probs, letter), 0.0)
    multiplicity = jnp.asarray(symmetry_table().multiplicity)[group - 1, letter]
    state = state._replace(
        is_open=state.is_open & (letter > 0),
        crystals=dataclasses.replace(crystals, wyckoff=crystals.wyckoff.at[:, site].set(letter)),
        log_prob=dataclasses.replace(state.log_prob, wyckoff=log_prob),
    )
    return state, _embed(params, config, "letter", group, letter, multiplicity)


def _draw_species(params, config: ModelConfig, keys, sharpness, state: _State):
    crystals, site = state.crystals, state.step // network.TOKENS_PER_SITE
    log_probs = heads.species_logits(state.row, crystals.wyckoff[:, site], config.num_species)
    species = random.categorical(keys, log_probs, sharpness)
    log_prob = state.log_prob.species + pick(log_probs, species)
    state = state._replace(
        crystals=dataclasses.replace(crystals, species=crystals.species.at[:, site].set(species)),
        log_prob=dataclasses.replace(state.log_prob, species=log_prob),
    )
    return state, _embed(params, config, "species", crystals.space_group, species)


def _draw_coordinate(params, config: ModelConfig, keys, sharpness, state: _State):
    crystals = state.crystals
    site, kind = jnp.divmod(state.step, network.TOKENS_PER_SITE)
    axis, group, letter = kind - 2, crystals.space_group, crystals.wyckoff[:, site]
    mixture = heads.coordinate_mixture(state.row, config)
    point = crystals.frac_coords[:, site].at[:, axis].set(random.coordinate(keys, mixture, sharpness))
    value = project(group, letter, point)[:, axis]
    free = jnp.asarray(symmetry_table().free_mask)[group - 1, letter, axis]
    log_prob = state.log_prob.coords + jnp.where(free, von_mises_log_prob(mixture, value), 0.0)
    state = state._replace(
        crystals=dataclasses.replace(crystals, frac_coords=crystals.frac_coords.at[:, site, axis].set(value)),
        log_prob=dataclasses.replace(state.log_prob, coords=log_prob),
    )
    # One trace for three axes: the weights of this one stand in for those of x.
    weights = jax.tree.map(lambda *each: jnp.stack(each)[axis], *(params[f"token_{name}"] for name in "xyz"))
    return state, _embed({**params, "token_x": weights}, config, "x", group, value)


def _embed(params, config: ModelConfig, kind: str, space_group, value, multiplicity=None) -> jax.Array:
    embed = hk.transform(lambda: network.embed_token(config, kind, space_group, value, multiplicity))
    return embed.apply(params, None)


def project(space_group: jax.Array, letter: jax.Array, point: jax.Array) -> jax.Array:
    """Op 0 of the Wyckoff positions [B] applied to points [B, 3], wrapped into [0, 1); zero for pads."""
    op = jnp.asarray(symmetry_table().projector, point.dtype)[space_group - 1, letter]
    return random.wrap(jnp.einsum("bij,bj->bi", op[..., :3], point) + op[..., 3])
