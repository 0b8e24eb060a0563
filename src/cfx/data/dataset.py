"""Encoded data sets: made in parallel, cached by content, mapped into memory, every failure kept with its reason."""

import csv
import itertools
import json
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cfx.core.crystal import CrystalBatch
from cfx.core.elements import SYMBOLS
from cfx.core.lattice import CRYSTAL_SYSTEMS
from cfx.data import lmdb, store
from cfx.data.encode import SYMPREC, EncodedCrystal, EncodingError, encode_structure
from cfx.data.read import READABLE, read_records
from cfx.data.workers import encode_in_parallel
from cfx.errors import DataError
from cfx.fetch.names import data_path
from cfx.io.files import cache_directory, content_digest
from cfx.reporter import Interrupted, Reporter, StopRequest, counted

ENCODER_VERSION = 4
"""Raised whenever the same input would encode to something else, so that stale caches are not read."""

COMMIT_SECONDS = 1.0
"""Work that an interrupted encoding may lose."""

WAIT_SECONDS = 0.2
"""Between two looks at what another process encodes."""


@dataclass(frozen=True)
class Encoded:
    """What became of a list of structures.

    Attributes:
        batch: the crystals that could be encoded.
        index: int [B], their rows in the input, from 0.
        failures: (row, reason) of the others, rows likewise.
    """

    batch: CrystalBatch
    index: np.ndarray
    failures: list[tuple[int, str]]


class EncodedDataset:
    """An encoded file of crystals, in a store that is mapped into memory.

    Attributes:
        directory: of the store.
        digest: SHA-256 of content and settings, hexadecimal.
        source: file name, for provenance.
        n_max: slots of `batch`; a crystal has one site less at most.
        num_failures: rows that are not crystals for the model.
    """

    def __init__(self, directory: Path, state: dict[str, Any], path: Path, symprec: float):
        """Maps the store.

        Args:
            directory: of the store.
            state: what its dataset.json says.
            path: what was encoded.
            symprec: distance tolerance of the symmetry search, angstrom.
        """
        self.directory, self._path, self._symprec = directory, path, symprec
        self.digest: str = state["digest"]
        self.source: str = state["source"]
        self.n_max: int = state["n_max"]
        self.num_failures: int = state["failures"]
        self._crystals = store.map_records(directory / "crystals.bin", store.CRYSTAL, state["crystals"])
        self._sites = store.map_records(directory / "sites.bin", store.SITE, state["sites"])

    def __len__(self) -> int:
        return len(self._crystals)

    @cached_property
    def space_group(self) -> np.ndarray:
        """int32 [n], 1 to 230."""
        return self._crystals["space_group"].astype(np.int32)

    @property
    def num_sites(self) -> np.ndarray:
        """int32 [n], symmetry-inequivalent sites."""
        return self._crystals["num_sites"].astype(np.int32)

    def take(self, rows: np.ndarray, num_slots: int) -> CrystalBatch:
        """The crystals of some rows, int [B], in that many slots (numpy); only these are read.

        Raises:
            DataError: if a crystal has more sites than `num_slots`.
        """
        return _gather(self._crystals[np.asarray(rows, np.int64)], self._sites, num_slots)

    @cached_property
    def batch(self) -> CrystalBatch:
        """All crystals, in n_max slots (numpy)."""
        return self.take(np.arange(len(self)), self.n_max)

    @property
    def provenance(self) -> dict[str, Any]:
        """What a run keeps of the data it learns from: their source, sha256 and number of crystals."""
        return {"source": self.source, "sha256": self.digest, "crystals": len(self)}

    def continues(self, provenance: dict[str, Any]) -> bool:
        """Whether this is the provenance that an earlier version of cfx gave the same files, with as many crystals."""
        older = range(1, ENCODER_VERSION)
        return {**provenance, "sha256": self.digest} == self.provenance and provenance["sha256"] in (
            _digest(self._path, self._symprec, self.n_max, version) for version in older
        )

    def holds_same_crystals(self, other: "EncodedDataset") -> bool:
        """Whether another data set holds the same crystals in the same order, whatever its file is called."""
        return self.digest == other.digest or all(
            np.array_equal(mine[name], theirs[name])
            for mine, theirs in ((self._crystals, other._crystals), (self._sites, other._sites))
            for name in mine.dtype.names or ()
            if name != "row"
        )

    @cached_property
    def names(self) -> list[str]:
        """Names of the crystals; read when first asked for."""
        with open(self.directory / "names.jsonl", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    @property
    def failures_path(self) -> Path:
        """A CSV (row, name, reason) of the rows that are not crystals."""
        return self.directory / "failures.csv"

    @cached_property
    def failures(self) -> list[store.Failure]:
        """The rows that are not crystals; read when first asked for."""
        return list(self._read_failures())

    def reasons(self) -> list[store.Reason]:
        """Why rows are not crystals, the most frequent reason first; no more than that is kept in memory."""
        return store.count_reasons(self._read_failures())

    def _read_failures(self) -> Iterator[store.Failure]:
        csv.field_size_limit(2**31 - 1)
        with open(self.failures_path, encoding="utf-8", newline="") as file:
            for row, name, reason in itertools.islice(csv.reader(file), 1, None):
                yield store.Failure(int(row), name, reason)

    def space_group_counts(self) -> np.ndarray:
        """int [230], crystals in each space group."""
        return np.bincount(self.space_group - 1, minlength=230)

    def element_counts(self) -> np.ndarray:
        """int [119], crystals that hold each element, by atomic number."""
        counts = np.zeros(len(SYMBOLS), int)
        # In pieces, so that no more of the mapped file than that is in memory.
        for first in range(0, len(self), 100_000):
            records = self._crystals[first : first + 100_000]
            num_sites = records["num_sites"].astype(np.int64)
            # Sites of a crystal follow each other; those of the next one may be elsewhere.
            offset = records["start"].astype(np.int64) - (np.cumsum(num_sites) - num_sites)
            sites = np.repeat(offset, num_sites) + np.arange(num_sites.sum())
            species = self._sites["species"][sites].astype(int)
            crystal = np.repeat(np.arange(len(num_sites)), num_sites)
            pairs = np.unique(crystal * len(SYMBOLS) + species)
            counts += np.bincount(pairs % len(SYMBOLS), minlength=len(SYMBOLS))
        return counts


def _gather(crystals: np.ndarray, sites: np.ndarray, num_slots: int) -> CrystalBatch:
    """CRYSTAL records [B] with their sites out of all SITE records, as a batch of standard types."""
    num_sites = crystals["num_sites"].astype(np.int64)
    if num_sites.max(initial=0) > num_slots:
        raise DataError(f"crystals with {num_sites.max()} sites do not fit {num_slots} slots")
    # One index [total sites] into the mapped records, in the order in which boolean masks are filled: row by row.
    slots = np.arange(num_slots)
    filled = slots < num_sites[:, None]
    found = sites[(crystals["start"].astype(np.int64)[:, None] + slots)[filled]]

    def spread(values: np.ndarray, dtype: type) -> np.ndarray:
        padded = np.zeros((*filled.shape, *values.shape[1:]), dtype)
        padded[filled] = values
        return padded

    return CrystalBatch(
        space_group=crystals["space_group"].astype(np.int32),
        lattice=crystals["lattice"].astype(np.float32),
        frac_coords=spread(found["frac_coords"], np.float32),
        species=spread(found["species"], np.int32),
        wyckoff=spread(found["wyckoff"], np.int32),
    )


def encode(structures: Sequence, symprec: float = SYMPREC, n_max: int = 21) -> Encoded:
    """Encodes pymatgen Structures, in any cell, or says why not.

    `symprec` is the distance tolerance of the symmetry search (angstrom), `n_max` the slots of the batch; a crystal has
    one site less at most.
    """
    results: list[EncodedCrystal | str] = []
    for structure in structures:
        try:
            results.append(encode_structure(structure, symprec, n_max - 1))
        except EncodingError as error:
            results.append(str(error))
    part = store.pack([""] * len(results), results)
    batch = _gather(part.crystals, part.sites, n_max)
    failures = [(failure.row - 1, failure.reason) for failure in part.failures]
    return Encoded(batch, part.crystals["row"].astype(int) - 1, failures)


def as_batch(crystals: Sequence[EncodedCrystal], n_max: int) -> CrystalBatch:
    """Encoded crystals as a batch (numpy), in their order."""
    part = store.pack([""] * len(crystals), list(crystals))
    return _gather(part.crystals, part.sites, n_max)


def read(name: str | Path, n_max: int, reporter: Reporter, symprec: float, workers: int) -> EncodedDataset:
    """An encoded data set; says how many crystals it holds, and what was skipped and why.

    `name` is a file, see `load_dataset` as for the rest; or a data set of the catalog, or hf:datasets/owner/repo/path,
    which are fetched.

    Raises:
        DataError: if nothing can be read, or no row is a crystal.
        NetworkError: if it has to be fetched, and cannot be.
        Interrupted: after a signal; the work so far is kept, and continued by the next call.
    """
    path = data_path(name, reporter)
    source = path.name if path == Path(name) else str(name)
    with StopRequest() as stop, reporter.progress(f"encoding {source}", None) as progress:

        def update(done: int) -> None:
            progress.update(done)
            if stop.signum is not None:
                message = f"encoding stopped after {done:,} rows; run the same command again to continue"
                raise Interrupted(stop.signum, message)

        data = load_dataset(path, symprec, n_max, workers, update, source)
        if stop.signum is not None:
            raise Interrupted(stop.signum, f"stopped; {source} is encoded")
    reporter.message(f"{source}: {counted(len(data), 'crystal')}, {counted(data.num_failures, 'row')} skipped")
    if data.num_failures:
        reasons = store.describe(data.reasons())
        reporter.warning(
            f"skipped {counted(data.num_failures, 'row')}: {reasons}; all are listed in {data.failures_path}"
        )
    return data


def summarize(data: EncodedDataset) -> dict[str, Any]:
    """What a data set holds, ready for JSON.

    Returns:
        source, digest, n_max, rows, crystals, skipped; reasons (a list of reason, rows, example); crystals by
        space_groups, crystal_systems, sites and elements (that they hold; the most frequent first); cache, the
        directory of the encoded data, and its cache_bytes.
    """
    groups, sites = data.space_group_counts(), np.bincount(data.num_sites)
    elements = data.element_counts()
    systems, first = {}, 0
    for name, last in CRYSTAL_SYSTEMS.items():
        systems[name], first = int(groups[first:last].sum()), last
    return {
        "source": data.source,
        "digest": data.digest,
        "n_max": data.n_max,
        "rows": len(data) + data.num_failures,
        "crystals": len(data),
        "skipped": data.num_failures,
        "reasons": [
            {"reason": reason.text, "rows": reason.rows, "example": reason.example} for reason in data.reasons()
        ],
        "space_groups": {int(i) + 1: int(groups[i]) for i in np.flatnonzero(groups)},
        "crystal_systems": systems,
        "sites": {int(i): int(sites[i]) for i in np.flatnonzero(sites)},
        "elements": {SYMBOLS[i]: int(elements[i]) for i in np.argsort(-elements, kind="stable") if elements[i]},
        "cache": str(data.directory),
        "cache_bytes": sum(file.stat().st_size for file in data.directory.iterdir()),
    }


def load_dataset(
    path: Path,
    symprec: float = SYMPREC,
    n_max: int = 21,
    num_workers: int = -1,
    on_progress: Callable[[int], None] = lambda done: None,
    source: str | None = None,
) -> EncodedDataset:
    """The encoded crystals of a file, from the cache where they are there.

    An encoding that was interrupted, by whatever means, goes on where it last committed its work. Where another
    process encodes the same data, its result is waited for.

    Args:
        path: file, directory or zip (see `data.read.read_records`), or CrystalFormer's .lmdb.
        symprec: distance tolerance of the symmetry search, angstrom.
        n_max: slots of the batch.
        num_workers: processes; -1 for all cores.
        on_progress: called with the number of rows done so far, whenever they are committed. What it raises stops
            the encoding and is passed on.
        source: what the data set is called; by default the name of the file.

    Raises:
        DataError: if nothing can be read, or no row is a crystal.
        OutputError: if the cache cannot be written.
    """
    path = Path(path)
    settings = {"source": source or path.name, "symprec": symprec, "n_max": n_max}
    digest = _digest(path, symprec, n_max, ENCODER_VERSION)
    directory = cache_directory("encoded") / digest
    partial = directory.with_name(f"{digest}.partial")
    while (state := store.read_state(directory, digest)) is None:
        with store.exclusive(partial) as ours:
            if not ours:  # another process is at it
                on_progress((store.read_state(partial, digest) or {"rows": 0})["rows"])
                time.sleep(WAIT_SECONDS)
            elif store.read_state(directory, digest):  # it has finished between our looks
                shutil.rmtree(partial)
            else:
                _encode_into(partial, path, {"digest": digest, **settings}, num_workers, on_progress)
                store.publish(partial, directory)
    dataset = EncodedDataset(directory, state, path, symprec)
    if not len(dataset):
        if not dataset.num_failures:
            raise DataError(f"{path} holds no crystals", READABLE)
        raise DataError(
            f"{path}: none of {dataset.num_failures} rows can be used: {store.describe(dataset.reasons())}",
            f"all rows and reasons are in {dataset.failures_path}",
        )
    return dataset


def _digest(path: Path, symprec: float, n_max: int, version: int) -> str:
    """The digest of data as a version of the encoder encodes them."""
    content = lmdb.data_file(path) if path.suffix.lower() == ".lmdb" else path
    return content_digest(content, [version, symprec, n_max, path.name])


def _encode_into(partial: Path, path: Path, settings: dict[str, Any], num_workers: int, on_progress) -> None:
    """Fills a store with the rows that it lacks."""
    try:
        writer = store.StoreWriter(partial, settings)
        with closing(_parts(path, settings, num_workers, writer.rows)) as parts:
            committed = time.monotonic()
            for part in parts:
                writer.append(part)
                if time.monotonic() - committed >= COMMIT_SECONDS:
                    writer.commit()
                    on_progress(writer.rows)
                    committed = time.monotonic()
            writer.commit()
            on_progress(writer.rows)
    except DataError as error:
        if not isinstance(error.__cause__, OSError):  # the input is at fault, and will be next time
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _parts(path: Path, settings: dict[str, Any], num_workers: int, done: int) -> Generator[store.Part, None, None]:
    """The rows of a file after the first `done`."""
    if path.suffix.lower() == ".lmdb":
        return lmdb.read_parts(path, settings["n_max"], done)
    records = itertools.islice(read_records(path), done, None)
    return encode_in_parallel(records, settings["symprec"], settings["n_max"] - 1, num_workers)
