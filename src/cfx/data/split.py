"""The data of a training run: what it learns from, and what is held out from it, one file or two."""

import hashlib
from typing import Any

import numpy as np

from cfx.config import DataConfig
from cfx.core.crystal import CrystalBatch
from cfx.core.symmetry import symmetry_table
from cfx.data.dataset import EncodedDataset, read
from cfx.errors import DataError
from cfx.reporter import Reporter

PIECE = 100_000
"""Crystals that are in memory at once while they are hashed."""


class Subset(EncodedDataset):
    """Some rows of an encoded data set; their sites stay where they are mapped."""

    def __init__(self, source: str, data: EncodedDataset, rows: np.ndarray):
        """Rows, int [k], of `data`, under a name of their own."""
        self._data, self._rows = data, rows
        self.source, self.n_max, self.num_failures = source, data.n_max, 0
        self._crystals, self._sites = data._crystals[rows], data._sites
        self.digest = hashlib.sha256(repr((data.digest, rows.astype("<i8").tobytes())).encode()).hexdigest()

    @property
    def names(self) -> list[str]:  # pyright: ignore[reportIncompatibleVariableOverride]  (cached there, seldom used here)
        """Names of the crystals."""
        return [self._data.names[row] for row in self._rows]

    def continues(self, provenance: dict[str, Any]) -> bool:
        """Never: an earlier version of cfx may have encoded other crystals, and held out others."""
        return False


def read_data(
    config: DataConfig, n_max: int, reporter: Reporter, workers: int
) -> tuple[EncodedDataset, EncodedDataset | None]:
    """Encodes what a run learns from and what it is validated on, as `data.dataset.read` does.

    Raises:
        DataError: as `read`, or if a share to hold out leaves nothing on one side.
    """
    data = read(str(config.train), n_max, reporter, config.symprec, workers)
    if config.validation is None:
        return data, None
    if config.held_out is None:
        return data, read(config.validation, n_max, reporter, config.symprec, workers)
    train, held_out = split(data, config.held_out)
    reporter.message(
        f"held out for validation: {len(held_out)} of {len(data)} crystals ({100 * len(held_out) / len(data):.1f} %), "
        "chosen by a hash of each crystal, copies together"
    )
    return train, held_out


def split(data: EncodedDataset, share: float) -> tuple[EncodedDataset, EncodedDataset]:
    """A data set without about that share of its crystals, and that share.

    On which side a crystal is depends on nothing but itself and the share: not on its row, nor on what else there is.
    A larger share holds out what a smaller one does, and more.

    Raises:
        DataError: if one side has none.
    """
    pieces = np.split(np.arange(len(data)), range(PIECE, len(data), PIECE))
    hashes = np.concatenate([crystal_hashes(data.take(rows, data.n_max)) for rows in pieces])
    held_out = hashes < np.uint64(share * 2**64)
    if held_out.all() or not held_out.any():
        kept, wanted = ("all", "smaller") if held_out.all() else ("none", "larger")
        raise DataError(
            f"a share of {100 * share:.4g} % holds out {kept} of the crystals of {data.source}",
            f"write a {wanted} share, or name a file of crystals as `validation`",
        )
    return (
        Subset(f"{data.source} without {100 * share:.4g} %", data, np.flatnonzero(~held_out)),
        Subset(f"{100 * share:.4g} % of {data.source}", data, np.flatnonzero(held_out)),
    )


def crystal_hashes(batch: CrystalBatch) -> np.ndarray:
    """Hashes, uint64 [B], of the space group and of the element and multiplicity of every site, in whatever order.

    Copies of one crystal have the same, whatever their cell, origin, axes, and digits; so do crystals that differ in
    free coordinates or lattice alone, and some that differ in letters.
    """
    group = np.asarray(batch.space_group, np.uint64)[:, None]
    multiplicity = symmetry_table().multiplicity[batch.space_group[:, None] - 1, batch.wyckoff].astype(np.uint64)
    sites = _mixed((group << 32) + (np.asarray(batch.species, np.uint64) << 16) + multiplicity)
    return _mixed(np.where(batch.wyckoff > 0, sites, np.uint64(0)).sum(1))


def _mixed(words: np.ndarray) -> np.ndarray:
    """Each bit changes half of the others: the finaliser of splitmix64 (Steele, Lea and Flood 2014) on uint64."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> 27)) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> 31)
