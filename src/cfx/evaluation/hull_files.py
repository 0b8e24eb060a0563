"""Files of hulls: cfx's own compact table, and lists of computed entries as Alexandria and pymatgen write them."""

from __future__ import annotations

import json
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from cfx.core.elements import SYMBOLS
from cfx.errors import DataError, UsageError
from cfx.evaluation.entries import ComputedEntry, read_entries
from cfx.evaluation.hull import Hull, HullInfo, check_scale
from cfx.evaluation.phases import STRUCTURE, Phases, Reduced, reduce_counts
from cfx.io.files import parse_json, replace_atomically

FORMAT = "cfx hull 2"
"""What the header of a table says it is."""

WITHOUT_ORIGINS = "cfx hull 1"
"""What it says in tables that do not tell the origins of their energies: all of structures as given."""

COLUMNS = {"sizes": "u1", "species": "u1", "counts": "i4", "energies": "f8"}
"""Arrays of Phases and their types."""

ARRAYS = {"header": "u1", "ids": "u1", "origins": "u1", **COLUMNS}
"""Arrays of a table and their types; header and ids are JSON in UTF-8, origins places in a list of the header."""

MOST_COMPRESSION = 100
"""How many times smaller than its arrays a table may be; those of hulls are 5 to 30 times."""

UNREADABLE = (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile, zlib.error, MemoryError)
UNREADABLE += (SyntaxError, tokenize.TokenError, RecursionError, RuntimeError, NotImplementedError)
"""What damaged tables raise; ValueError is numpy's, on pickles among others, and json's.

Headers of arrays are Python: what they raise is its tokenizer's. RuntimeError is zipfile's, on what is encrypted.
"""

SCHEME = "MP2020"
"""What the names of the corrections begin with that the scale mp2020 has."""


def write_hull(path: Path, hull: Hull) -> None:
    """Writes a hull as a compact table, for which .hull.npz is a good ending; the same hull makes the same bytes.

    Raises:
        OutputError: if it cannot be written.
    """
    origins = sorted(set(hull.phases.origins))
    header = {"format": FORMAT, **asdict(hull.info), "origins": origins}
    content = {
        "header": _to_bytes(header),
        "ids": _to_bytes(hull.phases.ids),
        "origins": [origins.index(origin) for origin in hull.phases.origins],
        **{name: getattr(hull.phases, name) for name in COLUMNS},
    }
    arrays: dict[str, Any] = {name: np.asarray(content[name], f"<{kind}") for name, kind in ARRAYS.items()}

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:
            np.savez_compressed(file, **arrays)

    replace_atomically(Path(path), write)


def read_hull(
    path: Path,
    scale: str | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Hull:
    """A hull from a table, or from computed entries as JSON (also .gz and .bz2).

    Args:
        path: the file; what it is, its first bytes say.
        scale: raw or mp2020. A table says it itself. Entries are on the scale mp2020 if they carry corrections, which
            are then included; if they carry none, this must say it. With raw, corrections are left out.
        on_progress: called with the entries read so far, now and then.

    Raises:
        DataError: if the file cannot be read, or does not tell the scale.
        UsageError: if `scale` is unknown, or not what the table says.
    """
    path = Path(path)
    if scale is not None:
        check_scale(scale)
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    try:
        with open(path, "rb") as file:
            start = file.read(2)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return _read_table(path, scale) if start == b"PK" else _read_json(path, scale, on_progress)


def _to_bytes(value: object) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _read_table(path: Path, scale: str | None) -> Hull:
    hint = "a compact table is written by cfx; write it again"
    try:
        arrays = _read_arrays(path)
        header = parse_json(arrays["header"].tobytes())
        ids = parse_json(arrays["ids"].tobytes())
        if header["format"] == WITHOUT_ORIGINS:
            header["origins"], arrays["origins"] = [STRUCTURE], np.zeros(len(ids), "<u1")
        elif header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']!r}, not {FORMAT!r}")
        info = HullInfo(**{field.name: str(header[field.name]) for field in fields(HullInfo)})
        _check_arrays(arrays, ids)
        origins = [str(header["origins"][place]) for place in arrays["origins"]]
    except UNREADABLE as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{path} is not a hull that cfx can read: {reason}", hint) from error
    except UsageError as error:  # a header with an unknown scale
        raise DataError(f"{path} is not a hull that cfx can read: {error}", hint) from error
    if scale not in (None, info.scale):
        raise UsageError(f"{path} holds energies on the scale {info.scale}, not {scale}", "leave the scale out")
    columns = {name: arrays[name] for name in COLUMNS}
    return Hull(Phases(**columns, ids=[str(name) for name in ids], origins=origins), info)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a table. A file of a few bytes can declare, and hold, arrays that no memory does."""
    with zipfile.ZipFile(path) as archive:
        declared = sum(member.file_size for member in archive.infolist())
        if declared > MOST_COMPRESSION * path.stat().st_size:
            raise ValueError(f"it declares {declared} bytes in a file of {path.stat().st_size}")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in ARRAYS if name in file or name != "origins"}


def _check_arrays(arrays: dict[str, np.ndarray], ids: object) -> None:
    """Raises ValueError if a table's arrays cannot be the phases of a hull."""
    for name, kind in ARRAYS.items():
        if arrays[name].dtype != np.dtype(f"<{kind}") or arrays[name].ndim != 1:
            raise ValueError(f"{name} is {arrays[name].dtype} {list(arrays[name].shape)}")
    sizes, species, counts, energies = (arrays[name] for name in COLUMNS)
    if not isinstance(ids, list) or {len(sizes), len(energies), len(ids), len(arrays["origins"])} != {len(sizes) or 1}:
        raise ValueError("it has no phases, or not as many energies and names")
    if sizes.min() < 1 or not int(sizes.sum(dtype=np.int64)) == len(species) == len(counts):
        raise ValueError("its compositions are cut off")
    if species.min() < 1 or species.max() >= len(SYMBOLS) or counts.min() < 1 or not np.isfinite(energies).all():
        raise ValueError("elements, atoms or energies that are impossible")


def _read_json(path: Path, scale: str | None, on_progress: Callable[[int], None] | None) -> Hull:
    compositions: list[Reduced] = []
    energies, corrections, names = [], [], []
    foreign = ""
    for entry in read_entries(path, on_progress):
        atoms = sum(entry.counts.values())
        compositions.append(_reduce(path, entry))
        energies.append(entry.energy / atoms)
        corrections.append(entry.correction / atoms)
        names.append(entry.name)
        foreign = foreign or next((name for name in entry.schemes if name and not name.startswith(SCHEME)), "")
    if not names:
        raise DataError(f"{path} holds no computed entries")
    scale = scale or _scale_of(path, any(corrections), foreign)
    if scale == "mp2020":
        energies = np.add(energies, corrections)
    info = HullInfo(path.name, scale, provenance=f"computed entries of {path.name}")
    return Hull(Phases.lowest(compositions, energies, names), info)


def _reduce(path: Path, entry: ComputedEntry) -> Reduced:
    try:
        return reduce_counts(entry.counts)
    except ValueError as error:
        raise DataError(f"{path}: the composition of {entry.name} {error}") from error


def _scale_of(path: Path, corrected: bool, foreign: str) -> str:
    """The scale that entries themselves tell.

    Args:
        path: for messages.
        corrected: whether any carries a correction.
        foreign: the name of a correction that is none of MP2020's, or "".
    """
    if not corrected:
        raise DataError(
            f"{path}: the entries have no corrections, so the scale of their energies is unknown",
            "state the scale: raw for energies as DFT gives them, mp2020 if they include MP2020 corrections",
        )
    if foreign:
        raise DataError(
            f"{path}: the entries have corrections other than MP2020's: {foreign}",
            "state the scale: raw to remove the corrections, mp2020 to keep them",
        )
    return "mp2020"
