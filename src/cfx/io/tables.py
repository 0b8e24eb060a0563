"""Rows of plain values as CSV or Parquet."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cfx.errors import DependencyError, UsageError
from cfx.io.files import replace_atomically

Rows = Sequence[dict[str, Any]]


def write_table(path: Path, rows: Rows, columns: Sequence[str] = (), decimals: int | None = None) -> None:
    """Writes rows of equal keys; None and NaN are empty cells.

    Args:
        path: of the file.
        rows: there is at least one, unless `columns` says what they would have.
        columns: keys of all rows; by default those of the first.
        decimals: of floats in a .csv; all there are by default.

    Raises:
        UsageError: for another ending than .csv and .parquet.
        DependencyError: for Parquet without pyarrow.
        OutputError: if it cannot be written.
    """
    if path.suffix == ".csv":
        text = csv_text(rows, columns, decimals)
        replace_atomically(path, lambda fresh: fresh.write_text(text, encoding="utf-8", newline=""))
    elif path.suffix == ".parquet":
        replace_atomically(path, lambda fresh: _write_parquet(fresh, rows, columns or list(rows[0])))
    else:
        raise UsageError(f"cannot write {path}", "name a .csv or .parquet file")


def csv_text(rows: Rows, columns: Sequence[str] = (), decimals: int | None = None) -> str:
    """The rows as CSV; see `write_table`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value, decimals) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any, decimals: int | None) -> Any:
    """A value as CSV; what a spreadsheet would run as a formula gets an apostrophe, by which it is text."""
    if _is_nan(value):
        return None
    if isinstance(value, float) and decimals is not None:
        return f"{value:.{decimals}f}"
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _write_parquet(path: Path, rows: Rows, columns: Sequence[str]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DependencyError("writing Parquet needs pyarrow", "pip install 'cfx-crystal[parquet]'") from error
    cells = {name: [None if _is_nan(row[name]) else row[name] for row in rows] for name in columns}
    parquet.write_table(pyarrow.Table.from_pydict(cells), path)
