"""Known crystals to compare with, and which crystals are not among them.

Known crystals are stored as a directory of .npy files that are mapped into memory: lattices [n, 3, 3] (angstrom), the
atoms of crystal i in starts[i]..starts[i + 1] of numbers and frac_coords, its name likewise in names, and a digest of
each reduced formula. Opening one takes no time, and no more memory than what is looked at.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cfx.core.elements import SYMBOLS
from cfx.data.structures import why_malformed
from cfx.errors import OutputError
from cfx.evaluation.matching import (
    Matched,
    by_composition,
    compare,
    composition_key,
    reduce_or_say_why,
    scatter,
    spread,
)

if TYPE_CHECKING:
    from pymatgen.core import Structure

VERSION = 2
"""Version of the files; another one is another directory."""

AMU_PER_CUBIC_ANGSTROM = 1.66053906660
"""1 u/angstrom^3 in g/cm3."""


@dataclass(frozen=True)
class Novelty:
    """Whether a crystal matches none of a reference.

    Attributes:
        novel: it does not; None if there is no reference.
        match: row of the reference that it matches, if it does.
        reason: why it could not be compared, or "".
    """

    novel: bool | None
    match: int | None = None
    reason: str = ""


NO_REFERENCE = Novelty(None, None, "no reference to compare with")


def find_novel(
    structures: Sequence[Structure | None],
    reference: Reference | None,
    n_jobs: int | None = None,
    on_done: Callable[[int], None] | None = None,
) -> list[Novelty]:
    """Which of the crystals match no crystal of the reference, by StructureMatcher.

    Args:
        structures: pymatgen Structures, None for rows that could not be read; these are not novel.
        reference: known crystals. Only those whose compositions occur are looked at.
        n_jobs: processes, see `spread`; they do not change the result.
        on_done: told how many compositions that both have are done.
    """
    if reference is None:
        return [NO_REFERENCE] * len(structures)
    reasons = [why_malformed(structure) for structure in structures]
    groups = by_composition(structures, reasons)
    shared = [(rows, known) for key, rows in groups.items() if len(known := reference.of_composition(key))]
    jobs = (
        ([structures[row] for row in rows], [(int(reference.rows[i]), reference.structure(i)) for i in known])
        for rows, known in shared
    )
    found = scatter([rows for rows, _ in shared], spread(_compare, jobs, n_jobs, on_done), reasons)
    return [Novelty(match is None and not reason, match, reason) for match, reason in found]


def _compare(structures: Sequence[Structure], known: Sequence[tuple[int, Structure]]) -> list[Matched]:
    """Compares crystals of one composition with known ones: which of these, by row, each of them matches."""
    reduced = [(row, reduce_or_say_why(one)) for row, one in known]
    kept = [(row, one) for row, one in reduced if not isinstance(one, str)]
    return [compare(one, kept) for one in map(reduce_or_say_why, structures)]


@dataclass(frozen=True)
class Reference:
    """n known crystals.

    Attributes:
        lattices: float64 [n, 3, 3], row vectors in angstrom.
        starts: int64 [n + 1], where the atoms of each crystal begin.
        numbers: int16 [atoms], atomic numbers.
        frac_coords: float64 [atoms, 3].
        keys: uint64 [n], digest of the reduced formula.
        rows: int64 [n], row of each crystal in what it was made of: some were left out; ascending.
        names: uint8 [bytes], the names of all crystals in UTF-8, one after the other.
        name_starts: int64 [n + 1], where each name begins.
    """

    lattices: np.ndarray
    starts: np.ndarray
    numbers: np.ndarray
    frac_coords: np.ndarray
    keys: np.ndarray
    rows: np.ndarray
    names: np.ndarray
    name_starts: np.ndarray
    _order: np.ndarray = field(init=False, repr=False)
    _sorted: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        order = np.argsort(self.keys, kind="stable")
        object.__setattr__(self, "_order", order)
        object.__setattr__(self, "_sorted", np.asarray(self.keys)[order])

    def __len__(self) -> int:
        return len(self.keys)

    def of_composition(self, key: Hashable) -> np.ndarray:
        """Which crystals have a composition, by `composition_key`."""
        digest = _digest(key)
        low, high = (np.searchsorted(self._sorted, digest, side) for side in ("left", "right"))
        return self._order[low:high]

    def name(self, row: int) -> str:
        """The name of the crystal that a row (not an index) of what the reference was made of had."""
        index = int(np.searchsorted(self.rows, row))
        return bytes(self.names[self.name_starts[index] : self.name_starts[index + 1]]).decode()

    def structure(self, index: int) -> Structure:
        """Crystal `index` as a pymatgen Structure."""
        from pymatgen.core import Structure

        atoms = slice(self.starts[index], self.starts[index + 1])
        species = [SYMBOLS[number] for number in self.numbers[atoms]]
        return Structure(np.array(self.lattices[index]), species, np.array(self.frac_coords[atoms]))

    def density(self) -> np.ndarray:
        """Density of every crystal [n], g/cm3."""
        from pymatgen.core import Element

        masses = np.zeros(len(SYMBOLS))
        for number in np.unique(self.numbers):
            masses[number] = float(Element(SYMBOLS[number]).atomic_mass)
        total = np.add.reduceat(masses[self.numbers], self.starts[:-1]) if len(self) else np.zeros(0)
        return total / np.abs(np.linalg.det(self.lattices)) * AMU_PER_CUBIC_ANGSTROM

    def num_elements(self) -> np.ndarray:
        """Number of elements of every crystal, int [n]."""
        crystal = np.repeat(np.arange(len(self)), np.diff(self.starts))
        pairs = np.unique(crystal * len(SYMBOLS) + self.numbers)
        return np.bincount(pairs // len(SYMBOLS), minlength=len(self))


def _digest(key: Hashable) -> np.uint64:
    """64 bits of a key. Should two keys share them, StructureMatcher still tells the crystals apart."""
    return np.frombuffer(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "<u8")[0]


def make_reference(structures: Iterable[Structure | None], names: Sequence[str] | None = None) -> Reference:
    """A reference of pymatgen Structures; None, malformed and disordered structures are left out.

    Args:
        structures: the crystals.
        names: of all rows, looked at after the last structure has come; by default the number of the row, from 0.
    """
    rows: list[int] = []
    lattices, lengths, numbers, coords, keys = [], [0], [], [], []
    for row, structure in enumerate(structures):
        if structure is None or why_malformed(structure) or not structure.is_ordered:
            continue
        lattices.append(structure.lattice.matrix)
        lengths.append(len(structure))
        numbers.append(np.array([site.specie.Z for site in structure], np.int16))
        coords.append(structure.frac_coords)
        keys.append(_digest(composition_key(structure)))
        rows.append(row)
    texts = [(str(row) if names is None else names[row]).encode() for row in rows]
    return Reference(
        lattices=np.array(lattices, float).reshape(-1, 3, 3),
        starts=np.cumsum(lengths, dtype=np.int64),
        numbers=np.concatenate([np.zeros(0, np.int16), *numbers]),
        frac_coords=np.concatenate([np.zeros((0, 3)), *coords]),
        keys=np.array(keys, np.uint64),
        rows=np.array(rows, np.int64),
        names=np.frombuffer(b"".join(texts), np.uint8),
        name_starts=np.cumsum([0, *map(len, texts)], dtype=np.int64),
    )


ARRAYS = [one.name for one in fields(Reference) if one.init]
"""Names of the files."""


def cached_reference(
    structures: Callable[[], Iterable[Structure | None]],
    digest: str,
    directory: Path,
    names: Sequence[str] | None = None,
) -> Reference:
    """The reference of a digest in a cache directory, made and put there if it is not.

    Args:
        structures: gives the pymatgen Structures; called only if they are needed.
        digest: of their content, or of the file they come from; it names the directory of the reference.
        directory: of the cache.
        names: of the structures, see `make_reference`.

    Raises:
        OutputError: if the cache cannot be written.
    """
    path = Path(directory) / f"reference-{VERSION}-{digest}"
    try:
        return open_reference(path)
    except (OSError, ValueError, EOFError):  # not there, or damaged
        reference = make_reference(structures(), names)
    try:
        _save(reference, path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}", "set CFX_CACHE to a directory on a disk with free space"
        ) from error
    return reference


def open_reference(path: Path) -> Reference:
    """A stored reference, mapped into memory.

    Raises:
        OSError, ValueError, EOFError: if it is not there or damaged.
    """
    arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS}
    count, atoms = len(arrays["keys"]), len(arrays["numbers"])
    lengths = [len(arrays[name]) for name in ("lattices", "rows", "starts", "name_starts", "frac_coords")]
    ends = [(arrays["starts"][-1], atoms), (arrays["name_starts"][-1], len(arrays["names"]))]
    if lengths != [count, count, count + 1, count + 1, atoms] or any(end != length for end, length in ends):
        raise ValueError(f"{path} is damaged")
    return Reference(**arrays)


def _save(reference: Reference, path: Path) -> None:
    """Writes all files beside, then renames the directory, so that it is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        for name in ARRAYS:
            np.save(beside / f"{name}.npy", getattr(reference, name), allow_pickle=False)
        shutil.rmtree(path, ignore_errors=True)  # a damaged one
        os.rename(beside, path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        # Another process was faster, and its directory holds the same.
    finally:
        shutil.rmtree(beside, ignore_errors=True)
