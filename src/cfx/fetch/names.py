"""Fetching by name: what there is, what of it is here, and how it is carried to a machine without a network.

An export is a directory with the files, in the places they have below the cache directory, and a record of what each
must be.
"""

import functools
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from cfx import catalog
from cfx.catalog import DATA, HULL, MODEL, Entry, HubAddress, is_hub_address, parse_address
from cfx.errors import DataError, OutputError, UsageError
from cfx.fetch.failures import Absent
from cfx.fetch.files import FILES, NORMALLY, Request, fetch_file, find, locate, remove_files
from cfx.fetch.models import MODELS, fetch_entry, fetch_model
from cfx.fetch.record import FILE_NAME, Record, check_same, digest_of, forget, read_records, update_records
from cfx.io.files import cache_directory, replace_atomically, resource_directory
from cfx.reporter import Reporter, interrupted_by_signals

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


@dataclass(frozen=True)
class Checked:
    """A file that was fetched or converted, compared with its record.

    Attributes:
        key: address, or directory of a converted model.
        path: where it lies, or None.
        state: OK, MISSING or DAMAGED.
    """

    key: str
    path: Path | None
    state: str


# What there is.


def statuses() -> list[Status]:
    """The whole catalog, and what of it is on this machine."""
    try:
        here = _whole(read_records())
    except OutputError:  # no cache directory, and so nothing in it
        here = {}
    return [_status(entry, here) for entry in catalog.CATALOG.values()]


def _status(entry: Entry, here: Mapping[str, Record]) -> Status:
    if entry.resource is not None:
        return Status(entry, BUNDLED, sum(file.stat().st_size for file in resource_directory(entry).iterdir()))
    if entry.library is not None:
        return Status(entry, f"by {entry.library}", None)
    found = [[_best(address, here) for address in files.values()] for files in entry.editions]
    sizes = max(([record.size for record in edition if record is not None] for edition in found), key=len)
    if len(sizes) == len(entry.files):
        return Status(entry, CACHED, sum(sizes))
    return Status(entry, PARTLY if sizes else ABSENT, entry.size)


def _whole(records: Mapping[str, Record]) -> dict[str, Record]:
    """The records whose files are all on this machine."""
    return {key: record for key, record in records.items() if None not in locate(key, record).values()}


def _best(address: str, here: Mapping[str, Record]) -> Record | None:
    """What is here of an address: itself, or a model made from it."""
    return here.get(address) or next((record for record in here.values() if record.source == address), None)


# From names to files.


def everything() -> list[str]:
    """Names of all that can be fetched."""
    return [entry.name for entry in catalog.CATALOG.values() if entry.files]


def fetch(names: Sequence[str], reporter: Reporter, request: Request) -> dict[str, Path]:
    """Fetches things by name: of the catalog, with or without a part, or hf:owner/repo/path.

    Returns:
        Addresses -> where they lie; of a model, its converted checkpoint.

    Raises:
        UsageError: for unknown names.
        NetworkError: if something does not arrive.
        CheckpointError: if a model is none.
    """
    plans = [(name, *_plan(name, request, reporter)) for name in names]
    paths: dict[str, Path] = {}
    for name, entry, parts in plans:
        with interrupted_by_signals(f"stopped fetching {name}; run the same command again to go on where it was"):
            paths |= _fetch_one(name, entry, parts, reporter, request)
    return paths


def fetch_parts(
    entry: Entry, parts: Sequence[str], reporter: Reporter, request: Request = NORMALLY, announce: bool = True
) -> dict[str, Path]:
    """Parts of an entry, all of them as published now or, if they are not there any more, as published formerly.

    Args:
        entry: of the catalog.
        parts: which.
        reporter: receives progress.
        request: how to fetch them.
        announce: say so when they have come.

    Returns:
        Addresses -> where they lie.

    Raises:
        NetworkError: if something does not arrive.
    """
    editions = [[files[part] for part in parts] for files in entry.editions]
    here = [addresses for addresses in editions if _are_here(addresses)]
    if here and request == NORMALLY:
        editions = here
    errors = []
    for addresses in editions:
        try:
            return {address: fetch_file(address, reporter, request, announce) for address in addresses}
        except Absent as error:
            errors.append(error)
    raise errors[0]


def is_here(entry: Entry) -> bool:
    """Whether all files of an entry are on this machine."""
    return any(_are_here(files.values()) for files in entry.editions)


def _are_here(addresses: Iterable[str]) -> bool:
    records = read_records()
    return all(find(address, records.get(address)) is not None for address in addresses)


def _plan(name: str, request: Request, reporter: Reporter) -> tuple[Entry | None, list[str]]:
    """The entry of a name, if it has one, and the parts of it to fetch."""
    if is_hub_address(name):
        parse_address(name)
        return None, []
    found = catalog.find_part(name)
    if found is None:
        raise UsageError(f"there is nothing named {name!r}", "see cfx fetch --list, or name a file: hf:owner/repo/path")
    entry, part = found
    if entry.resource is not None:
        reporter.message(f"{name} comes with cfx")
    if entry.library is not None:
        reporter.message(f"{name} comes with {entry.library}, or is fetched by it when it is first used")
    parts = [part] if ":" in name else list(entry.files)
    if request.revision and not all(isinstance(parse_address(entry.files[part]), HubAddress) for part in parts):
        raise UsageError(f"{name} has no revisions", "only files on the Hugging Face hub have revisions; use `accept`")
    return entry, parts


def _fetch_one(
    name: str, entry: Entry | None, parts: Sequence[str], reporter: Reporter, request: Request
) -> dict[str, Path]:
    """Addresses -> where they lie, of parts of an entry, or of what a name is the address of."""
    if entry is None:
        fetch_it = fetch_model if name.endswith(".pkl") else fetch_file
        return {name: fetch_it(name, reporter, request)}
    if entry.kind == MODEL:
        return {entry.files[part]: fetch_entry(entry, reporter, request) for part in parts}
    return fetch_parts(entry, parts, reporter, request)


def data_path(name: str | Path, reporter: Reporter, kind: str = DATA) -> Path:
    """A data set, or hull, on this machine: a path as it is; a name of the catalog or of the hub, fetched.

    Raises:
        DataError: if the name is that of something else.
        NetworkError: if it has to be fetched, and cannot be.
    """
    text = str(name)
    if is_hub_address(text):
        address = text
    elif not Path(text).exists() and (found := catalog.find_part(text)) is not None:
        entry, part = found
        if entry.kind != kind:
            raise DataError(f"{text} is not a {'data set' if kind == DATA else kind} ({entry.summary})")
        if entry.resource is not None:
            return next(resource_directory(entry).glob("*.npz"))
        address = entry.files[part]
    else:
        return Path(name)
    with interrupted_by_signals(f"stopped fetching {text}; run the same command again to go on where it was"):
        return fetch_file(address, reporter)


hull_path = functools.partial(data_path, kind=HULL)
"""The file of a hull on this machine; see `data_path`."""


# What was fetched, as a whole.


def verify(reporter: Reporter) -> list[Checked]:
    """Compares everything that was fetched with its recorded SHA-256; what is damaged is removed."""
    records, checked = read_records(), []
    with reporter.progress("verifying", len(records)) as progress:
        for done, (key, record) in enumerate(records.items(), start=1):
            files = _compare(key, record)
            remove_files(file.path for file in files if file.state == DAMAGED)
            if record.source is not None and {file.state for file in files} != {OK}:  # a model is converted again
                forget(key)
            checked += files
            progress.update(done)
    return checked


def _compare(key: str, record: Record) -> list[Checked]:
    def state(name: str, path: Path | None) -> str:
        if path is None:
            return MISSING
        return OK if digest_of(path) == record.files[name] else DAMAGED

    return [Checked(key, path, state(name, path)) for name, path in locate(key, record).items()]


def export(addresses: Collection[str] | None, directory: Path) -> list[str]:
    """Copies what was fetched to a directory for machines without a network; of a model, what it was converted to.

    What an earlier export put there stays. `addresses` says what to copy; None is all that is here.

    Returns:
        What was copied: addresses, and directories of converted models.

    Raises:
        DataError: if there is nothing to copy, or a file is not what it was when it was fetched.
        OutputError: if it cannot be written.
    """
    here = _whole(read_records())
    if addresses is not None:
        here = {key: record for key, record in here.items() if {key, record.source} & set(addresses)}
    converted = {record.source for record in here.values()}
    chosen = {key: record for key, record in here.items() if key not in converted}
    if not chosen:
        raise DataError("there is nothing to export", "fetch something first: cfx fetch NAME --export DIR")
    copied: dict[str, Record] = {}
    for key, record in chosen.items():
        target = record.directory or (FILES / catalog.place_of(parse_address(key))).parent.as_posix()
        for name, path in _intact(key, record, locate(key, record)).items():
            replace_atomically(directory / target / name, functools.partial(shutil.copyfile, path))
        copied[key] = replace(record, directory=target)
    update_records(lambda exported: exported.update(copied), directory / FILE_NAME)
    return list(copied)


def import_files(directory: Path) -> list[str]:
    """Takes over what `export` has copied; nothing is taken over if anything is damaged.

    Returns:
        Addresses, and directories of converted models.

    Raises:
        DataError: if the directory is not an export, or a file is not what its record says.
        NetworkError: if a file was another when it was fetched here.
        OutputError: if it cannot be written.
    """
    if not (directory / FILE_NAME).is_file():
        raise DataError(
            f"{directory} is not an export: it has no {FILE_NAME}", "make one with: cfx fetch NAME --export DIR"
        )
    records, here = read_records(directory / FILE_NAME), read_records()
    sources = {key: _importable(key, record, directory, here) for key, record in records.items()}
    for key, paths in sources.items():
        for name, path in paths.items():
            target = cache_directory() / str(records[key].directory) / name
            replace_atomically(target, functools.partial(shutil.copyfile, path))
    update_records(lambda known: known.update(records))
    return list(records)


def _importable(key: str, record: Record, directory: Path, here: Mapping[str, Record]) -> dict[str, Path]:
    """The files of an export that belong to a record, if they are whole and no others than those that are here."""
    if record.directory is None or PurePosixPath(record.directory).parts[0] not in (FILES.name, MODELS):
        raise DataError(f"{directory / FILE_NAME} is damaged: {key} is outside the directory")
    paths = _intact(key, record, {name: directory / record.directory / name for name in record.files})
    if key in here:
        check_same(key, here[key].files, record.files)
    if record.source is not None:
        known = {other.made_from for other in here.values() if other.source == record.source}
        known |= here[record.source].sha256s if record.source in here else set()
        if known - {record.made_from}:
            raise DataError(
                f"{key} was made from a different {record.source} than the one here",
                "to import it, first remove the one on this machine: models/ and fetched.json in the cache directory",
            )
    return paths


def _intact(key: str, record: Record, places: Mapping[str, Path | None]) -> dict[str, Path]:
    """Files by name, if each is what is recorded of it."""
    paths = {}
    for name, path in places.items():
        if path is None or not path.is_file():
            raise DataError(f"{key}: {path or name} is missing")
        if digest_of(path) != record.files[name]:
            raise DataError(f"{key}: {path} is not what was fetched (its SHA-256 differs)")
        paths[name] = path
    return paths
