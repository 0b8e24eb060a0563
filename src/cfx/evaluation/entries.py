"""Computed entries: pymatgen's JSON of compositions, energies and corrections.

A file is a list of them, or an object with a list of them under "entries"; plain, gzip or bzip2. Alexandria publishes
hulls like that, more than a gigabyte of text each, most of it structures that nobody needs here. Classes that entries
name are not looked at.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from cfx.core.elements import SYMBOLS
from cfx.errors import DataError

CHUNK = 1 << 22
"""Characters read at once."""

DAMAGED = (OSError, EOFError, UnicodeDecodeError, zlib.error, RecursionError)
"""What unreadable files raise."""

NUMBERS = {symbol: z for z, symbol in enumerate(SYMBOLS) if z} | {"D": 1, "T": 1}


class ComputedEntry(NamedTuple):
    """A composition and its computed energy.

    Attributes:
        name: its own, its material's, or its place in the file.
        counts: atomic number -> atoms.
        energy: of these atoms as computed, eV.
        correction: what was added to it, eV.
        schemes: names of the corrections.
    """

    name: str
    counts: dict[int, float]
    energy: float
    correction: float
    schemes: tuple[str, ...]


def read_entries(path: Path, on_progress: Callable[[int], None] | None = None) -> Iterator[ComputedEntry]:
    """The entries of a file.

    Args:
        path: the file.
        on_progress: called with the entries so far, now and then.

    Raises:
        DataError: if it cannot be read, holds something else, or an entry lacks composition or energy.
    """
    try:
        with _open_text(path) as stream:
            for number, value in enumerate(_list_items(_Text(stream, path))):
                yield _entry(path, number, value)
                if on_progress and number % 1000 == 999:
                    on_progress(number + 1)
    except DAMAGED as error:
        raise DataError(f"cannot read {path}: {str(error) or type(error).__name__}") from error


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    """The text of a file, decompressed by what its first bytes are."""
    with open(path, "rb") as raw:
        start = raw.peek(3)[:3]
        opener = bz2.open if start == b"BZh" else gzip.open if start[:2] == b"\x1f\x8b" else None
        with io.TextIOWrapper(opener(raw) if opener else raw, "utf-8-sig") as text:
            yield text


class _Text:
    """JSON text that is read piece by piece."""

    def __init__(self, stream: TextIO, path: Path):
        self._stream, self._path = stream, path
        self._text, self._at = "", 0
        self._decoder = json.JSONDecoder()

    def fail(self) -> DataError:
        return DataError(f"{self._path} is not a JSON list of computed entries, or is cut off")

    def _more(self) -> bool:
        """Reads on, ever larger pieces as long as nothing is consumed."""
        self._text, self._at = self._text[self._at :], 0
        piece = self._stream.read(max(CHUNK, len(self._text)))
        self._text += piece
        return bool(piece)

    def peek(self) -> str:
        """The next character that is not white space, or "" at the end."""
        while True:
            if found := re.compile(r"[^ \t\r\n]").search(self._text, self._at):
                self._at = found.start()
                return found[0]
            self._at = len(self._text)
            if not self._more():
                return ""

    def take(self, characters: str) -> str:
        """The next character, which is one of these."""
        found = self.peek()
        if not found or found not in characters:
            raise self.fail()
        self._at += 1
        return found

    def value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if not self._more():
                    raise self.fail() from None
                continue
            if self._text[end : end + 1] in ("", ".", "e", "E") and self._more():
                continue  # a number may go on
            self._at = end
            return value


def _list_items(text: _Text) -> Iterator[Any]:
    """The values of the list that the text is, or that is under "entries"."""
    if text.peek() == "{":
        _find_entries(text)
    text.take("[")
    if text.peek() == "]":
        return
    yield text.value()
    while text.take(",]") == ",":
        yield text.value()


def _find_entries(text: _Text) -> None:
    """Goes to the value of the key "entries" of the object that the text is."""
    text.take("{")
    while text.peek() == '"':
        key = text.value()
        text.take(":")
        if key == "entries":
            return
        text.value()
        if text.take(",}") == "}":
            break
    raise text.fail()


def _entry(path: Path, number: int, value: Any) -> ComputedEntry:
    """Item `number` of a file as an entry; raises DataError if it is none."""
    if not isinstance(value, dict):
        raise DataError(f"{path}: item {number} is not a computed entry")
    data = value.get("data")
    name = value.get("entry_id") or (data.get("mat_id") if isinstance(data, dict) else None) or f"entry {number}"
    try:
        correction, schemes = _correction(value)
        entry = ComputedEntry(str(name), _counts(value), _number(value["energy"]), correction, schemes)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{path}: {name} (item {number}) is not a computed entry: {reason}") from error
    return entry


def _number(value: Any) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not an energy")
    return float(value)


def _counts(value: dict) -> dict[int, float]:
    """Atomic number -> atoms, of the composition, or else of the structure's sites."""
    if value.get("composition"):
        pairs = list(value["composition"].items())
    else:
        sites = value["structure"]["sites"]
        pairs = [(species["element"], species["occu"]) for site in sites for species in site["species"]]
    counts: dict[int, float] = {}
    for symbol, amount in pairs:
        letters = re.match(r"[A-Z][a-z]?", symbol)
        if not letters or letters[0] not in NUMBERS:
            raise ValueError(f"{symbol!r} is not an element")
        z = NUMBERS[letters[0]]
        counts[z] = counts.get(z, 0.0) + float(amount)
    return counts


def _correction(value: dict) -> tuple[float, tuple[str, ...]]:
    """The sum of an entry's corrections, eV, and their names."""
    adjustments = value.get("energy_adjustments") or []
    names = tuple(str(adjustment.get("name") or "") for adjustment in adjustments)
    if value.get("correction") is not None:
        return _number(value["correction"]), names
    return sum(_adjustment(adjustment) for adjustment in adjustments), names


def _adjustment(adjustment: dict) -> float:
    """The value of one of pymatgen's energy adjustments, eV."""
    if "value" in adjustment:
        return _number(adjustment["value"])
    if "adj_per_atom" in adjustment:
        return _number(adjustment["adj_per_atom"]) * _number(adjustment["n_atoms"])
    raise ValueError(f"a correction of an unknown kind: {adjustment.get('@class')}")
