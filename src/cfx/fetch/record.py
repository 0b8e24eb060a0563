"""The record of what was fetched: from where, from which commit, with which SHA-256.

`fetched.json` in cfx's cache holds a record for each thing that was fetched or converted; what comes a second time must
be the same. Files of the hub have one too. Its own cache knows commits and digests, but other programs share it: they
move its refs, and it may be emptied, and neither may change what a name means to cfx.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self

from cfx.catalog import parse_address
from cfx.errors import DataError, UsageError
from cfx.fetch.failures import failure
from cfx.io.files import cache_directory, exclusively, parse_json, replace_atomically

FILE_NAME = "fetched.json"
FORMAT = 1


@dataclass(frozen=True)
class Digest:
    """What a file must be: its SHA-256, hexadecimal, and its size in bytes."""

    sha256: str
    size: int

    def __post_init__(self):
        if not re.fullmatch("[0-9a-f]{64}", self.sha256) or type(self.size) is not int or self.size < 0:
            raise ValueError(f"no digest: {self.sha256!r}, {self.size!r}")


@dataclass(frozen=True)
class Remote:
    """A file that a server offers.

    Attributes:
        url: where.
        size: bytes, or None if the server does not say.
        version: changes when the content does, as an ETag.
        digest: SHA-256 of the content, or git's SHA-1, hexadecimal; None if the server does not say.
        headers: to be sent along.
    """

    url: str
    size: int | None
    version: str
    digest: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold a token


@dataclass(frozen=True)
class Record:
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
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    @property
    def sha256s(self) -> set[str]:
        """SHA-256 of all files."""
        return {file.sha256 for file in self.files.values()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """A record from plain values.

        Raises:
            KeyError, TypeError, ValueError: if they are something else.
        """
        files = {_inside(name): Digest(**digest) for name, digest in content["files"].items()}
        directory = content.get("directory")
        if not files:
            raise ValueError("a record without files")
        return cls(**{**content, "files": files, "directory": directory and _inside(directory)})


def _inside(path: str) -> str:
    """A path, if it stays below where it begins."""
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or path.startswith("/") or "\\" in path:
        raise ValueError(f"{path!r} is outside its directory")
    return path


def read_records(path: Path | None = None) -> dict[str, Record]:
    """All records of the cache, or of another file: by address or, for converted models, by directory.

    Raises:
        DataError: if the file is damaged.
    """
    path = path or cache_directory() / FILE_NAME
    try:
        content = parse_json(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']} is from another version of cfx")
        records = {key: Record.from_json(record) for key, record in content["records"].items()}
        for key, record in records.items():
            if record.source is None:
                parse_address(key)
            elif key != record.directory:
                raise ValueError(f"{key} is stored elsewhere")
        return records
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise DataError(f"{path} is damaged: {error}", "remove it; what was fetched is then checked again") from error


def write_records(records: Mapping[str, Record], path: Path) -> None:
    """Replaces a file of records.

    Raises:
        OutputError: if it cannot be written.
    """
    plain = {key: asdict(record) for key, record in sorted(records.items())}
    stated = {key: {name: x for name, x in facts.items() if x not in (None, {})} for key, facts in plain.items()}
    text = json.dumps({"format": FORMAT, "records": stated}, indent=1) + "\n"
    replace_atomically(path, lambda fresh: fresh.write_text(text))


def update_records(change: Callable[[dict[str, Record]], object], path: Path | None = None) -> None:
    """Changes the records of the cache, or of another file; one process at a time, so that none loses another's."""
    with exclusively("lock"):
        records = read_records(path)
        change(records)
        write_records(records, path or cache_directory() / FILE_NAME)


def remember(key: str, record: Record) -> None:
    """Adds a record of the cache, or replaces it."""
    update_records(lambda records: records.update({key: record}))


def forget(key: str) -> None:
    """Removes a record of the cache."""
    update_records(lambda records: records.pop(key, None))


def check_same(what: str, before: Mapping[str, Digest], now: Mapping[str, Digest]) -> None:
    """Refuses files, by name, that are not what they were; nothing was, if they are new. `what` is for the message.

    Raises:
        NetworkError: if one was another before, or there are others.
    """
    if not before or before == now:
        return
    name = next(name for name in (*now, *before) if before.get(name) != now.get(name))
    was, is_now = (f"{files[name].sha256[:12]}..." if name in files else "missing" for files in (before, now))
    raise failure("changed", what=what, name=name, before=was, now=is_now)


def digest_of(path: Path) -> Digest:
    """The digest of a file on this machine.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return Digest(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def matches(announced: str | None, digest: Digest, path: Path) -> bool:
    """Whether a file is what was announced: by its SHA-256, or by its git SHA-1, or by nothing."""
    if announced is None or len(announced) == 64:
        return announced in (None, digest.sha256)
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.sha1(f"blob {digest.size}\0".encode()))
    return announced == found.hexdigest()
