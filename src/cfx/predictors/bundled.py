"""The property models that come with cfx: small networks on CHGNet's features.

A network transforms the features of each atom, takes the mean over atoms and means in which it weighs atoms itself
(attention), adds what is known of the crystal as a whole, and ends in two numbers: the target, and the logarithm of the
width of a Laplace distribution around it. Members of an ensemble have seen different parts of the data.
"""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cfx.core.elements import SYMBOLS, likeliest_states
from cfx.errors import CheckpointError
from cfx.predictors.base import UNITS, PropertyBatch, PropertyModel, predictions
from cfx.predictors.batching import reasons_of
from cfx.predictors.chgnet import CrystalFeatures, FeatureExtractor
from cfx.predictors.features import SharedExtractor

if TYPE_CHECKING:
    from pymatgen.core import Structure


VERSION = "1"
"""Version of the heads; counts up when their predictions change."""

LAYERS = ("atom1", "atom2", "attention", "value", "crystal1", "crystal2", "output")
"""Layers of a network, each with `/w` [members, inputs, outputs] and `/b` [members, outputs]."""

OTHERS = (
    *("elements", "atom_mean", "atom_scale", "crystal_mean", "crystal_scale"),
    *("axes", "landmarks", "radius", "seen", "bounds", "spread", "transform"),
)
"""Further arrays of a head: a table [119, d] of the elements; mean and scale of inputs; where the training data lie,
how many crystals have each element, int [119], and between which bounds their targets are, [2]."""

TRANSFORMS = ("identity", "log10")
"""What a target is: the property itself, or its decimal logarithm."""

FEWEST = 5
"""Crystals with an element that a model must have seen to know it."""

WIDEST = 10.0
"""Bound of the logarithms of attention's weights."""

LOG_WIDTHS = (-6, 3)
"""Bounds of the logarithms of the widths, in training too."""

SOFT_CATIONS = {
    **{"Ti": 4, "V": 5, "Nb": 5, "Ta": 5, "Mo": 6, "W": 6},  # an empty d shell: the second-order Jahn-Teller effect
    **{"In": 1, "Tl": 1, "Ge": 2, "Sn": 2, "Pb": 2, "Sb": 3, "Bi": 3},  # a lone pair of s electrons
}
"""Cations, by oxidation state, that like to leave the centre of their anions."""

SOFT_POLAR = "soft polar"
"""The part of a prediction that says whether a crystal may be softer than a model of the dielectric constant knows."""


def load_bundled(property: str, device: str = "cpu") -> BundledModel:
    """The bundled model of a property.

    Args:
        property: `band_gap` or `dielectric`.
        device: of CHGNet.

    Raises:
        DependencyError: without CHGNet or the device.
        CheckpointError: for another version of its weights, or a damaged installation.
    """
    file = resources.files("cfx") / "resources" / "properties" / f"{property}.npz"
    with resources.as_file(file) as path:
        head = load_head(path)
    return BundledModel(property, shared_extractor(device), head)


@functools.cache
def shared_extractor(device: str) -> SharedExtractor:
    """CHGNet on a device, once for all bundled models."""
    return SharedExtractor(device)


class BundledModel:
    """A `PropertyModel` of a head on CHGNet's features; models of several properties may share the extractor.

    Attributes:
        name, property, unit: see `PropertyModel`.
        extractor: computes the features that the head reads.
    """

    def __init__(self, property: str, extractor: FeatureExtractor, head: Head):
        self.name = f"cfx {property} {VERSION} on {extractor.name}"
        self.property, self.unit = property, UNITS[property]
        self.extractor, self._head = extractor, head

    def evaluate(self, structures: Sequence[Structure | None]) -> PropertyBatch:
        """See `PropertyModel.evaluate`."""
        return self.predict(self.extractor.evaluate(structures))

    def predict(self, found: Sequence[CrystalFeatures | str]) -> PropertyBatch:
        """The property of crystals with these features, or with a reason why there are none."""
        reasons = reasons_of(found)
        ok = np.array([not reason for reason in reasons], bool)
        value, std, outside = np.full(len(ok), np.nan), np.full(len(ok), np.nan), np.zeros(len(ok), bool)
        features = [one for one in found if not isinstance(one, str)]
        value[ok], std[ok], outside[ok] = self._head.predict(features)
        parts = {}
        if self.property == "dielectric":
            parts[SOFT_POLAR] = np.full(len(ok), np.nan)
            parts[SOFT_POLAR][ok] = [is_soft_polar(one.numbers) for one in features]
        return PropertyBatch(value=value, std=std, outside=outside, reasons=reasons, parts=parts)


def is_soft_polar(numbers: np.ndarray) -> bool:
    """Whether ions of these atomic numbers, int [atoms], may have a polar mode that makes most of the constant.

    The total dielectric constant of such crystals (rutile, titanates, halides of lead and thallium) can be ten times
    that of others that look alike. There are few among the data, for the softest are unstable where nothing moves:
    what is predicted is likely to be too low.
    """
    from pymatgen.core import Composition

    symbols, counts = np.unique(np.array(SYMBOLS)[numbers], return_counts=True)
    states = likeliest_states(Composition(dict(zip(symbols.tolist(), counts.tolist(), strict=True))))
    return any(states.get(symbol) == state for symbol, state in SOFT_CATIONS.items())


def evaluate_all(models: Sequence[PropertyModel], structures: Sequence[Structure | None]) -> list[PropertyBatch]:
    """What each model says of the crystals; bundled models that share an extractor compute features once."""
    features: dict[FeatureExtractor, list[CrystalFeatures | str]] = {}
    batches = []
    for model in models:
        if not isinstance(model, BundledModel):
            batches.append(model.evaluate(structures))
            continue
        if model.extractor not in features:
            features[model.extractor] = model.extractor.evaluate(structures)
        batches.append(model.predict(features[model.extractor]))
    return batches


class Inputs(NamedTuple):
    """Standardised features of n crystals with `sizes` atoms: float32 [atoms, a] and [n, c]; int [n]."""

    atoms: np.ndarray
    crystals: np.ndarray
    sizes: np.ndarray


class Prediction(NamedTuple):
    """Predictions for n crystals: value and std, float64 [n] in the unit of the property; outside, bool [n]."""

    value: np.ndarray
    std: np.ndarray
    outside: np.ndarray


def raw_inputs(features: Sequence[CrystalFeatures], elements: np.ndarray) -> Inputs:
    """Inputs before they are standardised.

    Args:
        features: of at least one crystal.
        elements: float [119, d], descriptors of the elements by atomic number.
    """
    sizes = np.array([len(one.numbers) for one in features])
    table = elements[np.concatenate([one.numbers for one in features])]
    starts = _starts(sizes)
    mean = np.add.reduceat(table, starts) / sizes[:, None]
    variance = np.add.reduceat((table - np.repeat(mean, sizes, 0)) ** 2, starts) / sizes[:, None]
    crystals = [
        mean,
        np.sqrt(variance),
        np.maximum.reduceat(table, starts),
        np.minimum.reduceat(table, starts),
        np.array([[np.log(one.volume), one.energy, *_formula(one.numbers)] for one in features]),
    ]
    atoms = np.concatenate([np.concatenate([one.atoms for one in features]), table], 1)
    return Inputs(atoms.astype(np.float32), np.concatenate(crystals, 1).astype(np.float32), sizes)


def _formula(numbers: np.ndarray) -> tuple[int, int]:
    """Whether a formula unit has an odd number of electrons, and how many elements."""
    _, counts = np.unique(numbers, return_counts=True)
    return int(numbers.sum() // np.gcd.reduce(counts) % 2), len(counts)


def _starts(sizes: np.ndarray) -> np.ndarray:
    """Number of the first atom of each crystal."""
    return np.concatenate([[0], np.cumsum(sizes)[:-1]])


@dataclass(frozen=True)
class Head:
    """An ensemble of networks on CHGNet's features.

    Attributes:
        arrays: LAYERS and OTHERS, by name.
        transform: one of TRANSFORMS.
    """

    arrays: dict[str, np.ndarray]
    transform: str

    def predict(self, features: Sequence[CrystalFeatures]) -> Prediction:
        """What the ensemble makes of crystals."""
        if not features:
            return Prediction(np.zeros(0), np.zeros(0), np.zeros(0, bool))
        inputs = self.inputs(features)
        mean, width = (np.asarray(part, float) for part in self.members(inputs))
        # The variance of a mixture of Laplace distributions, rescaled to what errors on unseen crystals were.
        target = mean.mean(0)
        std = float(self.arrays["spread"]) * np.sqrt((2 * width**2).mean(0) + mean.var(0))
        outside = self.outside(features, inputs)
        if self.transform == "log10":
            return Prediction(10**target, np.log(10) * 10**target * std, outside)
        return Prediction(target, std, outside)

    def inputs(self, features: Sequence[CrystalFeatures]) -> Inputs:
        """Standardised inputs of the networks."""
        raw = raw_inputs(features, self.arrays["elements"])
        atoms = (raw.atoms - self.arrays["atom_mean"]) / self.arrays["atom_scale"]
        crystals = (raw.crystals - self.arrays["crystal_mean"]) / self.arrays["crystal_scale"]
        return Inputs(atoms, crystals, raw.sizes)

    def members(self, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
        """Targets, of which none is beyond those of the training data, and widths; each [members, n]."""
        count = len(self.arrays["output/b"])
        found = np.stack([self._network(member, inputs) for member in range(count)])
        return np.clip(found[..., 0], *self.arrays["bounds"]), np.exp(np.clip(found[..., 1], *LOG_WIDTHS))

    def outside(self, features: Sequence[CrystalFeatures], inputs: Inputs) -> np.ndarray:
        """Which crystals are far from the training data, or have an element that is hardly among them, bool [n]."""
        fewest = np.array([self.arrays["seen"][one.numbers].min() for one in features])
        return (fewest < FEWEST) | (self.distance(inputs) > float(self.arrays["radius"]))

    def distance(self, inputs: Inputs) -> np.ndarray:
        """To the nearest of the landmarks among the training data, along its principal axes, [n]."""
        places = summary(inputs) @ self.arrays["axes"].astype(np.float32)
        landmarks = self.arrays["landmarks"].astype(np.float32)
        squares = (places**2).sum(1)[:, None] - 2 * places @ landmarks.T + (landmarks**2).sum(1)
        return np.sqrt(np.maximum(squares.min(1), 0))

    def _network(self, member: int, inputs: Inputs) -> np.ndarray:
        """[n, 2]: target, logarithm of the width."""

        def layer(name: str, x: np.ndarray) -> np.ndarray:
            weight, bias = (self.arrays[f"{name}/{part}"][member].astype(np.float32) for part in "wb")
            return x @ weight + bias

        starts, sizes = _starts(inputs.sizes), inputs.sizes[:, None]
        atoms = silu(layer("atom2", silu(layer("atom1", inputs.atoms))))
        weights = np.exp(np.clip(layer("attention", atoms), -WIDEST, WIDEST))
        values = layer("value", atoms).reshape(len(atoms), weights.shape[1], -1) * weights[:, :, None]
        attended = np.add.reduceat(values, starts) / np.add.reduceat(weights, starts)[:, :, None]
        mean = np.add.reduceat(atoms, starts) / sizes
        crystals = np.concatenate([attended.reshape(len(sizes), -1), mean, inputs.crystals], 1)
        return layer("output", silu(layer("crystal2", silu(layer("crystal1", crystals)))))


def summary(inputs: Inputs) -> np.ndarray:
    """Where a crystal lies among others: mean inputs of its atoms and its own, [n, a + c]."""
    means = np.add.reduceat(inputs.atoms, _starts(inputs.sizes)) / inputs.sizes[:, None]
    return np.concatenate([means, inputs.crystals], 1)


def silu(x: np.ndarray) -> np.ndarray:
    """x times its logistic function."""
    return x / (1 + np.exp(-np.clip(x, -60, 60)))


def load_head(path: Path) -> Head:
    """Reads a head from its file.

    Raises:
        CheckpointError: if the file is not there, or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", "reinstall cfx") from error
    names = {*OTHERS, *(f"{layer}/{part}" for layer in LAYERS for part in "wb")}
    if missing := sorted(names - set(arrays)):
        raise CheckpointError(f"{path} has no {missing[0]}: it is not a property model", "reinstall cfx")
    transform = str(arrays["transform"])
    if transform not in TRANSFORMS:
        raise CheckpointError(f"{path} has an unknown target transformation, {transform}", "update cfx")
    return Head(arrays, transform)


class FigureOfMerit:
    """Total dielectric constant times band gap, eV, as a `PropertyModel` (2504.02367, "Dielectric figure of merit").

    A crystal unlike all that one of the models has learnt from is worth nothing: high predictions are cheapest to find
    where a model knows nothing. It is no failure, for much of what a small model draws is like that.
    """

    property, unit = "figure_of_merit", "eV"

    def __init__(self, gap: PropertyModel, dielectric: PropertyModel):
        """The figure of merit by a model of the band gap, eV, and one of the dielectric constant."""
        self.name = f"band gap by {gap.name}, total dielectric constant by {dielectric.name}"
        self._models = (gap, dielectric)

    def evaluate(self, structures: Sequence[Structure | None]) -> PropertyBatch:
        """See `PropertyModel`; `parts` has both predictions, too."""
        gap, dielectric = evaluate_all(self._models, structures)
        # A metal has no gap; small negative predictions are that.
        outside, ok = gap.outside | dielectric.outside, gap.ok & dielectric.ok
        value = np.where(outside, 0.0, np.maximum(gap.value, 0) * np.maximum(dielectric.value, 0))
        parts = {
            "figure of merit (eV)": value,
            "unlike known crystals": np.where(ok, outside, np.nan).astype(float),
        }
        for model, batch in zip(self._models, (gap, dielectric), strict=True):
            parts |= predictions(model, batch)
        reasons = [one or other for one, other in zip(gap.reasons, dielectric.reasons, strict=True)]
        value = np.where(ok, value, np.nan)
        std = np.full(len(structures), np.nan)
        return PropertyBatch(reasons=reasons, value=value, std=std, outside=outside, parts=parts)
