"""What a table of crystals says besides the structures: its columns of numbers."""

from __future__ import annotations

import csv
import gzip
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cfx.errors import DataError, DependencyError
from cfx.io.inputs import STRUCTURE_COLUMNS, UNREADABLE

FORMATS = (".csv", ".csv.gz", ".jsonl", ".parquet")


def column_names(path: Path) -> list[str]:
    """Of a table, those of structures left out; nothing for what is no table.

    Raises:
        DataError: if it cannot be read.
    """
    if not path.name.lower().endswith(FORMATS) or path.is_dir():
        return []
    first = next(_rows(path), {})
    return [name for name in first if name not in STRUCTURE_COLUMNS]


def read_column(path: Path, name: str) -> np.ndarray:
    """A column of a table, float64 [rows], rows as in `inputs.read_records`; NaN where there is no number.

    Raises:
        DataError: if it cannot be read, has no such column, or no number in it.
    """
    columns = column_names(path)
    if name not in columns:
        raise DataError(f"{path.name} has no column {name}", f"there are: {', '.join(columns) or 'none'}")
    values = np.array([_number(row.get(name)) for row in _rows(path, name)], float)
    if not np.isfinite(values).any():
        raise DataError(f"the column {name} of {path.name} holds no numbers")
    return values


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _rows(path: Path, column: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a table as dicts; of Parquet only a column, if it is named."""
    name = path.name.lower()
    try:
        if name.endswith(".parquet"):
            yield from _parquet_rows(path, column)
            return
        open_text = gzip.open if name.endswith(".gz") else open
        with open_text(path, "rt", encoding="utf-8-sig", newline="") as file:
            if name.endswith(".jsonl"):
                yield from map(_json_row, filter(str.strip, file))
            else:
                csv.field_size_limit(sys.maxsize)
                yield from csv.DictReader(file)
    except (*UNREADABLE, ValueError) as error:
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())}") from error


def _json_row(line: str) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("a line is no JSON object")
    return row


def _parquet_rows(path: Path, column: str | None) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DependencyError("reading Parquet needs pyarrow", "pip install 'cfx-crystal[parquet]'") from error
    with ParquetFile(path) as table:
        if column is None:
            yield dict.fromkeys(table.schema_arrow.names)
            return
        for batch in table.iter_batches(columns=[column]):
            yield from batch.to_pylist()
