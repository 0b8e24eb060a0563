"""From a request to its crystals: decoders on all devices, a ledger that keeps order, and what a draw must pass."""

from __future__ import annotations

import functools
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from cfx.config import ModelConfig, SampleConfig
from cfx.core.crystal import CrystalBatch
from cfx.core.lattice import is_physical
from cfx.core.likelihood import LogProb
from cfx.errors import DependencyError, UsageError
from cfx.sampling import incremental
from cfx.sampling.constraints import Constraints, satisfied, unconstrained
from cfx.sampling.decode import Drawn
from cfx.sampling.ledger import Ledger, together
from cfx.sampling.mcmc import Target, refine
from cfx.sampling.policy import Policy, Sharpness
from cfx.sampling.pools import Decoder, Job
from cfx.sampling.request import build_constraints, why_impossible

BATCH_SIZES = {"cpu": (64, 128), "gpu": (64, 512, 2048), "tpu": (64, 512, 2048)}
"""Batch sizes by kind of device: the smallest that holds the request, or the largest."""


@dataclass(frozen=True)
class Draws:
    """Some crystals of a request, in order.

    Attributes:
        crystals: B of them (numpy).
        log_prob: their published log-probability.
        policy_log_prob: the log-probability of the draws, under the request's constraints and sharpness.
        jobs: number, attempt and space group of each.
        rejected: how many attempts at the crystals of the request so far did not count, by reason.
        accepted_moves: share of the Monte Carlo moves accepted so far; None without refinement.
        notes: what the user should know of the devices.
    """

    crystals: CrystalBatch
    log_prob: LogProb
    policy_log_prob: LogProb
    jobs: list[Job]
    rejected: Counter[str]
    accepted_moves: float | None = None
    notes: tuple[str, ...] = ()


def request_key(seed: int) -> jax.Array:
    """jax.random.key(seed), without dropping the upper half of a seed beyond 32 bits."""
    return jax.random.wrap_key_data(np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32))


@dataclass(frozen=True)
class Wishes:
    """A request, made ready for a model.

    Attributes:
        constraints: what the crystals must meet.
        policy: what is in force while they are drawn.
        impossible: space groups of the request that cannot meet it, each with the reason.
    """

    constraints: Constraints
    policy: Policy
    impossible: dict[int, str]


def prepare(request: SampleConfig, config: ModelConfig) -> Wishes:
    """Makes a request ready.

    Raises:
        UsageError: if it contradicts itself, or none of its space groups can meet it.
    """
    constraints = build_constraints(request, config)
    weights = request.weights or (1.0,) * len(request.space_groups)
    wanted = dict.fromkeys(group for group, weight in zip(request.space_groups, weights, strict=True) if weight)
    reasons = {group: why_impossible(constraints, group) for group in wanted}
    impossible = {group: reason for group, reason in reasons.items() if reason is not None}
    if len(impossible) == len(reasons):
        first, *others = impossible.values()
        if others:
            first += f"; {len(others)} other space group{'s' * (len(others) > 1)} cannot meet the request either"
        raise UsageError(first, "ask for another space group, or for less")
    sharpness = Sharpness(np.float32(request.temperature), np.float32(request.top_p))
    return Wishes(constraints, Policy(unconstrained(config) if request.exact else constraints, sharpness), impossible)


@dataclass(frozen=True)
class Resumed:
    """What an earlier session left behind.

    Attributes:
        num_crystals: of this shard, written already.
        rejected: attempts that did not count, by reason.
        kept: the crystals, batches of one, where the request wants none twice.
    """

    num_crystals: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    kept: tuple[CrystalBatch, ...] = ()


def draw(
    params: Any,
    config: ModelConfig,
    request: SampleConfig,
    wishes: Wishes | None = None,
    resumed: Resumed | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Draws]:
    """The crystals of a request, in order, as they are ready.

    Args:
        params: of the network.
        config: its architecture.
        request: what to draw.
        wishes: of the request, if they are prepared already.
        resumed: what an earlier session has written already.
        stop: asked after every step; True ends the crystals here.

    Raises:
        UsageError: if the request cannot be met.
        NumericsError: if the model gives no acceptable crystal.
    """
    wishes, resumed = wishes or prepare(request, config), resumed or Resumed()
    numbers = range(request.numbers.start + resumed.num_crystals, request.numbers.stop)
    ledger = Ledger(
        numbers,
        _space_groups(request, wishes.impossible),
        functools.partial(_judge, request, wishes.constraints),
        _Fingerprint if request.unique else None,
        request.max_attempts,
    )
    ledger.rejected.update(resumed.rejected)
    for crystals in resumed.kept:
        ledger.remember(crystals)
    policy, key = wishes.policy, request_key(request.seed)
    with jax.default_matmul_precision("float32"):
        weights = jax.jit(incremental.prepare, static_argnums=1)(params, config)
    target, moves = Target(weights.params, wishes.constraints, policy.sharpness), np.zeros(2)
    crew = _Crew(weights, config, policy, key, request)
    for jobs, drawn in crew.work(ledger):
        if jobs and request.refine:
            with jax.default_matmul_precision("float32"):
                drawn, shares = refine(target, config, key, jobs, drawn, request.refine)
            moves += (shares.sum(), len(shares))
        with crew.changed:
            if jobs:
                ledger.put(jobs, drawn)
            accepted = list(ledger.release())
            crew.changed.notify_all()
        if accepted:
            batch = together(accepted)
            yield Draws(
                batch.crystals,
                batch.log_prob,
                batch.policy_log_prob,
                [each.job for each in accepted],
                Counter(ledger.rejected),
                float(moves[0] / moves[1]) if request.refine else None,
                tuple(crew.notes),
            )
        if stop():
            return


def _space_groups(request: SampleConfig, impossible: dict[int, str]) -> Callable[[int], int]:
    """The space group of a crystal by its number: in turn, or by weight."""
    possible = [i for i, group in enumerate(request.space_groups) if group not in impossible]
    if request.weights:
        possible = [i for i in possible if request.weights[i]]
    groups = [request.space_groups[i] for i in possible]
    if not request.weights:
        return lambda number: groups[number % len(groups)]
    shares = np.cumsum([request.weights[i] for i in possible])

    def by_weight(number: int) -> int:
        share = np.random.default_rng([request.seed, number]).random() * shares[-1]
        return groups[int(np.searchsorted(shares, share, side="right"))]

    return by_weight


def _judge(request: SampleConfig, wished: Constraints, drawn: Drawn) -> list[str | None]:
    """For each draw the reason why it does not count, or None."""
    crystals = drawn.crystals
    finite = np.isfinite(crystals.frac_coords).all((1, 2)) & np.isfinite(crystals.lattice).all(1)
    physical = is_physical(crystals.lattice)
    wanted = satisfied(wished, crystals)
    reasons: list[str | None] = []
    for row in range(len(drawn)):
        if not finite[row]:
            reasons.append("numbers that are not finite")
        elif not wanted[row]:
            reasons.append("against the constraints")
        elif request.keep_invalid:
            reasons.append(None)
        elif not physical[row]:
            reasons.append("unphysical lattice")
        elif request.min_distance and _closest(crystals, row) < request.min_distance:
            reasons.append("atoms too close")
        else:
            reasons.append(None)
    return reasons


def _closest(crystals: CrystalBatch, row: int) -> float:
    from cfx.data.sanity import closest_approach

    return closest_approach(crystals[row : row + 1].to_structures()[0])


class _Fingerprint:
    """Tells crystals apart by composition first and by pymatgen's StructureMatcher then."""

    def __init__(self, crystals: CrystalBatch):
        counts = crystals.composition(0)
        divisor = int(np.gcd.reduce(list(counts.values())))
        self.key = tuple(sorted((number, count // divisor) for number, count in counts.items()))
        # A lattice that closes no cell makes no structure, and is like no other.
        self._structure = crystals.to_structures()[0] if is_physical(crystals.lattice)[0] else None

    def same(self, other: _Fingerprint) -> bool:
        from cfx.evaluation.matching import same_crystal

        both = self._structure is not None and other._structure is not None
        return both and same_crystal(self._structure, other._structure)


class _Crew:
    """A decoder on each device, and a thread for each where there are several."""

    def __init__(self, weights, config: ModelConfig, policy: Policy, key: jax.Array, request: SampleConfig):
        self.devices = jax.local_devices()
        self.sizes = BATCH_SIZES.get(self.devices[0].platform, BATCH_SIZES["gpu"])
        self.notes: list[str] = []
        wanted = -(-len(request.numbers) // len(self.devices))
        chosen = next((size for size in self.sizes if size >= wanted), self.sizes[-1])
        self.batch_size = request.batch_size or chosen
        self.make: Callable[[int, jax.Device], Decoder] = functools.partial(Decoder, weights, config, policy, key)
        self.changed = threading.Condition()  # holds the ledger's lock, and tells of new work

    def work(self, ledger: Ledger) -> Iterator[tuple[list[Job], Drawn]]:
        """What the decoders finish, until the ledger is complete; the caller puts it into the ledger."""
        if len(self.devices) == 1:
            for finished in self._decode(ledger, self.devices[0]):
                if finished is None:
                    raise AssertionError("nothing left to draw, and crystals missing")
                yield finished
            return
        yield from self._work_together(ledger)

    def _decode(self, ledger: Ledger, device: jax.Device) -> Iterator[tuple[list[Job], Drawn] | None]:
        """Steps of one decoder; None when it has nothing to do for now. Falls back to a smaller batch out of memory."""
        size, decoder = self.batch_size, None

        def take(n: int) -> list[Job]:
            with self.changed:
                return ledger.take(n)

        while not ledger.is_complete:
            try:
                decoder = decoder or self.make(size, device)
                finished = decoder.step(take)
            except jax.errors.JaxRuntimeError as error:
                smaller = [each for each in self.sizes if each < size]
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                if not smaller:
                    raise DependencyError(
                        f"device {device} has too little memory for a batch of {size}",
                        "draw on the CPU: set JAX_PLATFORMS=cpu",
                    ) from error
                self.notes.append(f"device {device} has no memory for a batch of {size}: going on with {smaller[-1]}")
                with self.changed:
                    ledger.give_back(list(decoder.jobs) if decoder else [])
                size, decoder = smaller[-1], None
                continue
            yield finished

    def _work_together(self, ledger: Ledger) -> Iterator[tuple[list[Job], Drawn]]:
        """As `work`, on several devices."""
        results: queue.Queue = queue.Queue()
        stop = threading.Event()

        def run(device: jax.Device) -> None:
            try:
                for finished in self._decode(ledger, device):
                    if stop.is_set():
                        return
                    if finished is not None:
                        results.put(finished)
                        continue
                    with self.changed:
                        self.changed.wait(timeout=0.05)
            except Exception as error:  # raised again by the thread that waits for results
                results.put(error)

        threads = [threading.Thread(target=run, args=(device,), daemon=True) for device in self.devices]
        for thread in threads:
            thread.start()
        try:
            while not ledger.is_complete:
                finished = results.get()
                if isinstance(finished, Exception):
                    raise finished
                yield finished
        finally:
            stop.set()
            for thread in threads:
                thread.join()
