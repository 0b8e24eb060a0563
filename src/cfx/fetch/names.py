"""Fetching by name: what there is, what is here, and how it is carried to a machine without a network.

DIR gets the files, in the places they have below the cache directory, and a lockfile that says what each must be.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from cfx.catalog import CATALOG, DATA, HULL, MODEL, Entry, find_part, is_hub_address
from cfx.errors import DataError, UsageError
from cfx.fetch.addresses import HubAddress, parse
from cfx.fetch.files import FILES, Request, fetch_file, fetched
from cfx.fetch.record import (
    FILE_NAME,
    MODELS,
    Digest,
    Locked,
    check_same,
    digest_of,
    forget,
    read_lockfile,
    update_lockfile,
    write_lockfile,
)
from cfx.io.files import cache_directory, remove_file, replace_atomically, resource_directory
from cfx.reporter import Reporter
from cfx.signals import interrupted_by_signals

BUNDLED, CACHED, PARTLY, ABSENT = "with cfx", "yes", "partly", "no"
OK, MISSING, DAMAGED = "ok", "missing", "damaged"


@dataclass(frozen=True)
class Status:
    """An entry of the catalog and what of it is on this machine.

    Attributes:
        entry: of the catalog.
        cached: yes, partly, no, "with cfx", or "by LIBRARY" for what another library fetches.
        size: bytes: of what is here, or else as published; None if nobody says.
    """

    entry: Entry
    cached: str
    size: int | None


def statuses() -> list[Status]:
    """Of the whole catalog."""
    records = read_lockfile()
    return [_status(entry, records) for entry in CATALOG.values()]


def _status(entry: Entry, records: dict[str, Locked]) -> Status:
    if entry.resource is not None:
        return Status(entry, BUNDLED, sum(file.stat().st_size for file in resource_directory(entry).iterdir()))
    if entry.library is not None:
        return Status(entry, f"by {entry.library}", None)
    here = {address: _best(address, records) for address in entry.files.values()}
    found = [locked for locked in here.values() if locked is not None]
    size = sum(locked.size for locked in found) if len(found) == len(here) else entry.size
    return Status(entry, CACHED if len(found) == len(here) else PARTLY if found else ABSENT, size)


def _best(address: str, records: dict[str, Locked]) -> Locked | None:
    """What is here of an address: itself, or a model made from it."""
    if fetched(address, records.get(address)) is not None:
        return records[address]
    made = (locked for key, locked in records.items() if locked.source == address and _is_whole(key, locked))
    return next(made, None)


def _is_whole(key: str, locked: Locked) -> bool:
    return None not in find_files(key, locked).values()


def everything() -> list[str]:
    """Names of all that can be fetched."""
    return [entry.name for entry in CATALOG.values() if entry.files]


def fetch(names: Sequence[str], reporter: Reporter, request: Request) -> dict[str, Path]:
    """Fetches things by name.

    Args:
        names: of the catalog, with or without a part, or hf:owner/repo/path.
        reporter: receives progress.
        request: how to fetch them.

    Returns:
        Addresses -> where they lie; of a model, its converted checkpoint.

    Raises:
        UsageError: for unknown names.
        NetworkError: if something does not arrive.
        CheckpointError: if a model is none.
    """
    plans = [(name, *_plan(name, request, reporter)) for name in names]
    paths: dict[str, Path] = {}
    for name, entry, addresses in plans:
        with interrupted_by_signals(f"stopped fetching {name}; run the same command again to go on where it was"):
            for address in addresses:
                paths[address] = _fetch_one(address, entry, reporter, request)
    return paths


def _plan(name: str, request: Request, reporter: Reporter) -> tuple[Entry | None, list[str]]:
    """The entry of a name, if it has one, and the addresses to fetch."""
    if is_hub_address(name):
        parse(name)
        return None, [name]
    found = find_part(name)
    if found is None:
        raise UsageError(f"there is nothing named {name!r}", "see cfx fetch --list, or name a file: hf:owner/repo/path")
    entry, part = found
    if entry.resource is not None:
        reporter.message(f"{name} comes with cfx")
    if entry.library is not None:
        reporter.message(f"{name} comes with {entry.library}, or is fetched by it when it is first used")
    addresses = [entry.files[part]] if ":" in name else list(entry.files.values())
    if request.revision and not all(isinstance(parse(address), HubAddress) for address in addresses):
        raise UsageError(f"{name} has no revisions", "only files of the Hugging Face hub have; use `accept`")
    return entry, addresses


def _fetch_one(address: str, entry: Entry | None, reporter: Reporter, request: Request) -> Path:
    is_model = entry.kind == MODEL if entry else address.endswith(".pkl")
    if not is_model:
        return fetch_file(address, reporter, request)
    from cfx.fetch.models import fetch_entry, fetch_model

    return fetch_entry(entry, reporter, request) if entry else fetch_model(address, reporter, request)


def data_path(name: str | Path, reporter: Reporter) -> Path:
    """A data set on this machine: a path as it is; a name of the catalog or of the hub, fetched.

    Raises:
        DataError: if the name is that of something else.
        NetworkError: if it has to be fetched, and cannot be.
    """
    return _path(name, DATA, "data set", reporter)


def hull_path(name: str | Path, reporter: Reporter) -> Path:
    """The file of a hull, likewise."""
    return _path(name, HULL, "hull", reporter)


def _path(name: str | Path, kind: str, what: str, reporter: Reporter) -> Path:
    text = str(name)
    if is_hub_address(text):
        address = text
    elif not Path(text).exists() and (found := find_part(text)) is not None:
        entry, part = found
        if entry.kind != kind:
            raise DataError(f"{text} is no {what} but: {entry.summary}")
        if entry.resource is not None:
            return next(resource_directory(entry).glob("*.npz"))
        address = entry.files[part]
    else:
        return Path(name)
    with interrupted_by_signals(f"stopped fetching {text}; run the same command again to go on where it was"):
        return fetch_file(address, reporter)


@dataclass(frozen=True)
class Checked:
    """A file that was fetched or converted.

    Attributes:
        key: address, or directory of a converted model.
        path: where it lies, or None.
        state: OK, MISSING or DAMAGED.
    """

    key: str
    path: Path | None
    state: str


def verify(reporter: Reporter) -> list[Checked]:
    """Compares everything that was fetched with its recorded SHA-256; what is damaged is removed."""
    records, checked = read_lockfile(), []
    with reporter.progress("verifying", len(records)) as progress:
        for done, (key, locked) in enumerate(records.items(), start=1):
            places = find_files(key, locked)
            states = {name: _state(path, locked.files[name]) for name, path in places.items()}
            checked += [Checked(key, path, states[name]) for name, path in places.items()]
            for name, path in places.items():
                if states[name] == DAMAGED and path is not None:
                    remove_file(path.resolve())
                    remove_file(path)
            if locked.source is not None and set(states.values()) != {OK}:  # a converted model is made again
                forget(key)
            progress.update(done)
    return checked


def _state(path: Path | None, expected: Digest) -> str:
    if path is None:
        return MISSING
    return OK if digest_of(path) == expected else DAMAGED


def export(addresses: Collection[str] | None, directory: Path) -> list[str]:
    """Copies what was fetched to a directory for machines without a network; of a model, what it was converted to.

    Args:
        addresses: what to copy; None for all that is here.
        directory: where to.

    Returns:
        What was copied: addresses, and directories of converted models.

    Raises:
        DataError: if there is nothing to copy.
        OutputError: if it cannot be written.
    """
    records = read_lockfile()
    here = [
        key
        for key, locked in records.items()
        if _is_whole(key, locked) and (addresses is None or key in addresses or locked.source in addresses)
    ]
    converted = {records[key].source for key in here}
    keys = [key for key in here if key not in converted]
    if not keys:
        raise DataError("there is nothing to export", "fetch something first: cfx fetch NAME --export DIR")
    export_files(keys, directory)
    return keys


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
