"""Where files belong and how they appear: caches, locks, whole files or none, and checks before the work.

The encoding of a data set has a lock of its own, in `store.exclusive`: its directory is renamed while it is held.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from cfx.catalog import Entry
from cfx.errors import DataError, OutputError, UsageError


def cache_directory(*parts: str) -> Path:
    """A directory under CFX_CACHE, or else under the user's cache directory; created.

    Raises:
        OutputError: if it cannot be made.
    """
    base = os.environ.get("CFX_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cfx"
    directory = Path(base).joinpath(*parts)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot create the cache directory {directory}: {error.strerror}",
            "set CFX_CACHE to a directory you can write",
        ) from error
    return directory


def content_digest(path: Path, settings: list) -> str:
    """SHA-256 of a file's bytes, or of a directory's names and bytes, and of the settings.

    Raises:
        DataError: if there is none, or it cannot be read.
    """
    if not path.exists():
        raise DataError(f"no such file or directory: {path}")
    digest = hashlib.sha256(json.dumps(settings).encode())
    for file in sorted(entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else [path]:
        digest.update(os.path.relpath(file, path).encode() + b"\0")
        try:
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror}") from error
    return digest.hexdigest()


def remove_file(path: Path) -> None:
    """Removes a file or link, if it is there.

    Raises:
        OutputError: if that is not allowed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot remove {path}: {error.strerror}", "somebody who owns it has to do so") from error


def sync(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` make a sibling file or directory, then renames it to `path`; nothing half-written stays.

    Raises:
        OutputError: if it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        for file in (*partial.iterdir(), partial) if partial.is_dir() else (partial,):
            sync(file)  # what a crash of the machine must not leave empty
        if path.is_dir():  # no directory replaces another: the old one steps aside first
            old = path.with_name(f"{path.name}.old-{os.getpid()}")
            os.replace(path, old)
            os.replace(partial, path)
            shutil.rmtree(old)
        else:
            os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        elif partial.exists():
            partial.unlink()


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


def check_file(path: Path | None, suffixes: Sequence[str], force: bool) -> None:
    """Makes sure that a file can be written, without loss of an earlier one; None is no file, and fine.

    Args:
        path: of the file.
        suffixes: that it may have.
        force: whether it may be there already.

    Raises:
        UsageError: for another suffix.
        OutputError: if it is there, or its directory cannot be written.
    """
    if path is None:
        return
    if path.suffix not in suffixes:
        *others, last = suffixes
        names = f"{', '.join(others)} or {last}" if others else last
        raise UsageError(f"cannot write {path}: unknown suffix {path.suffix!r}", f"name a file that ends in {names}")
    if path.is_dir() or (path.exists() and not force):
        raise OutputError(f"{path} exists", "choose another name, or overwrite a file with `force`")
    check_directory(path)


def check_directory(path: Path) -> None:
    """Makes sure that there is a directory for a file or directory, and that it can be written.

    Raises:
        OutputError: if not.
    """
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: no directory {path.parent}", f"create it with: mkdir -p {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write {path}: no permission to write in {path.parent}", "choose another directory")


def resource_directory(entry: Entry) -> Path:
    """The directory of an entry that comes with cfx."""
    return Path(str(files("cfx.resources"))) / str(entry.resource)
