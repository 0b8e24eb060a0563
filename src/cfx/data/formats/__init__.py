"""File formats of crystals: a text stream to records, and a record to a pymatgen Structure, within limits.

Functions `structure_of_...` raise ValueError, or what pymatgen raises, with the reason why there is no structure.
"""

import csv
import zipfile
import zlib
from typing import NamedTuple

UNREADABLE = (OSError, EOFError, UnicodeError, zipfile.BadZipFile, zlib.error, csv.Error, RuntimeError)
"""What damaged files raise; RuntimeError is zipfile's, on members it cannot decrypt or decompress, and of Parquet."""

MOST_CHARACTERS = 10_000_000
"""Characters in the text of one crystal, at most."""

MOST_ATOMS = 100_000
"""Atoms in the cell of one crystal, at most."""


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
