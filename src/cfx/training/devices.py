"""One run on all devices of one or more hosts: each computes its rows of every batch, and their gradients are added.

Parameters are on every device. XLA adds the collectives; nothing else of a run knows how many devices there are.
"""

import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cfx.core.batches import Batch, Crystals, fill
from cfx.core.crystal import CrystalBatch
from cfx.errors import DependencyError

JOIN_SECONDS = 3600
"""How long a process waits for the others, which may still be reading the data."""

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


class Devices:
    """All devices of a run, as one row of a mesh.

    Attributes:
        count: devices, on all hosts.
        writes: True in the one process that writes the files of the run.
    """

    def __init__(self) -> None:
        mesh = Mesh(np.array(jax.devices()), ("rows",))
        self.count = len(jax.devices())
        self.writes = jax.process_index() == 0
        self._rows = NamedSharding(mesh, PartitionSpec("rows"))
        self._everywhere = NamedSharding(mesh, PartitionSpec())

    def replicate(self, tree: Any) -> Any:
        """Arrays, equal in all processes, on every device."""
        return jax.tree.map(lambda leaf: self._place(self._everywhere, leaf, np.shape(leaf)), tree)

    def take(self, data: Crystals, batch: Batch) -> tuple[CrystalBatch, jax.Array]:
        """A batch and the weights of its rows, spread over the devices; a process reads its own rows only."""
        rows, weight = fill(batch, self.count)
        size, per_process = len(rows), len(rows) // jax.process_count()
        # Weights are of all rows, so every process fills up the same way, and each then reads only what it computes.
        own = slice(jax.process_index() * per_process, (jax.process_index() + 1) * per_process)
        local = data.take(rows[own], batch.slots), weight[own]
        return jax.tree.map(lambda leaf: self._place(self._rows, leaf, (size, *leaf.shape[1:])), local)

    def _place(self, sharding: NamedSharding, leaf: Any, shape: tuple[int, ...]) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf), shape)

    def anywhere(self, flag: bool) -> bool:
        """Whether a flag is set in any process; all must ask."""
        if jax.process_count() == 1:
            return flag
        return bool(multihost_utils.process_allgather(np.array(flag)).any())

    def wait(self, name: str) -> None:
        """Waits for the other processes to come to the point of that name."""
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(name)
