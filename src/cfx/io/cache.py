"""Where cfx keeps what it can make again, under which name, and how a file appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from cfx.errors import DataError, OutputError


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
