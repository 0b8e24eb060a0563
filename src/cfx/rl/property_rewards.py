"""Rewards from property models: a property itself, or minus its distance from a target or a range."""

import math
import re
from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np

from cfx.config import RewardConfig
from cfx.errors import UsageError
from cfx.predictors.base import PropertyBatch, PropertyModel, label, predictions
from cfx.predictors.bundled import FigureOfMerit
from cfx.rl.reward_models import RewardModels, Structures
from cfx.rl.rewards import DEFAULT_KL_COEF, NamedReward, RewardBatch, make_batch

NUMBER = re.compile(r"[+-]?(\d+(\.\d+)?|\.\d+)([eE][+-]?\d+)?")


class Aim(NamedTuple):
    """Where a property should be: from `low` to `high`, of which one may be infinite; a target if both are the same."""

    low: float
    high: float

    @classmethod
    def read(cls, text: str) -> Self | None:
        """The aim of 1.5, 1..2, 1.. or ..2; None for any other text.

        Raises:
            UsageError: for an empty range.
        """
        first, dots, last = text.partition("..")
        ends = (first, last) if dots else (first, first)
        if not any(ends) or any(end and not NUMBER.fullmatch(end) for end in ends):
            return None
        low, high = ends
        aim = cls(float(low or -math.inf), float(high or math.inf))
        if aim.low > aim.high:
            raise UsageError(f"there is nothing in the range {text}", f"write {high}..{low}")
        return aim

    def distance(self, value: np.ndarray) -> np.ndarray:
        """How far values are from it, float64 [n]."""
        return np.maximum(np.maximum(self.low - value, value - self.high), 0)

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:g}"
        return "..".join(f"{end:g}" if math.isfinite(end) else "" for end in self)


def gap(name: str, models: RewardModels, aim: Aim | None) -> NamedReward:
    """The band gap."""
    return _property(name, models.gap, models.config, aim)


def dielectric(name: str, models: RewardModels, aim: Aim | None) -> NamedReward:
    """The total dielectric constant."""
    return _property(name, models.dielectric, models.config, aim)


def own_property(name: str, models: RewardModels, aim: Aim | None) -> NamedReward:
    """What a model of matgl predicts: property:MODEL."""
    return _property(name, models.own_property(name.removeprefix("property:")), models.config, aim)


def _property(name: str, model: PropertyModel, config: RewardConfig, aim: Aim | None) -> NamedReward:
    if aim is None and config.target is not None:
        aim = Aim(config.target, config.target)

    def parts(batch: PropertyBatch) -> dict[str, np.ndarray]:
        outside = np.where(batch.ok, batch.outside, np.nan).astype(float)
        return predictions(model, batch) | {f"{label(model)}, unlike known crystals": outside}

    return _reward(name, model, f"{label(model)} by {model.name}", parts, config, aim)


def figure_of_merit(name: str, models: RewardModels, aim: Aim | None) -> NamedReward:
    """The dielectric figure of merit, see `predictors.bundled`."""
    model = FigureOfMerit(models.gap, models.dielectric)
    return _reward(name, model, model.name, lambda batch: batch.parts, models.config, aim, kl_coef=1.0)


def _reward(
    name: str,
    model: PropertyModel,
    about: str,
    parts: Callable[[PropertyBatch], dict[str, np.ndarray]],
    config: RewardConfig,
    aim: Aim | None,
    kl_coef: float = DEFAULT_KL_COEF,
) -> NamedReward:
    """A property itself, or minus its distance, squared or absolute, from an aim.

    A crystal unlike all that the model has learnt from is worth nothing: what a model says where it knows nothing is
    the cheapest to find. It is no failure, for much of what a small model draws is like that.
    """
    squared = config.distance == "square"
    if aim is None:
        # A crystal without a value counts as one that has none of the property.
        unit, failure = model.unit, 0.0
    else:
        # A crystal without a value counts as one ten units from the target.
        about, failure = f"{about}, aiming at {aim}", -(100.0 if squared else 10.0)
        unit = f"({model.unit})^2" if squared and model.unit else model.unit

    def evaluate(structures: Structures) -> RewardBatch:
        batch = model.evaluate(structures)
        value = np.asarray(batch.value, float)
        if aim is not None:
            off = aim.distance(value)
            value = np.maximum(-(off**2) if squared else -off, failure)
        value = np.where(np.asarray(batch.outside, bool) & np.isfinite(value), failure, value)
        return make_batch(value, batch.reasons, parts(batch))

    return NamedReward(name, about, unit, failure, evaluate, kl_coef)
