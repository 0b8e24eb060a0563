"""Encoded crystals on disk, and the reasons why rows were left out.

A store is a directory. crystals.bin and sites.bin hold the records below, names.jsonl a JSON string for every crystal,
failures.csv the rows that are none, and dataset.json the counts and the length of each file. While it grows it is
called NAME.partial: files are journals, and dataset.json, replaced after every commit, says how much of them counts.
Nothing here imports JAX.
"""

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cfx.data.encode import EncodedCrystal
from cfx.io.files import parse_json, sync, try_lock, writing
from cfx.io.journal import Journal, write_state

FORMAT = 1
"""Version of the layout; stores of another one are made again."""

CRYSTAL = np.dtype(
    [("space_group", "u1"), ("num_sites", "<u2"), ("row", "<u4"), ("start", "<u8"), ("lattice", "<f4", 6)]
)
"""One crystal: its row in the input (the first is 1), where its sites start, lattice in angstrom and degree."""

SITE = np.dtype([("wyckoff", "u1"), ("species", "u1"), ("frac_coords", "<f4", 3)])
"""One symmetry-inequivalent site, as in `CrystalBatch`."""

FILES = ("crystals.bin", "sites.bin", "names.jsonl", "failures.csv")

HINT = "set CFX_CACHE to a directory with free space"


class Failure(NamedTuple):
    """A row of the input (the first is 1) that is not a crystal for the model, and why."""

    row: int
    name: str
    reason: str


class Part(NamedTuple):
    """Consecutive rows of a data set; `row` and `start` count from the beginning of the part.

    Attributes:
        rows: how many.
        crystals: CRYSTAL [n].
        sites: SITE, of one crystal after another.
        names: of the crystals.
        failures: the other rows.
    """

    rows: int
    crystals: np.ndarray
    sites: np.ndarray
    names: list[str]
    failures: list[Failure]


def pack(names: Sequence[str], results: Sequence[EncodedCrystal | str]) -> Part:
    """The part of rows with these names that became a crystal or a reason."""
    kept = [i for i, result in enumerate(results) if not isinstance(result, str)]
    found = [result for result in results if not isinstance(result, str)]
    crystals = np.zeros(len(kept), CRYSTAL)
    crystals["row"] = np.array(kept, int) + 1
    crystals["num_sites"] = [len(crystal.wyckoff) for crystal in found]
    sites = np.zeros(int(crystals["num_sites"].sum()), SITE)
    if found:
        crystals["start"] = np.cumsum(crystals["num_sites"], dtype=np.int64) - crystals["num_sites"]
        for name in ("space_group", "lattice"):
            crystals[name] = [getattr(crystal, name) for crystal in found]
        for name in SITE.names or ():
            sites[name] = np.concatenate([getattr(crystal, name) for crystal in found])
        sites["frac_coords"][sites["frac_coords"] >= 1] = 0  # the largest float64 below 1 rounds up
    failures = [Failure(i + 1, names[i], result) for i, result in enumerate(results) if isinstance(result, str)]
    return Part(len(results), crystals, sites, [names[i] for i in kept], failures)


class StoreWriter:
    """Appends parts to a store, after what an earlier writer committed; OutputError where it cannot be written."""

    def __init__(self, directory: Path, settings: dict[str, Any]):
        """`settings` are kept in dataset.json; its `digest` decides whether earlier work is continued."""
        self.directory, self._settings = directory, settings
        state = read_state(directory, settings["digest"]) or {"bytes": {}}
        self._counts = {name: state.get(name, 0) for name in ("rows", "crystals", "sites", "failures")}
        self._files = {name: Journal(directory / name, directory, HINT) for name in FILES}
        for name, journal in self._files.items():
            journal.resume(state["bytes"].get(name, 0))
        if not self._files["failures.csv"].size:
            self._files["failures.csv"].append(b"row,name,reason\n")

    @property
    def rows(self) -> int:
        """Rows of the input that are in the store."""
        return self._counts["rows"]

    def append(self, part: Part) -> None:
        """Adds rows; they count only once committed."""
        crystals = part.crystals.copy()
        crystals["row"] += self._counts["rows"]
        crystals["start"] += self._counts["sites"]
        failures = io.StringIO()
        csv.writer(failures, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC).writerows(
            failure._replace(row=failure.row + self._counts["rows"]) for failure in part.failures
        )
        names = "".join(json.dumps(name) + "\n" for name in part.names)
        data = (crystals.tobytes(), part.sites.tobytes(), names.encode())
        for name, more in zip(FILES, (*data, failures.getvalue().encode(errors="backslashreplace")), strict=True):
            self._files[name].append(more)
        added = (part.rows, len(crystals), len(part.sites), len(part.failures))
        self._counts = {name: self._counts[name] + more for name, more in zip(self._counts, added, strict=True)}

    def commit(self) -> None:
        """Makes everything appended so far last, whatever happens next."""
        # In this order: what dataset.json counts is on the disk before it says so.
        for journal in self._files.values():
            journal.commit()
        lengths = {name: journal.size for name, journal in self._files.items()}
        state = {"format": FORMAT, **self._settings, **self._counts, "bytes": lengths}
        write_state(self.directory / "dataset.json", state, HINT)
        with writing(self.directory, HINT):
            sync(self.directory)


def read_state(directory: Path, digest: str) -> dict[str, Any] | None:
    """What dataset.json says, or None where there is no store of that digest or it is damaged."""
    try:
        state = parse_json((directory / "dataset.json").read_text())
        lengths = dict(state["bytes"])
        expected = {"crystals.bin": state["crystals"] * CRYSTAL.itemsize, "sites.bin": state["sites"] * SITE.itemsize}
        whole = all((directory / name).stat().st_size >= lengths[name] for name in FILES)
        known = state["format"] == FORMAT and state["digest"] == digest and lengths == lengths | expected
        return state if whole and known else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def map_records(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """The first records of a file, mapped into memory read-only."""
    return np.memmap(path, dtype, "r", shape=(count,)) if count else np.zeros(0, dtype)


@contextmanager
def exclusive(directory: Path) -> Iterator[bool]:
    """Makes a directory if need be and locks it; False where another process holds it, or has just renamed it."""
    with writing(directory, HINT):
        directory.mkdir(parents=True, exist_ok=True)
    # By a file, since network file systems do not lock directories for other hosts. It stays in the store.
    with try_lock(directory / "lock", "set CFX_CACHE to a local directory") as ours:
        yield ours


def publish(partial: Path, final: Path) -> None:
    """Renames a finished store, in the place of a damaged one if there is one.

    Raises:
        OutputError: if it cannot be renamed.
    """
    with writing(final, HINT):
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
        sync(final.parent)


_NUMBER = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)(?![\w.]*\w)")


class Reason(NamedTuple):
    """Rows that were left out for one reason.

    Attributes:
        text: the reason; numbers that differ between rows are given as a range ("21 to 25 sites").
        rows: how many.
        example: name of the first.
    """

    text: str
    rows: int
    example: str


def count_reasons(failures: Iterable[Failure]) -> list[Reason]:
    """The reasons of all failures, the most frequent first."""
    groups: dict[tuple[str, ...], list] = {}
    for failure in failures:
        pieces = _NUMBER.split(failure.reason)
        numbers = pieces[1::2]
        group = groups.setdefault(tuple(pieces[::2]), [0, failure.name, numbers, numbers])
        group[0] += 1
        group[2] = [min(pair, key=float) for pair in zip(group[2], numbers, strict=True)]
        group[3] = [max(pair, key=float) for pair in zip(group[3], numbers, strict=True)]
    reasons = [Reason(_text(words, low, high), rows, name) for words, (rows, name, low, high) in groups.items()]
    return sorted(reasons, key=lambda reason: -reason.rows)


def describe(reasons: list[Reason], most: int = 5) -> str:
    """The most frequent reasons with their counts, on one line."""
    parts = [f"{one.rows} x {one.text} ({one.example}{', ...' * (one.rows > 1)})" for one in reasons[:most]]
    if rest := sum(reason.rows for reason in reasons[most:]):
        parts.append(f"{rest} for other reasons")
    return "; ".join(parts)


def _text(words: tuple[str, ...], lowest: list[str], highest: list[str]) -> str:
    ranges = [low if low == high else f"{low} to {high}" for low, high in zip(lowest, highest, strict=True)]
    return "".join(part for pair in zip(words, [*ranges, ""], strict=True) for part in pair)
