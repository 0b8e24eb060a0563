"""The sampler's kernels: slots that draw their crystals site by site (2403.15734, Algorithm 1).

A slot is one crystal under way. Slots that advance together are at the same kind of token and may be at different
sites: a finished slot is given the next crystal while the others go on. `pools` decides who goes where.

Every crystal has a key of its own, from which all its random numbers derive: it is the same crystal whatever is drawn
beside it. Space groups, keys and the policy are traced, so that one compilation serves every request.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, Key, Shaped, UInt32

from cfx.config import ModelConfig
from cfx.core import AnyArray, heads, lattice, network
from cfx.core.crystal import CrystalBatch
from cfx.core.likelihood import LogProb, lattice_log_prob, pick, von_mises_log_prob
from cfx.core.symmetry import symmetry_table, wrap
from cfx.sampling import incremental
from cfx.sampling import policy as distributions
from cfx.sampling.constraints import prefix
from cfx.sampling.incremental import Weights
from cfx.sampling.policy import Policy


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Drawn:
    """Crystals from the model, finished or under way.

    Attributes:
        crystals: in n_max slots. Lattices are as drawn and may be unphysical (`lattice.is_physical`).
        log_prob: their published log-probability, whatever constraints and sharpness they were drawn under.
        policy_log_prob: the log-probability of the draws that made them.
    """

    crystals: CrystalBatch
    log_prob: LogProb
    policy_log_prob: LogProb

    def __len__(self) -> int:
        return len(self.crystals)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """Crystals under way, one a slot; each has just been shown a letter, or lies idle.

    Attributes:
        cache: of the network.
        age: tokens drawn so far.
        keys: key data of the crystals' random keys.
        row: the network's row after the last token.
        drawn: what there is of the crystals; no lattices yet.
    """

    cache: incremental.Cache
    age: Int[AnyArray, " B"]
    keys: UInt32[AnyArray, "B 2"]
    row: Float[AnyArray, "B output_size"]
    drawn: Drawn

    def without_cache(self) -> Slots:
        """The slots without their caches, for steps that do not need the network."""
        return dataclasses.replace(self, cache=incremental.Cache((), ()))


Told = tuple[Slots, Float[Array, "B D"]]
"""Slots after a draw, and the token that tells the network of it."""


@functools.partial(jax.jit, static_argnames=("config", "num_slots", "capacity"))
def idle_slots(config: ModelConfig, num_slots: int, capacity: int) -> Slots:
    """Slots without crystals, with room for `capacity` tokens each."""
    whole, real = functools.partial(jnp.zeros, dtype=jnp.int32), jnp.zeros
    sites = (num_slots, config.n_max)
    group = jnp.ones(num_slots, jnp.int32)
    crystals = CrystalBatch(group, real((num_slots, 6)), real((*sites, 3)), whole(sites), whole(sites))
    parts = LogProb(*(real(num_slots) for _ in range(4)))
    return Slots(
        cache=incremental.empty_cache(config, num_slots, capacity),
        age=whole(num_slots) + 1,
        keys=jnp.zeros((num_slots, 2), jnp.uint32),
        row=real((num_slots, config.output_size)),
        drawn=Drawn(crystals, parts, parts),
    )


@functools.partial(jax.jit, static_argnames="config")
def start(
    weights: Weights,
    config: ModelConfig,
    rng_key: Key[Array, ""],
    number: Integer[Array, " B"],
    attempt: Integer[Array, " B"],
    space_group: Int[Array, " B"],
    policy: Policy,
) -> Slots:
    """New crystals with their first letter, in slots with room for one token.

    Args:
        number: which crystal of the request each is.
        attempt: which attempt at it.
    """
    keys = distributions.crystal_keys(rng_key, number, attempt)
    slots = idle_slots(config, len(number), 1)
    slots = dataclasses.replace(slots, keys=jax.random.key_data(keys), age=jnp.zeros_like(slots.age))
    slots = _set(slots, crystals={"space_group": space_group})
    told = policy.composition
    raw = hk.transform(lambda: network.first_letter(config, space_group, told)).apply(weights.params, None)
    log_probs = heads.first_letter_logits(raw, space_group)
    slots, token = _take_letter(weights, config, policy, _token_keys(slots), log_probs, slots)
    return _show(weights, config, slots, token)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="slots")
def advance(weights: Weights, config: ModelConfig, slots: Slots, policy: Policy) -> tuple[Slots, Bool[Array, " B"]]:
    """Draws the rest of every slot's site, and the letter of the next.

    Returns:
        The slots, and which crystals are finished: those whose letter was the pad.
    """

    def draw_token(i: Int[Array, ""], slots: Slots) -> Slots:
        common = (weights, config, policy, _token_keys(slots))
        is_letter = i == network.TOKENS_PER_SITE - 1
        kinds = (
            functools.partial(_draw_species, *common),
            functools.partial(_draw_coordinate, *common, i - 1),
            functools.partial(_draw_letter, *common),
        )
        # One body for five tokens: the network, by far the most to compile, is compiled once.
        slots, token = jax.lax.switch((i > 0) * 1 + is_letter, kinds, slots)
        return _show(weights, config, slots, token)

    slots = jax.lax.fori_loop(0, network.TOKENS_PER_SITE, draw_token, slots)
    # The letters just shown to the network are those at the sites that come next.
    return slots, _at(_here(config, slots), slots.drawn.crystals.wyckoff) == 0


@functools.partial(jax.jit, static_argnames="config")
def finish(config: ModelConfig, slots: Slots, policy: Policy) -> Drawn:
    """Finished crystals with their lattices, drawn from the row after the pad; the slots need no cache."""
    drawn, group, num_atoms = slots.drawn, slots.drawn.crystals.space_group, slots.drawn.crystals.num_atoms
    mixture = heads.lattice_mixture(slots.row, config)
    sharpened = distributions.sharpen_lattice(policy, mixture)
    value = distributions.draw_lattice(_token_keys(slots), sharpened)
    forced, kept = jnp.asarray(False), policy.constraints.prototype
    if kept is not None:
        forced, lattices = jnp.asarray(kept.keep_lattice), jnp.broadcast_to(jnp.asarray(kept.lattice), value.shape)
        value = jnp.where(forced, lattice.to_model_frame(lattices, num_atoms, jnp), value)
    physical = lattice.impose_family(lattice.to_physical_frame(value, num_atoms, jnp), group, jnp)
    joint = distributions.joint_lattice_log_prob(sharpened, value, group)
    return Drawn(
        dataclasses.replace(drawn.crystals, lattice=physical),
        dataclasses.replace(drawn.log_prob, lattice=lattice_log_prob(mixture, value, group)),
        dataclasses.replace(drawn.policy_log_prob, lattice=jnp.where(forced, 0.0, joint)),
    )


@functools.partial(jax.jit, donate_argnames="target")
def take_over(target: Slots, source: Slots, rows: Int[Array, " n"], slots: Int[Array, " n"]) -> Slots:
    """Moves crystals to slots with more room: rows of `source` to `slots`; numbers past the last are left out."""

    def copy(into: Array, out_of: Array) -> Array:
        return into.at[slots].set(out_of[rows], mode="drop")

    cache = incremental.take_over(target.cache, source.cache, rows, slots)
    moved = jax.tree.map(copy, target.without_cache(), source.without_cache())
    return dataclasses.replace(moved, cache=cache)


@jax.jit
def pick_slots(slots: Slots, rows: Int[Array, " n"]) -> Slots:
    """Some slots, in the order of `rows`; for slots without caches."""
    return jax.tree.map(lambda leaf: leaf[rows], slots)


def _token_keys(slots: Slots) -> Key[Array, " B"]:
    return distributions.fold_each(jax.random.wrap_key_data(slots.keys), slots.age)


def _show(weights: Weights, config: ModelConfig, slots: Slots, token: Float[Array, "B D"]) -> Slots:
    row, cache = incremental.extend(weights, config, token, slots.cache, slots.age)
    return dataclasses.replace(slots, row=row, cache=cache, age=slots.age + 1)


def _set(slots: Slots, crystals: dict, log_prob: dict | None = None, policy_log_prob: dict | None = None) -> Slots:
    """Slots with some fields of their crystals and log-probabilities replaced."""
    drawn = slots.drawn
    drawn = Drawn(
        dataclasses.replace(drawn.crystals, **crystals),
        dataclasses.replace(drawn.log_prob, **(log_prob or {})),
        dataclasses.replace(drawn.policy_log_prob, **(policy_log_prob or {})),
    )
    return dataclasses.replace(slots, drawn=drawn)


# Idle slots draw too, and nobody reads what.


def _here(config: ModelConfig, slots: Slots) -> Bool[Array, "B N"]:
    """True at the site that each slot is drawing."""
    return jnp.arange(config.n_max) == slots.age[:, None] // network.TOKENS_PER_SITE


def _at(here: Bool[Array, "... n"], values: Shaped[Array, "B n"]) -> Shaped[Array, " B"]:
    """Values at the sites, or the axis, being drawn."""
    return jnp.where(here, values, 0).sum(1)


def _draw_letter(weights: Weights, config: ModelConfig, policy: Policy, keys: Key[Array, " B"], slots: Slots) -> Told:
    crystals = slots.drawn.crystals
    # A letter is the first token of its site, and depends on that of the site before.
    last = _at(jnp.roll(_here(config, slots), -1, axis=1), crystals.wyckoff)
    log_probs = heads.next_letter_logits(slots.row, crystals.space_group, last, config.num_letters)
    return _take_letter(weights, config, policy, keys, log_probs, slots)


def _take_letter(
    weights: Weights,
    config: ModelConfig,
    policy: Policy,
    keys: Key[Array, " B"],
    log_probs: Float[Array, "B W"],
    slots: Slots,
) -> Told:
    drawn, crystals = slots.drawn, slots.drawn.crystals
    group = crystals.space_group
    allowed = distributions.restrict_letters(policy, log_probs, group, prefix(crystals, config.num_species))
    letter = distributions.draw_categorical(keys, allowed)
    slots = _set(
        slots,
        {"wyckoff": jnp.where(_here(config, slots), letter[:, None], crystals.wyckoff)},
        {"wyckoff": drawn.log_prob.wyckoff + pick(log_probs, letter)},
        {"wyckoff": drawn.policy_log_prob.wyckoff + pick(allowed, letter)},
    )
    multiplicity = jnp.asarray(symmetry_table().multiplicity)[group - 1, letter]
    return slots, _embed(weights, config, policy, "letter", group, letter, multiplicity)


def _draw_species(weights: Weights, config: ModelConfig, policy: Policy, keys: Key[Array, " B"], slots: Slots) -> Told:
    drawn, crystals, here = slots.drawn, slots.drawn.crystals, _here(config, slots)
    letter = _at(here, crystals.wyckoff)
    log_probs = heads.species_logits(slots.row, letter, config.num_species, policy.composition)
    # The site has its letter and no species yet: it is the slot that the prefix ends before.
    before = prefix(dataclasses.replace(crystals, wyckoff=jnp.where(here, 0, crystals.wyckoff)), config.num_species)
    allowed = distributions.restrict_species(policy, log_probs, crystals, before, letter)
    species = distributions.draw_categorical(keys, allowed)
    slots = _set(
        slots,
        {"species": jnp.where(here, species[:, None], crystals.species)},
        {"species": drawn.log_prob.species + pick(log_probs, species)},
        {"species": drawn.policy_log_prob.species + pick(allowed, species)},
    )
    return slots, _embed(weights, config, policy, "species", crystals.space_group, species)


def _draw_coordinate(
    weights: Weights, config: ModelConfig, policy: Policy, keys: Key[Array, " B"], axis: Int[Array, ""], slots: Slots
) -> Told:
    drawn, crystals, here = slots.drawn, slots.drawn.crystals, _here(config, slots)
    group, letter, is_axis = crystals.space_group, _at(here, crystals.wyckoff), jnp.arange(3) == axis
    mixture = heads.coordinate_mixture(slots.row, config)
    sharpened = distributions.sharpen_coordinate(policy, mixture)
    point = jnp.where(here[..., None], crystals.frac_coords, 0).sum(1)
    point = jnp.where(is_axis, distributions.draw_coordinate(keys, sharpened)[:, None], point)
    kept = policy.constraints.prototype
    if kept is not None:
        own = jnp.where(here[..., None], jnp.asarray(kept.frac_coords), 0).sum(1)
        point = jnp.where(jnp.asarray(kept.keep_coords) & is_axis, own, point)
    # Coordinates still to come are 0 here; op 0 ties a coordinate to earlier ones only, so they do not matter.
    value = jnp.where(is_axis, project(group, letter, point), 0).sum(1)
    table = symmetry_table()
    is_free, is_drawn = (
        _at(is_axis, jnp.asarray(mask)[group - 1, letter]) for mask in (table.free_mask, table.drawn_mask)
    )
    if kept is not None:
        is_drawn &= ~jnp.asarray(kept.keep_coords)
    published = jnp.where(is_free, von_mises_log_prob(mixture, value), 0.0)
    slots = _set(
        slots,
        {"frac_coords": jnp.where(here[..., None] & is_axis, value[:, None, None], crystals.frac_coords)},
        {"coords": drawn.log_prob.coords + published},
        {"coords": drawn.policy_log_prob.coords + jnp.where(is_drawn, von_mises_log_prob(sharpened, value), 0.0)},
    )
    # One trace for three axes: the weights of this one stand in for those of x.
    params = weights.params
    of_axis = jax.tree.map(lambda *each: jnp.stack(each)[axis], *(params[f"token_{name}"] for name in "xyz"))
    stand_in = weights._replace(params={**params, "token_x": of_axis})
    return slots, _embed(stand_in, config, policy, "x", group, value)


def _embed(
    weights: Weights,
    config: ModelConfig,
    policy: Policy,
    kind: str,
    space_group: Int[Array, " B"],
    value: Shaped[Array, " B"],
    multiplicity: Int[Array, " B"] | None = None,
) -> Float[Array, "B D"]:
    told = policy.composition
    embed = hk.transform(lambda: network.embed_token(config, kind, space_group, value, multiplicity, told))
    return embed.apply(weights.params, None)


def project(
    space_group: Int[AnyArray, " B"], letter: Int[AnyArray, " B"], point: Float[Array, "B 3"]
) -> Float[Array, "B 3"]:
    """Op 0 of Wyckoff positions applied to points, wrapped into [0, 1); zero for pads."""
    op = jnp.asarray(symmetry_table().projector, point.dtype)[space_group - 1, letter]
    return wrap(jnp.einsum("bij,bj->bi", op[..., :3], point) + op[..., 3], jnp)
