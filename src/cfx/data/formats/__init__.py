"""File formats of crystals: a text stream to records, and a record to a pymatgen Structure, within limits.

Functions `structure_of_...` raise ValueError, or what pymatgen raises, with the reason why there is no structure.
"""

import codecs
import csv
import zipfile
import zlib
from typing import Any, NamedTuple

UNREADABLE = (OSError, EOFError, UnicodeError, zipfile.BadZipFile, zlib.error, csv.Error, RuntimeError)
"""What damaged files raise; RuntimeError is zipfile's, on members it cannot decrypt or decompress, and of Parquet."""

MOST_CHARACTERS = 10_000_000
"""Characters in the text of one crystal, at most."""

MOST_ATOMS = 100_000
"""Atoms in the cell of one crystal, at most."""


LONGEST = 1e5
"""Edge of a cell at most, in angstrom."""

FARTHEST = 1e4
"""Fractional coordinates at most; those of larger numbers have lost their digits."""


class Record(NamedTuple):
    """One crystal as text: a name for messages, a format (cif, json, sites, extxyz, poscar) and the text.

    Of what could not be read at all the format is "unreadable", and the text is the reason.
    """

    name: str
    format: str
    text: str


def rest_is_unreadable(name: str, reason: str) -> Record:
    """Stands for the rest of a file, which nobody can count."""
    return Record(name, "unreadable", reason)


LATIN = "cfx-latin-1"
"""How bytes that are not UTF-8 are read: as ISO 8859-1, which older programs and authors' names are written in."""


def _as_latin(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError) or error.encoding not in ("utf-8", "utf8"):
        raise error
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error(LATIN, _as_latin)


def encoding_of(file: Any) -> str:
    """UTF-8, unless a binary file begins with the mark of UTF-16 or UTF-32, or as Latin letters do in UTF-16."""
    start = getattr(file, "peek", lambda _: b"")(4)[:4]
    if start in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        return "utf-32"
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    zeros = "".join("0" if byte == 0 else "x" for byte in start)
    return {"x0x0": "utf-16-le", "0x0x": "utf-16-be"}.get(zeros, "utf-8-sig")
