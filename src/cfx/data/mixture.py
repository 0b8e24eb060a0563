"""Several encoded data sets as one, some rows of it more than once: what a model is trained on after the first time."""

import hashlib
from collections.abc import Mapping, Sequence
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


def repeated_rows(kinds: Sequence[str], shares: Mapping[str, float], room: int, most: int, seed: int) -> np.ndarray:
    """Rows of a small data set for an epoch, every kind of crystal as frequent as it should be, int [k], ascending.

    Args:
        kinds: of its crystals, one or more.
        shares: how frequent each kind should be; only their ratios matter.
        room: rows, at most; there is one at least.
        most: how often a crystal may be in it.
        seed: of the choice, where there is no room for all.

    Returns:
        Rows of each kind in these ratios: all as often as there is room for, or, where there is none, as many as there
        is room for. A kind of which there is too little makes the others fewer.
    """
    found = np.asarray(kinds)
    rows = {kind: np.flatnonzero(found == kind) for kind in np.unique(found)}
    total = sum(shares[kind] for kind in rows)
    whole = min(room, *(len(of_kind) * most * total / shares[kind] for kind, of_kind in rows.items()))
    rng = np.random.default_rng(seed)
    chosen = []
    for kind, of_kind in rows.items():
        repeats, rest = divmod(int(whole * shares[kind] / total), len(of_kind))
        chosen += [np.repeat(of_kind, repeats), rng.choice(of_kind, rest, replace=False)]
    return np.sort(np.concatenate(chosen)) if any(map(len, chosen)) else rng.choice(len(found), 1)
