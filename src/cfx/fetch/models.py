"""Published models: fetched, converted to safetensors once, and found again."""

import contextlib
import dataclasses
import glob
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from cfx.catalog import AUTO, CATALOG, FALLBACK, Entry, HubAddress, parse_address
from cfx.config import ModelConfig
from cfx.errors import CfxError, CheckpointError, NetworkError, OutputError, UnsafeError
from cfx.fetch.failures import Unreachable
from cfx.fetch.files import NORMALLY, Request, fetch_file, find, is_offline, locate, remove_files
from cfx.fetch.record import Record, digest_of, forget, read_records, update_records
from cfx.io import upstream
from cfx.io.checkpoint import Checkpoint, save_checkpoint
from cfx.io.files import cache_directory, exclusively
from cfx.reporter import Reporter, counted

MODELS = "models"
"""Directory of converted models, below the cache directory."""

CONVERTER_VERSION = 1
"""Raised whenever the same file would convert to something else."""

AUTO_SECONDS = 4.0
"""How long `auto` waits for a hub that does not answer."""

AUTO_PAUSE = 60
"""Minutes during which it then does not ask again."""


def read_published(path: Path, source: Mapping[str, Any], num_heads: int | None = None, **sizes: Any) -> Checkpoint:
    """The model in a published pickle.

    Args:
        path: of the file.
        source: what is known of where it comes from; goes into the checkpoint beside file name and SHA-256.
        num_heads: attention heads; by default they are 64 wide.
        **sizes: see `upstream.recognise`.

    Raises:
        CheckpointError: if the file is damaged, hostile, or of another family of models.
    """
    published = upstream.load_pickle(path, source.get("address"))
    config = upstream.recognise(published, num_heads, **sizes)
    facts = {"file": path.name, "sha256": digest_of(path).sha256, "format": "published pickle", **source}
    return Checkpoint(config, upstream.convert(published, config), {"source": facts})


def fetch_entry(entry: Entry, reporter: Reporter, request: Request = NORMALLY, **settings: Any) -> Path:
    """The checkpoint directory of a published model of the catalog; see `fetch_model`."""
    return fetch_model(entry.address, reporter, request, entry, **_settings_of(entry, settings))


def _settings_of(entry: Entry, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What its conversion is told: what its authors state, unless somebody knows better."""
    stated = entry.config or ModelConfig()
    told = {name: getattr(stated, name) for name in ("num_heads", "coord_components", "n_max", "sigma_min")}
    if stated.position == "absolute":
        del told["n_max"]  # the file tells
    return told | {name: value for name, value in settings.items() if value is not None}


def fetch_model(
    address: str, reporter: Reporter, request: Request = NORMALLY, entry: Entry | None = None, **settings: Any
) -> Path:
    """The checkpoint directory of a published pickle, fetched and converted where that has not been done yet.

    `entry` is that of the catalog, if there is one; `settings` are what the file does not tell of its architecture, see
    `read_published`.

    Raises:
        NetworkError: if it cannot be fetched.
        CheckpointError: if it is not a model that cfx reads. A hostile file is deleted.
        OutputError: if it cannot be written.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    if request == NORMALLY and (found := _converted(address, settings)) is not None:
        return found
    path = fetch_file(address, reporter, request, announce=False)
    with exclusively(f"convert {address}", lambda: reporter.message(f"another process is converting {address}")):
        found = None if request.force else _converted(address, settings)
        if found is None:
            found = _convert(path, address, read_records()[address], reporter, entry, settings)
            reporter.message(f"fetched and converted {address}")
        return found


def _converted(address: str, settings: Mapping[str, Any]) -> Path | None:
    """Where the conversion of a pickle lies, if this converter made it from the file that is recorded."""
    records = read_records()
    for key, record in records.items():
        fits = (record.source, record.settings, record.converter) == (address, settings, CONVERTER_VERSION)
        is_current = address not in records or record.made_from in records[address].sha256s
        if fits and is_current and None not in locate(key, record).values():
            return cache_directory() / key
    return None


def _convert(
    path: Path, address: str, record: Record, reporter: Reporter, entry: Entry | None, settings: dict[str, Any]
) -> Path:
    facts = {"address": address, "commit": record.commit}
    facts |= {"name": entry.name, "licence": entry.licence, "citation": entry.citation} if entry else {}
    try:
        checkpoint = read_published(path, facts, **settings)
    except UnsafeError as error:
        _delete(address, path, record)
        raise UnsafeError(f"{error.message}; the file was deleted from the cache", error.hint) from None
    sha256 = checkpoint.info["source"]["sha256"]
    if sha256 not in record.sha256s:
        _delete(address, path, record)
        raise CheckpointError(f"{path} was changed after it was fetched, and was removed", "run the same command again")
    if entry is not None and entry.config is not None:
        expected = {**dataclasses.asdict(entry.config), **settings}
        _compare(entry.name, dataclasses.asdict(checkpoint.config), expected, reporter)
    return _store(checkpoint, entry.name if entry else path.stem, record.commit, address, sha256, settings)


def _delete(address: str, path: Path, record: Record) -> None:
    remove_files([*locate(address, record).values(), path])
    forget(address)


def _compare(name: str, found: dict[str, Any], stated: dict[str, Any], reporter: Reporter) -> None:
    changed = [f"{key} {found[key]} instead of {stated[key]}" for key in found if found[key] != stated[key]]
    if changed:
        reporter.warning(f"{name} does not have the architecture that its authors state: {', '.join(changed)}")


def _store(
    checkpoint: Checkpoint, label: str, commit: str | None, address: str, sha256: str, settings: dict[str, Any]
) -> Path:
    """Writes a conversion and records it, in the place of earlier ones of the same file."""
    key = hashlib.sha256(json.dumps([sha256, commit, address, settings, CONVERTER_VERSION]).encode()).hexdigest()[:12]
    name = f"{MODELS}/{label}-{key}"
    directory = cache_directory() / name
    for partial in directory.parent.glob(f"{glob.escape(directory.name)}.*-*"):  # of processes that were killed
        shutil.rmtree(partial, ignore_errors=True)
    save_checkpoint(directory, checkpoint)
    files = {file.name: digest_of(file) for file in sorted(directory.iterdir())}
    # First the record changes, then files go: a process that is killed in between leaves waste, and no broken record.
    stale: list[str] = []

    def change(records: dict[str, Record]) -> None:
        same = [key for key, other in records.items() if (other.source, other.settings) == (address, settings)]
        stale.extend(key for key in same if key != name)
        for key in stale:
            del records[key]
        records[name] = Record(files, commit, name, address, sha256, CONVERTER_VERSION, settings)

    update_records(change)
    for key in stale:
        shutil.rmtree(cache_directory() / key, ignore_errors=True)
    return directory


def choose_auto(reporter: Reporter) -> str:
    """The name that `auto` means here and now: a published model if it can be had, or else the bundled one.

    Says which, and why, if it is the bundled one.

    Raises:
        CheckpointError: if the published model was fetched and is none.
    """
    try:
        reason = _try_auto(CATALOG[AUTO], reporter)
    except (NetworkError, OutputError) as error:
        reason = f"could not be fetched: {error.message}"
    if reason is None:
        return AUTO
    reporter.warning(
        f"using the bundled model {FALLBACK}, since {AUTO} is not on this machine and {reason} "
        f"(to get it: cfx fetch {AUTO}; to silence this: `model={FALLBACK}`)"
    )
    return FALLBACK


def _try_auto(entry: Entry, reporter: Reporter) -> str | None:
    """Fetches a model, or says why not; one that cannot be reached is not tried again for a while."""
    address, stamp = entry.address, cache_directory() / "unreachable"
    if (_converted(address, _settings_of(entry, {})) or find(address, read_records().get(address))) is not None:
        fetch_entry(entry, reporter)
        return None
    if is_offline():
        return "HF_HUB_OFFLINE is set"
    with contextlib.suppress(OSError):
        minutes = (time.time() - stamp.stat().st_mtime) / 60
        if minutes < AUTO_PAUSE:
            return f"could not be fetched {counted(round(minutes), 'minute')} ago: {stamp.read_text()}"
    try:
        _ask_briefly(address)
        fetch_entry(entry, reporter)
    except Unreachable as error:
        with contextlib.suppress(OSError):
            stamp.write_text(error.message)
        raise
    return None


def _ask_briefly(address: str) -> None:
    """Asks the hub for a file, for AUTO_SECONDS at most, name lookup included."""
    from cfx.fetch.download import ask_hub

    where = parse_address(address)
    assert isinstance(where, HubAddress)
    answer: Future[object] = Future()

    def ask() -> None:
        try:
            answer.set_result(ask_hub(where, timeout=AUTO_SECONDS))
        except CfxError as error:
            answer.set_exception(error)

    # A daemon, since nothing can interrupt the lookup of a name, and the process may end before it does.
    threading.Thread(target=ask, daemon=True).start()
    try:
        answer.result(AUTO_SECONDS)
    except TimeoutError:
        raise Unreachable("the hub does not respond") from None
