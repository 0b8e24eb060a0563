"""From a request to its crystals: a decoder on each device, all working on one ledger, and what a draw must pass."""

from __future__ import annotations

import functools
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import jax
import numpy as np

from cfx.config import ModelConfig, SampleConfig
from cfx.core import Params, Structure, elements, lattice
from cfx.core.crystal import CrystalBatch
from cfx.data.structures import closest_approach
from cfx.errors import DependencyError
from cfx.sampling import incremental, mcmc
from cfx.sampling.constraints import Constraints, satisfied
from cfx.sampling.decode import Drawn
from cfx.sampling.ledger import AHEAD, Ledger, together
from cfx.sampling.policy import request_key
from cfx.sampling.pools import Decoder, Device, Finished, Job, crystals_under_way
from cfx.sampling.request import PreparedRequest, another_group, prepare, space_group_of

BATCH_SIZES = {"cpu": (64, 128), "gpu": (64, 512, 2048), "tpu": (64, 512, 2048)}
"""Batch sizes by kind of device: the smallest that holds the request, or the largest."""


class Decoders:
    """A decoder on each device, and a thread for each where there are several."""

    def __init__(self, make: Callable[[int, Device], Decoder], num_crystals: int, batch_size: int | None = None):
        """Prepares to draw.

        Args:
            make: a decoder with so many slots on a device.
            num_crystals: how many are wanted; decides the batch size where none is given.
            batch_size: crystals under way on each device.
        """
        self.make, self.devices = make, jax.local_devices()
        self.sizes = BATCH_SIZES.get(self.devices[0].platform, BATCH_SIZES["gpu"])
        self.notes: list[str] = []
        wanted = -(-num_crystals // len(self.devices))
        self.batch_size = batch_size or next((size for size in self.sizes if size >= wanted), self.sizes[-1])
        self.changed = threading.Condition()  # holds the ledger's lock, and tells of new work

    @property
    def most_under_way(self) -> int:
        """Draws that all devices together hold at most."""
        return len(self.devices) * crystals_under_way(self.batch_size, self.devices[0])

    def work(self, ledger: Ledger) -> Iterator[Finished]:
        """What the decoders finish, until the ledger is complete; the caller puts it into the ledger."""
        if len(self.devices) > 1:
            yield from self._work_together(ledger)
            return
        for finished in self._decode(ledger, self.devices[0]):
            if finished is None:
                raise AssertionError("nothing left to draw, and crystals missing")
            yield finished

    def _decode(self, ledger: Ledger, device: Device) -> Iterator[Finished | None]:
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

    def _work_together(self, ledger: Ledger) -> Iterator[Finished]:
        """Does the same as `work` on several devices."""
        results: queue.Queue[Finished | Exception] = queue.Queue()
        stop = threading.Event()

        def run(device: Device) -> None:
            try:
                for finished in self._decode(ledger, device):
                    if stop.is_set():
                        return
                    if finished is not None:
                        results.put(finished)
                        continue
                    # Nothing to draw until crystals of another device fail; that may have been told before this wait.
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


@dataclass(frozen=True)
class Draws(Drawn):
    """Some crystals of a request (numpy), in order.

    Attributes:
        jobs: number, attempt and space group of each.
        rejected: how many attempts at the crystals of the request so far did not count, by reason.
        accepted_moves: share of the Monte Carlo moves accepted so far; None without refinement.
        exhausted: space groups that give nothing more, in the order in which they ended.
        notes: what the user should know of the devices.
    """

    jobs: list[Job]
    rejected: Counter[str]
    accepted_moves: float | None = None
    exhausted: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Resumed:
    """What an earlier session left behind.

    Attributes:
        num_crystals: of this shard, written already.
        rejected: attempts that did not count, by reason.
        kept: the crystals, batches of one, where the request wants none twice.
        exhausted: space groups that gave nothing more, in order.
    """

    num_crystals: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    kept: tuple[CrystalBatch, ...] = ()
    exhausted: tuple[int, ...] = ()


def draw(
    params: Params,
    config: ModelConfig,
    request: SampleConfig,
    prepared: PreparedRequest | None = None,
    resumed: Resumed | None = None,
    stop: Callable[[], bool] = lambda: False,
    watch: Callable[[Ledger], None] = lambda ledger: None,
) -> Iterator[Draws]:
    """The crystals of a request, in order, as they are ready: fewer than were wanted if no space group gives more.

    Args:
        prepared: the same, if it was prepared already.
        resumed: what an earlier session has written already.
        stop: asked after every step; True ends the crystals here.
        watch: called after every step, whether or not it gave crystals.

    Raises:
        UsageError: if the request cannot be met.
        NumericsError: if the model gives no acceptable crystal.
    """
    prepared = prepared or prepare(request, config)
    policy, key = prepared.policy, request_key(request.seed)
    with jax.default_matmul_precision("float32"):
        weights = jax.jit(incremental.prepare, static_argnums=1)(params, config)
    target, moves = mcmc.Target(weights.params, prepared.constraints, policy.sharpness, policy.composition), np.zeros(2)
    make = functools.partial(Decoder, weights, config, policy, key)
    decoders = Decoders(make, len(request.numbers), request.batch_size)
    ledger = _open_ledger(request, prepared, resumed or Resumed(), max(AHEAD, decoders.most_under_way))
    for jobs, drawn in decoders.work(ledger):
        if drawn is not None and request.refine:
            with jax.default_matmul_precision("float32"):
                drawn, shares = mcmc.refine(target, config, key, jobs, drawn, request.refine)
            moves += (shares.sum(), len(shares))
        with decoders.changed:
            if drawn is not None:
                ledger.put(jobs, drawn)
            accepted = list(ledger.release())
            ended = ledger.ended
            decoders.changed.notify_all()
        if accepted:
            batch, rate = together(accepted), float(moves[0] / moves[1]) if request.refine else None
            done, rejected, notes = [each.job for each in accepted], Counter(ledger.rejected), tuple(decoders.notes)
            yield Draws(batch.crystals, batch.log_prob, batch.policy_log_prob, done, rejected, rate, ended, notes)
        with decoders.changed:
            ledger.give_up()
            watch(ledger)
        if stop():
            return


def _open_ledger(request: SampleConfig, prepared: PreparedRequest, resumed: Resumed, ahead: int) -> Ledger:
    """The ledger of the crystals that are left to draw."""
    ledger = Ledger(
        range(request.numbers.start + resumed.num_crystals, request.numbers.stop),
        space_group_of(request, prepared.impossible),
        functools.partial(judge, request, prepared.constraints),
        _Fingerprint if request.unique else None,
        request.max_attempts,
        another_group(request, prepared.impossible),
        resumed.exhausted,
        ahead,
    )
    ledger.rejected.update(resumed.rejected)
    for crystals in resumed.kept:
        ledger.remember(crystals)
    return ledger


def judge(request: SampleConfig, constraints: Constraints, drawn: Drawn) -> list[str | None]:
    """Reasons why draws are rejected, None for those that are accepted."""
    crystals = drawn.crystals
    finite = np.isfinite(crystals.frac_coords).all((1, 2)) & np.isfinite(crystals.lattice).all(1)
    faults = {"numbers that are not finite": ~finite, "against the constraints": ~satisfied(constraints, crystals)}
    if not request.keep_invalid:
        faults["unphysical lattice"] = ~lattice.is_physical(crystals.lattice)
    reasons = [next((fault for fault, rows in faults.items() if rows[row]), None) for row in range(len(drawn))]
    if request.min_distance and not request.keep_invalid:
        for row in (row for row, reason in enumerate(reasons) if reason is None):
            [structure] = crystals[row : row + 1].to_structures()
            if closest_approach(structure) < request.min_distance:
                reasons[row] = "atoms too close"
    return reasons


class _Fingerprint:
    """Tells crystals apart by composition first and by pymatgen's StructureMatcher then."""

    def __init__(self, crystals: CrystalBatch):
        self.key = tuple(sorted(elements.lowest_terms(crystals.composition(0)).items()))
        self._crystals = crystals

    @functools.cached_property
    def _reduced(self) -> Structure | None:
        """Its reduced cell, made once, and only if another crystal has its composition; a lattice may close none."""
        from cfx.evaluation.matching import reduce_or_say_why

        if not lattice.is_physical(self._crystals.lattice)[0]:
            return None
        reduced = reduce_or_say_why(*self._crystals.to_structures())
        return None if isinstance(reduced, str) else reduced

    def same(self, other: _Fingerprint) -> bool:
        """Whether it is the crystal that another is, which came earlier. Without a cell it is like no other."""
        from cfx.evaluation.matching import find_match

        if self._reduced is None or other._reduced is None:
            return False
        return find_match(self._reduced, [other._reduced]) is not None
