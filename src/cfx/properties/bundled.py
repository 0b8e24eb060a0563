"""The property models that come with cfx: band gap and dielectric constant, from CHGNet's features."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from cfx.properties.base import UNITS, PropertyBatch
from cfx.properties.features import CrystalFeatures, FeatureExtractor
from cfx.properties.heads import Head, load_head

if TYPE_CHECKING:
    from pymatgen.core import Structure

VERSION = "1"
"""Of the heads; counts up when their predictions change."""


class BundledModel:
    """A `PropertyModel` of a head on features; models of several properties may share the extractor.

    Attributes:
        name: of the model, with what makes its features.
        property: that it predicts.
        unit: of the property.
        extractor: of the features that its head reads; those of a crystal can be handed to several models.
    """

    def __init__(self, property: str, extractor: FeatureExtractor, head: Head):
        self.name = f"cfx {property} {VERSION} on {extractor.name}"
        self.property, self.unit = property, UNITS[property]
        self.extractor, self._head = extractor, head

    def evaluate(self, structures: Sequence[Structure | None]) -> PropertyBatch:
        """See `PropertyModel.evaluate`."""
        return self.predict(self.extractor.evaluate(structures))

    def predict(self, found: Sequence[CrystalFeatures | str]) -> PropertyBatch:
        """The property of crystals with these features, or without any for a reason."""
        reasons = [one if isinstance(one, str) else "" for one in found]
        ok = np.array([not reason for reason in reasons], bool)
        prediction = self._head.predict([one for one in found if not isinstance(one, str)])
        value, std, outside = np.full(len(ok), np.nan), np.full(len(ok), np.nan), np.zeros(len(ok), bool)
        value[ok], std[ok], outside[ok] = prediction
        return PropertyBatch(value, std, outside, ok, reasons)


@functools.cache
def shared_extractor(device: str) -> FeatureExtractor:
    """CHGNet on a device, once for all bundled models."""
    return FeatureExtractor(device)


def load_bundled(property: str, device: str = "cpu") -> BundledModel:
    """The bundled model of a property.

    Args:
        property: `band_gap` or `dielectric`.
        device: for CHGNet.

    Raises:
        DependencyError: without CHGNet or the device.
        CheckpointError: for another version of its weights, or a damaged installation.
    """
    file = resources.files("cfx") / "resources" / "properties" / f"{property}.npz"
    with resources.as_file(file) as path:
        head = load_head(path)
    return BundledModel(property, shared_extractor(device), head)
