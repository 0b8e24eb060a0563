"""Batches of equal length: a crystal pays for its own sites, not for the longest in the data.

Batches hold about equally many tokens: those of short crystals have more rows than those of long ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Integer

from cfx.core.crystal import CrystalBatch
from cfx.core.network import TOKENS_PER_SITE
from cfx.core.symmetry import settings_table

SLOT_BUCKETS = (2, 3, 4, 5, 6, 7, 9, 11, 14, 17, 21)
"""Slots a batch may have; each costs one compilation."""

ROW_MULTIPLE = 8
"""Rows of a batch that has at least as many, so that the same batches divide among 2, 4 or 8 devices."""


Slots = TypeVar("Slots", int, np.ndarray)


@runtime_checkable
class Crystals(Protocol):
    """What batches are taken from: a `CrystalBatch` in memory, or an encoded data set on disk."""

    def __len__(self) -> int: ...

    @property
    def num_sites(self) -> Integer[np.ndarray, " R"]:
        """Symmetry-inequivalent sites of each crystal."""
        ...

    def take(self, rows: Integer[np.ndarray, " B"], num_slots: int) -> CrystalBatch:
        """The crystals of these rows, in so many slots (numpy)."""
        ...


@dataclass(frozen=True)
class InRandomSettings:
    """Crystals, each in one of the equivalent settings of its space group, see `CrystalBatch.in_settings`.

    Attributes:
        data: the crystals in their given settings.
        uniform: a number in [0, 1) for each that chooses the setting. It does not depend on the batches, so that a
            resumed run, and each process of several, has every crystal in the same one.
    """

    data: Crystals
    uniform: Float[np.ndarray, " R"]

    @classmethod
    def of_epoch(cls, data: Crystals, seed: int, epoch: int) -> "InRandomSettings":
        """The settings of an epoch, each as likely as any other of its space group."""
        # Another stream than that of the shuffle, which is [seed, epoch].
        return cls(data, np.random.default_rng([seed, epoch, 1]).random(len(data)))

    def __len__(self) -> int:
        return len(self.data)

    @property
    def num_sites(self) -> Integer[np.ndarray, " R"]:
        """Symmetry-inequivalent sites of each crystal, the same in all settings."""
        return self.data.num_sites

    def take(self, rows: Integer[np.ndarray, " B"], num_slots: int) -> CrystalBatch:
        """The crystals of these rows, in so many slots (numpy)."""
        batch = self.data.take(rows, num_slots)
        count = settings_table().count[batch.space_group - 1]
        return batch.in_settings((self.uniform[rows] * count).astype(int))


@dataclass(frozen=True)
class Batch:
    """Rows of a data set that make a batch.

    Attributes:
        rows: at most `size` of them.
        slots: of the batch.
        size: its rows, with those that only fill it.
    """

    rows: Integer[np.ndarray, " rows"]
    slots: int
    size: int


class BatchPlan:
    """How a data set is cut into batches, epoch after epoch.

    Attributes:
        slots: [R], the fewest slots of the buckets (or n_max) that hold each crystal and a pad.
        sizes: rows of a batch, by its slots.
        num_batches: in an epoch.
    """

    def __init__(
        self,
        num_sites: Integer[np.ndarray, " R"],
        n_max: int,
        token_budget: float | int,
        buckets: tuple[int, ...] = SLOT_BUCKETS,
    ):
        """Plans for crystals with that many sites, in batches of about `token_budget` tokens."""
        self.slots = bucket_slots(num_sites, n_max, buckets)
        self.sizes = {int(slots): num_rows(int(slots), token_budget) for slots in np.unique(self.slots)}
        self.num_batches = sum(-(-int((self.slots == slots).sum()) // size) for slots, size in self.sizes.items())

    def epoch(self, seed: int | None = None, epoch: int = 0) -> list[Batch]:
        """All batches of one epoch; the last of each length may not be full.

        Args:
            seed: shuffles rows and batches; None keeps the order of the data.
            epoch: each has its own shuffle.
        """
        # A generator for each epoch: a resumed run asks for the one that it is in, without drawing those before it.
        rng = None if seed is None else np.random.default_rng([seed, epoch])
        order = np.arange(len(self.slots)) if rng is None else rng.permutation(len(self.slots))
        batches = []
        for slots, size in self.sizes.items():
            rows = order[self.slots[order] == slots]
            batches += [Batch(rows[start : start + size], slots, size) for start in range(0, len(rows), size)]
        return batches if rng is None else [batches[i] for i in rng.permutation(len(batches))]


def bucket_slots(
    num_sites: Integer[np.ndarray, " R"], n_max: int, buckets: tuple[int, ...] = SLOT_BUCKETS
) -> Integer[np.ndarray, " R"]:
    """The fewest slots of the buckets (or n_max) that hold so many sites and a pad."""
    lengths = np.array([slots for slots in buckets if slots < n_max] + [n_max], np.int32)
    return lengths[np.searchsorted(lengths, np.asarray(num_sites) + 1)]


def num_tokens(slots: Slots) -> Slots:
    """Tokens that the network computes of crystals in so many slots: the last slot's letter is the last."""
    return TOKENS_PER_SITE * (slots - 1) + 1


def num_rows(slots: int, token_budget: float | int) -> int:
    """Rows of a batch with so many slots."""
    rows = token_budget / num_tokens(slots)
    return max(round(rows), 1) if rows < ROW_MULTIPLE else ROW_MULTIPLE * round(rows / ROW_MULTIPLE)


def mean_tokens(num_sites: Integer[np.ndarray, " R"], n_max: int) -> float:
    """Tokens of a crystal in its batch, on average over a data set."""
    return float(num_tokens(bucket_slots(num_sites, n_max)).mean())


def fill(batch: Batch, multiple: int = 1) -> tuple[Integer[np.ndarray, " B"], Float32[np.ndarray, " B"]]:
    """Rows and weights of a batch filled up to its size, or to the next multiple.

    Rows that only fill up repeat the first one and weigh nothing.
    """
    # A real crystal, not zeros: what fills up must not make a nan, whose gradient no weight of 0 would take away.
    size = -(-batch.size // multiple) * multiple
    rows = np.concatenate([batch.rows, np.full(size - len(batch.rows), batch.rows[0])])
    return rows, (np.arange(size) < len(batch.rows)).astype(np.float32)


def scoring_plan(data: Crystals, n_max: int, batch_size: int) -> BatchPlan:
    """Batches with the tokens of `batch_size` crystals of 5 sites; their shapes do not depend on the data."""
    return BatchPlan(data.num_sites, n_max, batch_size * num_tokens(6))


def scoring_batches(
    data: Crystals, n_max: int, batch_size: int
) -> Iterator[tuple[Integer[np.ndarray, " rows"], CrystalBatch, Float32[np.ndarray, " B"]]]:
    """All crystals once, in order of length, as `scoring_plan` has them: (rows, batch, weight)."""
    for batch in scoring_plan(data, n_max, batch_size).epoch():
        rows, weight = fill(batch)
        yield batch.rows, data.take(rows, batch.slots), weight
