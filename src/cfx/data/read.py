"""Crystals from files in any of the usual formats, as small text records that workers parse and encode.

Formats: CSV with a `cif` or `structure` column (.csv, .csv.gz), JSON lines (.jsonl) or Parquet (.parquet) with one, a
CIF of one or many blocks, extended XYZ, POSCAR, and a directory or zip of these. A structure is pymatgen's dict, as
JSON or as Python prints it; a `cif` may hold one too. A CSV may also have the public CrystalFormer's columns L, X, A,
W and G: lattice, coordinates, atomic numbers and Wyckoff letters of the sites, and the space group.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import itertools
import json
import re
import shutil
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO

from cfx.data.encode import EncodedCrystal, encode_structure
from cfx.errors import DataError, DependencyError
from cfx.io.cif import cif_blocks

ID_COLUMNS = ("material_id", "id", "name")
STRUCTURE_COLUMNS = {"cif": "cif", "structure": "json", "cif_string": "cif"}
SITE_COLUMNS = ("L", "X", "A", "W", "G")
READABLE = "cfx reads .csv, .csv.gz, .jsonl, .parquet, .lmdb, .cif, .extxyz, POSCAR, and directories or zips of them"


class Record(NamedTuple):
    """One crystal as text: a name for messages, a format (cif, json, sites, extxyz, poscar) and the text."""

    name: str
    format: str
    text: str


def read_records(path: Path) -> Iterator[Record]:
    """All records of a file, directory or zip, in a fixed order.

    A file that cannot be read ends the reading of the directory or zip that it is in: nobody knows how many crystals
    it holds, and without them the data would be others than were meant.

    Raises:
        DataError: if the path is missing or unreadable, or its format is none of those above.
        DependencyError: if it is Parquet, and pyarrow is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"no such file or directory: {path}")
    holds_files, place = path.is_dir() or path.suffix == ".zip", path
    try:
        for name, file in _files(path):
            place = path / name if holds_files else path
            yield from _parse_file(name, file)
    except UNREADABLE as error:
        hint = "it may be cut short, or of another format than its name says"
        if place != path:
            hint = f"mend it, or take it out of {path}"
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise DataError(f"cannot read {place}: {reason}", hint) from error


def row_names(path: Path, rows: Collection[int]) -> dict[int, str]:
    """Names of some rows, from 0, of what `read_records` reads.

    Raises:
        DataError: if it cannot be read.
    """
    wanted = set(rows)
    return {row: record.name for row, record in enumerate(read_records(path)) if row in wanted}


UNREADABLE = (OSError, EOFError, UnicodeDecodeError, zipfile.BadZipFile, zlib.error, csv.Error, RuntimeError)
"""What damaged files raise; RuntimeError is zipfile's, on members it cannot decrypt or decompress, and of Parquet."""


def _files(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and open files of everything in a file, directory or zip whose format is known."""
    if path.is_dir():
        for file in sorted((entry for entry in path.rglob("*") if entry.is_file()), key=_numerically):
            if _kind(file.name):
                with open(file, "rb") as stream:
                    yield file.relative_to(path).as_posix(), stream
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in sorted((name for name in archive.namelist() if _kind(name)), key=_numerically):
                with archive.open(name) as stream:
                    yield name, stream
    elif _kind(path.name):
        with open(path, "rb") as stream:
            yield path.name, stream
    else:
        raise DataError(f"{path}: unknown format", READABLE)


def _numerically(path: Path | str) -> list[tuple[str, int]]:
    """Sorts gen_2 before gen_10."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", str(path))]


def _kind(name: str) -> str | None:
    """csv, jsonl, parquet, cif, extxyz or poscar by file name, or None; hidden files are none of them."""
    name = Path(name).name.lower().removesuffix(".gz")
    suffixes = {
        ".csv": "csv",
        ".jsonl": "jsonl",
        ".parquet": "parquet",
        ".cif": "cif",
        ".extxyz": "extxyz",
        ".xyz": "extxyz",
        ".vasp": "poscar",
    }
    suffix = Path(name).suffix
    if name.startswith("."):
        return None
    return suffixes.get(suffix) or ("poscar" if name.startswith(("poscar", "contcar")) else None)


def _parse_file(name: str, file: IO[bytes]) -> Iterator[Record]:
    """The records of one file, read piece by piece."""
    if name.lower().endswith(".gz"):
        file = gzip.GzipFile(fileobj=file)
    kind = _kind(name)
    if kind == "parquet":
        with _seekable(file) as table:
            yield from _parquet_records(name, table)
        return
    # In a CSV, line ends belong to the cells.
    with io.TextIOWrapper(file, "utf-8-sig", newline="\n" if kind == "csv" else None) as lines:
        yield from PARSERS[kind](name, lines)


@contextmanager
def _seekable(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """A file on disk as it is, anything else as a temporary copy: compressed data goes back only by starting over."""
    if isinstance(file, io.BufferedReader):
        yield file
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(file, copy)
        yield copy


def _structure_column(name: str, columns: Sequence[str]) -> str:
    """Which column of a table holds the structures."""
    if not columns:
        raise DataError(f"{name} is empty")
    column = next((column for column in STRUCTURE_COLUMNS if column in columns), None)
    if column is None:
        raise DataError(
            f"{name} has no column of structures (columns: {', '.join(columns)})",
            "name the column that holds CIFs `cif`, or the one that holds pymatgen dicts `structure`",
        )
    return column


def _record(row: dict[str, Any], number: int, column: str) -> Record:
    """The record of a row: its structure is in `column`, nested or as text, and without a name it has a number."""
    name = next((row[key] for key in ID_COLUMNS if key in row), None)
    value = "" if row[column] is None else row[column]
    return Record(
        f"row {number}" if name in (None, "") else str(name),
        STRUCTURE_COLUMNS[column],
        value if isinstance(value, str) else json.dumps(value, default=str),
    )


def _csv_records(name: str, lines: TextIO) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(lines)
    columns = reader.fieldnames or []
    if set(SITE_COLUMNS) <= set(columns):
        for i, row in enumerate(reader, start=1):
            yield Record(f"row {i}", "sites", json.dumps({key: row[key] for key in SITE_COLUMNS}))
        return
    column = _structure_column(name, columns)
    for i, row in enumerate(reader, start=1):
        yield _record(row, i, column)


def _jsonl_records(name: str, lines: TextIO) -> Iterator[Record]:
    filled = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    for i, (number, line) in enumerate(filled, start=1):
        try:
            content = json.loads(line)
            record = _record(content, i, next(column for column in STRUCTURE_COLUMNS if column in content))
        except (ValueError, TypeError, StopIteration) as error:
            raise DataError(f"{name}: line {number} is no JSON with a `cif` or `structure`") from error
        yield record


def _parquet_records(name: str, file: IO[bytes]) -> Iterator[Record]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DependencyError("reading Parquet needs pyarrow", "pip install 'cfx-crystal[parquet]'") from error
    try:
        # By default pyarrow reads whole row groups, and keeps them.
        table = ParquetFile(file, pre_buffer=False, buffer_size=65536)
        columns = table.schema_arrow.names
        column = _structure_column(name, columns)
        needed = [column, *[key for key in ID_COLUMNS if key in columns][:1]]
        batches = table.iter_batches(1024, columns=needed)
        rows = (row.as_py() for batch in batches for row in batch.to_struct_array())
        for i, row in enumerate(rows, start=1):
            yield _record(row, i, column)
    except (pyarrow.ArrowException, ValueError) as error:
        raise RuntimeError(str(error)) from error


def _cif_records(name: str, lines: TextIO) -> Iterator[Record]:
    blocks = cif_blocks(lines)
    first, second = next(blocks, None), next(blocks, None)
    if second is None:
        yield from [Record(name, "cif", first)] if first else []
        return
    for i, block in enumerate(itertools.chain((first, second), blocks), start=1):
        yield Record(f"{name}#{i}", "cif", block)


def _extxyz_records(name: str, lines: TextIO) -> Iterator[Record]:
    numbered = enumerate(lines, start=1)
    frames = itertools.count(1)
    for number, line in numbered:
        if not line.strip():
            continue
        try:
            count = int(line)
        except ValueError:
            count = 0
        if count < 1:
            raise DataError(f"{name}: line {number} is no number of atoms")
        rest = (text for _, text in itertools.islice(numbered, count + 1))
        yield Record(f"{name}#{next(frames)}", "extxyz", line + "".join(rest))


def _poscar_records(name: str, lines: TextIO) -> Iterator[Record]:
    yield Record(name, "poscar", lines.read())


PARSERS = {
    "csv": _csv_records,
    "jsonl": _jsonl_records,
    "cif": _cif_records,
    "extxyz": _extxyz_records,
    "poscar": _poscar_records,
}


def parse_structure(record: Record):
    """The pymatgen Structure of a record.

    Raises:
        ValueError: or whatever pymatgen or ASE raise on text they cannot read.
    """
    from pymatgen.core import Structure

    if not record.text.strip():
        raise ValueError("no structure in the row")
    if record.format == "json" or (record.format == "cif" and record.text.lstrip().startswith("{")):
        return Structure.from_dict(_structure_dict(record.text.strip()))
    if record.format == "sites":
        return _from_sites(record.text)
    if record.format == "extxyz":
        import ase.io
        from pymatgen.io.ase import AseAtomsAdaptor

        return AseAtomsAdaptor.get_structure(ase.io.read(io.StringIO(record.text), format="extxyz"))
    return Structure.from_str(record.text, fmt=record.format)


def _structure_dict(text: str) -> dict[str, Any]:
    """The dict of a pymatgen Structure, from JSON or as Python prints it; nothing in it is evaluated or imported.

    Raises:
        ValueError: if the text is neither, or says something else.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = _literal(text)
    try:
        sites = [
            {"species": [_species(one) for one in site["species"]], "abc": site["abc"]} for site in content["sites"]
        ]
        return {"lattice": {"matrix": content["lattice"]["matrix"]}, "sites": sites}
    except (KeyError, TypeError) as error:
        raise ValueError("no dict of a pymatgen Structure, with a lattice and sites") from error


def _species(occupation: dict[str, Any]) -> dict[str, Any]:
    """What is on a site. Other entries, like properties, may name classes, which pymatgen would import and call."""
    kept = {key: occupation[key] for key in ("element", "occu", "oxidation_state") if key in occupation}
    if not all(isinstance(value, str | int | float | None) for value in kept.values()):
        raise TypeError("an element is a name")
    return kept


def _literal(text: str) -> Any:
    """What a printed dict says, or a ValueError."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError("neither JSON nor a printed dict (nan, inf and np.float64(...) are not read)") from error


def _from_sites(text: str):
    """The conventional cell that the columns L, X, A, W and G describe."""
    import numpy as np
    from pymatgen.core import Lattice, Structure

    from cfx.core.elements import SYMBOLS
    from cfx.core.symmetry import orbit, symmetry_table

    try:
        lattice, points, numbers, letters, group = (json.loads(cell) for cell in json.loads(text).values())
        if group not in range(1, 231):
            raise ValueError(f"there is no space group {group}")
        last = symmetry_table().last_letter[group - 1]
        species, coords = [], []
        sites = zip(points, numbers, letters, strict=True)
        for point, number, letter in itertools.takewhile(lambda site: site[2], sites):
            if letter not in range(1, last + 1):
                raise ValueError(f"space group {group} has no letter number {letter}")
            coords.append(orbit(group, letter, np.array(point, float)))
            species += [SYMBOLS[number]] * len(coords[-1])
        return Structure(Lattice.from_parameters(*lattice), species, np.concatenate(coords))
    except (TypeError, LookupError, ValueError) as error:
        raise ValueError(f"no crystal in the columns L, X, A, W, G: {error}") from error


def encode_records(records: Iterable[Record], symprec: float, max_sites: int) -> list[EncodedCrystal | str]:
    """Each record's crystal, or the reason why there is none. Runs in worker processes."""
    results: list[EncodedCrystal | str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for record in records:
            try:
                results.append(encode_structure(parse_structure(record), symprec, max_sites))
            # Parsers and symmetry searches raise what they like, and the next crystal may be fine.
            except Exception as error:
                results.append(reason_of(error))
    return results


def reason_of(error: Exception) -> str:
    """What a parser or a symmetry search complains about, on one line of 200 characters at most."""
    return " ".join(f"{error}".split())[:200] or type(error).__name__
