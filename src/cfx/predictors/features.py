"""CHGNet's features of crystals, computed once for all that read them."""

from collections.abc import Sequence

import numpy as np

from cfx.core import Structure
from cfx.predictors.base import PotentialBatch
from cfx.predictors.batching import reasons_of
from cfx.predictors.chgnet import CrystalFeatures, FeatureExtractor

MOST_REMEMBERED = 50_000
"""Atoms of which features are remembered, at most; a kilobyte each."""


class SharedExtractor(FeatureExtractor):
    """An extractor that remembers the crystals of its last call, since several models ask for the same ones.

    Only a call for the same crystals in the same order is answered from memory: last digits depend on what is computed
    together, and must not depend on what was asked before.
    """

    def __init__(self, device: str = "cpu"):
        """See `FeatureExtractor`."""
        super().__init__(device)
        self._last: tuple[list[tuple], list[CrystalFeatures | str]] = [], []

    def evaluate(self, structures: Sequence[Structure | None]) -> list[CrystalFeatures | str]:
        """See `FeatureExtractor.evaluate`; copies of a crystal are evaluated once."""
        keys = [_content(one) for one in structures]
        if keys != self._last[0]:
            asked = dict(zip(keys, structures, strict=True))
            found = dict(zip(asked, super().evaluate(list(asked.values())), strict=True))
            self._last = keys, [found[key] for key in keys]
        answer = list(self._last[1])
        if sum(0 if one is None else len(one) for one in structures) > MOST_REMEMBERED:
            self._last = [], []
        return answer


def _content(structure: Structure | None) -> tuple:
    """What two copies of a crystal share, and no others."""
    if structure is None:
        return ()
    species = tuple(site.species_string for site in structure)
    return structure.lattice.matrix.tobytes(), structure.frac_coords.tobytes(), species


class FeatureEnergies:
    """CHGNet's energies, as a byproduct of its features: a `Potential` without forces."""

    scale = "mp2020"

    def __init__(self, extractor: FeatureExtractor):
        self.name, self._extractor = extractor.name, extractor

    def evaluate(self, structures: Sequence[Structure | None]) -> PotentialBatch:
        """Energies of crystals; see `Potential.evaluate`."""
        found = self._extractor.evaluate(structures)
        energy = [np.nan if isinstance(one, str) else one.energy * len(one.numbers) for one in found]
        return PotentialBatch(
            energy=np.array(energy, float),
            forces=[None] * len(found),
            stress=np.full((len(found), 3, 3), np.nan),
            reasons=reasons_of(found),
        )
