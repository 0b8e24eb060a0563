"""One run on all devices of one or more hosts: each computes its rows of every batch, and their gradients are added.

Parameters are on every device. XLA adds the collectives; nothing else of a run knows how many devices there are, except
for fine-tuning, where every process draws and rewards crystals of its own and tells the others what it found.
"""

import itertools
import os
import pickle
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cfx.core.batches import Batch, Crystals, fill
from cfx.core.crystal import CrystalBatch
from cfx.errors import CfxError, DependencyError

JOIN_SECONDS = 3600
"""How long a process waits for the others, which may still be reading the data."""

EXCHANGE_SECONDS = 7 * 24 * 3600
"""How long a process waits for what another one says; of one that has died it learns within two minutes."""

RANKS = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
"""Environment variables that say which process of a run this is."""


def process_number(process_id: int | None) -> int:
    """Which process of a run this is, before it has joined the others."""
    return process_id if process_id is not None else int(next(filter(None, map(os.environ.get, RANKS)), "0"))


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Makes this process one of several of a run; before anything else uses JAX.

    Args:
        coordinator: HOST:PORT of process 0; None reads all three from the environment, as SLURM and Open MPI set it.
        num_processes: of the run.
        process_id: of this one, from 0.

    Raises:
        DependencyError: if the others cannot be reached, or the environment does not say who they are.
    """
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=JOIN_SECONDS)
    except (RuntimeError, ValueError) as error:
        raise DependencyError(
            f"the processes of this run cannot find each other: {' '.join(str(error).split())[:300]}",
            "start it with srun, or give each process `coordinator=HOST:PORT` `num_processes=N` `process_id=K`",
        ) from error


def own_gpu(device: str) -> str:
    """The name for torch of the GPU that JAX has given to this process, if any of several may be meant: `cuda`."""
    own = jax.local_devices()[0]
    if device != "cuda" or jax.process_count() == 1 or own.platform != "gpu":
        return device
    return f"cuda:{own.local_hardware_id}"


T = TypeVar("T")

_exchanges = itertools.count()


class _Said(NamedTuple):
    """What a process tells the others: a value, or the error in its place."""

    value: Any
    error: CfxError | None = None


class Devices:
    """All devices of a run, as one row of a mesh.

    Attributes:
        count: devices, on all hosts.
        process: number of this process, from 0.
        processes: their number.
        writes: True in the one process that writes the files of the run.
    """

    def __init__(self) -> None:
        mesh = Mesh(np.array(jax.devices()), ("rows",))
        self.count = len(jax.devices())
        self.process, self.processes = jax.process_index(), jax.process_count()
        self.writes = self.process == 0
        self._rows = NamedSharding(mesh, PartitionSpec("rows"))
        self._everywhere = NamedSharding(mesh, PartitionSpec())

    def replicate(self, tree: Any) -> Any:
        """Arrays, equal in all processes, on every device."""
        return jax.tree.map(lambda leaf: self._place(self._everywhere, leaf, np.shape(leaf)), tree)

    def take(self, data: Crystals, batch: Batch) -> tuple[CrystalBatch, jax.Array]:
        """A batch and the weights of its rows, spread over the devices; a process reads its own rows only."""
        return self.spread(batch, lambda rows, weight: (data.take(rows, batch.slots), weight))

    def spread(self, batch: Batch, take: Callable[[np.ndarray, np.ndarray], Any]) -> Any:
        """What `take` makes of rows and their weights, spread over the devices; of a process's own rows only."""
        rows, weight = fill(batch, self.count)
        size, per_process = len(rows), len(rows) // self.processes
        # Weights are of all rows, so every process fills up the same way, and each then reads only what it computes.
        own = slice(self.process * per_process, (self.process + 1) * per_process)
        return jax.tree.map(
            lambda leaf: self._place(self._rows, leaf, (size, *leaf.shape[1:])), take(rows[own], weight[own])
        )

    def whole(self, spread: jax.Array) -> np.ndarray:
        """An array that is spread over the devices, in every process."""
        if spread.is_fully_addressable:
            return np.asarray(spread)
        return multihost_utils.process_allgather(spread, tiled=True)

    def _place(self, sharding: NamedSharding, leaf: Any, shape: tuple[int, ...]) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf), shape)

    def anywhere(self, flag: bool) -> bool:
        """Whether a flag is set in any process; all must ask."""
        if self.processes == 1:
            return flag
        return bool(multihost_utils.process_allgather(np.array(flag)).any())

    def wait(self, name: str) -> None:
        """Waits for the other processes to come to the point of that name."""
        if self.processes > 1:
            multihost_utils.sync_global_devices(name)

    def exchange(self, value: T) -> list[T]:
        """What every process gives, by its number; all must ask, and wait for the slowest.

        Not by a collective: what is said has no fixed size, and the wait may be as long as rewards take.
        """
        if self.processes == 1:
            return [value]
        from jax._src import distributed  # the only way to what keeps the processes together

        client, number = distributed.global_state.client, next(_exchanges)
        assert client is not None, "several processes have joined"
        client.key_value_set_bytes(f"cfx/{number}/{self.process}", zlib.compress(pickle.dumps(value), 1))
        found = [
            client.blocking_key_value_get_bytes(f"cfx/{number}/{one}", 1000 * EXCHANGE_SECONDS)
            for one in range(self.processes)
        ]
        if number:  # whoever has spoken in this exchange has heard all of the one before
            client.key_value_delete(f"cfx/{number - 1}/{self.process}")
        return [pickle.loads(zlib.decompress(one)) for one in found]

    def together(self, work: Callable[[], T]) -> list[T]:
        """What `work` gives in every process, by its number; an error in one of them is raised in all.

        Raises:
            CfxError: that of the first process that failed.
        """
        if self.processes == 1:
            return [work()]
        try:
            said = _Said(work())
        except CfxError as error:
            said = _Said(None, error)
        except Exception as error:  # raised again below, in the process where it belongs
            self.exchange(_Said(None, CfxError(f"process {self.process} failed: {type(error).__name__}: {error}")))
            raise
        found = self.exchange(said)
        if error := next((one.error for one in found if one.error is not None), None):
            raise error
        return [one.value for one in found]

    def first(self, work: Callable[[], Any]) -> None:
        """Does something in the process that writes; an error there is raised in all."""
        self.together(lambda: work() if self.writes else None)
