"""The record of what was fetched: from where, from which commit, with which SHA-256.

`fetched.json` in the cache directory holds a record for each thing that was fetched or converted. A file that comes a
second time must be the same. Records are written under a lock, so that processes do not lose each other's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cfx.errors import DataError, NetworkError, UsageError
from cfx.fetch.addresses import parse
from cfx.io.files import cache_directory, exclusively, replace_atomically

FILE_NAME = "fetched.json"
FORMAT = 1
MODELS = "models"
"""Directory of converted models."""


@dataclass(frozen=True)
class Digest:
    """What a file must be: its SHA-256, hexadecimal, and its size in bytes."""

    sha256: str
    size: int

    def __post_init__(self):
        if not re.fullmatch("[0-9a-f]{64}", self.sha256) or type(self.size) is not int or self.size < 0:
            raise ValueError(f"no digest: {self.sha256!r}, {self.size!r}")


@dataclass(frozen=True)
class Locked:
    """What is known of something that was fetched or converted.

    Attributes:
        files: names, relative to where it lies -> what they must be.
        commit: of the hub, or None for what comes from elsewhere.
        directory: below the cache directory; None for files in the hub's own cache.
        source: of a converted model, the address it was made from.
        made_from: of a converted model, the SHA-256 of the file it was made from.
        converter: of a converted model, the version of what made it.
        settings: of a converted model, what its conversion was told.
    """

    files: Mapping[str, Digest]
    commit: str | None = None
    directory: str | None = None
    source: str | None = None
    made_from: str | None = None
    converter: int | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value not in (None, {})}

    @classmethod
    def of(cls, content: dict[str, Any]) -> Locked:
        """The inverse of `as_json`.

        Raises:
            KeyError, TypeError, ValueError: if the content is something else.
        """
        files = {check_relative(name): Digest(**digest) for name, digest in content["files"].items()}
        directory = content.get("directory")
        if not files:
            raise ValueError("a record without files")
        return cls(**{**content, "files": files, "directory": directory and check_relative(directory)})


def check_relative(path: str) -> str:
    """A path that stays below where it begins.

    Raises:
        ValueError: if it does not.
    """
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or path.startswith("/") or "\\" in path:
        raise ValueError(f"{path!r} leads out of its directory")
    return path


def read_lockfile(path: Path | None = None) -> dict[str, Locked]:
    """All records, by address or, for converted models, by directory.

    Args:
        path: of another lockfile than that of the cache.

    Raises:
        DataError: if the file is damaged.
    """
    path = path or lockfile_path()
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']} of another version of cfx")
        records = {key: Locked.of(record) for key, record in content["records"].items()}
        for key, locked in records.items():
            if locked.source is None:
                parse(key)
            elif key != locked.directory:
                raise ValueError(f"{key} lies elsewhere")
        return records
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise DataError(f"{path} is damaged: {error}", "remove it; what was fetched is then checked anew") from error


def write_lockfile(records: Mapping[str, Locked], path: Path | None = None) -> None:
    """Replaces a lockfile.

    Raises:
        OutputError: if it cannot be written.
    """
    content = {"format": FORMAT, "records": {key: records[key].as_json() for key in sorted(records)}}
    text = json.dumps(content, indent=1) + "\n"
    replace_atomically(path or lockfile_path(), lambda partial: partial.write_text(text))


def update_lockfile(change: Callable[[dict[str, Locked]], None]) -> None:
    """Changes the records of the cache; one process at a time."""
    with exclusively("lock"):
        records = read_lockfile()
        change(records)
        write_lockfile(records)


def record(key: str, locked: Locked, replace: bool = False) -> None:
    """Adds a record.

    Args:
        key: address, or directory of a converted model.
        locked: what was fetched.
        replace: forget what was recorded before; otherwise it must agree.

    Raises:
        NetworkError: if it does not.
    """

    def change(records: dict[str, Locked]) -> None:
        if not replace and key in records:
            check_same(key, records[key].files, locked.files)
        records[key] = locked

    update_lockfile(change)


def forget(*keys: str) -> None:
    """Removes records."""
    update_lockfile(lambda records: [records.pop(key, None) for key in keys])


def check_same(what: str, before: Mapping[str, Digest], now: Mapping[str, Digest]) -> None:
    """Refuses files that are not what they were.

    Args:
        what: for the message.
        before: names -> what they were; nothing if they are new.
        now: what they are.

    Raises:
        NetworkError: if one was another before, or there are others.
    """
    if not before or before == now:
        return
    name = next(name for name in (*now, *before) if before.get(name) != now.get(name))
    was, is_now = (f"{files[name].sha256[:12]}..." if name in files else "missing" for files in (before, now))
    raise NetworkError(
        f"{what} is not what it was when it was first fetched: the SHA-256 of {name} was {was}, and is {is_now} now",
        "if you trust the new file, accept it: cfx fetch NAME --accept",
    )


def digest_of(path: Path) -> Digest:
    """Of a file.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return Digest(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def lockfile_path() -> Path:
    """Of the cache's lockfile."""
    return cache_directory() / FILE_NAME
