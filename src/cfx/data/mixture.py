"""Several encoded data sets as one, some rows of it more than once: what a model is trained on after the first time."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from cfx.data.dataset import EncodedDataset


class Mixture(EncodedDataset):
    """Rows of encoded data sets, one set after the other, in memory: about 100 bytes a crystal."""

    def __init__(self, source: str, parts: Sequence[tuple[EncodedDataset, np.ndarray]]):
        """Gathers the crystals.

        Args:
            source: what the mixture is called.
            parts: data sets of equal n_max with the rows, int [k], that are taken of each; a row may repeat.
        """
        self._parts, self.source, self.num_failures = parts, source, 0
        [self.n_max] = {data.n_max for data, _ in parts}
        crystals, first = [], 0
        for data, rows in parts:
            taken = data._crystals[rows]
            taken["start"] += first
            crystals.append(taken)
            first += len(data._sites)
        # A row that repeats is another record of the same sites.
        self._crystals = np.concatenate(crystals)
        self._sites = np.concatenate([data._sites for data, _ in parts])
        content = [(data.digest, np.asarray(rows, "<i8").tobytes()) for data, rows in parts]
        self.digest = hashlib.sha256(repr(content).encode()).hexdigest()

    @property
    def names(self) -> list[str]:  # pyright: ignore[reportIncompatibleVariableOverride]  (cached there, seldom used here)
        """Names of the crystals."""
        return [data.names[row] for data, rows in self._parts for row in rows]

    def continues(self, provenance: dict[str, Any]) -> bool:
        """Never: what an earlier version of cfx made of the same files is another mixture."""
        return False


def repeated_rows(size: int, beside: int, share: float, most: int, seed: Sequence[int]) -> np.ndarray:
    """Rows of a small data set that make up at most a share of an epoch, int [k], ascending.

    Args:
        size: its crystals.
        beside: crystals of the data that are in the epoch as well.
        share: of the epoch, between 0 and 1.
        most: how often a crystal may be in it.
        seed: of the choice, where there is no room for all.

    Returns:
        All rows, as often as there is room, or, where there is none, as many as there is room for (one at least).
    """
    room = max(int(share / (1 - share) * beside), 1)
    if size > room:
        return np.sort(np.random.default_rng(seed).choice(size, room, replace=False))
    return np.repeat(np.arange(size), min(room // size, most))
