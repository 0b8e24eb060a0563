"""What a pool of slots does on the device between two looks of the host.

Crystals pass through stages: those just started wait in one with room for a letter, and the pools follow. Each stage
takes the crystals that have outgrown the one before it, as far as it has free slots, and advances once it is full. The
device decides all of that by itself, so that the host may order many steps before it looks at what they gave.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from cfx.config import ModelConfig
from cfx.core import AnyArray
from cfx.core.network import TOKENS_PER_SITE
from cfx.sampling import decode
from cfx.sampling.decode import Slots
from cfx.sampling.incremental import Weights
from cfx.sampling.policy import Policy

IDLE = 2**31 - 1
"""Ticket of a slot without a crystal; beyond all results, so that nothing is written for it."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stage:
    """Slots of one capacity.

    Attributes:
        slots: the crystals.
        ticket: where among the results each crystal will go; IDLE for a free slot.
        first: the slot that is looked at first for a crystal to move on: what came first leaves first.
    """

    slots: Slots
    ticket: Int[AnyArray, " B"]
    first: Int[AnyArray, ""]

    @property
    def is_taken(self) -> Bool[Array, " B"]:
        """Which slots have a crystal."""
        return jnp.asarray(self.ticket) != IDLE

    @property
    def outgrown(self) -> Bool[Array, " B"]:
        """Which crystals need more room for another site."""
        return self.is_taken & (self.slots.age + TOKENS_PER_SITE > self.slots.cache.capacity)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Results:
    """Finished crystals, each at its ticket.

    Attributes:
        slots: without caches; lattices are still to be drawn.
        is_new: finished since the host looked.
    """

    slots: Slots
    is_new: Bool[AnyArray, " R"]


class Left(NamedTuple):
    """What is left in a stage after the next has taken crystals: its `ticket` and `first`."""

    ticket: Int[Array, " S"]
    first: Int[Array, ""]

    @property
    def is_empty(self) -> Bool[Array, ""]:
        """Whether no crystal is left."""
        return (self.ticket == IDLE).all()


class Ran(NamedTuple):
    """What `run` leaves.

    Attributes:
        stage: after its steps.
        left: of the stage before it.
        results: with the crystals that were finished.
        is_last: whether nothing will come through the stage before it.
        steps: how many are left.
    """

    stage: Stage
    left: Left
    results: Results
    is_last: Bool[Array, ""]
    steps: Int[Array, ""]


@functools.partial(jax.jit, static_argnames=("config", "num_slots", "capacity"))
def empty_stage(config: ModelConfig, num_slots: int, capacity: int) -> Stage:
    """Free slots with room for `capacity` tokens each."""
    slots, ticket = decode.idle_slots(config, num_slots, capacity), jnp.full(num_slots, IDLE, jnp.int32)
    return Stage(slots, ticket, jnp.zeros((), jnp.int32))


@functools.partial(jax.jit, static_argnames=("config", "size"))
def no_results(config: ModelConfig, size: int) -> Results:
    """Room for `size` crystals."""
    return Results(decode.idle_slots(config, size, 1).without_cache(), jnp.zeros(size, bool))


@functools.partial(jax.jit, static_argnames="config", donate_argnames=("stage", "results"))
def run(
    weights: Weights,
    config: ModelConfig,
    policy: Policy,
    stage: Stage,
    before: Stage,
    results: Results,
    is_last: Bool[AnyArray, ""],
    steps: Int[AnyArray, ""],
) -> Ran:
    """Advances a stage for as long as that wastes nothing: while it is full, and none of its crystals has outgrown it.

    Args:
        stage: to advance; what is full is refilled after every step.
        before: the stage before it, whose outgrown crystals it takes.
        results: to which finished crystals go.
        is_last: whether nothing will come to `before`. Once nothing is left there, a stage need not be full.
        steps: most sites that a slot may advance by.
    """

    def turn(state: _State) -> _State:
        stage, left = take_outgrown(state.stage, dataclasses.replace(before, **state.left._asdict()))
        is_worth_it = stage.is_taken.all() | (is_last & left.is_empty & stage.is_taken.any())
        advances = is_worth_it & ~stage.outgrown.any() & (state.steps > 0)
        # A loop of one turn at most: unlike the branch of a condition, it leaves the caches where they are.
        state = jax.lax.while_loop(_goes_on, advance, _State(stage, left, state.results, state.steps, advances))
        return state._replace(goes_on=advances)

    def advance(state: _State) -> _State:
        slots, is_finished = decode.advance(weights, config, state.stage.slots, policy)
        stage, results = _hand_over(dataclasses.replace(state.stage, slots=slots), is_finished, state.results)
        return _State(stage, state.left, results, state.steps - 1, jnp.asarray(False))

    start = _State(
        stage,
        Left(jnp.asarray(before.ticket), jnp.asarray(before.first)),
        results,
        jnp.asarray(steps),
        jnp.asarray(True),
    )
    end = jax.lax.while_loop(_goes_on, turn, start)
    return Ran(end.stage, end.left, end.results, is_last & end.left.is_empty, end.steps)


class _State(NamedTuple):
    """Of the loop in `run`: see `Ran`."""

    stage: Stage
    left: Left
    results: Results
    steps: Array
    goes_on: Array


def _goes_on(state: _State) -> Array:
    return state.goes_on


@functools.partial(jax.jit, donate_argnames="stage")
def take_outgrown(stage: Stage, before: Stage) -> tuple[Stage, Left]:
    """Moves crystals that have outgrown a stage to free slots of the next, as many as fit."""
    size, num_slots = len(before.ticket), len(stage.ticket)
    ready, is_free = before.outgrown, ~stage.is_taken
    count = jnp.minimum(is_free.sum(), ready.sum())
    # Pieces of one size: a copy costs what its rows need, and the number of rows is not known before.
    at_once = max(1, num_slots // 8)
    most = -(-min(size, num_slots) // at_once) * at_once
    rows, places = (_in_turn(mask, where.first, most) for mask, where in ((ready, before), (is_free, stage)))
    is_move = jnp.arange(most) < count
    places = jnp.where(is_move, places, IDLE)

    def copy(state: tuple[Array, Slots]) -> tuple[Array, Slots]:
        start, slots = state
        some, into = (jax.lax.dynamic_slice_in_dim(each, start, at_once) for each in (rows, places))
        return start + at_once, decode.take_over(slots, before.slots, some, into)

    _, slots = jax.lax.while_loop(lambda state: state[0] < count, copy, (jnp.zeros_like(count), stage.slots))
    ticket = stage.ticket.at[places].set(before.ticket[rows], mode="drop")
    left = jnp.asarray(before.ticket).at[jnp.where(is_move, rows, IDLE)].set(IDLE, mode="drop")
    first = jnp.where(count > 0, (rows[count - 1] + 1) % size, before.first)
    return dataclasses.replace(stage, slots=slots, ticket=ticket), Left(left, first)


def _in_turn(mask: Bool[Array, " n"], first: Int[AnyArray, ""], most: int) -> Int[Array, " most"]:
    """Where a mask is True, from `first` on and around; what follows these is of no use."""
    [found] = jnp.nonzero(jnp.roll(mask, -first), size=most)
    return ((found + first) % len(mask)).astype(jnp.int32)


def _hand_over(stage: Stage, is_finished: Bool[Array, " B"], results: Results) -> tuple[Stage, Results]:
    """Writes finished crystals to their places among the results, and frees their slots."""
    done = is_finished & stage.is_taken
    place = jnp.where(done, stage.ticket, IDLE)
    slots = jax.tree.map(
        lambda into, new: into.at[place].set(new, mode="drop"), results.slots, stage.slots.without_cache()
    )
    is_new = jnp.asarray(results.is_new).at[place].set(True, mode="drop")
    stage = dataclasses.replace(stage, ticket=jnp.where(done, IDLE, stage.ticket))
    return stage, Results(slots, is_new)
