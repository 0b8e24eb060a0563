"""Published models: fetched, converted to safetensors once, and found again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfx.catalog import AUTO, CATALOG, FALLBACK, Entry
from cfx.config import ModelConfig
from cfx.errors import NetworkError, UnsafeError
from cfx.io import hub, upstream
from cfx.io.addresses import HubAddress, parse
from cfx.io.cache import cache_directory
from cfx.io.checkpoint import Checkpoint, save_checkpoint
from cfx.io.fetch import NORMALLY, Request, fetch_file, fetched
from cfx.io.lock import Locked, digest_of, exclusively, forget, read_lock, record
from cfx.reporter import Reporter

CONVERTER_VERSION = 1
"""Raised whenever the same file would convert to something else."""

AUTO_SECONDS = 4.0
"""How long `auto` waits for a hub that does not answer."""

AUTO_PAUSE = 3600.0
"""Seconds during which it then does not ask again."""


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
    """The checkpoint directory of a published model of the catalog."""
    stated = entry.config or ModelConfig()
    told = {name: getattr(stated, name) for name in ("num_heads", "coord_components", "n_max", "sigma_min")}
    if stated.position == "absolute":
        del told["n_max"]  # the file tells
    told |= {name: value for name, value in settings.items() if value is not None}
    return fetch_model(entry.address, reporter, request, entry, **told)


def fetch_model(
    address: str, reporter: Reporter, request: Request = NORMALLY, entry: Entry | None = None, **settings: Any
) -> Path:
    """The checkpoint directory of a published pickle, fetched and converted where that has not been done yet.

    Args:
        address: of the pickle.
        reporter: receives progress.
        request: how to fetch it.
        entry: of the catalog, if it is there.
        **settings: what the file does not tell of its architecture, see `read_published`.

    Raises:
        NetworkError: if it cannot be fetched.
        CheckpointError: if it is no model that cfx reads. A hostile file is deleted.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    if request == NORMALLY and (found := converted(address, settings)) is not None:
        return found
    path = fetch_file(address, reporter, request)
    with exclusively(f"convert {address}", lambda: reporter.message(f"another process converts {address}")):
        found = converted(address, settings)
        locked = read_lock()[address]
        if found is not None and not request.force and _made_from(found, locked):
            return found
        return _convert(path, address, locked, reporter, entry, settings)


def converted(address: str, settings: Mapping[str, Any]) -> Path | None:
    """Where the conversion of a pickle lies, if it was made."""
    for key, locked in read_lock().items():
        if locked.source == address and locked.settings == settings:
            directory = cache_directory() / key
            if all((directory / name).is_file() for name in locked.files):
                return directory
    return None


def _made_from(directory: Path, locked: Locked) -> bool:
    source = json.loads((directory / "checkpoint.json").read_text()).get("source", {})
    return source.get("sha256") in {digest.sha256 for digest in locked.files.values()}


def _convert(
    path: Path, address: str, locked: Locked, reporter: Reporter, entry: Entry | None, settings: dict[str, Any]
) -> Path:
    facts = {"address": address, "commit": locked.commit, "converter": CONVERTER_VERSION}
    facts |= {"name": entry.name, "licence": entry.licence, "citation": entry.citation} if entry else {}
    try:
        checkpoint = read_published(path, facts, **settings)
    except UnsafeError as error:
        _delete(address, path, locked)
        raise UnsafeError(f"{error.message}; the file was deleted from the cache", error.hint) from None
    if entry is not None and entry.config is not None:
        _compare(entry.name, checkpoint.config, entry.config, reporter)
    key = hashlib.sha256(json.dumps([checkpoint.info["source"]["sha256"], facts, settings]).encode()).hexdigest()[:12]
    name = f"models/{entry.name if entry else path.stem}-{key}"
    directory = cache_directory() / name
    save_checkpoint(directory, checkpoint)
    files = {file.name: digest_of(file) for file in sorted(directory.iterdir())}
    _replace_record(name, Locked(files, locked.commit, name, address, settings))
    return directory


def _replace_record(name: str, locked: Locked) -> None:
    """Records a conversion, in the place of earlier ones of the same file."""
    stale = [
        key
        for key, other in read_lock().items()
        if key != name and (other.source, other.settings) == (locked.source, locked.settings)
    ]
    record(name, locked, replace=True)
    forget(*stale)


def _delete(address: str, path: Path, locked: Locked) -> None:
    where = parse(address)
    if isinstance(where, HubAddress) and locked.directory is None and locked.commit is not None:
        hub.remove(where, locked.commit)
    path.unlink(missing_ok=True)
    forget(address)


def _compare(name: str, found: ModelConfig, stated: ModelConfig, reporter: Reporter) -> None:
    ours, theirs = dataclasses.asdict(found), dataclasses.asdict(stated)
    changed = [f"{key} {ours[key]} instead of {theirs[key]}" for key in ours if ours[key] != theirs[key]]
    if changed:
        reporter.warning(f"{name} is not of the architecture that its authors state: {', '.join(changed)}")


def is_here(entry: Entry) -> bool:
    """Whether a published model can be loaded without a network."""
    records = read_lock()
    made = any(converted(entry.address, locked.settings) for locked in records.values() if locked.source)
    return made or fetched(entry.address, records.get(entry.address)) is not None


def choose_auto(reporter: Reporter) -> str:
    """The name that `auto` means here and now: a published model if it can be had, or else the bundled one.

    Says which, and why, if it is the bundled one.

    Raises:
        CheckpointError: if the published model was fetched and is none.
    """
    entry = CATALOG[AUTO]
    reason = None if is_here(entry) else _why_not(entry)
    if reason is None:
        try:
            fetch_entry(entry, reporter)
            return AUTO
        except NetworkError as error:
            reason = error.message
    reporter.warning(
        f"using the bundled model {FALLBACK}, since {AUTO} is not cached and {reason} "
        f"(where there is a network: cfx fetch {AUTO}; to be sure: --model {FALLBACK})"
    )
    return FALLBACK


def _why_not(entry: Entry) -> str | None:
    from huggingface_hub import constants

    if hub.is_offline():
        return "HF_HUB_OFFLINE is set"
    host = constants.ENDPOINT.split("://")[-1]
    stamp = cache_directory() / "unreachable"
    if stamp.exists() and time.time() - stamp.stat().st_mtime < AUTO_PAUSE and stamp.read_text() == host:
        return f"{host} could not be reached {(time.time() - stamp.stat().st_mtime) / 60:.0f} minutes ago"
    address = parse(entry.address)
    assert isinstance(address, HubAddress)
    if hub.answers(address, AUTO_SECONDS):
        stamp.unlink(missing_ok=True)
        return None
    stamp.write_text(host)
    return f"{host} cannot be reached"
