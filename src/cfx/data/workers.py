"""Encoding on all cores: processes that parse and encode, and that only their parent may end.

Workers are fresh processes (loky), never forks of a process that runs JAX. Nothing here imports JAX.
"""

import itertools
import os
import signal
import threading
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.resource_tracker import ensure_running
from typing import cast

from cfx.data.read import Record, encode_records
from cfx.data.store import Part, pack
from cfx.errors import CfxError
from cfx.reporter import StopRequest

CHUNK = 64
"""Records a worker takes at once."""

IDLE_SECONDS = 30
"""After so long without work a worker ends."""


def encode_part(records: Sequence[Record], symprec: float, max_sites: int) -> Part:
    """The part that these records become."""
    return pack([record.name for record in records], encode_records(records, symprec, max_sites))


def encode_in_parallel(
    records: Iterator[Record], symprec: float, max_sites: int, num_workers: int = -1
) -> Generator[Part, None, None]:
    """Records as parts, in order; closing the iterator ends workers that are not idle.

    Records are read while workers encode, a few chunks ahead. `symprec` is the distance tolerance of the symmetry
    search (angstrom), `max_sites` the most symmetry-inequivalent sites of a crystal; `num_workers` processes work, -1
    for all cores and 1 for this one alone.

    Raises:
        DataError: if the records cannot be read.
        CfxError: if a worker was killed.
    """
    import joblib

    faults: list[CfxError] = []
    jobs = (joblib.delayed(encode_part)(chunk, symprec, max_sites) for chunk in _chunks(records, faults))
    parallel = joblib.Parallel(
        n_jobs=num_workers,
        backend="loky",
        return_as="generator",
        batch_size=1,  # pyright: ignore[reportArgumentType]  (taken for text, since the default is "auto")
        idle_worker_timeout=IDLE_SECONDS,
        initializer=_end_with_parent,
        initargs=(os.getpid(),),
    )
    # Processes inherit which signals are blocked; those of this pool start here.
    with _signals_blocked():
        parts = cast("Generator[Part, None, None]", parallel(jobs))
    try:
        for part in parts:  # noqa: UP028 (`yield from` would close it with a warning)
            yield part
        if faults:
            raise faults[0]
    except BrokenProcessPool as error:
        raise CfxError(
            "an encoding process was killed, perhaps because memory ran out",
            "run the same command again to continue, with fewer `workers`",
        ) from error
    finally:
        with warnings.catch_warnings(action="ignore"):  # of work that is thrown away
            parts.close()


def _chunks(records: Iterator[Record], faults: list[CfxError]) -> Iterator[tuple[Record, ...]]:
    """Records in groups; an error ends them and goes to `faults`, so that the workers finish what they have."""
    try:
        while chunk := tuple(itertools.islice(records, CHUNK)):
            yield chunk
    except CfxError as error:
        faults.append(error)


def _end_with_parent(parent: int) -> None:
    """Makes this process end soon after its parent was killed: it could wait for work for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes started inside never see SIGINT and others that a terminal sends to all; we do, afterwards."""
    ensure_running()  # to start it later would unblock them
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, StopRequest.SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
