"""Stages of slots: who moves, who advances, and what is handed over."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from cfx.config import ModelConfig
from cfx.core.likelihood import init_params
from cfx.sampling import incremental, stages
from cfx.sampling.constraints import unconstrained
from cfx.sampling.policy import Policy, Sharpness
from cfx.sampling.pools import Decoder, Job
from cfx.sampling.stages import IDLE, Stage

CONFIG = ModelConfig(n_max=5, num_layers=1, num_heads=2, key_size=4, model_size=8, embed_size=8)


def stage(tickets: list[int], ages: list[int], capacity: int, mark: float = 0.0) -> Stage:
    """Slots with these tickets and ages; every cache holds the ticket, with a mark on it."""
    empty = stages.empty_stage(CONFIG, len(tickets), capacity)
    ticket = np.array(tickets, np.int32)
    cache = jax.tree.map(
        lambda leaf: np.broadcast_to((ticket + mark).reshape(-1, *[1] * (leaf.ndim - 1)), leaf.shape), empty.slots.cache
    )
    slots = dataclasses.replace(empty.slots, age=np.array(ages, np.int32), cache=jax.tree.map(np.float32, cache))
    return Stage(slots, ticket, np.int32(0))


@pytest.mark.parametrize("num_free", [0, 3, 20, 64])
def test_crystals_that_outgrow_a_stage_move_as_far_as_there_is_room(num_free):
    ages = [16, 11] * 20  # of capacity 16: every other one needs more
    before = stage(list(range(40)), ages, 16)
    after = stage([100 + i for i in range(64 - num_free)] + [IDLE] * num_free, [21] * 64, 31)
    moved, left = stages.take_outgrown(after, before)
    moved, left = jax.tree.map(np.asarray, (moved, left))
    outgrown, count = list(range(0, 40, 2)), min(num_free, 20)
    assert moved.ticket.tolist() == [100 + i for i in range(64 - num_free)] + outgrown[:count] + [IDLE] * (
        num_free - count
    )
    assert left.ticket.tolist() == [IDLE if i in outgrown[:count] else i for i in range(40)]
    new = slice(64 - num_free, 64 - num_free + count)
    assert (moved.slots.age[new] == 16).all()
    for keys, inputs in zip(moved.slots.cache.keys, moved.slots.cache.inputs, strict=True):
        assert keys[new, 0, :16, 0].tolist() == [[float(ticket)] * 16 for ticket in outgrown[:count]]
        assert inputs[new, :16, 0].tolist() == [[float(ticket)] * 16 for ticket in outgrown[:count]]


def test_what_came_first_leaves_first():
    """Also where later ones have taken the slots of earlier ones."""
    queue, came, left = stages.empty_stage(CONFIG, 96, 1), iter(range(10**6)), []
    for _ in range(6):
        queue, _ = stages.take_outgrown(queue, stage([next(came) for _ in range(48)], [1] * 48, 1))
        taken, rest = stages.take_outgrown(stages.empty_stage(CONFIG, 40, 16), queue)
        queue = dataclasses.replace(queue, **rest._asdict())
        left += taken.ticket.tolist()
    assert left == list(range(240))


def test_who_has_outgrown_a_stage():
    assert stage([0, IDLE, 2], [16, 16, 11], 16).outgrown.tolist() == [True, False, False]
    assert stage([0, IDLE], [1, 1], 1).outgrown.tolist() == [True, False]


@pytest.fixture(scope="module")
def looked_at():
    """300 crystals drawn in two pools of 128 slots with a look after every step, and after up to 8: looks, crystals."""
    weights = jax.jit(incremental.prepare, static_argnums=1)(init_params(CONFIG, jax.random.key(0)), CONFIG)
    policy = Policy(unconstrained(CONFIG), Sharpness(np.float32(1), np.float32(1)))
    jobs, found = [Job(i, 0, group) for i, group in enumerate(np.resize([1, 2, 14, 62, 225], 300).tolist())], []
    for steps in (1, 8):
        decoder = Decoder(weights, CONFIG, policy, jax.random.key(0), 128, steps_per_look=steps)
        done, parts = zip(*decoder.drain(jobs), strict=True)
        order = np.argsort([job.number for some in done for job in some])
        together = jax.tree.map(lambda *leaves, order=order: np.concatenate(leaves)[order], *parts)
        found.append((decoder.looks, together))
    return found


@pytest.mark.integration
def test_a_draw_is_the_same_to_the_last_bit_however_seldom_the_host_looks(looked_at):
    [(_, one), (_, other)] = looked_at
    assert len(one) == len(other) == 300
    assert len(np.unique(one.crystals.num_sites)) == 4
    for each, again in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(each, again)


@pytest.mark.integration
def test_the_host_looks_less_often_where_it_orders_more_steps(looked_at):
    [(often, _), (seldom, _)] = looked_at
    assert seldom < often / 2
