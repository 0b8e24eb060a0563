"""Pools of slots, each with caches of one length, that crystals grow through.

Finished crystals leave a pool, others take their slots, and a crystal that outgrows its pool's caches moves to the next
pool. So no slot idles while the longest crystal completes, and a short crystal never attends over a long cache. New
crystals are started a batch at a time and wait, one token old, for slots. `stages` is what happens on the device; here
is what the host does: it starts crystals, orders steps, and looks from time to time at what they gave.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from cfx.config import ModelConfig
from cfx.core.network import TOKENS_PER_SITE
from cfx.sampling import decode, stages
from cfx.sampling.decode import Drawn, Slots
from cfx.sampling.incremental import Weights
from cfx.sampling.policy import Policy
from cfx.sampling.stages import IDLE, Results, Stage

POOL_SITES = ((3, 1), (6, 1), (11, 2), (20, 2))
"""For each pool: the sites that its caches hold, and the part of the batch it has slots for (1 / that many)."""

MIN_SLOTS = 64
"""Slots that every pool has at least. On fewer rows XLA's matrix products on CPUs sum in another order, and a crystal's
last digits, in time its coordinates, would depend on the batch size."""

FINISH_AT_ONCE = 32
"""Crystals that are given their lattices in one call."""

STEPS_PER_LOOK = {"cpu": 1, "gpu": 16, "tpu": 16}
"""Sites that a slot advances by, at most, before the host looks at what is finished. To wait for an accelerator leaves
it idle; on a CPU a look costs little, and attempts that fail are made again the sooner."""

Device = Any
"""A jax.Device, a name that JAX's stubs do not let stand in an annotation."""


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


def _steps_per_look(device: Device) -> int:
    return STEPS_PER_LOOK.get(device.platform, STEPS_PER_LOOK["gpu"])


def _queue_size(batch_size: int, steps_per_look: int) -> int:
    """Crystals that wait for slots, enough for the steps between two looks."""
    return batch_size * (2 + steps_per_look // 2)  # in a step, fewer than half of a pool's finish or move on


def crystals_under_way(batch_size: int, device: Device) -> int:
    """Crystals that a decoder with that batch size holds at most, roughly."""
    return _queue_size(batch_size, _steps_per_look(device)) + len(POOL_SITES) * batch_size


class Job(NamedTuple):
    """A crystal to draw: its number in the request, the attempt at it, its space group."""

    number: int
    attempt: int
    space_group: int


Finished = tuple[list[Job], Drawn | None]
"""Jobs that were finished together, and their crystals (numpy, in n_max slots); None for no jobs."""


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
        steps_per_look: int | None = None,
    ):
        """Prepares to draw.

        Args:
            batch_size: slots of the first pool, MIN_SLOTS or more; memory grows with it.
            device: where to draw; JAX's first device by default.
            steps_per_look: most sites that a slot advances by before the host looks; STEPS_PER_LOOK by default.
        """
        self.device = device or jax.local_devices()[0]
        self.config, self.batch_size = config, max(batch_size, MIN_SLOTS)
        self.steps_per_look = steps_per_look or _steps_per_look(self.device)
        self.looks = 0
        """How often the host has waited for the device."""
        self.weights, self.policy, self.rng_key = self._put((weights, policy, rng_key))
        self._shapes = pool_shapes(self.batch_size, config.n_max - 1)
        self._num_waiting, self._queue = 0, _queue_size(self.batch_size, self.steps_per_look)
        self._num_results = self._queue + sum(num_slots for num_slots, _ in self._shapes)
        self._under_way: dict[int, Job] = {}  # by ticket
        self._new_tickets, self._used_tickets = iter(range(self._num_results)), []

    @functools.cached_property
    def _stages(self) -> list[Stage]:
        """The queue of started crystals, and the pools that have been needed so far."""
        shapes = [(self._queue, 1), self._shapes[0]]
        return [self._new_stage(*shape) for shape in shapes]

    @functools.cached_property
    def _results(self) -> Results:
        return self._put(stages.no_results(self.config, self._num_results))

    def _new_stage(self, num_slots: int, capacity: int) -> Stage:
        return self._put(stages.empty_stage(self.config, num_slots, capacity))

    def _put(self, tree: Any) -> Any:
        # What is told to be on a device and what merely is there make two compilations.
        return jax.device_put(tree, self.device)

    @property
    def jobs(self) -> list[Job]:
        """Jobs under way."""
        return list(self._under_way.values())

    def step(self, take: Callable[[int], list[Job]]) -> Finished | None:
        """Advances the pools by some sites, and looks at what is finished.

        Args:
            take: called with a number; gives at most so many new jobs.

        Returns:
            The jobs that were finished, and their crystals (numpy, in n_max slots; None for no jobs); None if there
            was nothing to do.
        """
        # By itself JAX would take less than float32 on some GPUs.
        with jax.default_device(self.device), jax.default_matmul_precision("float32"):
            is_last = self._refill(take)
            if not self._under_way:
                return None
            self._run(is_last)
            return self._look()

    def drain(self, jobs: list[Job]) -> Iterator[tuple[list[Job], Drawn]]:
        """Draws a list of jobs; crystals come as they are finished."""
        left = iter(jobs)
        while (finished := self.step(lambda n: list(itertools.islice(left, n)))) is not None:
            done, drawn = finished
            if drawn is not None:
                yield done, drawn

    def _refill(self, take: Callable[[int], list[Job]]) -> bool:
        """Fills the queue; tells whether there are no more jobs for now."""
        queue = len(self._stages[0].ticket)  # on the device: without memory for that, nothing is taken
        while self._num_waiting + self.batch_size <= queue:
            jobs = take(self.batch_size)
            if not jobs:
                return True
            self._start(jobs)
        return False

    def _start(self, jobs: list[Job]) -> None:
        tickets = [self._used_tickets.pop() if self._used_tickets else next(self._new_tickets) for _ in jobs]
        self._under_way.update(zip(tickets, jobs, strict=True))
        self._num_waiting += len(jobs)
        # Repeats of the first job fill up; they are idle.
        padding = self.batch_size - len(jobs)
        number, attempt, group = np.array(jobs + [jobs[0]] * padding).T
        slots = decode.start(
            self.weights,
            self.config,
            self.rng_key,
            number.astype(np.uint32),
            attempt.astype(np.uint32),
            group.astype(np.int32),
            self.policy,
        )
        started = Stage(slots, *self._put((np.array(tickets + [IDLE] * padding, np.int32), np.int32(0))))
        self._stages[0], _ = stages.take_outgrown(self._stages[0], started)

    def _run(self, is_last: bool) -> None:
        """Orders steps of all pools, one after another, without waiting for any."""
        pools = range(1, len(self._stages))
        steps = [self._put(np.int32(self.steps_per_look))] * len(self._stages)
        for _ in range(self.steps_per_look if len(self._shapes) > 1 else 1):
            nothing_comes = self._put(np.bool_(is_last))
            for k in pools:
                before = self._stages[k - 1]
                common = (self.weights, self.config, self.policy)
                ran = stages.run(*common, self._stages[k], before, self._results, nothing_comes, steps[k])
                self._stages[k - 1] = dataclasses.replace(before, **ran.left._asdict())
                self._stages[k], self._results, nothing_comes, steps[k] = ran.stage, ran.results, ran.is_last, ran.steps

    def _look(self) -> Finished:
        """Waits for the device: what is finished, how many wait, and whether a further pool is needed."""
        self.looks += 1
        last = self._stages[-1]
        is_new, waiting, ticket, age = jax.device_get(
            (self._results.is_new, self._stages[0].ticket, last.ticket, last.slots.age)
        )
        self._num_waiting = int((waiting != IDLE).sum())
        if ((ticket != IDLE) & (age + TOKENS_PER_SITE > last.slots.cache.capacity)).any():
            self._stages.append(self._new_stage(*self._shapes[len(self._stages) - 1]))
        rows = np.flatnonzero(is_new).tolist()
        if not rows:
            return [], None
        self.looks += 1
        drawn = finish_rows(self.config, self._results.slots, rows, self.policy)
        self._results = dataclasses.replace(self._results, is_new=self._put(np.zeros_like(is_new)))
        self._used_tickets += rows
        return [self._under_way.pop(row) for row in rows], drawn


def finish_rows(config: ModelConfig, slots: Slots, rows: list[int], policy: Policy) -> Drawn:
    """The crystals in some slots, with lattices, as numpy arrays."""
    bare, parts = slots.without_cache(), []
    for first in range(0, len(rows), FINISH_AT_ONCE):
        some = rows[first : first + FINISH_AT_ONCE]
        padded = np.array(some + some[:1] * (FINISH_AT_ONCE - len(some)), np.int32)
        parts.append(decode.finish(config, decode.pick_slots(bare, padded), policy))
    together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *jax.device_get(parts))
    return jax.tree.map(lambda leaf: leaf[: len(rows)], together)
