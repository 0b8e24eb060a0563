"""Fetching by name: what there is, what is here, and whether it is still what was fetched."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from cfx.catalog import CATALOG, DATA, HULL, MODEL, Entry, find_part, is_hub_address
from cfx.errors import DataError, UsageError
from cfx.io.addresses import HubAddress, parse
from cfx.io.cache import remove_file
from cfx.io.fetch import Request, fetch_file, fetched
from cfx.io.lockfile import Digest, Locked, digest_of, forget, read_lockfile
from cfx.io.resources import resource_directory
from cfx.io.transfer import export_files, find_files
from cfx.reporter import Reporter
from cfx.runs.signals import interrupted_by_signals

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
        raise UsageError(f"{name} has no revisions", "only files of the Hugging Face hub have; use --accept")
    return entry, addresses


def _fetch_one(address: str, entry: Entry | None, reporter: Reporter, request: Request) -> Path:
    is_model = entry.kind == MODEL if entry else address.endswith(".pkl")
    if not is_model:
        return fetch_file(address, reporter, request)
    from cfx.io.models import fetch_entry, fetch_model

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
