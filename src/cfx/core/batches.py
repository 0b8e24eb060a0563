"""Batches of equal length: a crystal pays for its own sites, not for the longest in the data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cfx.core.crystal import CrystalBatch

SLOT_BUCKETS = (2, 3, 4, 5, 6, 7, 9, 11, 14, 17, 21)
"""Slots a batch may have; each costs one compilation."""


def bucket_slots(batch: CrystalBatch) -> np.ndarray:
    """int [B], the fewest slots of SLOT_BUCKETS (or n_max) that hold each crystal and a pad."""
    buckets = np.array([slots for slots in SLOT_BUCKETS if slots < batch.num_slots] + [batch.num_slots])
    return buckets[np.searchsorted(buckets, np.asarray(batch.num_sites) + 1)]


def plan_batches(slots: np.ndarray, batch_size: int, seed: int | None = None, epoch: int = 0) -> list[np.ndarray]:
    """Rows of every batch of one epoch; each batch has one number of slots.

    Args:
        slots: int [n], slots of each crystal.
        batch_size: rows a batch; the last of a length may have fewer.
        seed: shuffles rows and batches; None keeps the order of the data.
        epoch: each has its own shuffle.
    """
    rng = None if seed is None else np.random.default_rng([seed, epoch])
    order = np.arange(len(slots)) if rng is None else rng.permutation(len(slots))
    batches = []
    for value in np.unique(slots):
        rows = order[slots[order] == value]
        batches += [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return batches if rng is None else [batches[i] for i in rng.permutation(len(batches))]


def take(batch: CrystalBatch, slots: np.ndarray, rows: np.ndarray, batch_size: int) -> tuple[CrystalBatch, np.ndarray]:
    """The batch of `rows`, cut to its slots and filled up to `batch_size`, and weights float32 [batch_size].

    Rows that only fill up repeat the first one and weigh nothing.
    """
    fill = np.concatenate([rows, np.full(batch_size - len(rows), rows[0])])
    weight = (np.arange(batch_size) < len(rows)).astype(np.float32)
    return batch[fill].with_slots(int(slots[rows[0]])), weight


def iterate(batch: CrystalBatch, batch_size: int) -> Iterator[tuple[np.ndarray, CrystalBatch, np.ndarray]]:
    """All crystals once, in order of length: (rows, batch, weight)."""
    slots = bucket_slots(batch)
    for rows in plan_batches(slots, batch_size):
        yield rows, *take(batch, slots, rows, batch_size)
