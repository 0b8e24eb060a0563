"""Rows of plain values as a .csv or .parquet file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cfx.errors import DependencyError, UsageError
from cfx.io.files import replace_atomically


def write_table(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str] = ()) -> None:
    """Writes rows of equal keys; None is an empty cell.

    Args:
        path: of the file.
        rows: there is at least one, unless `columns` says what they would have.
        columns: keys of all rows; by default those of the first.

    Raises:
        UsageError: for another ending than .csv and .parquet.
        DependencyError: for Parquet without pyarrow.
        OutputError: if it cannot be written.
    """
    writers = {".csv": _write_csv, ".parquet": _write_parquet}
    if path.suffix not in writers:
        raise UsageError(f"cannot write {path}", "name a .csv or .parquet file")
    columns = list(columns or rows[0])
    replace_atomically(path, lambda partial: writers[path.suffix](partial, rows, columns))


def _write_csv(path: Path, rows: Sequence[dict[str, Any]], columns: list[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(path: Path, rows: Sequence[dict[str, Any]], columns: list[str]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DependencyError("writing Parquet needs pyarrow", "pip install 'cfx-crystal[parquet]'") from error
    table = pyarrow.Table.from_pydict({name: [row[name] for row in rows] for name in columns})
    parquet.write_table(table, path)
