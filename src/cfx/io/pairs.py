"""Files of preference pairs: a better and a worse crystal a row."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import NamedTuple

from cfx.core.crystal import CrystalBatch
from cfx.errors import DataError
from cfx.io.dataset import as_batch
from cfx.io.encode import SYMPREC
from cfx.io.inputs import Record, encode_records

COLUMNS = ("chosen", "rejected")
FORM = "a .jsonl or .csv with `chosen` and `rejected`, each a CIF or a structure of pymatgen as JSON"


class Pairs(NamedTuple):
    """Encoded pairs.

    Attributes:
        chosen: the better crystal of each (numpy).
        rejected: the worse one.
        failures: rows left out, from 1, and why.
    """

    chosen: CrystalBatch
    rejected: CrystalBatch
    failures: list[tuple[int, str]]


def read_pairs(path: Path, n_max: int) -> Pairs:
    """The pairs of a file, those whose two crystals can be encoded.

    Raises:
        DataError: if the file cannot be read, or no pair is left.
    """
    rows = _rows(path)
    sides = [
        encode_records([_record(row, i, side) for i, row in enumerate(rows, 1)], SYMPREC, n_max - 1) for side in COLUMNS
    ]
    failures = [
        (i, f"{side}: {one}")
        for i, pair in enumerate(zip(*sides, strict=True), 1)
        for side, one in zip(COLUMNS, pair, strict=True)
        if isinstance(one, str)
    ]
    left_out = {row for row, _ in failures}
    kept = [i for i in range(len(rows)) if i + 1 not in left_out]
    if not kept:
        why = f": row {failures[0][0]}, {failures[0][1]}" if failures else ""
        raise DataError(f"{path} holds no pair of crystals{why}", f"write {FORM}")
    chosen, rejected = (as_batch([side[i] for i in kept], n_max) for side in sides)
    return Pairs(chosen, rejected, failures)


def _rows(path: Path) -> list[dict]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                csv.field_size_limit(sys.maxsize)
                rows = list(csv.DictReader(file))
            else:
                rows = [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}", f"write {FORM}") from error
    for i, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not all(row.get(side) for side in COLUMNS):
            raise DataError(f"row {i} of {path} has no chosen and rejected crystal", f"write {FORM}")
    return rows


def _record(row: dict, number: int, side: str) -> Record:
    value = row[side]
    text = value if isinstance(value, str) else json.dumps(value)
    return Record(f"row {number}", "json" if text.lstrip().startswith("{") else "cif", text)
