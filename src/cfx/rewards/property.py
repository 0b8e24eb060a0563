"""Rewards from models of a property: band gap, dielectric constant, their product, and distance from a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cfx.properties.base import PropertyBatch, PropertyModel, evaluate_all
from cfx.rewards.base import RewardBatch, make_batch

if TYPE_CHECKING:
    from pymatgen.core import Structure

LABELS = {"band_gap": "band gap", "dielectric": "dielectric constant"}


def label(model: PropertyModel) -> str:
    """What a property is called, with its unit."""
    name = LABELS.get(model.property, model.property)
    return f"{name} ({model.unit})" if model.unit else name


class Property:
    """A property itself, or how close it comes to a target."""

    def __init__(self, name: str, model: PropertyModel, target: float | None = None, distance: str = "square"):
        """A reward of that name: the property, or minus its distance (square or absolute) from the target."""
        self.name, self._model, self._target, self._distance = name, model, target, distance
        self.about = f"{label(model)} by {model.name}" + ("" if target is None else f", aiming at {target:g}")
        squared = target is not None and distance == "square"
        self.unit = f"({model.unit})^2" if squared and model.unit else model.unit
        self.kl_coef = 0.1
        # A crystal without a value counts as one that has none of the property, or is ten units from the target.
        self.failure = 0.0 if target is None else -(100.0 if squared else 10.0)

    def evaluate(self, structures: Sequence[Structure | None]) -> RewardBatch:
        """See `Reward`."""
        batch = self._model.evaluate(structures)
        value = np.asarray(batch.value, float)
        metrics = _metrics(self._model, batch)
        if self._target is not None:
            off = value - self._target
            value = -(off**2) if self._distance == "square" else -np.abs(off)
            value = np.maximum(value, self.failure)
        return make_batch(value, batch.reasons, metrics)


class FigureOfMerit:
    """Total dielectric constant times band gap, eV (2504.02367, Section "Dielectric figure of merit").

    A crystal unlike all that the model of the gap has learnt from is worth nothing: high predictions are cheapest to
    find where a model knows nothing. It is no failure, for a third of what a small model draws is like that. (Half of
    all known crystals are unlike the few data of the dielectric models, so that their standard deviations are among the
    metrics instead.)
    """

    name, unit = "fom", "eV"
    kl_coef = 1.0
    failure = 0.0

    def __init__(self, gap: PropertyModel, dielectric: PropertyModel):
        self.about = f"band gap by {gap.name}, total dielectric constant by {dielectric.name}"
        self._models = (gap, dielectric)

    def evaluate(self, structures: Sequence[Structure | None]) -> RewardBatch:
        """See `Reward`."""
        batches = evaluate_all(self._models, structures)
        gap, dielectric = (np.asarray(batch.value, float) for batch in batches)
        reasons = [one or other for one, other in zip(batches[0].reasons, batches[1].reasons, strict=True)]
        # A metal has no gap; small negative predictions are that.
        value = np.where(batches[0].outside, 0.0, np.maximum(gap, 0) * np.maximum(dielectric, 0))
        metrics: dict[str, np.ndarray] = {"figure of merit (eV)": value}
        metrics["unlike known crystals"] = np.where(batches[0].ok, batches[0].outside, np.nan).astype(float)
        for model, batch in zip(self._models, batches, strict=True):
            metrics |= _metrics(model, batch)
        return make_batch(value, reasons, metrics)


def _metrics(model: PropertyModel, batch: PropertyBatch) -> dict[str, np.ndarray]:
    return {label(model): np.asarray(batch.value, float), f"{label(model)}, std": np.asarray(batch.std, float)}
