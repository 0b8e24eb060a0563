"""Crystals from files in any of the usual formats, as small text records that workers parse and encode.

Formats: CSV with a `cif` or `structure` column (.csv, .csv.gz), JSON lines with one (.jsonl), a CIF of one or many
blocks, extended XYZ, POSCAR, and a directory or zip of these.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from cfx.errors import DataError
from cfx.io.encode import EncodedCrystal, encode_structure

ID_COLUMNS = ("material_id", "id", "name")
STRUCTURE_COLUMNS = {"cif": "cif", "structure": "json", "cif_string": "cif"}


class Record(NamedTuple):
    """One crystal as text: a name for messages, a format (cif, json, extxyz, poscar) and the text."""

    name: str
    format: str
    text: str


def read_records(path: Path) -> Iterator[Record]:
    """All records of a file, directory or zip, in a fixed order.

    Raises:
        DataError: if the path is missing or unreadable, or its format is none of those above.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"no such file or directory: {path}")
    try:
        if path.is_dir():
            for file in sorted((entry for entry in path.rglob("*") if entry.is_file()), key=_numerically):
                if _kind(file.name):
                    yield from _parse_file(file.name, file.read_bytes())
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                for name in sorted((name for name in archive.namelist() if _kind(name)), key=_numerically):
                    yield from _parse_file(Path(name).name, archive.read(name))
        elif _kind(path.name):
            yield from _parse_file(path.name, path.read_bytes())
        else:
            raise DataError(
                f"{path}: unknown format",
                "cfx reads .csv, .csv.gz, .jsonl, .cif, .extxyz, POSCAR, and directories or zips of them",
            )
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _numerically(path: Path | str) -> list[tuple[str, int]]:
    """Sorts gen_2 before gen_10."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", str(path))]


def _kind(name: str) -> str | None:
    """csv, jsonl, cif, extxyz or poscar by file name, or None; hidden files are none of them."""
    name = Path(name).name.lower().removesuffix(".gz")
    suffixes = {
        ".csv": "csv",
        ".jsonl": "jsonl",
        ".cif": "cif",
        ".extxyz": "extxyz",
        ".xyz": "extxyz",
        ".vasp": "poscar",
    }
    suffix = Path(name).suffix
    if name.startswith("."):
        return None
    return suffixes.get(suffix) or ("poscar" if name.startswith(("poscar", "contcar")) else None)


def _parse_file(name: str, content: bytes) -> Iterator[Record]:
    if name.lower().endswith(".gz"):
        content = gzip.decompress(content)
    text = content.decode("utf-8-sig")
    kind = _kind(name)
    if kind == "csv":
        yield from _csv_records(name, text)
    elif kind == "cif":
        blocks = re.split(r"(?m)^(?=data_)", text)
        blocks = [block for block in blocks if block.startswith("data_")]
        for i, block in enumerate(blocks):
            yield Record(name if len(blocks) == 1 else f"{name}#{i + 1}", "cif", block)
    elif kind == "jsonl":
        yield from _jsonl_records(name, text)
    elif kind == "extxyz":
        yield from _extxyz_records(name, text)
    else:
        yield Record(name, "poscar", text)


def _csv_records(name: str, text: str) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(io.StringIO(text))
    columns = reader.fieldnames or []
    if not columns:
        raise DataError(f"{name} is empty")
    column = next((column for column in STRUCTURE_COLUMNS if column in columns), None)
    if column is None:
        raise DataError(
            f"{name} has no column of structures (columns: {', '.join(columns)})",
            "name the column that holds CIFs `cif`, or the one that holds pymatgen JSON `structure`",
        )
    identifier = next((column for column in ID_COLUMNS if column in columns), None)
    for i, row in enumerate(reader):
        yield Record((identifier and row[identifier]) or f"row {i + 1}", STRUCTURE_COLUMNS[column], row[column] or "")


def _jsonl_records(name: str, text: str) -> Iterator[Record]:
    for i, line in enumerate(filter(str.strip, text.splitlines()), start=1):
        try:
            content = json.loads(line)
            column = next(column for column in STRUCTURE_COLUMNS if column in content)
        except (ValueError, TypeError, StopIteration) as error:
            raise DataError(f"{name}: line {i} is no JSON with a `cif` or `structure`") from error
        identifier = next((str(content[key]) for key in ID_COLUMNS if key in content), f"row {i}")
        value = content[column]
        yield Record(identifier, STRUCTURE_COLUMNS[column], value if isinstance(value, str) else json.dumps(value))


def _extxyz_records(name: str, text: str) -> Iterator[Record]:
    lines, start, i = text.splitlines(), 0, 0
    while start < len(lines):
        if not lines[start].strip():
            start += 1
            continue
        try:
            count = int(lines[start])
        except ValueError:
            count = 0
        if count < 1:
            raise DataError(f"{name}: line {start + 1} is no number of atoms")
        end = start + count + 2
        i += 1
        yield Record(f"{name}#{i}", "extxyz", "\n".join(lines[start:end]) + "\n")
        start = end


def parse_structure(record: Record):
    """The pymatgen Structure of a record.

    Raises:
        ValueError: or whatever pymatgen or ASE raise on text they cannot read.
    """
    from pymatgen.core import Structure

    if not record.text.strip():
        raise ValueError("no structure in the row")
    if record.format == "json":
        return Structure.from_dict(json.loads(record.text))
    if record.format == "extxyz":
        import ase.io
        from pymatgen.io.ase import AseAtomsAdaptor

        return AseAtomsAdaptor.get_structure(ase.io.read(io.StringIO(record.text), format="extxyz"))
    return Structure.from_str(record.text, fmt=record.format)


def encode_records(records: Iterable[Record], symprec: float, max_sites: int) -> list[EncodedCrystal | str]:
    """Each record's crystal, or the reason why there is none. Runs in worker processes."""
    results: list[EncodedCrystal | str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for record in records:
            try:
                results.append(encode_structure(parse_structure(record), symprec, max_sites))
            except Exception as error:
                results.append(" ".join(f"{error}".split())[:200] or type(error).__name__)
    return results
