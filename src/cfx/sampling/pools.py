"""Pools of slots, each with caches of one length, that crystals grow through.

A step advances one pool by a site. Finished crystals leave it, new ones take their slots, and a crystal that outgrows
its pool's caches moves to the next pool. So no slot idles while the longest crystal completes, and a short crystal
never attends over a long cache. New crystals are started a batch at a time and wait, one token old, for slots.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from cfx.config import ModelConfig
from cfx.core.network import TOKENS_PER_SITE
from cfx.sampling import decode
from cfx.sampling.decode import Drawn, Slots
from cfx.sampling.incremental import Weights
from cfx.sampling.policy import Policy

POOL_SITES = ((3, 1), (6, 1), (11, 2), (20, 2))
"""For each pool: the sites that its caches hold, and the part of the batch it has slots for (1 / that many)."""

MIN_SLOTS = 64
"""Slots that every pool has at least. On fewer rows XLA's matrix products on CPUs sum in another order, and a crystal's
last digits, in time its coordinates, would depend on the batch size."""

FINISH_AT_ONCE = 32
"""Crystals that are given their lattices in one call."""


def pool_shapes(batch_size: int, max_sites: int) -> list[tuple[int, int]]:
    """Slots and tokens of each pool of a decoder for crystals of at most `max_sites` sites.

    The smallest batch has a single pool: what others would save is less than what they take to compile.
    """
    if batch_size <= MIN_SLOTS:
        return [(MIN_SLOTS, max_sites * TOKENS_PER_SITE + 1)]
    shorter = [(sites, part) for sites, part in POOL_SITES if sites < max_sites]
    last = POOL_SITES[min(len(shorter), len(POOL_SITES) - 1)][1]
    shapes = [*shorter, (max_sites, last)]
    return [(max(MIN_SLOTS, batch_size // part), sites * TOKENS_PER_SITE + 1) for sites, part in shapes]


class Job(NamedTuple):
    """A crystal to draw: its number in the request, the attempt at it, its space group."""

    number: int
    attempt: int
    space_group: int


Device = Any
"""A jax.Device, a name that JAX's stubs do not let stand in an annotation."""

Finished = tuple[list[Job], Drawn | None]
"""Jobs that were finished together, and their crystals (numpy, in n_max slots); None for no jobs."""


class _Pool:
    """Slots of one capacity and the jobs in those that are taken."""

    def __init__(self, config: ModelConfig, num_slots: int, capacity: int):
        self.config, self.num_slots, self.capacity = config, num_slots, capacity
        self.jobs: dict[int, Job] = {}
        self.ages = np.zeros(num_slots, int)

    @functools.cached_property
    def slots(self) -> Slots:
        """The slots on the device, allocated when they are first needed."""
        return decode.idle_slots(self.config, self.num_slots, self.capacity)

    @property
    def taken(self) -> list[int]:
        """Slots with a job, in order."""
        return sorted(self.jobs)

    @property
    def num_free(self) -> int:
        """Slots without one."""
        return self.num_slots - len(self.jobs)

    @property
    def outgrown(self) -> list[int]:
        """Slots whose crystal needs more room for another site."""
        return [i for i in self.taken if self.ages[i] + TOKENS_PER_SITE > self.capacity]

    def take_from(self, other: _Pool, rows: list[int]) -> None:
        """Moves the crystals in `rows` of another pool to free slots of this one."""
        free = [i for i in range(self.num_slots) if i not in self.jobs][: len(rows)]
        at_once = max(1, self.num_slots // 8)  # pieces of one size: one compilation for any number of crystals
        for first in range(0, len(rows), at_once):
            source, target = rows[first : first + at_once], free[first : first + at_once]
            padding = at_once - len(source)
            self.slots = decode.take_over(
                self.slots,
                other.slots,
                np.array(source + [0] * padding, np.int32),
                np.array(target + [self.num_slots] * padding, np.int32),
            )
        for row, slot in zip(rows, free, strict=True):
            self.jobs[slot], self.ages[slot] = other.jobs.pop(row), other.ages[row]


class Decoder:
    """Draws the crystals of a request on one device."""

    def __init__(
        self,
        weights: Weights,
        config: ModelConfig,
        policy: Policy,
        rng_key: Key[Array, ""],
        batch_size: int,
        device: Device | None = None,
    ):
        """Prepares to draw.

        Args:
            batch_size: slots of the first pool, MIN_SLOTS or more; memory grows with it and with nothing else.
            device: where to draw; JAX's first device by default.
        """
        self.device = device or jax.local_devices()[0]
        self.config, self.batch_size = config, max(batch_size, MIN_SLOTS)
        self.weights, self.policy, self.rng_key = jax.device_put((weights, policy, rng_key), self.device)
        self.pools = [_Pool(config, *shape) for shape in pool_shapes(self.batch_size, config.n_max - 1)]
        self.waiting = _Pool(config, self.batch_size, 1)
        self.jobs: dict[Job, None] = {}  # under way

    def step(self, take: Callable[[int], list[Job]]) -> Finished | None:
        """Advances one pool by a site.

        Args:
            take: called with a number; gives at most so many new jobs.

        Returns:
            The jobs that were finished, and their crystals (numpy, in n_max slots; None for no jobs); None if there
            was nothing to do.
        """
        # By itself JAX would take less than float32 on some GPUs.
        with jax.default_device(self.device), jax.default_matmul_precision("float32"):
            finished = self._step(take)
        for job in finished[0] if finished else ():
            del self.jobs[job]
        return finished

    def drain(self, jobs: list[Job]) -> Iterator[tuple[list[Job], Drawn]]:
        """Draws a list of jobs; crystals come as they are finished."""
        left = iter(jobs)
        while (finished := self.step(lambda n: list(itertools.islice(left, n)))) is not None:
            done, drawn = finished
            if drawn is not None:
                yield done, drawn

    def _step(self, take: Callable[[int], list[Job]]) -> Finished | None:
        self._refill(take)
        # The fullest pool, and of equally full ones the one with the longest crystals.
        fullest = max(reversed(range(len(self.pools))), key=lambda k: len(self.pools[k].jobs) / self.pools[k].num_slots)
        if not self.pools[fullest].jobs:
            return None
        finished = self._advance(fullest)
        if not finished:
            return [], None
        jobs = [job for some, _ in finished for job in some]
        return jobs, jax.tree.map(lambda *leaves: np.concatenate(leaves), *(drawn for _, drawn in finished))

    def _refill(self, take: Callable[[int], list[Job]]) -> None:
        first = self.pools[0]
        while first.num_free:
            if not self.waiting.jobs:
                jobs = take(self.batch_size)
                if not jobs:
                    return
                self.jobs.update(dict.fromkeys(jobs))
                self._start(jobs)
            first.take_from(self.waiting, self.waiting.taken[: first.num_free])

    def _start(self, jobs: list[Job]) -> None:
        # Repeats of the first job fill up; their slots belong to no job.
        padded = jobs + [jobs[0]] * (self.batch_size - len(jobs))
        number, attempt, group = np.array(padded).T
        self.waiting.slots = decode.start(
            self.weights,
            self.config,
            self.rng_key,
            number.astype(np.uint32),
            attempt.astype(np.uint32),
            group.astype(np.int32),
            self.policy,
        )
        self.waiting.jobs = dict(enumerate(jobs))
        self.waiting.ages = np.ones(self.batch_size, int)

    def _advance(self, k: int) -> list[tuple[list[Job], Drawn]]:
        """Advances pool k and, where there is no room for crystals that outgrow it, the pools after it."""
        pool = self.pools[k]
        pool.slots, is_finished = decode.advance(self.weights, self.config, pool.slots, self.policy)
        pool.ages += TOKENS_PER_SITE
        done = np.asarray(is_finished)
        rows = [i for i in pool.taken if done[i]]
        finished = (
            [([pool.jobs.pop(i) for i in rows], finish_rows(self.config, pool.slots, rows, self.policy))]
            if rows
            else []
        )
        while outgrown := pool.outgrown:
            following = self.pools[k + 1]
            if following.num_free:
                following.take_from(pool, outgrown[: following.num_free])
            else:
                finished += self._advance(k + 1)
        return finished


def finish_rows(config: ModelConfig, slots: Slots, rows: list[int], policy: Policy) -> Drawn:
    """The crystals in some slots, with lattices, as numpy arrays."""
    bare = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], slots.without_cache())
    parts = []
    for first in range(0, len(rows), FINISH_AT_ONCE):
        some = jax.tree.map(lambda leaf, i=first: leaf[i : i + FINISH_AT_ONCE], bare)
        num = len(some.age)
        padded = jax.tree.map(
            lambda leaf, n=num: np.pad(leaf, [(0, FINISH_AT_ONCE - n)] + [(0, 0)] * (leaf.ndim - 1)), some
        )
        drawn = decode.finish(config, padded, policy)
        parts.append(jax.tree.map(lambda leaf, n=num: np.asarray(leaf)[:n], drawn))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
