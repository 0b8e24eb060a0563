"""Crystals of a file as pymatgen Structures, each with its name, or the reason why it is none: what is evaluated."""

from __future__ import annotations

import itertools
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfx.errors import DataError
from cfx.io.encode import DISORDERED
from cfx.io.inputs import READABLE, Record, parse_structure, read_records, reason_of

CHUNK = 64
"""Records that a worker takes at once."""


@dataclass(frozen=True)
class Loaded:
    """One crystal of a file.

    Attributes:
        name: for messages and records.
        structure: pymatgen Structure, or None where there is none.
        reason: why there is none, or "".
        space_group_asked: the space group that whoever made the crystal says it should have, or None.
    """

    name: str
    structure: Any
    reason: str = ""
    space_group_asked: int | None = None


def iterate_crystals(path: Path, num_workers: int = -1) -> Iterator[Loaded]:
    """All crystals of a file, directory or zip, in order; a bad one is a reason, not an error.

    Args:
        path: see `inputs.read_records`.
        num_workers: processes; -1 for all cores. A backend set by `joblib.parallel_config` is used.

    Raises:
        DataError: if the file cannot be read.
    """
    import joblib

    parallel = joblib.Parallel(n_jobs=num_workers, return_as="generator")
    for part in parallel(joblib.delayed(_parse_all)(chunk) for chunk in _chunks(read_records(path))):
        yield from part


def load_crystals(
    path: Path, num_workers: int = -1, on_progress: Callable[[int], None] = lambda done: None
) -> list[Loaded]:
    """All crystals of a file in memory; see `iterate_crystals`.

    Args:
        path: of the file.
        num_workers: processes.
        on_progress: called with the number of crystals read so far.

    Raises:
        DataError: if the file cannot be read, or nothing in it is a crystal.
    """
    loaded: list[Loaded] = []
    for one in iterate_crystals(path, num_workers):
        loaded.append(one)
        if len(loaded) % CHUNK == 0:
            on_progress(len(loaded))
    if not loaded:
        raise DataError(f"{path} holds no crystals", READABLE)
    if all(one.structure is None for one in loaded):
        reason, count = Counter(one.reason for one in loaded).most_common(1)[0]
        raise DataError(f"none of the {len(loaded)} crystals of {path} can be read: {count} x {reason}")
    on_progress(len(loaded))
    return loaded


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    records = iter(records)
    while chunk := list(itertools.islice(records, CHUNK)):
        yield chunk


def _parse_all(records: list[Record]) -> list[Loaded]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [_parse(record) for record in records]


def _parse(record: Record) -> Loaded:
    """The crystal of a record; whatever a parser raises becomes a reason, as in `inputs.encode_records`."""
    asked = _space_group_asked(record)
    try:
        structure = parse_structure(record)
    except Exception as error:
        return Loaded(record.name, None, reason_of(error), asked)
    if not structure.is_ordered:
        return Loaded(record.name, None, DISORDERED, asked)
    return Loaded(record.name, structure, "", asked)


def _space_group_asked(record: Record) -> int | None:
    """Said by cfx's own CIFs and frames, and by the public layout of sites; others say what they found."""
    patterns = {
        "cif": r"^_cfx_model .*^_space_group_IT_number (\d+)",
        "extxyz": r"\bspace_group=(\d+)\b",
        "sites": r'"G": "(\d+)"',
    }
    pattern = patterns.get(record.format)
    match = re.search(pattern, record.text, re.MULTILINE | re.DOTALL) if pattern else None
    return int(match[1]) if match else None
