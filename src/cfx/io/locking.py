"""Locks between processes: one at a time does something, the others wait.

The encoding of a data set has a lock of its own, in `store.exclusive`: its directory is renamed while it is held.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from cfx.errors import OutputError
from cfx.io.cache import cache_directory


@contextlib.contextmanager
def exclusively(name: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """A block that one process runs at a time, for each name; the others wait.

    Args:
        name: of what is to be protected.
        on_wait: called once if another process is at it.

    Raises:
        OutputError: if the file system cannot lock.
    """
    key = hashlib.sha256(name.encode(errors="backslashreplace")).hexdigest()[:16]
    with held(cache_directory("locks") / f"{key}.lock", "set CFX_CACHE to a local directory", on_wait):
        yield


@contextlib.contextmanager
def held(path: Path, hint: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """A block in which this process alone has locked a file.

    Args:
        path: of the file, which is created.
        hint: what to do where it cannot be locked.
        on_wait: called once if another process has it.

    Raises:
        OutputError: if the file system cannot lock.
    """
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise OutputError(f"cannot lock {path}: {error}", hint) from error
    try:
        yield
    finally:
        lock.release()
