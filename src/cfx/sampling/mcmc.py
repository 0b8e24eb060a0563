"""Markov-chain Monte Carlo on species and coordinates, with the model as the target (2403.15734, Section IV).

The letters stay. Moves are symmetric: another species on a site, two sites' species exchanged, a site moved anywhere, a
site moved a little. They are accepted by the probability of drawing the crystal from the model at the request's
temperature and bias, restricted to what its constraints allow; where the masks of the decoder give a distribution of
their own, the chain leads to the model's conditional one. The lattice is drawn anew at the end.
"""

import dataclasses
import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Key

from cfx.config import ModelConfig
from cfx.core import AnyArray, Params, heads, lattice
from cfx.core.batches import bucket_slots
from cfx.core.crystal import CrystalBatch
from cfx.core.likelihood import log_prob, output_rows
from cfx.core.symmetry import wrap
from cfx.sampling import policy as distributions
from cfx.sampling.constraints import Constraints, satisfied, unconstrained
from cfx.sampling.decode import Drawn, project
from cfx.sampling.policy import Policy, Sharpness
from cfx.sampling.pools import Job

SHIFT = 0.02
"""Standard deviation of a small move, in fractional coordinates."""

AT_ONCE = 64
"""Crystals refined side by side."""

REFINE_STREAM = 2**31
"""Folded into a crystal's key for the chain; the decoder folds in numbers of tokens."""


class State(NamedTuple):
    """Where B chains are.

    Attributes:
        crystals: one a chain.
        log_prob: of the target, nats, up to a constant; -inf where the constraints are not met.
    """

    crystals: CrystalBatch
    log_prob: Float[Array, " B"]


class Info(NamedTuple):
    """What a step did.

    Attributes:
        accepted: whether the chain moved.
        is_species: whether the move was one of species rather than of coordinates.
    """

    accepted: Bool[Array, " B"]
    is_species: Bool[Array, " B"]


class Target(NamedTuple):
    """The distribution that the chains sample.

    Attributes:
        params: of the network.
        constraints: of the request.
        sharpness: of the request; top-p is left out, since it depends on the order of draws.
        composition: what the network is told, if it has a composition as input.
    """

    params: Params
    constraints: Constraints
    sharpness: Sharpness
    composition: Float[AnyArray, " S"] | None = None


def _policy(target: Target, config: ModelConfig) -> Policy:
    """The model at the request's temperature and bias, without its masks."""
    free = dataclasses.replace(unconstrained(config), species_bias=target.constraints.species_bias)
    return Policy(free, Sharpness(target.sharpness.temperature, 1.0), target.composition)


def _log_target(target: Target, config: ModelConfig, crystals: CrystalBatch) -> Float[Array, " B"]:
    parts = distributions.policy_log_prob(target.params, config, crystals, _policy(target, config))
    allowed = satisfied(target.constraints, crystals, jnp)
    return jnp.where(allowed, parts.wyckoff + parts.species + parts.coords, -jnp.inf)


def init(target: Target, config: ModelConfig, crystals: CrystalBatch) -> State:
    """Chains that begin at given crystals."""
    return State(crystals, _log_target(target, config, crystals))


def step(keys: Key[Array, " B"], state: State, target: Target, config: ModelConfig) -> tuple[State, Info]:
    """One move of each chain.

    Args:
        keys: random keys, one a chain.
        state: where they are.
        target: what they sample.
    """
    kind_keys, site_keys, move_keys, accept_keys = distributions.split_each(keys, 4)
    crystals = state.crystals
    kind = jax.vmap(lambda key: jax.random.randint(key, (), 0, 4))(kind_keys)
    sites = jax.vmap(lambda key, n: jax.random.randint(key, (2,), 0, n))(site_keys, crystals.num_sites)
    proposals = _proposals(move_keys, crystals, sites, target.constraints)

    def choose(*leaves: Array) -> Array:
        return jnp.stack(leaves, axis=1)[jnp.arange(len(kind)), kind]

    proposed = jax.tree.map(choose, *proposals)
    new = _log_target(target, config, proposed)
    # From outside of what is allowed any step inside is taken, where the plain difference could be nan.
    ratio = jnp.where(state.log_prob == -jnp.inf, jnp.where(new > -jnp.inf, jnp.inf, -jnp.inf), new - state.log_prob)
    # Never exactly 0, whose logarithm would accept whatever the constraints allow.
    accepted = jnp.log(jax.vmap(lambda key: jax.random.uniform(key, minval=1e-37))(accept_keys)) < ratio
    merged = jax.tree.map(
        lambda ours, theirs: jnp.where(accepted.reshape(-1, *[1] * (ours.ndim - 1)), theirs, ours), crystals, proposed
    )
    return State(merged, jnp.where(accepted, new, state.log_prob)), Info(accepted, kind < 2)


def _proposals(
    keys: Key[Array, " B"], crystals: CrystalBatch, sites: Int[Array, "B 2"], constraints: Constraints
) -> list[CrystalBatch]:
    """Every chain after each of the moves: another species, two exchanged, a point anywhere, a point nearby."""
    site, other = sites[:, 0], sites[:, 1]
    allowed = jnp.asarray(constraints.allowed_species)[site].at[:, 0].set(False)
    drawn = distributions.draw_categorical(keys, jnp.where(allowed, 0.0, -jnp.inf))
    own, others = (jnp.take_along_axis(crystals.species, sites[:, i, None], axis=1)[:, 0] for i in (0, 1))
    exchanged = _put_species(_put_species(crystals, constraints, site, others), constraints, other, own)
    anywhere = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys)
    point = jnp.take_along_axis(crystals.frac_coords, sites[:, :1, None], axis=1)[:, 0]
    nearby = point + SHIFT * jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    # One key serves all four, since only one of them is made.
    return [
        _put_species(crystals, constraints, site, drawn),
        exchanged,
        *(_put_point(crystals, constraints, site, to) for to in (anywhere, nearby)),
    ]


def _put_species(
    crystals: CrystalBatch, constraints: Constraints, site: Int[Array, " B"], species: Int[Array, " B"]
) -> CrystalBatch:
    """Species on one site of each crystal and on those tied to it."""
    origin = jnp.asarray(constraints.tied_to)[: crystals.num_slots]
    same = (origin == origin[site][:, None]) & (crystals.wyckoff > 0)
    return dataclasses.replace(crystals, species=jnp.where(same, species[:, None], crystals.species))


def _put_point(
    crystals: CrystalBatch, constraints: Constraints, site: Int[Array, " B"], point: Float[Array, "B 3"]
) -> CrystalBatch:
    """Points on one site of each crystal, brought onto their Wyckoff positions; nothing where coordinates are kept."""
    letter = jnp.take_along_axis(crystals.wyckoff, site[:, None], axis=1)[:, 0]
    here = (jnp.arange(crystals.num_slots) == site[:, None])[..., None]
    if constraints.prototype is not None:
        here &= ~jnp.asarray(constraints.prototype.keep_coords)
    value = project(crystals.space_group, letter, wrap(point, jnp))[:, None]
    return dataclasses.replace(crystals, frac_coords=jnp.where(here, value, crystals.frac_coords))


@functools.partial(jax.jit, static_argnames="config")
def _run(
    target: Target, config: ModelConfig, keys: Key[Array, " B"], crystals: CrystalBatch, num_steps: Int[Array, ""]
) -> tuple[Drawn, Float[Array, " B"]]:
    """The chains' last crystals with a new lattice, and the share of moves accepted."""

    def body(i: Int[Array, ""], carry: tuple[State, Float[Array, " B"]]) -> tuple[State, Float[Array, " B"]]:
        state, accepted = carry
        state, info = step(distributions.fold_each(keys, i), state, target, config)
        return state, accepted + info.accepted

    start = (init(target, config, crystals), jnp.zeros(len(crystals)))
    state, accepted = jax.lax.fori_loop(0, num_steps, body, start)
    crystals = _redraw_lattice(target, config, distributions.fold_each(keys, num_steps), state.crystals)
    in_force = Policy(target.constraints, Sharpness(target.sharpness.temperature, 1.0), target.composition)
    parts = distributions.policy_log_prob(target.params, config, crystals, in_force)
    published = log_prob(target.params, config, crystals, composition=target.composition)
    return Drawn(crystals, published, parts), accepted / num_steps


def _redraw_lattice(
    target: Target, config: ModelConfig, keys: Key[Array, " B"], crystals: CrystalBatch
) -> CrystalBatch:
    row = output_rows(target.params, config, crystals, composition=target.composition).for_lattice(crystals)
    mixture = distributions.sharpen_lattice(_policy(target, config), heads.lattice_mixture(row, config))
    value = lattice.to_physical_frame(distributions.draw_lattice(keys, mixture), crystals.num_atoms, jnp)
    cell = lattice.impose_family(value, crystals.space_group, jnp)
    if target.constraints.prototype is not None:
        cell = jnp.where(jnp.asarray(target.constraints.prototype.keep_lattice), crystals.lattice, cell)
    return dataclasses.replace(crystals, lattice=cell)


def refine(
    target: Target, config: ModelConfig, rng_key: Key[Array, ""], jobs: list[Job], drawn: Drawn, num_steps: int
) -> tuple[Drawn, Float[np.ndarray, " B"]]:
    """Refines fresh crystals by `num_steps` moves each.

    Args:
        target: what to sample.
        jobs: the draws that made the crystals; their random numbers depend on these alone.
        drawn: the crystals (numpy).

    Returns:
        The crystals (numpy, n_max slots) with new lattices and log-probabilities (the policy's without top-p), and the
        share of moves accepted.
    """
    if not jobs:
        return drawn, np.zeros(0, np.float32)
    parts, rates, order = [], [], []
    slots = bucket_slots(drawn.crystals.num_sites, config.n_max)
    for size in np.unique(slots):
        rows = np.flatnonzero(slots == size)
        for first in range(0, len(rows), AT_ONCE):
            some = rows[first : first + AT_ONCE]
            padded = np.resize(some, AT_ONCE)  # repeats fill up: one shape, one compilation
            numbers = np.array([[jobs[i].number, jobs[i].attempt] for i in padded], np.uint32)
            crystals = drawn.crystals[padded].with_slots(int(size))
            done, rate = _run(target, config, _chain_keys(rng_key, numbers), crystals, num_steps)
            done = jax.tree.map(np.asarray, dataclasses.replace(done, crystals=done.crystals.with_slots(config.n_max)))
            parts.append(jax.tree.map(operator.itemgetter(slice(len(some))), done))
            rates.append(np.asarray(rate)[: len(some)])
            order.append(some)
    back = np.argsort(np.concatenate(order))
    together = jax.tree.map(lambda *leaves: np.concatenate(leaves)[back], *parts)
    return together, np.concatenate(rates)[back]


@jax.jit
def _chain_keys(rng_key: Key[Array, ""], numbers: Integer[Array, "B 2"]) -> Key[Array, " B"]:
    return distributions.fold_each(distributions.crystal_keys(rng_key, numbers[:, 0], numbers[:, 1]), REFINE_STREAM)
