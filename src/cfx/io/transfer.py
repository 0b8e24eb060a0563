"""What was fetched, as a directory that can be carried to a machine without a network.

DIR gets the files, in the places they have below the cache directory, and a lockfile that says what each must be.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from cfx.errors import DataError
from cfx.io.addresses import parse
from cfx.io.cache import cache_directory, replace_atomically
from cfx.io.fetch import FILES, fetched
from cfx.io.lockfile import (
    FILE_NAME,
    MODELS,
    Locked,
    check_same,
    digest_of,
    read_lockfile,
    update_lockfile,
    write_lockfile,
)


def export_files(keys: list[str], directory: Path) -> None:
    """Copies what was fetched.

    Args:
        keys: addresses, and directories of converted models, as in the lockfile.
        directory: where to; what an earlier export put there stays.

    Raises:
        DataError: if a file is not what it was when it was fetched.
        OutputError: if it cannot be written.
    """
    records, exported = read_lockfile(), read_lockfile(directory / FILE_NAME)
    for key in keys:
        locked = records[key]
        target = locked.directory or (FILES / parse(key).place).parent.as_posix()
        places = find_files(key, locked)
        check_files(key, locked, places)
        for name, path in places.items():
            _copy(path, directory / target / name)
        exported[key] = replace(locked, directory=target)
    write_lockfile(exported, directory / FILE_NAME)


def import_files(directory: Path) -> list[str]:
    """Takes over what `export_files` has copied; nothing is taken over if anything is damaged.

    Returns:
        Addresses, and directories of converted models.

    Raises:
        DataError: if the directory is no export, or a file is not what its lockfile says.
        NetworkError: if a file was another when it was fetched here.
        OutputError: if it cannot be written.
    """
    if not (directory / FILE_NAME).is_file():
        raise DataError(
            f"{directory} is no export: it has no {FILE_NAME}", "make one with: cfx fetch NAME --export DIR"
        )
    records, here = read_lockfile(directory / FILE_NAME), read_lockfile()
    for key, locked in records.items():
        _check_import(key, locked, directory, here)
    for locked in records.values():
        for name in locked.files:
            _copy(directory / locked.directory / name, cache_directory() / locked.directory / name)
    update_lockfile(lambda known: known.update(records))
    return list(records)


def _check_import(key: str, locked: Locked, directory: Path, here: Mapping[str, Locked]) -> None:
    """Whether a record of an export can be taken over: its files are whole, and no others than those here."""
    if locked.directory is None or PurePosixPath(locked.directory).parts[0] not in (FILES.name, MODELS):
        raise DataError(f"{directory / FILE_NAME} is damaged: {key} lies where nothing is imported to")
    check_files(key, locked, {name: directory / locked.directory / name for name in locked.files})
    if key in here:
        check_same(key, here[key].files, locked.files)
    if locked.source is None:
        return
    sources = {one.made_from for one in here.values() if one.source == locked.source}
    sources |= {digest.sha256 for digest in here[locked.source].files.values()} if locked.source in here else set()
    if sources - {locked.made_from}:
        raise DataError(
            f"{key} was made from another {locked.source} than the one here",
            "to have the other one, remove what is here first: models/ and fetched.json in the cache directory",
        )


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
