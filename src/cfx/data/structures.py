"""Crystals of a file as pymatgen Structures, what their table says besides, and whether they can be judged at all."""

import itertools
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from cfx.core.elements import SYMBOLS
from cfx.data.encode import DISORDERED
from cfx.data.formats import Record
from cfx.data.read import READABLE, ROW_SECONDS, parse_structure, read_records, reason_of, time_limit
from cfx.errors import DataError

if TYPE_CHECKING:
    from pymatgen.core import Structure

CHUNK = 64
"""Records that a worker takes at once."""


@dataclass(frozen=True)
class Loaded:
    """One crystal of a file.

    Attributes:
        name: for messages and records.
        structure: pymatgen Structure, or None where there is none.
        reason: why there is none, or "".
        space_group_asked: the space group that whoever made the crystal says it should have, or None.
    """

    name: str
    structure: Any
    reason: str = ""
    space_group_asked: int | None = None


def iterate_crystals(path: Path, num_workers: int = -1) -> Iterator[Loaded]:
    """All crystals of a file, directory or zip, in order; a bad one is a reason, not an error.

    `num_workers` processes parse (-1: one for each core), or what `joblib.parallel_config` has set.

    Raises:
        DataError: if the file cannot be read.
    """
    import joblib

    parallel = joblib.Parallel(n_jobs=num_workers, return_as="generator")
    parts = parallel(joblib.delayed(_parse_all)(chunk) for chunk in _chunks(read_records(path)))
    for part in cast("Iterator[list[Loaded]]", parts):
        yield from part


def load_crystals(
    path: Path, num_workers: int = -1, on_progress: Callable[[int], None] = lambda done: None
) -> list[Loaded]:
    """All crystals of a file in memory; see `iterate_crystals`. `on_progress` is told how many were read so far.

    Raises:
        DataError: if the file cannot be read, or nothing in it is a crystal.
    """
    loaded: list[Loaded] = []
    for one in iterate_crystals(path, num_workers):
        loaded.append(one)
        if len(loaded) % CHUNK == 0:
            on_progress(len(loaded))
    if not loaded:
        raise DataError(f"{path} holds no crystals", READABLE)
    if all(one.structure is None for one in loaded):
        reason, count = Counter(one.reason for one in loaded).most_common(1)[0]
        raise DataError(f"none of the {len(loaded)} crystals of {path} can be read: {count} x {reason}")
    on_progress(len(loaded))
    return loaded


def _chunks(records: Iterator[Record]) -> Iterator[list[Record]]:
    while chunk := list(itertools.islice(records, CHUNK)):
        yield chunk


def _parse_all(records: list[Record]) -> list[Loaded]:
    with warnings.catch_warnings(action="ignore"):
        return [_parse(record) for record in records]


def _parse(record: Record) -> Loaded:
    """The crystal of a record; whatever a parser raises becomes a reason, as in `read.encode_records`."""
    asked = _space_group_asked(record)
    try:
        with time_limit(ROW_SECONDS):
            structure = parse_structure(record)
    except Exception as error:  # parsers raise what they like
        return Loaded(record.name, None, reason_of(error), asked)
    if not structure.is_ordered:
        return Loaded(record.name, None, DISORDERED, asked)
    return Loaded(record.name, structure, "", asked)


def _space_group_asked(record: Record) -> int | None:
    """Said by cfx's own CIFs and frames, and by the public layout of sites; others say what they found."""
    patterns = {
        "cif": r"^_cfx_model .*^_space_group_IT_number (\d+)",
        # `space_group` alone is what `cfx relax` and others found, or what an earlier `cfx sample` was asked for.
        "extxyz": r"\A\s*\d+\s*\n(?=[^\n]*\bmodel=)(?=[^\n]*\blog_prob=)"
        r"(?:[^\n]*\bspace_group_asked=|[^\n]*\bspace_group=)(\d+)\b",
        "sites": r'"G": "(\d+)"',
    }
    pattern = patterns.get(record.format)
    match = re.search(pattern, record.text, re.MULTILINE | re.DOTALL) if pattern else None
    return int(match[1]) if match else None


UNREAD = "could not be read"
"""Why a row without a structure fails."""

MIN_VOLUME = 0.1
"""Smallest volume of a cell, cubic angstrom (CDVAE, arXiv:2110.06197)."""

MIN_DISTANCE = 0.5
"""Distance that two atoms keep in a valid structure, angstrom (CDVAE). The shortest bond there is, H-H, has 0.74."""


def why_malformed(structure: "Structure | None") -> str:
    """Why a structure cannot be judged; "" if it can. None stands for a row that could not be read.

    This is the least that any comparison or search needs. What a potential or property model needs is stricter, see
    `cfx.predictors.batching.why_unsuitable`.
    """
    if structure is None:
        return UNREAD
    if not len(structure):
        return "no atoms"
    if not (np.isfinite(structure.lattice.matrix).all() and np.isfinite(structure.frac_coords).all()):
        return "a lattice or coordinates that are not finite"
    if not structure.volume > MIN_VOLUME:
        return f"a cell of at most {MIN_VOLUME} cubic angstrom"
    if not all(0 < getattr(kind, "Z", 0) < len(SYMBOLS) for site in structure for kind in site.species):
        return "a species that is not an element"
    return ""


def closest_approach(structure: "Structure") -> float:
    """Smallest distance between two atoms of a structure, images of one atom included, in angstrom."""
    distances = structure.distance_matrix
    others = distances[np.triu_indices(len(distances), k=1)]
    steps = np.array([step for step in itertools.product(range(-2, 3), repeat=3) if any(step)])
    vectors = steps @ structure.lattice.get_lll_reduced_lattice().matrix
    return float(min([np.linalg.norm(vectors, axis=1).min(), *others]))


def structure_as_json(structure: "Structure") -> dict[str, Any]:
    """Cell (angstrom, a row per vector), symbols and coordinates of an ordered Structure."""
    return {
        "cell": structure.lattice.matrix.tolist(),
        "species": [site.specie.symbol for site in structure],
        "frac_coords": structure.frac_coords.tolist(),
    }


def structure_from_json(saved: dict[str, Any]) -> "Structure":
    """The Structure that `structure_as_json` gave."""
    from pymatgen.core import Lattice, Structure

    return Structure(Lattice(saved["cell"]), saved["species"], saved["frac_coords"])
