"""Where cfx keeps files, files and directories that appear whole or not at all, one writer at a time; tables."""

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from cfx.catalog import Entry
from cfx.errors import DataError, DependencyError, OutputError, UsageError, install

TABLES = (".csv", ".parquet")
"""Suffixes of tables."""

POLL_SECONDS = 0.05
"""Between two attempts to get a lock that another process holds."""


def cache_directory(*parts: str) -> Path:
    """A directory under CFX_CACHE, or else under the user's cache directory; created.

    Raises:
        OutputError: if it cannot be made.
    """
    hint = "set CFX_CACHE to a directory that you can write to"
    try:
        base = os.environ.get("CFX_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cfx"
    except RuntimeError as error:  # neither HOME nor an entry among the accounts, as in containers
        raise OutputError("there is no home directory to keep a cache in", hint) from error
    directory = Path(base).joinpath(*parts)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create the cache directory {directory}: {error.strerror}", hint) from error
    return directory


def resource_directory(entry: Entry) -> Path:
    """The directory of an entry that comes with cfx."""
    return Path(str(files("cfx") / "resources")) / str(entry.resource)


def content_digest(path: Path, settings: list) -> str:
    """SHA-256 of a file's bytes, or of a directory's names and bytes, and of the settings.

    Raises:
        DataError: if there is none, or it cannot be read.
    """
    if not path.exists():
        raise DataError(f"no such file or directory: {path}")
    digest = hashlib.sha256(json.dumps(settings).encode())
    for file in sorted(files_below(path)) if path.is_dir() else [path]:
        digest.update(os.path.relpath(file, path).encode() + b"\0")
        try:
            if not file.is_file():  # a pipe or a device would never end
                raise OSError(errno.EINVAL, "not a plain file")
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            if file == path:
                raise DataError(f"cannot read {file}: {error.strerror}") from error
            digest.update(b"unreadable")
    return digest.hexdigest()


def parse_json(text: str | bytes) -> Any:
    """What a JSON text that came from elsewhere says.

    Raises:
        ValueError: if it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def files_below(directory: Path) -> Iterator[Path]:
    """Files of a directory and those below it, in no order, links to directories followed; hidden ones are left out."""
    seen: set[str] = set()
    # A link may lead to a directory above it, which would never end: each is visited once, by its real path.
    for place, below, names in os.walk(directory, followlinks=True):
        below[:] = [] if os.path.realpath(place) in seen else [name for name in below if not name.startswith(".")]
        if os.path.realpath(place) not in seen:
            yield from (Path(place, name) for name in names if not name.startswith("."))
        seen.add(os.path.realpath(place))


@contextlib.contextmanager
def writing(path: Path | str, hint: str | None = None) -> Iterator[None]:
    """Turns an OSError into an OutputError which names `path`; a closed pipe stays what it is."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}", hint) from error


def followed(path: Path) -> Path:
    """What a symbolic link leads to, there or not yet; any other path as it is.

    Raises:
        OutputError: if it leads back to itself.
    """
    if not path.is_symlink():
        return path
    end = Path(os.path.realpath(path))
    if end.is_symlink():
        raise OutputError(f"cannot write {path}: the symbolic link leads back to itself", "choose another name")
    return end


def remove_file(path: Path) -> None:
    """Removes a file or link, if it is there.

    Raises:
        OutputError: if that is not allowed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot remove {path}: {error.strerror}", "its owner has to remove it") from error


def sync(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_atomically(
    path: Path, write: Callable[[Path], object], fresh: Path | None = None, hint: str | None = None
) -> None:
    """Lets `write` make a file or directory beside `path`, then renames it; nothing half-written takes the name.

    Args:
        path: the name.
        write: makes what is to have it, under the name that it is given.
        fresh: that name. By default it is this process's own; where a lock keeps others away, a fixed one is better,
            since what a killed process left there is then written over.
        hint: what to do where it cannot be written.

    Raises:
        OutputError: if it cannot be written.
    """
    fresh = fresh or path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with writing(path, hint):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(fresh)
            # A file system may put the new name on the disk before the content: a crash would leave it empty.
            for file in (*fresh.rglob("*"), fresh) if fresh.is_dir() else (fresh,):
                sync(file)
            if path.is_dir():  # no directory replaces another: the old one steps aside first
                old = path.with_name(f"{path.name}.old-{os.getpid()}")
                os.replace(path, old)
                os.replace(fresh, path)
                shutil.rmtree(old)
            else:
                os.replace(fresh, path)
    finally:
        if fresh.is_dir():
            shutil.rmtree(fresh, ignore_errors=True)
        elif fresh.exists():
            fresh.unlink()


@contextlib.contextmanager
def try_lock(path: Path, hint: str) -> Iterator[bool]:
    """A block in which this process alone has locked a file, which is created and stays, if it is told True.

    False where another process has it, or has just renamed or removed the file. The system releases the lock when the
    process ends, however it ends.

    Raises:
        OutputError: if the file system cannot lock; `hint` says what to do then.
    """
    handle = None
    try:
        try:
            # Open for writing, without which network file systems give no lock.
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between opening and locking, whoever had the lock may have given the name away: then this locks nothing.
            ours = os.path.samestat(os.fstat(handle), os.stat(path))
        except (BlockingIOError, FileNotFoundError):
            ours = False
        except OSError as error:
            raise OutputError(f"cannot lock {path}: {error.strerror}", hint) from error
        yield ours
    finally:
        if handle is not None:
            os.close(handle)


@contextlib.contextmanager
def held(path: Path, hint: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """A block for which `try_lock` is tried until it succeeds; `on_wait` is called once if another process has it."""
    with writing(path, hint):
        path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in itertools.count():
        with try_lock(path, hint) as ours:
            if ours:
                yield
                return
        if attempt == 0:
            on_wait()
        time.sleep(POLL_SECONDS)


def exclusively(name: str, on_wait: Callable[[], None] = lambda: None) -> contextlib.AbstractContextManager[None]:
    """A block that one process of a machine runs at a time, for each name; see `held`."""
    key = hashlib.sha256(name.encode(errors="backslashreplace")).hexdigest()[:16]
    return held(cache_directory("locks") / f"{key}.lock", "set CFX_CACHE to a local directory", on_wait)


@contextlib.contextmanager
def sole_writer(path: Path | None, lock: Path | None = None) -> Iterator[None]:
    """A block in which no other process writes a result (None is none); afterwards the lock's file is gone.

    `lock` is that file, in a directory that exists; by default PATH.lock.

    Raises:
        OutputError: if another process is at it, or the file system cannot lock.
    """
    if path is None:
        yield
        return
    if lock is None:
        check_directory(path)
        lock = path.parent / f"{path.name}.lock"
    with try_lock(lock, "write to another file system, such as a local disk") as ours:
        if not ours:
            raise OutputError(
                f"{path} is being written by another process", "wait until it has finished, or choose another name"
            )
        try:
            yield
        finally:
            remove_file(lock)  # while it is locked: whoever opened it before finds that its name is gone


@contextlib.contextmanager
def claimed(path: Path | None, suffixes: Sequence[str], force: bool) -> Iterator[None]:
    """A block in which this process alone writes a file; see `sole_writer` and `check_file`, which is asked inside.

    Before, another process could still finish the file.
    """
    with sole_writer(path):
        check_file(path, suffixes, force)
        yield


def check_file(path: Path | None, suffixes: Sequence[str], force: bool) -> None:
    """Makes sure that a file can be written, without loss of an earlier one unless `force`; None, for no file, is fine.

    Raises:
        UsageError: for another suffix than those.
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


def check_own_files(directory: Path, own: re.Pattern[str], cannot: str, but: str, parts: str) -> None:
    """Makes sure that a directory of results, if it is there, holds nothing but an earlier one.

    Args:
        directory: to be written.
        own: names of the files of such a directory.
        cannot: what a path without a name cannot do, as "hold a discovery".
        but: what is no file, as "a discovery is".
        parts: what its files are, as "of a discovery".

    Raises:
        UsageError: if it has no name.
        OutputError: if it is a file, or holds something else.
    """
    if directory.name in ("", ".."):
        raise UsageError(f"{directory} cannot {cannot}", "name a directory that is not there")
    if directory.exists() and not directory.is_dir():
        raise OutputError(f"{directory} is a file, but {but} a directory", "choose another name")
    if directory.is_dir() and not all(own.fullmatch(entry.name) for entry in directory.iterdir()):
        raise OutputError(
            f"{directory} contains files that are not {parts}, and is not overwritten", "choose another name"
        )


def check_directory(path: Path) -> None:
    """Makes sure that there is a directory for a file or directory, and that it can be written.

    Raises:
        OutputError: if not.
    """
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: no directory {path.parent}", f"create it with: mkdir -p {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write {path}: no permission to write in {path.parent}", "choose another directory")


Rows = Sequence[dict[str, Any]]


def write_texts(directory: Path, texts: Mapping[str, str]) -> None:
    """Makes a directory of text files, by name; a name with slashes is in a directory below."""
    directory.mkdir()
    for name, text in texts.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8", newline="")


def write_table(path: Path, rows: Rows, columns: Sequence[str] = (), decimals: int | None = None) -> None:
    """Writes rows of equal keys, by default those of the first, to .csv or .parquet; None and NaN are empty cells.

    Of floats, a .csv has all decimals or so many.

    Raises:
        UsageError: for another ending.
        DependencyError: for Parquet without pyarrow.
        OutputError: if it cannot be written.
    """
    if path.suffix == ".csv":
        text = csv_text(rows, columns, decimals)
        replace_atomically(path, lambda fresh: fresh.write_text(text, encoding="utf-8", newline=""))
    elif path.suffix == ".parquet":
        replace_atomically(path, lambda fresh: _write_parquet(fresh, rows, columns or list(rows[0])))
    else:
        raise UsageError(f"cannot write {path}", "name a .csv or .parquet file")


def csv_text(rows: Rows, columns: Sequence[str] = (), decimals: int | None = None) -> str:
    """The rows as CSV; see `write_table`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value, decimals) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any, decimals: int | None) -> Any:
    """A value as CSV; what a spreadsheet would run as a formula gets an apostrophe, by which it is text."""
    if _is_nan(value):
        return None
    if isinstance(value, float) and decimals is not None:
        return f"{value:.{decimals}f}"
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _write_parquet(path: Path, rows: Rows, columns: Sequence[str]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DependencyError("writing Parquet needs pyarrow", install("parquet")) from error
    cells = {name: [None if _is_nan(row[name]) else row[name] for row in rows] for name in columns}
    parquet.write_table(pyarrow.Table.from_pydict(cells), path)
