"""Rewards by name: from interatomic potentials, from property models, or from outside cfx."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import numpy as np

from cfx.config import RewardConfig
from cfx.errors import UsageError
from cfx.evaluation.hull import Hull
from cfx.predictors import bundled
from cfx.predictors.base import Potential, PotentialBatch, PropertyModel, label, load_attribute, predictions
from cfx.rl.rewards import Reward, RewardBatch, WeightedSum, make_batch

if TYPE_CHECKING:
    from pymatgen.core import Structure

GROUP = "cfx.rewards"
"""Entry points of other packages: name = module:Class."""

NAMES = ("ehull", "fom", "gap", "dielectric", "property:MODEL", "force", "energy")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def load_reward(config: RewardConfig, open_hull: Callable[[Potential], Hull]) -> WeightedSum:
    """The reward of a configuration.

    Args:
        config: which, and its parts.
        open_hull: gives the hull for energies of a potential, when a reward needs one.

    Raises:
        UsageError: for a reward that does not exist, or lacks something.
        DependencyError: for a library that is not there.
        CheckpointError: for a model that is not there, or predicts what is known to be wrong.
    """
    parts = tuple((_load(name, config, open_hull), weight) for name, weight in parse_rewards(config.reward))
    return WeightedSum(parts, config.shape)


def choose_models(config: RewardConfig) -> RewardConfig:
    """The configuration with what `auto` means here and now, so that a run is resumed with the models it began with."""
    from cfx.predictors.load import choose_property_model

    names = {"gap_model": "band_gap", "dielectric_model": "dielectric"}
    chosen = {name: choose_property_model(part) for name, part in names.items() if getattr(config, name) == "auto"}
    return dataclasses.replace(config, **chosen)


def parse_rewards(text: str) -> list[tuple[str, float]]:
    """Names and weights of ehull:1,fom:0.2; a weight left out is 1.

    Raises:
        UsageError: for a weight of 0 or less, or a name left out.
    """
    found = []
    for part in text.split(","):
        name, _, last = part.strip().rpartition(":")
        name, weight = (name, float(last)) if name and NUMBER.fullmatch(last) else (part.strip(), 1.0)
        if not name or not weight:
            raise UsageError(f"{part!r} is not a reward with a weight", "write `reward=ehull`, or ehull:1,fom:0.2")
        if weight < 0:
            raise UsageError(
                f"{part!r} has a negative weight, so failures would score best",
                "to make a property small, use `target`: `reward=gap` `target=0`",
            )
        found.append((name, weight))
    return found


def _load(name: str, config: RewardConfig, open_hull: Callable[[Potential], Hull]) -> Reward:
    if name in ("ehull", "energy", "force"):
        return _from_potential(name, config, open_hull)
    if name in ("fom", "gap", "dielectric") or name.startswith("property:"):
        return _from_properties(name, config)
    registered = {point.name: point for point in entry_points(group=GROUP)}
    if name in registered:
        return _checked(name, registered[name].load())
    if ":" in name:
        return _checked(name, load_attribute(name, f"{name} does not name a class", "write MODULE:CLASS"))
    others = f", {', '.join(sorted(registered))}" if registered else ""
    raise UsageError(f"there is no reward called {name}", f"there are: {', '.join(NAMES)}{others}; or MODULE:CLASS")


def _from_potential(name: str, config: RewardConfig, open_hull: Callable[[Potential], Hull]) -> Reward:
    from cfx.predictors.load import load_potential

    potential = load_potential(config.potential, config.device)
    if name != "ehull":
        return (Energy if name == "energy" else Force)(potential)
    return EHull(potential, open_hull(potential), config.e_hull_limit, config.e_hull_floor)


def _from_properties(name: str, config: RewardConfig) -> Reward:
    from cfx.predictors.load import load_property

    def gap():
        return load_property("band_gap", config.gap_model, config.device)

    def dielectric():
        return load_property("dielectric", config.dielectric_model, config.device)

    if name == "fom":
        return FigureOfMerit(bundled.FigureOfMerit(gap(), dielectric()))
    if name in ("gap", "dielectric"):
        return Property(name, gap() if name == "gap" else dielectric(), config.target, config.distance)
    path = name.removeprefix("property:")
    model = load_property(config.property_name, path if path.startswith("matgl:") else f"matgl:{path}", config.device)
    return Property(name, model, config.target, config.distance)


def _checked(name: str, found: Any) -> Reward:
    """A reward from outside cfx, instantiated without arguments if it is a class."""
    try:
        reward = found() if isinstance(found, type) else found
    except TypeError as error:
        raise UsageError(f"{name} cannot be made without arguments: {error}", "see docs/howto/own-reward.md") from error
    missing = [
        part for part in ("name", "about", "unit", "kl_coef", "failure", "evaluate") if not hasattr(reward, part)
    ]
    if missing:
        raise UsageError(f"{name} is not a reward: it has no {', '.join(missing)}", "see docs/howto/own-reward.md")
    return reward


STRESS_WEIGHT = 10.0
"""How many eV/angstrom of force 1 eV/angstrom^3 of stress counts as."""

FORCE_LIMIT = 20.0
"""Above which a force counts no further, eV/angstrom; so does a stress above FORCE_LIMIT / STRESS_WEIGHT."""


class EHull:
    """Minus the energy above the hull of the crystal as it is, eV/atom (2504.02367, Section "Reward").

    A crystal far below all known phases is a failure: a policy finds the gaps of a hull, and what a potential gets
    wrong, faster than stable crystals.
    """

    name, unit = "ehull", "eV/atom"
    kl_coef = 0.1

    def __init__(self, potential: Potential, hull: Hull, limit: float, floor: float):
        """Rewards between -limit and -floor, eV/atom; failures score worst."""
        self.about = f"energies by {potential.name}, above the hull {hull}, from {floor:g} up to {limit:g} eV/atom"
        self.failure = -limit
        self._potential, self._hull, self._limit, self._floor = potential, hull, limit, floor

    def evaluate(self, structures: Sequence[Structure | None]) -> RewardBatch:
        """See `Reward`."""
        batch = self._potential.evaluate(structures, forces=False)
        judged = [one if ok else None for one, ok in zip(structures, batch.ok, strict=True)]
        heights = self._hull.evaluate(judged, batch.energy.tolist(), self._potential.scale)
        reasons = [one or other for one, other in zip(batch.reasons, heights.reasons, strict=True)]
        under = f"more than {-self._floor:g} eV/atom below all known phases"
        reasons = [
            reason or (under if height < self._floor else "")
            for reason, height in zip(reasons, heights.e_above_hull, strict=True)
        ]
        value = np.clip(-heights.e_above_hull, -self._limit, -self._floor)
        metrics = {"E_hull (eV/atom)": heights.e_above_hull, "energy (eV/atom)": _per_atom(batch, structures)}
        return make_batch(value, reasons, metrics)


class Energy:
    """Minus the energy, eV/atom, on the potential's own scale."""

    name, unit = "energy", "eV/atom"
    kl_coef = 0.1
    failure = 0.0

    def __init__(self, potential: Potential):
        self.about = f"energies by {potential.name}"
        self._potential = potential

    def evaluate(self, structures: Sequence[Structure | None]) -> RewardBatch:
        """See `Reward`."""
        batch = self._potential.evaluate(structures, forces=False)
        energy = _per_atom(batch, structures)
        return make_batch(-energy, batch.reasons, {"energy (eV/atom)": energy})


class Force:
    """Minus the logarithm of mean force plus weighted mean stress, clipped: how close a crystal is to a minimum."""

    name, unit = "force", ""
    kl_coef = 0.1
    failure = -float(np.log(FORCE_LIMIT + FORCE_LIMIT))

    def __init__(self, potential: Potential):
        self.about = f"forces and stresses by {potential.name}"
        self._potential = potential

    def evaluate(self, structures: Sequence[Structure | None]) -> RewardBatch:
        """See `Reward`."""
        batch = self._potential.evaluate(structures, forces=True)
        force, stress = np.full(len(structures), np.nan), np.full(len(structures), np.nan)
        for i, forces in enumerate(batch.forces):
            if forces is not None:
                force[i] = np.minimum(np.linalg.norm(forces, axis=1), FORCE_LIMIT).mean()
                stress[i] = np.minimum(np.abs(batch.stress[i]), FORCE_LIMIT / STRESS_WEIGHT).mean()
        # A crystal at rest by symmetry has forces of rounding size only, which are no better than none.
        value = -np.log(np.maximum(force + STRESS_WEIGHT * stress, 1e-4))
        metrics = {"mean force (eV/angstrom)": force, "mean stress (eV/angstrom^3)": stress}
        return make_batch(value, batch.reasons, metrics)


def _per_atom(batch: PotentialBatch, structures: Sequence[Structure | None]) -> np.ndarray:
    """Energies in eV/atom, float64 [n]; NaN where there is none."""
    return batch.energy / np.array([np.nan if one is None else len(one) for one in structures], float)


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
        if self._target is not None:
            off = value - self._target
            value = -(off**2) if self._distance == "square" else -np.abs(off)
            value = np.maximum(value, self.failure)
        return make_batch(value, batch.reasons, predictions(self._model, batch))


class FigureOfMerit:
    """The dielectric figure of merit, see `predictors.bundled`."""

    name, unit = "fom", "eV"
    kl_coef = 1.0
    failure = 0.0

    def __init__(self, model: PropertyModel):
        self.about = model.name
        self._model = model

    def evaluate(self, structures: Sequence[Structure | None]) -> RewardBatch:
        """See `Reward`."""
        batch = self._model.evaluate(structures)
        return make_batch(batch.value, batch.reasons, batch.parts)
