"""Whether a result can be written, found out before the work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cfx.errors import OutputError, UsageError


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
        raise OutputError(f"{path} exists", "choose another name, or overwrite a file with --force")
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
