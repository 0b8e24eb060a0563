"""Batches of equal length and about as many tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfx.core.batches import (
    ROW_MULTIPLE,
    SLOT_BUCKETS,
    Batch,
    BatchPlan,
    bucket_slots,
    fill,
    mean_tokens,
    num_rows,
    num_tokens,
    scoring_batches,
)
from cfx.core.crystal import CrystalBatch, validate

N_MAX = 21


def crystals(num_sites, num_slots: int = N_MAX) -> CrystalBatch:
    """P1 crystals with so many sites; the first edge tells their row."""
    size = len(num_sites)
    filled = np.arange(num_slots) < np.asarray(num_sites)[:, None]
    lattice = np.tile(np.array([5, 5, 5, 90, 90, 90], np.float32), (size, 1))
    lattice[:, 0] += np.arange(size)
    return CrystalBatch(
        space_group=np.ones(size, np.int32),
        lattice=lattice,
        frac_coords=0.25 * np.ones((size, num_slots, 3), np.float32) * filled[..., None],
        species=(8 * filled).astype(np.int32),
        wyckoff=filled.astype(np.int32),
    )


def row_ids(batch: CrystalBatch) -> list[int]:
    """The rows of `crystals` that a batch holds."""
    return (batch.lattice[:, 0] - 5).astype(int).tolist()


site_counts = st.lists(st.integers(1, 20), min_size=1, max_size=200)
budgets = st.floats(1, 2000)


@given(site_counts)
def test_a_crystal_gets_the_fewest_slots_that_hold_it_and_a_pad(num_sites):
    slots = bucket_slots(np.array(num_sites), N_MAX)
    for count, found in zip(num_sites, slots, strict=True):
        assert found == min(bucket for bucket in SLOT_BUCKETS if bucket > count)


@pytest.mark.parametrize("n_max", [2, 8, 12, 21, 30])
def test_slots_end_with_those_of_the_model(n_max):
    """n_max need not be one of the buckets."""
    counts = np.arange(1, n_max)
    slots = bucket_slots(counts, n_max)
    assert (slots > counts).all()
    assert slots.max() == n_max
    assert set(slots) <= {*SLOT_BUCKETS, n_max}


def test_tokens_are_those_that_the_network_computes():
    """Five a site, and the letter of the last slot; numbers that a small integer type would not hold."""
    assert [num_tokens(slots) for slots in (2, 3, 21)] == [6, 11, 101]
    counts = np.array([1, 1, 2, 60], np.uint8)
    assert bucket_slots(counts, 61).tolist() == [2, 2, 3, 61]
    assert mean_tokens(counts, 61) == (6 + 6 + 11 + 301) / 4


@given(st.integers(2, 60), budgets)
def test_full_batches_hold_the_token_budget_up_to_rounding(slots, budget):
    """Below eight rows they are rounded to whole rows, from eight on to multiples of eight; one row at least."""
    rows, exact = num_rows(slots, budget), budget / num_tokens(slots)
    assert isinstance(rows, int) and rows >= 1
    if rows >= ROW_MULTIPLE:
        assert rows % ROW_MULTIPLE == 0
    if exact >= 1:
        assert abs(rows - exact) <= (0.5 if exact < ROW_MULTIPLE else ROW_MULTIPLE / 2)
    else:
        assert rows == 1


@given(st.lists(st.integers(1, 20), min_size=1, max_size=200), st.integers(1, 128))
def test_batches_of_all_lengths_have_about_as_many_tokens(num_sites, batch_size):
    """As in training, where `batch_size` crystals of mean length set the budget."""
    num_sites = np.array(num_sites)
    budget = batch_size * mean_tokens(num_sites, N_MAX)
    plan = BatchPlan(num_sites, N_MAX, budget)
    assert plan.sizes.keys() == set(plan.slots.tolist())
    for slots, size in plan.sizes.items():
        rounding = num_tokens(slots) * (4 if size >= ROW_MULTIPLE else 0.5)
        assert abs(size * num_tokens(slots) - max(budget, num_tokens(slots))) <= rounding


@given(site_counts, budgets, st.one_of(st.none(), st.integers(0, 5)), st.integers(0, 3))
def test_an_epoch_holds_every_row_once(num_sites, budget, seed, epoch):
    plan = BatchPlan(np.array(num_sites), N_MAX, budget)
    batches = plan.epoch(seed, epoch)
    assert sorted(np.concatenate([batch.rows for batch in batches]).tolist()) == list(range(len(num_sites)))
    for batch in batches:
        assert 1 <= len(batch.rows) <= batch.size == num_rows(batch.slots, budget)
        assert (plan.slots[batch.rows] == batch.slots).all()


@given(site_counts, budgets, st.integers(0, 5))
def test_every_epoch_has_as_many_steps(num_sites, budget, seed):
    """One batch of each length at most is not full, and it is used."""
    plan = BatchPlan(np.array(num_sites), N_MAX, budget)
    for epoch in range(3):
        batches = plan.epoch(seed, epoch)
        assert len(batches) == plan.num_batches
        short = [batch.slots for batch in batches if len(batch.rows) < batch.size]
        assert len(short) == len(set(short))
        assert set(short) == {slots for slots, size in plan.sizes.items() if (plan.slots == slots).sum() % size}


def test_order_follows_seed_and_epoch():
    num_sites = np.repeat([2, 4], 50)

    def order(seed, epoch):
        batches = BatchPlan(num_sites, N_MAX, 100).epoch(seed, epoch)
        return [batch.rows.tolist() for batch in batches]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(0, 1) != order(1, 0)
    assert order(None, 0) == order(None, 7)
    assert [row for rows in order(None, 0) for row in rows] == list(range(100))


def test_crystals_meet_others_in_every_epoch():
    """Not the batches alone are shuffled, but what is in them."""
    plan = BatchPlan(np.full(400, 3), N_MAX, 16 * num_tokens(4))
    one, two = ({frozenset(batch.rows.tolist()) for batch in plan.epoch(0, epoch)} for epoch in (0, 1))
    assert len(one) == len(two) == 25
    assert not one & two


def test_lengths_are_mixed_over_an_epoch():
    """Long crystals do not all come last."""
    plan = BatchPlan(np.repeat([2, 4], [800, 400]), N_MAX, 8 * num_tokens(5))
    lengths = [batch.slots for batch in plan.epoch(seed=0)]
    assert len(lengths) == 100
    assert len(set(lengths[:20])) == len(set(lengths[-20:])) == 2


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 8))
def test_filling_adds_rows_of_no_weight(num, extra, multiple):
    """Up to the size of the batch, and on to a multiple that divides among devices."""
    batch = Batch(np.arange(100, 100 + num)[::-1], 3, num + extra - 1)
    rows, weight = fill(batch, multiple)
    assert rows[:num].tolist() == batch.rows.tolist()
    assert set(rows[num:].tolist()) <= {rows[0]}
    assert weight.tolist() == [1] * num + [0] * (len(rows) - num)
    assert weight.dtype == np.float32
    assert len(rows) % multiple == 0
    assert batch.size <= len(rows) < batch.size + multiple


def test_take_brings_crystals_into_fewer_slots():
    batch = crystals([1, 2, 2, 5])
    part = batch.take(np.array([2, 0, 2]), 3)
    assert row_ids(part) == [2, 0, 2]
    assert part.num_slots == 3
    assert part.num_sites.tolist() == [2, 1, 2]
    validate(part)


@given(site_counts, st.integers(1, 16))
def test_scoring_visits_every_crystal_once(num_sites, batch_size):
    batch, seen, lengths = crystals(num_sites), [], []
    for rows, part, weight in scoring_batches(batch, N_MAX, batch_size):
        assert weight.tolist() == [1] * len(rows) + [0] * (len(part) - len(rows))
        assert (part.num_sites < part.num_slots).all()
        assert row_ids(part)[: len(rows)] == rows.tolist()
        assert part.num_sites[: len(rows)].tolist() == [num_sites[row] for row in rows]
        seen += rows.tolist()
        lengths.append(part.num_slots)
    assert sorted(seen) == list(range(len(num_sites)))
    assert lengths == sorted(lengths)


@given(st.integers(1, 20), site_counts, st.integers(1, 16))
def test_shapes_of_scoring_do_not_depend_on_the_other_crystals(count, others, batch_size):
    """A score must not: it differs in its last digits between shapes."""
    [alone] = [part.wyckoff.shape for _, part, _ in scoring_batches(crystals([count]), N_MAX, batch_size)]
    parts = scoring_batches(crystals([*others, count]), N_MAX, batch_size)
    shapes = [part.wyckoff.shape for rows, part, _ in parts if len(others) in rows]
    assert shapes == [alone]


def test_scoring_takes_about_batch_size_crystals_of_five_sites():
    [(rows, part, _)] = scoring_batches(crystals([5] * 64), N_MAX, 64)
    assert (len(rows), part.wyckoff.shape) == (64, (64, 6))


def test_scoring_no_crystals():
    assert list(scoring_batches(crystals([]), N_MAX, 4)) == []
