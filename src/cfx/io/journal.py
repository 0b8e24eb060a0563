"""Files that grow while a command works, and what of them counts after a kill.

A journal is a file that is only appended to. What was committed is on the disk and counts, whatever happens next; what
came after is cut off when the work is resumed. What counts is never written a second time, so that a full disk loses
nothing. How much counts is said by a small file beside the journal, replaced after every commit (`write_state`), or by
the lines themselves where they are JSON. `cfx.io.files.sole_writer` keeps other processes away.
"""

import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from cfx.errors import DataError, OutputError, UsageError
from cfx.io.files import content_digest, parse_json, remove_file, replace_atomically, sync, writing

PIECE = 1 << 20
"""Bytes that are read at once."""


class Journal:
    """A file that is only appended to; OutputError where it cannot be written.

    Attributes:
        path: of the file.
        size: its bytes so far; None as long as it was neither begun nor resumed: then it goes on where it ends.
        crc: CRC-32 of these bytes.
    """

    def __init__(self, path: Path, result: Path | None = None, hint: str | None = None):
        """Nothing is read or written yet. Errors name `result` instead of the file, and propose what `hint` says."""
        self.path, self._result, self._hint = path, result or path, hint
        self.size: int | None = None
        self.crc = 0
        self._has_tail = False

    def begin(self, header: bytes = b"") -> None:
        """Starts anew, with a header."""
        with writing(self._result, self._hint):
            self.path.write_bytes(b"")
        self.size, self.crc, self._has_tail = 0, 0, False
        self.append(header)

    def resume(self, size: int, keep: bool = False, crc: int | None = None) -> None:
        """Goes on after so many bytes.

        If `keep`, what follows them is left until something else is appended: work that is done again may give the
        same, and be interrupted again. If `crc` is known, bytes with another one are refused.
        """
        with writing(self._result, self._hint), open(self.path, "a+b") as file:
            if file.tell() < size:
                raise OutputError(f"{self.path} is shorter than it was", "start again with `force`")
            file.seek(0)
            self.crc = _crc(file, size)
            if crc not in (None, self.crc):
                raise OutputError(f"{self.path} is not as it was written", "start again with `force`")
            if not keep:
                file.truncate(size)
        self.size, self._has_tail = size, keep

    def append(self, data: bytes) -> None:
        """Adds data, whole or not at all; it counts once it is committed."""
        # Without a buffer: what a full disk refuses is cut off below, and nothing is left to be written on closing.
        with writing(self._result, self._hint), open(self.path, "a+b", buffering=0) as file:
            end = file.tell()
            start = end if self.size is None else self.size
            if end > start and self._has_tail:
                file.seek(start)
                if file.read(len(data)) == data:
                    self._count(start, data)
                    return
                file.truncate(start)
            elif end != start:
                raise OutputError(f"{self.path} was changed by another process", "start again with `force`")
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                with suppress(OSError):
                    file.truncate(start)
                raise
        self._count(start, data)

    def _count(self, start: int, data: bytes) -> None:
        self.size, self.crc = start + len(data), zlib.crc32(data, self.crc)

    def commit(self) -> None:
        """Brings what was appended to the disk."""
        with writing(self._result, self._hint):
            sync(self.path)


def _crc(file: BinaryIO, size: int) -> int:
    """CRC-32 of the next `size` bytes."""
    crc = 0
    while size > 0 and (piece := file.read(min(size, PIECE))):
        crc, size = zlib.crc32(piece, crc), size - len(piece)
    return crc


class JsonLines(Journal):
    """A journal of JSON objects, one a line; those whose line is whole count."""

    def add(self, *rows: dict[str, Any]) -> None:
        """Appends rows and commits them."""
        self.append("".join(json.dumps(row) + "\n" for row in rows).encode())
        self.commit()

    def read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Every row with the number of bytes up to its end; a last line that was cut short is left out.

        Raises:
            DataError: if another line is damaged, or the file cannot be read.
        """
        end = 0
        try:
            with open(self.path, "rb") as file:
                for number, line in enumerate(file, start=1):
                    if not line.endswith(b"\n"):
                        return
                    end += len(line)
                    try:
                        yield end, parse_json(line)
                    except ValueError as error:
                        raise DataError(f"line {number} of {self.path} is damaged: {error}") from error
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror}") from error


def write_state(path: Path, state: dict[str, Any], hint: str | None = None) -> None:
    """Replaces the file that says what of a journal counts."""
    text = json.dumps(state, indent=1) + "\n"
    replace_atomically(path, lambda fresh: fresh.write_text(text), path.with_name(f"{path.name}.new"), hint)


def check_same_run(path: Path, before: Any, header: dict[str, Any], how: str) -> None:
    """Makes sure that a journal was begun by the run that continues it.

    Args:
        path: of the journal.
        before: its first line.
        header: what this run has in its place.
        how: what to do, for the hint.

    Raises:
        UsageError: if not.
    """
    if before == header:
        return
    known = before if isinstance(before, dict) else {}
    different = [key for key in {**header, **known} if known.get(key) != header.get(key)]
    if different == ["model"]:
        raise UsageError(
            f"{path} was started with another model",
            "name that one (bundled models change with the version of cfx), or start again with `force`",
        )
    raise UsageError(
        f"{path} was started with different settings ({', '.join(different)})",
        f"{how}, or start again with `force`",
    )


def partial_of(path: Path) -> Path:
    """Where a result grows until it is complete."""
    return path.parent / f"{path.name}.partial"


def complete(path: Path, write: Callable[[Path], object]) -> None:
    """Gives a result that is made from its journal, by `write`, its name, and removes what lay beside it.

    The digest of what takes the name is noted first: a process that was killed before the journal was gone has finished
    all the same.
    """
    partial = partial_of(path)

    def noted(fresh: Path) -> None:
        write(fresh)
        partial.with_name(f"{partial.name}.digest").write_text(content_digest(fresh, []))

    replace_atomically(path, noted, fresh=partial.with_name(f"{partial.name}.new"))
    remove_partial(path)


def _is_complete(path: Path) -> bool:
    """Whether a result has its name, though its journal may still be there."""
    partial = partial_of(path)
    note = partial.with_name(f"{partial.name}.digest")
    with suppress(OSError):
        return path.exists() and (not partial.exists() or note.read_text() == content_digest(path, []))
    return False


def remove_partial(path: Path) -> None:
    """Removes what lies beside a result while it grows."""
    partial = partial_of(path)
    for ending in ("", ".new", ".kept", ".json", ".json.new", ".digest"):
        beside = partial.with_name(partial.name + ending)
        if beside.is_dir():
            with writing(path):
                shutil.rmtree(beside)
        else:
            remove_file(beside)


def check_unfinished(path: Path, force: bool, resume: bool) -> None:
    """Finds out before the work whether a result that grows may be begun, or resumed.

    Raises:
        OutputError: if it is there, complete or not, and was not meant to be overwritten or resumed; a complete one is
            never resumed.
    """
    partial = partial_of(path)
    if resume and _is_complete(path):
        remove_partial(path)  # of a process that was killed after it gave the result its name
        raise OutputError(f"{path} is complete: there is nothing to continue", "to make it again: `force`, no `resume`")
    if path.exists() and not force:
        raise OutputError(f"{path} exists", "choose another name, or overwrite it with `force`")
    if partial.exists() and not (force or resume):
        raise OutputError(
            f"{partial} holds an unfinished run", "continue it with `resume`, or start again with `force`"
        )
