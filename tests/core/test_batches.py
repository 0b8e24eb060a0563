"""Batches of equal length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfx.core.batches import SLOT_BUCKETS, bucket_slots, iterate, plan_batches, take
from cfx.core.crystal import CrystalBatch, validate


def crystals(num_sites, num_slots: int = 21) -> CrystalBatch:
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


site_counts = st.lists(st.integers(1, 20), min_size=1, max_size=60)


@given(site_counts)
def test_a_crystal_gets_the_fewest_slots_that_hold_it_and_a_pad(num_sites):
    slots = bucket_slots(crystals(num_sites))
    for count, found in zip(num_sites, slots, strict=True):
        assert found == min(bucket for bucket in SLOT_BUCKETS if bucket > count)


@pytest.mark.parametrize("num_slots", [2, 8, 12, 30])
def test_slots_end_with_those_of_the_model(num_slots):
    """n_max need not be one of the buckets."""
    counts = np.arange(1, num_slots)
    slots = bucket_slots(crystals(counts, num_slots))
    assert (slots > counts).all()
    assert slots.max() == num_slots
    assert set(slots) <= {*SLOT_BUCKETS, num_slots}


@given(site_counts, st.integers(1, 16), st.one_of(st.none(), st.integers(0, 5)), st.integers(0, 3))
def test_an_epoch_holds_every_row_once(num_sites, batch_size, seed, epoch):
    slots = bucket_slots(crystals(num_sites))
    batches = plan_batches(slots, batch_size, seed, epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(num_sites)))
    for rows in batches:
        assert 1 <= len(rows) <= batch_size
        assert len(set(slots[rows])) == 1
    # One batch of each length at most is not full, so that every epoch has as many steps.
    assert len(batches) == sum(-(-np.sum(slots == value) // batch_size) for value in np.unique(slots))


def test_order_follows_seed_and_epoch():
    slots = np.repeat([3, 5], 50)

    def order(seed, epoch):
        return np.concatenate(plan_batches(slots, 8, seed, epoch)).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(0, 1) != order(1, 0)
    assert order(None, 0) == order(None, 7) == list(range(100))


def test_lengths_are_mixed_over_an_epoch():
    """Long crystals do not all come last."""
    slots = np.repeat([3, 5], 400)
    lengths = [slots[rows[0]] for rows in plan_batches(slots, 8, seed=0)]
    assert len(set(lengths[:20])) == len(set(lengths[-20:])) == 2


def test_take_fills_up_with_rows_that_weigh_nothing():
    batch = crystals([1, 2, 2, 5])
    part, weight = take(batch, bucket_slots(batch), np.array([2, 1]), 4)
    assert part.num_slots == 3
    assert (part.lattice[:, 0] - 5).tolist() == [2, 1, 2, 2]
    assert weight.tolist() == [1, 1, 0, 0]
    assert weight.dtype == np.float32
    validate(part)


def test_take_of_a_full_batch():
    batch = crystals([2, 2])
    part, weight = take(batch, bucket_slots(batch), np.array([0, 1]), 2)
    assert len(part) == 2
    assert weight.tolist() == [1, 1]


@given(site_counts, st.integers(1, 16))
def test_iterate_visits_every_crystal_once(num_sites, batch_size):
    batch, seen = crystals(num_sites), []
    for rows, part, weight in iterate(batch, batch_size):
        assert len(part) == len(weight) == batch_size
        assert weight.sum() == len(rows)
        assert (part.num_sites < part.num_slots).all()
        np.testing.assert_array_equal(part.lattice[: len(rows)], batch.lattice[rows])
        np.testing.assert_array_equal(part.num_sites[: len(rows)], np.asarray(num_sites)[rows])
        seen += rows.tolist()
    assert sorted(seen) == list(range(len(num_sites)))


def test_iterate_over_no_crystals():
    assert list(iterate(crystals([]), 4)) == []
