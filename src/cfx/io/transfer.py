"""What was fetched, as a directory that can be carried to a machine without a network.

DIR gets the files, in the places they have below the cache directory, and a lock file that says what each must be.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cfx.errors import DataError
from cfx.io.addresses import parse
from cfx.io.cache import cache_directory, replace_atomically
from cfx.io.fetch import FILES, fetched
from cfx.io.lock import FILE_NAME, Locked, check_same, digest_of, read_lock, update_lock, write_lock


def export_files(keys: list[str], directory: Path) -> None:
    """Copies what was fetched.

    Args:
        keys: addresses, and directories of converted models, as in the lock file.
        directory: where to; what an earlier export put there stays.

    Raises:
        DataError: if a file is not what it was when it was fetched.
        OutputError: if it cannot be written.
    """
    records, exported = read_lock(), read_lock(directory / FILE_NAME)
    for key in keys:
        locked = records[key]
        target = locked.directory or (FILES / parse(key).place).parent.as_posix()
        places = find_files(key, locked)
        check_files(key, locked, places)
        for name, path in places.items():
            _copy(path, directory / target / name)
        exported[key] = replace(locked, directory=target)
    write_lock(exported, directory / FILE_NAME)


def import_files(directory: Path) -> list[str]:
    """Takes over what `export_files` has copied; nothing is taken over if anything is damaged.

    Returns:
        Addresses, and directories of converted models.

    Raises:
        DataError: if the directory is no export, or a file is not what its lock file says.
        NetworkError: if a file was another when it was fetched here.
        OutputError: if it cannot be written.
    """
    if not (directory / FILE_NAME).is_file():
        raise DataError(
            f"{directory} is no export: it has no {FILE_NAME}", "make one with: cfx fetch NAME --export DIR"
        )
    records, here = read_lock(directory / FILE_NAME), read_lock()
    for key, locked in records.items():
        places = {name: directory / (locked.directory or "") / name for name in locked.files}
        check_files(key, locked, places)
        if key in here:
            check_same(key, here[key].files, locked.files)
    for locked in records.values():
        for name in locked.files:
            _copy(directory / locked.directory / name, cache_directory() / locked.directory / name)
    update_lock(lambda known: known.update(records))
    return list(records)


def find_files(key: str, locked: Locked) -> dict[str, Path | None]:
    """Where the files of a record lie; None for those that are gone."""
    if locked.directory is not None:
        base = cache_directory() / locked.directory
        return {name: base / name if (base / name).is_file() else None for name in locked.files}
    return {name: fetched(key, locked) for name in locked.files}


def check_files(key: str, locked: Locked, places: Mapping[str, Path | None]) -> None:
    """Compares files with what is recorded of them.

    Raises:
        DataError: if one is missing or another.
    """
    for name, path in places.items():
        if path is None or not path.is_file():
            raise DataError(f"{key}: {path or name} is missing")
        if digest_of(path) != locked.files[name]:
            raise DataError(f"{key}: {path} is not what was fetched (its SHA-256 differs)")


def _copy(source: Path, target: Path) -> None:
    replace_atomically(target, lambda partial: shutil.copyfile(source, partial))
