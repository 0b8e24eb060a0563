"""A cluster of machines that work for this one, behind the scheduler of Dask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cfx.errors import DependencyError, NetworkError, install

if TYPE_CHECKING:
    from dask.distributed import Client


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A block with the cluster of a Dask scheduler.

    Raises:
        DependencyError: without Dask.
        NetworkError: if no scheduler answers.
    """
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise DependencyError("--scheduler needs Dask", install("dask")) from error
    try:
        client = Client(address, timeout="10s")
    except (OSError, ValueError) as error:
        raise NetworkError(f"no Dask scheduler answers at {address}", "start one with: dask scheduler") from error
    with client:
        yield client
