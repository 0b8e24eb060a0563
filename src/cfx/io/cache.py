"""Where cfx keeps what it can make again, and how a file appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from cfx.errors import OutputError


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


def replace_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` make a sibling file or directory, then renames it to `path`; nothing half-written stays.

    Raises:
        OutputError: if it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
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
