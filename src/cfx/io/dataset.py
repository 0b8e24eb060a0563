"""Encoded data sets: made in parallel, cached by content, every failure kept with its reason."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfx.core.crystal import CrystalBatch
from cfx.errors import DataError
from cfx.io.cache import cache_directory, replace_atomically
from cfx.io.encode import SYMPREC, EncodedCrystal, EncodingError, encode_structure
from cfx.io.structures import Record, encode_records, read_records

ENCODER_VERSION = 1
"""Raised whenever the same input would encode to something else, so that stale caches are not read."""

CHUNK = 64
"""Records a worker takes at once."""


@dataclass(frozen=True)
class Encoded:
    """What became of a list of structures.

    Attributes:
        batch: the crystals that could be encoded.
        index: int [B], their rows in the input.
        failures: (row, reason) of the others.
    """

    batch: CrystalBatch
    index: np.ndarray
    failures: list[tuple[int, str]]


@dataclass(frozen=True)
class EncodedDataset:
    """An encoded file of crystals.

    Attributes:
        batch: the crystals.
        names: of the crystals, B of them.
        failures: (name, reason) of rows that are no crystal for the model.
        digest: SHA-256 of content and settings, hexadecimal.
        source: file name, for provenance.
    """

    batch: CrystalBatch
    names: list[str]
    failures: list[tuple[str, str]]
    digest: str
    source: str

    def space_group_counts(self) -> np.ndarray:
        """int [230], crystals in each space group."""
        return np.bincount(self.batch.space_group - 1, minlength=230)


def encode(structures: Sequence, symprec: float = SYMPREC, n_max: int = 21) -> Encoded:
    """Encodes pymatgen Structures, or reads why not.

    Args:
        structures: pymatgen Structures, in any cell.
        symprec: distance tolerance of the symmetry search, angstrom.
        n_max: slots of the batch; a crystal may have one site less.
    """
    results: list[EncodedCrystal | str] = []
    for structure in structures:
        try:
            results.append(encode_structure(structure, symprec, n_max - 1))
        except EncodingError as error:
            results.append(str(error))
    batch, index = _stack(results, n_max)
    return Encoded(batch, index, [(i, result) for i, result in enumerate(results) if isinstance(result, str)])


def load_dataset(
    path: Path,
    symprec: float = SYMPREC,
    n_max: int = 21,
    num_workers: int = -1,
    on_progress: Callable[[int], None] = lambda done: None,
) -> EncodedDataset:
    """The encoded crystals of a file, from the cache where it is there.

    Args:
        path: file, directory or zip; see `structures.read_records`.
        symprec: distance tolerance of the symmetry search, angstrom.
        n_max: slots of the batch.
        num_workers: processes; -1 for all cores.
        on_progress: called with the number of records done so far.

    Raises:
        DataError: if nothing can be read, or no record is a crystal.
    """
    path = Path(path)
    digest = content_digest(path, [ENCODER_VERSION, symprec, n_max, path.name])
    cached = cache_directory("encoded") / f"{digest}.npz"
    dataset = _load(cached, digest, path.name)
    if dataset is None:
        dataset = _encode_file(path, digest, symprec, n_max, num_workers, on_progress)
        replace_atomically(cached, lambda partial: _save(partial, dataset))
    if not len(dataset.batch):
        reason = f"; the first: {dataset.failures[0][1]}" if dataset.failures else ""
        raise DataError(f"{path}: none of {len(dataset.failures)} rows is a crystal{reason}")
    return dataset


def _encode_file(path, digest, symprec, n_max, num_workers, on_progress) -> EncodedDataset:
    names, results = [], []
    for record, result in encode_in_parallel(read_records(path), symprec, n_max - 1, num_workers):
        names.append(record.name)
        results.append(result)
        if len(results) % CHUNK == 0:
            on_progress(len(results))
    on_progress(len(results))
    batch, index = _stack(results, n_max)
    failures = [(name, result) for name, result in zip(names, results, strict=True) if isinstance(result, str)]
    return EncodedDataset(batch, [names[i] for i in index], failures, digest, path.name)


def encode_in_parallel(
    records: Iterator[Record], symprec: float, max_sites: int, num_workers: int = -1
) -> Iterator[tuple[Record, EncodedCrystal | str]]:
    """Records with their results, in order. Workers are fresh processes, never forks of a process that runs JAX."""
    import joblib

    ours, theirs = itertools.tee(_chunks(records))
    jobs = (joblib.delayed(encode_records)(chunk, symprec, max_sites) for chunk in theirs)
    parallel = joblib.Parallel(n_jobs=num_workers, backend="loky", return_as="generator")
    for chunk, results in zip(ours, parallel(jobs), strict=True):
        yield from zip(chunk, results, strict=True)


def _chunks(records: Iterator[Record]) -> Iterator[tuple[Record, ...]]:
    while chunk := tuple(itertools.islice(records, CHUNK)):
        yield chunk


def _stack(results: list[EncodedCrystal | str], n_max: int) -> tuple[CrystalBatch, np.ndarray]:
    index = np.array([i for i, result in enumerate(results) if not isinstance(result, str)], int)
    batch = CrystalBatch(
        space_group=np.zeros(len(index), np.int32),
        lattice=np.zeros((len(index), 6), np.float32),
        frac_coords=np.zeros((len(index), n_max, 3), np.float32),
        species=np.zeros((len(index), n_max), np.int32),
        wyckoff=np.zeros((len(index), n_max), np.int32),
    )
    for row, i in enumerate(index):
        crystal, n = results[i], len(results[i].wyckoff)
        batch.space_group[row], batch.lattice[row] = crystal.space_group, crystal.lattice
        batch.frac_coords[row, :n] = crystal.frac_coords
        batch.species[row, :n], batch.wyckoff[row, :n] = crystal.species, crystal.wyckoff
    batch.frac_coords[batch.frac_coords >= 1] = 0  # the largest float64 below 1 rounds up
    return batch, index


def content_digest(path: Path, settings: list) -> str:
    """SHA-256 of a file's bytes, or of a directory's names and bytes, and of the settings."""
    if not path.exists():
        raise DataError(f"no such file or directory: {path}")
    digest = hashlib.sha256(json.dumps(settings).encode())
    files = sorted(entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else [path]
    try:
        for file in files:
            digest.update(os.path.relpath(file, path).encode() + b"\0")
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()


def _save(path: Path, dataset: EncodedDataset) -> None:
    text = json.dumps({"names": dataset.names, "failures": dataset.failures})
    with open(path, "wb") as file:
        np.savez_compressed(file, **vars(dataset.batch), text=np.frombuffer(text.encode(), np.uint8))


def _load(path: Path, digest: str, source: str) -> EncodedDataset | None:
    """A cached data set, or None where there is none or it is damaged: then it is made again."""
    try:
        with np.load(path) as stored:
            text = json.loads(stored["text"].tobytes())
            batch = CrystalBatch(**{name: stored[name] for name in stored.files if name != "text"})
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return EncodedDataset(batch, text["names"], [tuple(pair) for pair in text["failures"]], digest, source)
