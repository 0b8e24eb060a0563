"""Tables of crystals: CSV, JSON lines and Parquet, with a column of CIFs or of pymatgen's dicts, or CrystalFormer's."""

import ast
import csv
import gzip
import io
import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

import numpy as np

from cfx.core import Structure
from cfx.core.elements import SYMBOLS
from cfx.core.symmetry import orbit, symmetry_table
from cfx.data.formats import LATIN, MOST_ATOMS, MOST_CHARACTERS, UNREADABLE, Record, encoding_of
from cfx.errors import DataError, DependencyError, install
from cfx.io.files import parse_json

ID_COLUMNS = ("material_id", "id", "name")
STRUCTURE_COLUMNS = {"cif": "cif", "structure": "json", "cif_string": "cif"}
SITE_COLUMNS = ("L", "X", "A", "W", "G")
MOST_HELD = 1000
"""Rows without a structure that a file of JSON lines may begin with."""


def _structure_columns(name: str, columns: Sequence[str]) -> list[str]:
    """Which columns of a table hold structures."""
    if not columns:
        raise DataError(f"{name} is empty")
    found = [column for column in STRUCTURE_COLUMNS if column in columns]
    if not found:
        raise DataError(
            f"{name} has no column with structures (columns: {', '.join(columns)})",
            "name the column that holds CIFs `cif`, or the one that holds pymatgen dicts `structure`",
        )
    return found


def _record(row: Mapping[str, Any], number: int, columns: Sequence[str]) -> Record:
    """The record of a row: its structure is in the first column that is not empty, nested or as text."""
    name = next((row[key] for key in ID_COLUMNS if key in row), None)
    column = next((column for column in columns if _holds_something(row[column])), columns[0])
    value = row[column]
    missing = value is None or (isinstance(value, str | float) and not _holds_something(str(value)))
    text = "" if missing else value if isinstance(value, str) else json.dumps(value, default=str)
    return Record(f"row {number}" if name in (None, "") else str(name), STRUCTURE_COLUMNS[column], text)


def _holds_something(value: Any) -> bool:
    """Whether a cell may be a structure: pandas writes what is missing as NaN, and others as "null"."""
    if isinstance(value, str):
        return value.strip().lower() not in ("", "nan", "null", "none", "na", "<na>")
    return bool(value) and not isinstance(value, int | float)


def csv_records(name: str, lines: TextIO) -> Iterator[Record]:
    """The records of a CSV table, one for every row."""
    csv.field_size_limit(MOST_CHARACTERS)
    reader = csv.DictReader(lines)
    columns = reader.fieldnames or []
    if set(SITE_COLUMNS) <= set(columns):
        for i, row in enumerate(reader, start=1):
            yield Record(f"row {i}", "sites", json.dumps({key: row[key] for key in SITE_COLUMNS}))
        return
    found = _structure_columns(name, columns)
    for i, row in enumerate(reader, start=1):
        yield _record(row, i, found)


def jsonl_records(name: str, lines: TextIO) -> Iterator[Record]:
    """The records of JSON Lines, one for every line.

    A line without a structure is unreadable, unless no line has one.

    Raises:
        DataError: if no line has a structure.
    """
    held: list[Record] = []
    found = False
    filled = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    for i, (number, line) in enumerate(filled, start=1):
        try:
            content = parse_json(line)
            record = _record(content, i, [column for column in STRUCTURE_COLUMNS if column in content])
        except (ValueError, TypeError, LookupError):
            record = Record(f"row {i}", "unreadable", f"line {number} is not JSON with a `cif` or `structure`")
        found = found or record.format != "unreadable"
        held.append(record)
        if found:
            yield from held
            held = []
        elif len(held) > MOST_HELD:
            break
    if held:
        raise DataError(f"{name}: {held[0].text}")


def parquet_records(name: str, file: IO[bytes]) -> Iterator[Record]:
    """The records of a Parquet table, one for every row, read piece by piece."""
    pyarrow = _pyarrow()
    try:
        # By default pyarrow reads whole row groups, and keeps them.
        table = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=65536)
        columns = table.schema_arrow.names
        found = _structure_columns(name, columns)
        needed = [*found, *[key for key in ID_COLUMNS if key in columns][:1]]
        batches = table.iter_batches(1024, columns=needed)
        rows = (row.as_py() for batch in batches for row in batch.to_struct_array())
        for i, row in enumerate(rows, start=1):
            yield _record(row, i, found)
    except (pyarrow.ArrowException, ValueError) as error:
        raise RuntimeError(str(error)) from error


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DependencyError("reading Parquet needs pyarrow", install("parquet")) from error
    return pyarrow


def structure_of_dict(text: str) -> "Structure":
    """The structure of a pymatgen dict; charges and properties are left out."""
    from pymatgen.core import Structure

    # JSON, or as Python prints it. Nothing in it is evaluated or imported: pymatgen sees a new dict of plain values.
    try:
        content = parse_json(text)
    except ValueError:
        content = _literal(text)
    try:
        sites = [
            {"species": [_species(one) for one in site["species"]], "abc": site["abc"]} for site in content["sites"]
        ]
        plain = {"lattice": {"matrix": content["lattice"]["matrix"]}, "sites": sites}
        np.array(plain["lattice"]["matrix"], float).reshape(3, 3)
        np.array([site["abc"] for site in sites], float).reshape(len(sites), 3)
        periodic = set(content["lattice"].get("pbc") or [True])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError("not a pymatgen Structure dictionary with a lattice and sites") from error
    if len(periodic) > 1:
        raise ValueError("a structure that is periodic in some directions only")
    if not sites:
        raise ValueError("no atoms")
    return Structure.from_dict(plain)


def _species(occupation: dict[str, Any]) -> dict[str, Any]:
    """What is on a site. Other entries, like properties, may name classes, which pymatgen would import and call."""
    kept = {key: occupation[key] for key in ("element", "occu", "oxidation_state") if key in occupation}
    if not all(isinstance(value, str | int | float | None) for value in kept.values()):
        raise TypeError("an element is a name")
    if not isinstance(kept.get("occu", 1), int | float):
        raise TypeError("an occupancy is a number")
    return kept


def _literal(text: str) -> Any:
    """What a printed dict says, or a ValueError. (Its syntax tree takes a hundred times the text's memory.)"""
    try:
        if len(text) > MOST_CHARACTERS // 5:
            raise ValueError("too long")
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError("neither JSON nor a printed dict (nan, inf and np.float64(...) are not read)") from error


def structure_of_sites(text: str) -> "Structure":
    """The conventional cell that the columns L, X, A, W and G describe."""
    from pymatgen.core import Lattice, Structure

    try:
        lattice, points, numbers, letters, group = (parse_json(cell) for cell in parse_json(text).values())
        if group not in range(1, 231):
            raise ValueError(f"there is no space group {group}")
        if len(letters) * 192 > MOST_ATOMS:
            raise ValueError(f"{len(letters)} sites are too many")
        last = symmetry_table().last_letter[group - 1]
        species, coords = [], []
        sites = zip(points, numbers, letters, strict=True)
        for point, number, letter in itertools.takewhile(lambda site: site[2], sites):
            if letter not in range(1, last + 1):
                raise ValueError(f"space group {group} has no letter number {letter}")
            coords.append(orbit(group, letter, np.array(point, float)))
            species += [SYMBOLS[number]] * len(coords[-1])
        return Structure(Lattice.from_parameters(*lattice), species, np.concatenate(coords))
    except (TypeError, LookupError, ValueError, OverflowError) as error:
        raise ValueError(f"not a crystal in the columns L, X, A, W, G: {error}") from error


# Whole tables, and their other columns.

TABLES = (".csv", ".csv.gz", ".jsonl", ".parquet")


def column_names(path: Path) -> list[str]:
    """Columns of a table without those of structures; none for a file that is not a table.

    Raises:
        DataError: if it cannot be read.
    """
    if not path.name.lower().endswith(TABLES) or path.is_dir():
        return []
    if path.suffix.lower() == ".parquet":
        with _reading(path):
            names = _pyarrow().parquet.read_schema(path).names
    else:
        names = next(read_rows(path), {})
    return [name for name in names if name not in STRUCTURE_COLUMNS]


def read_column(path: Path, name: str) -> np.ndarray:
    """A column of a table, float64 [rows], rows as in `data.read.read_records`; NaN where there is no number.

    Raises:
        DataError: if it cannot be read, has no such column, or no number in it.
    """
    columns = column_names(path)
    if name not in columns:
        raise DataError(f"{path.name} has no column {name}", f"there are: {', '.join(columns) or 'none'}")
    values = np.array([_number(row.get(name)) for row in read_rows(path, [name])], float)
    if not np.isfinite(values).any():
        raise DataError(f"the column {name} of {path.name} holds no numbers")
    return values


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a table as dicts: Parquet, of which only `columns` are read, JSON lines (.jsonl, .json), or else CSV.

    Raises:
        DataError: if it cannot be read.
    """
    name = path.name.lower()
    with _reading(path):
        if name.endswith(".parquet"):
            with _pyarrow().parquet.ParquetFile(path) as table:
                for batch in table.iter_batches(columns=columns):
                    yield from batch.to_pylist()
            return
        opened = gzip.open if name.endswith(".gz") else open
        with opened(path, "rb") as raw, io.TextIOWrapper(raw, encoding_of(raw), errors=LATIN, newline="") as file:
            if name.endswith((".jsonl", ".json")):
                yield from map(_json_row, filter(str.strip, file))
            else:
                csv.field_size_limit(sys.maxsize)
                yield from csv.DictReader(file)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (*UNREADABLE, ValueError) as error:
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())}") from error


def _json_row(line: str) -> dict[str, Any]:
    row = parse_json(line)
    if not isinstance(row, dict):
        raise ValueError("a line is not a JSON object")
    return row
