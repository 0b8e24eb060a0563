"""What the rewards of a run are computed with: a potential, hulls, property models, each loaded once."""

from collections.abc import Callable, Sequence
from functools import cached_property

from cfx.config import RewardConfig
from cfx.core import Structure
from cfx.evaluation.hull import Hull
from cfx.predictors.base import Potential, PotentialBatch, PropertyModel
from cfx.predictors.bundled import BundledModel
from cfx.predictors.features import FeatureEnergies
from cfx.predictors.load import load_potential, load_property

Structures = Sequence[Structure | None]
"""Crystals, None where a lattice closes no cell."""

OpenHull = Callable[[Potential], Hull]
"""Gives the hull for energies of a potential."""


class RewardModels:
    """The models of a configuration, loaded when they are first asked for.

    Attributes:
        config: which ones.
    """

    def __init__(self, config: RewardConfig, open_hull: OpenHull, open_second_hull: OpenHull):
        """Loads nothing yet; the functions open the hulls of both potentials."""
        self.config, self._open_hull, self._open_second_hull = config, open_hull, open_second_hull
        self._properties: list[PropertyModel] = []

    @cached_property
    def potential(self) -> Potential:
        return load_potential(self.config.potential, self.config.device)

    @cached_property
    def hull(self) -> Hull:
        return self._open_hull(self.potential)

    @cached_property
    def second(self) -> tuple[Potential, Hull] | None:
        """The potential to compare with, and its own hull."""
        if self.config.second_potential is None:
            return None
        potential = load_potential(self.config.second_potential, self.config.device)
        return potential, self._open_second_hull(potential)

    @cached_property
    def gap(self) -> PropertyModel:
        return self._load("band_gap", self.config.gap_model)

    @cached_property
    def dielectric(self) -> PropertyModel:
        return self._load("dielectric", self.config.dielectric_model)

    def own_property(self, path: str) -> PropertyModel:
        """A model of matgl, by name or directory."""
        path = path if path.startswith("matgl:") else f"matgl:{path}"
        return self._load(self.config.property_name, path)

    def _load(self, name: str, path: str) -> PropertyModel:
        self._properties.append(load_property(name, path, self.config.device))
        return self._properties[-1]

    def energies(self, structures: Structures) -> PotentialBatch:
        """Energies by the potential; CHGNet's come with its features, where another reward reads those anyway."""
        if self.config.potential == "chgnet":
            for model in self._properties:
                if isinstance(model, BundledModel):
                    return FeatureEnergies(model.extractor).evaluate(structures)
        return self.potential.evaluate(structures, forces=False)
