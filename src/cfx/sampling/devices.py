"""A decoder on each device of this machine, all working on one ledger."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Iterator

import jax
from jaxtyping import Array, Key

from cfx.config import ModelConfig
from cfx.errors import DependencyError
from cfx.sampling.incremental import Weights
from cfx.sampling.ledger import Ledger
from cfx.sampling.policy import Policy
from cfx.sampling.pools import Decoder, Device, Finished, Job

BATCH_SIZES = {"cpu": (64, 128), "gpu": (64, 512, 2048), "tpu": (64, 512, 2048)}
"""Batch sizes by kind of device: the smallest that holds the request, or the largest."""


class Decoders:
    """A decoder on each device, and a thread for each where there are several."""

    def __init__(
        self,
        weights: Weights,
        config: ModelConfig,
        policy: Policy,
        rng_key: Key[Array, ""],
        num_crystals: int,
        batch_size: int | None = None,
    ):
        """Prepares to draw.

        Args:
            weights: of the network.
            config: its architecture.
            policy: what is in force.
            rng_key: of the request.
            num_crystals: how many are wanted; decides the batch size where none is given.
            batch_size: crystals under way on each device.
        """
        self.devices = jax.local_devices()
        self.sizes = BATCH_SIZES.get(self.devices[0].platform, BATCH_SIZES["gpu"])
        self.notes: list[str] = []
        wanted = -(-num_crystals // len(self.devices))
        self.batch_size = batch_size or next((size for size in self.sizes if size >= wanted), self.sizes[-1])
        self.make: Callable[[int, Device], Decoder] = functools.partial(Decoder, weights, config, policy, rng_key)
        self.changed = threading.Condition()  # holds the ledger's lock, and tells of new work

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
        """As `work`, on several devices."""
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
