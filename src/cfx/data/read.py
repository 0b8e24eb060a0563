"""Crystals from files in any of the usual formats, as small text records that workers parse and encode.

Formats: CSV with a `cif` or `structure` column (.csv, .csv.gz), JSON lines (.jsonl) or Parquet (.parquet) with one, a
CIF of one or many blocks, extended XYZ, POSCAR, and a directory or zip of these. A structure is pymatgen's dict, as
JSON or as Python prints it; a `cif` may hold one too. A CSV may also have the public CrystalFormer's columns L, X, A,
W and G: lattice, coordinates, atomic numbers and Wyckoff letters of the sites, and the space group.

Every file and row that was given becomes a record. Of what cannot be read, the record says why.
"""

import gzip
import io
import re
import signal
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, cast

import numpy as np

from cfx.core import Structure
from cfx.data.encode import EncodedCrystal, encode_structure
from cfx.data.formats import (
    FARTHEST,
    LATIN,
    LONGEST,
    MOST_CHARACTERS,
    UNREADABLE,
    Record,
    cif,
    encoding_of,
    frames,
    rest_is_unreadable,
    tables,
)
from cfx.errors import DataError
from cfx.io.files import files_below

READABLE = "cfx reads .csv, .csv.gz, .jsonl, .parquet, .lmdb, .cif, .extxyz, POSCAR, and directories or zips of them"

SUFFIXES = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
    ".cif": "cif",
    ".mcif": "cif",
    ".extxyz": "extxyz",
    ".xyz": "extxyz",
    ".vasp": "poscar",
    ".poscar": "poscar",
    ".zip": "zip",
}

MOST_BYTES = 8 * 2**30
"""Decompressed bytes in a member of a zip, at most."""

HIGHEST_RATIO = 2000
"""Highest ratio of decompressed to compressed bytes in a member of a zip; deflate reaches 1032."""

DEEPEST_ZIP = 4

ROW_SECONDS = 120.0
"""After so long a row is given up."""


def read_records(path: Path) -> Iterator[Record]:
    """All records of a file, directory or zip, in a fixed order.

    A file in a directory or zip that cannot be read, or whose end cannot, is a record that says so. One that was asked
    for by itself and is damaged ends the reading: without the rest, the data would be others than were meant.

    Raises:
        DataError: if the path is missing or unreadable, or its format is none of those above.
        DependencyError: if it is Parquet, and pyarrow is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"no such file or directory: {path}")
    if path.is_dir():
        for file in sorted(files_below(path), key=_numerically):
            if kind_of(file.name):
                yield from _isolated(file.relative_to(path).as_posix(), _opener(file), depth=1)
        return
    if not kind_of(path.name):
        raise DataError(f"{path}: unknown format", READABLE)
    begun = False
    try:
        with open(path, "rb") as stream:
            for record in _parse_file(path.name, stream):
                begun = True
                yield record
    except (*UNREADABLE, ValueError, DataError) as error:
        if begun and not isinstance(error, UNREADABLE):
            yield rest_is_unreadable(path.name, reason_of(error))
        elif isinstance(error, DataError):
            raise
        else:
            hint = "it may be cut short, or of another format than its name says"
            raise DataError(f"cannot read {path}: {reason_of(error)}", hint) from error


def row_names(path: Path, rows: Collection[int]) -> dict[int, str]:
    """Names of some rows, from 0, of what `read_records` reads.

    Raises:
        DataError: if it cannot be read.
    """
    wanted = set(rows)
    return {row: record.name for row, record in enumerate(read_records(path)) if row in wanted}


def _opener(file: Path) -> Callable[[], IO[bytes]]:
    def opened() -> IO[bytes]:
        if not file.is_file():
            raise ValueError("no such file, or a broken link")
        return open(file, "rb")

    return opened


def _isolated(name: str, opened: Callable[[], IO[bytes]], depth: int) -> Iterator[Record]:
    """The records of one file among others, which do not suffer from it."""
    try:
        with opened() as stream:
            yield from _parse_file(name, stream, depth)
    except (*UNREADABLE, ValueError, DataError) as error:
        yield rest_is_unreadable(name, reason_of(error))


def _numerically(path: Path | str) -> list[tuple[str, int]]:
    """Sorts gen_2 before gen_10."""
    return [(text, int(number[:300] or 0)) for text, number in re.findall(r"(\D*)([0-9]*)", str(path))]


def kind_of(name: str) -> str | None:
    """csv, jsonl, parquet, cif, extxyz, poscar or zip by file name, or None; hidden files are none of them."""
    path = PurePosixPath(name.lower().removesuffix(".gz"))
    if any(part.startswith(".") and part != ".." for part in PurePosixPath(name).parts):
        return None
    by_name = "poscar" if path.name.startswith(("poscar", "contcar", "xdatcar")) else None
    return SUFFIXES.get(path.suffix) or by_name


def _parse_file(name: str, file: IO[bytes], depth: int = 0) -> Iterator[Record]:
    """The records of one file, read piece by piece; their names are of one line."""
    if name.lower().endswith(".gz"):
        file = cast("IO[bytes]", gzip.GzipFile(fileobj=file))
    kind = kind_of(PurePosixPath(name).name)
    if kind == "zip":
        with _seekable(file) as content:
            yield from _zip_records(name if depth else "", content, depth + 1)
        return
    if kind == "parquet":
        with _seekable(file) as content:
            yield from map(_named_on_one_line, tables.parquet_records(name, content))
        return
    # In a CSV, line ends belong to the cells.
    with _Lines(file, encoding_of(file), errors=LATIN, newline="\n" if kind == "csv" else None) as lines:
        yield from map(_named_on_one_line, SPLITTERS[kind or ""](name, lines))


def _named_on_one_line(record: Record) -> Record:
    return record._replace(name=re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", record.name)[:1000])


def _zip_records(outer: str, file: IO[bytes], depth: int) -> Iterator[Record]:
    if depth > DEEPEST_ZIP:
        raise ValueError(f"zips within zips, more than {DEEPEST_ZIP} deep")
    with zipfile.ZipFile(file) as archive:
        members = [one for one in archive.infolist() if not one.is_dir() and kind_of(one.filename)]
        for member in sorted(members, key=lambda member: _numerically(member.filename)):
            name = f"{outer}/{member.filename}" if outer else member.filename
            yield from _isolated(name, lambda member=member: _open_member(archive, member), depth)


def _open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    if member.file_size > min(MOST_BYTES, HIGHEST_RATIO * max(member.compress_size, 1)):
        raise ValueError(f"{member.compress_size:,} bytes that would become {member.file_size:,}")
    return archive.open(member)


@contextmanager
def _seekable(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """A file on disk as it is, anything else as a temporary copy: compressed data goes back only by starting over."""
    if isinstance(file, io.BufferedReader):
        yield file
        return
    with tempfile.TemporaryFile() as copy:
        while piece := file.read(2**20):
            copy.write(piece)
            if copy.tell() > MOST_BYTES:
                raise ValueError(f"more than {MOST_BYTES:,} bytes")
        copy.seek(0)
        yield copy


class _Lines(io.TextIOWrapper):
    """Lines of text, none of them longer than a crystal may be."""

    def __next__(self) -> str:
        line = self.readline(MOST_CHARACTERS + 1)
        if len(line) > MOST_CHARACTERS:
            raise ValueError(f"a line of more than {MOST_CHARACTERS:,} characters")
        if not line:
            raise StopIteration
        return line


SPLITTERS = {
    "csv": tables.csv_records,
    "jsonl": tables.jsonl_records,
    "cif": cif.cif_records,
    "extxyz": frames.extxyz_records,
    "poscar": frames.poscar_records,
}

PARSERS: dict[str, Callable[[str], "Structure"]] = {
    "json": tables.structure_of_dict,
    "cif": cif.structure_of_cif,
    "sites": tables.structure_of_sites,
    "extxyz": frames.structure_of_extxyz,
    "poscar": frames.structure_of_poscar,
}


def parse_structure(record: Record) -> "Structure":
    """The pymatgen Structure of a record.

    Raises:
        ValueError: or whatever pymatgen raises on text that it cannot read.
    """
    text = record.text.strip(" \t\r\n\ufeff") if record.format != "poscar" else record.text.lstrip("\ufeff")
    if record.format == "unreadable":
        raise ValueError(record.text)
    if not text.strip():
        raise ValueError("no structure in the row")
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"more than {MOST_CHARACTERS:,} characters")
    kind = "json" if record.format == "cif" and text.startswith("{") else record.format
    structure = PARSERS[kind](text)
    # Far larger numbers have lost the digits that tell atoms apart.
    if not max(structure.lattice.abc) < LONGEST:
        raise ValueError(f"a cell with edges of more than {LONGEST:g} angstrom")
    if not abs(structure.lattice.volume) > 1e-6:
        raise ValueError("a cell without volume")
    if not np.abs(structure.frac_coords).max(initial=0) < FARTHEST:
        raise ValueError(f"atoms more than {FARTHEST:g} cells away, or coordinates that are not finite")
    frames.elements([getattr(kind, "symbol", str(kind)) for site in structure for kind in site.species])
    return structure


def encode_records(records: Iterable[Record], symprec: float, max_sites: int) -> list[EncodedCrystal | str]:
    """Each record's crystal, or the reason why there is none. Runs in worker processes."""
    results: list[EncodedCrystal | str] = []
    with warnings.catch_warnings(action="ignore"):
        for record in records:
            try:
                with time_limit(ROW_SECONDS):
                    results.append(encode_structure(parse_structure(record), symprec, max_sites))
            # Parsers and symmetry searches raise what they like, and the next crystal may be fine.
            except Exception as error:
                results.append(reason_of(error))
    return results


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError inside after some time, in the main thread of a process; elsewhere it limits nothing."""
    # Only the main thread hears signals, and a process has one such timer, which may be somebody else's.
    if threading.current_thread() is not threading.main_thread() or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def give_up(*_: object) -> None:
        raise TimeoutError(f"given up after {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def reason_of(error: BaseException) -> str:
    """What a parser or a symmetry search complains about, on one line of 200 characters at most."""
    text = " ".join(f"{getattr(error, 'strerror', None) or error}".split())
    plain = {
        np.linalg.LinAlgError: "a cell without volume",
        IndexError: "cut short, or of another format",
        MemoryError: "too large for the memory",
        RecursionError: "nested too deeply",
    }
    if isinstance(error, KeyError):
        return f"{text[:180]} is missing"
    return plain.get(type(error), text)[:200] or type(error).__name__
