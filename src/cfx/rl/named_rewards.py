"""Rewards by name: from interatomic potentials, from property models, or from outside cfx.

Each has a function that loads what the reward needs, and says of crystals what they are worth.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from numbers import Real
from typing import Any

import numpy as np

from cfx.config import RewardConfig
from cfx.core import Structure
from cfx.errors import CfxError, UsageError
from cfx.evaluation.hull import Hull
from cfx.predictors import bundled
from cfx.predictors.base import Potential, PotentialBatch, PropertyModel, label, load_attribute, predictions
from cfx.predictors.load import choose_property_model, load_potential, load_property
from cfx.rl.rewards import (
    ANYTHING,
    NamedReward,
    Reward,
    RewardBatch,
    confined,
    described,
    make_batch,
    weighted_sum,
)

Structures = Sequence[Structure | None]
"""Crystals, None where a lattice closes no cell."""

OpenHull = Callable[[Potential], Hull]
"""Gives the hull for energies of a potential."""

GROUP = "cfx.rewards"
"""Entry points of other packages: name = module:Class."""

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

STRESS_WEIGHT = 10.0
"""How many eV/angstrom of force 1 eV/angstrom^3 of stress counts as."""

FORCE_LIMIT = 20.0
"""Above which a force counts no further, eV/angstrom; so does a stress above FORCE_LIMIT / STRESS_WEIGHT."""


def load_reward(config: RewardConfig, open_hull: OpenHull) -> NamedReward:
    """The reward of a configuration; `open_hull` is called where a reward needs a hull.

    Raises:
        UsageError: for a reward that does not exist, or lacks something.
        DependencyError: for a library that is not there.
        CheckpointError: for a model that is not there, or predicts what is known to be wrong.
    """
    parts = [(_load(name, config, open_hull), weight) for name, weight in parse_rewards(config.reward)]
    return weighted_sum(parts, config.shape)


def choose_models(config: RewardConfig) -> RewardConfig:
    """The configuration with what `auto` means here and now, so that a run is resumed with the models it began with."""
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


def _load(name: str, config: RewardConfig, open_hull: OpenHull) -> Reward:
    if loader := LOADERS.get("property:MODEL" if name.startswith("property:") else name):
        return loader(name, config, open_hull)
    registered = {point.name: point for point in entry_points(group=GROUP)}
    if name in registered:
        return _checked(name, registered[name].load())
    if ":" in name:
        return _checked(name, load_attribute(name, f"{name} does not name a class", "write MODULE:CLASS"))
    others = f", {', '.join(sorted(registered))}" if registered else ""
    raise UsageError(f"there is no reward called {name}", f"there are: {', '.join(LOADERS)}{others}; or MODULE:CLASS")


def _checked(name: str, found: Any) -> Reward:
    """A reward from outside cfx, instantiated without arguments if it is a class."""
    hint = "see docs/howto/own-reward.md"
    try:
        with confined():
            reward = found() if isinstance(found, type) else found
    except CfxError:
        raise
    except TypeError as error:
        raise UsageError(f"{name} cannot be made without arguments: {error}", hint) from error
    except ANYTHING as error:
        raise UsageError(f"{name} cannot be made: it raised {described(error)}", hint) from error
    missing = [
        part for part in ("name", "about", "unit", "kl_coef", "failure", "evaluate") if not hasattr(reward, part)
    ]
    if missing:
        raise UsageError(f"{name} is not a reward: it has no {', '.join(missing)}", hint)
    if wrong := [part for part in ("name", "about", "unit") if not isinstance(getattr(reward, part), str)]:
        raise UsageError(f"{name} is not a reward: its {', '.join(wrong)} is not text", hint)
    numbers = {part: getattr(reward, part) for part in ("kl_coef", "failure")}
    if wrong := [part for part, one in numbers.items() if not (isinstance(one, Real) and math.isfinite(one))]:
        raise UsageError(f"{name} is not a reward: its {', '.join(wrong)} is not a finite number", hint)
    return reward


def _ehull(name: str, config: RewardConfig, open_hull: OpenHull) -> NamedReward:
    """Minus the energy above the hull of the crystal as it is, eV/atom (2504.02367, Section "Reward").

    A crystal far below all known phases is a failure: a policy finds the gaps of a hull, and what a potential gets
    wrong, faster than stable crystals.
    """
    potential, limit, floor = load_potential(config.potential, config.device), config.e_hull_limit, config.e_hull_floor
    hull = open_hull(potential)

    def evaluate(structures: Structures) -> RewardBatch:
        batch = potential.evaluate(structures, forces=False)
        judged = [one if ok else None for one, ok in zip(structures, batch.ok, strict=True)]
        found = hull.evaluate(judged, batch.energy.tolist(), potential.scale)
        height, under = found.e_above_hull, f"more than {-floor:g} eV/atom below all known phases"
        reasons = [
            of_energy or of_hull or (under if low else "")
            for of_energy, of_hull, low in zip(batch.reasons, found.reasons, height < floor, strict=True)
        ]
        metrics = {"E_hull (eV/atom)": height, "energy (eV/atom)": _per_atom(batch, structures)}
        return make_batch(np.clip(-height, -limit, -floor), reasons, metrics)

    about = f"energies by {potential.name}, above the hull {hull}, from {floor:g} up to {limit:g} eV/atom"
    return NamedReward(name, about, "eV/atom", -limit, evaluate)


def _energy(name: str, config: RewardConfig, open_hull: OpenHull) -> NamedReward:
    """Minus the energy, eV/atom, on the potential's own scale."""
    potential = load_potential(config.potential, config.device)

    def evaluate(structures: Structures) -> RewardBatch:
        batch = potential.evaluate(structures, forces=False)
        energy = _per_atom(batch, structures)
        return make_batch(-energy, batch.reasons, {"energy (eV/atom)": energy})

    return NamedReward(name, f"energies by {potential.name}", "eV/atom", 0.0, evaluate)


def _force(name: str, config: RewardConfig, open_hull: OpenHull) -> NamedReward:
    """Minus the logarithm of mean force plus weighted mean stress, clipped: how close a crystal is to a minimum."""
    potential = load_potential(config.potential, config.device)

    def evaluate(structures: Structures) -> RewardBatch:
        batch = potential.evaluate(structures, forces=True)
        force, stress = np.full((2, len(structures)), np.nan)
        for i, forces in enumerate(batch.forces):
            if forces is not None:
                force[i] = np.minimum(np.linalg.norm(forces, axis=1), FORCE_LIMIT).mean()
                stress[i] = np.minimum(np.abs(batch.stress[i]), FORCE_LIMIT / STRESS_WEIGHT).mean()
        # A crystal at rest by symmetry has forces of rounding size only, which are no better than none.
        value = -np.log(np.maximum(force + STRESS_WEIGHT * stress, 1e-4))
        metrics = {"mean force (eV/angstrom)": force, "mean stress (eV/angstrom^3)": stress}
        return make_batch(value, batch.reasons, metrics)

    worst = -float(np.log(FORCE_LIMIT + FORCE_LIMIT))
    return NamedReward(name, f"forces and stresses by {potential.name}", "", worst, evaluate)


def _per_atom(batch: PotentialBatch, structures: Structures) -> np.ndarray:
    """Energies in eV/atom, float64 [n]; NaN where there is none."""
    return batch.energy / np.array([np.nan if one is None else len(one) for one in structures], float)


def _gap(name: str, config: RewardConfig, open_hull: OpenHull) -> NamedReward:
    return _property(name, _gap_model(config), config)


def _dielectric(name: str, config: RewardConfig, open_hull: OpenHull) -> NamedReward:
    return _property(name, _dielectric_model(config), config)


def _own_property(name: str, config: RewardConfig, open_hull: OpenHull) -> NamedReward:
    path = name.removeprefix("property:")
    path = path if path.startswith("matgl:") else f"matgl:{path}"
    return _property(name, load_property(config.property_name, path, config.device), config)


def _gap_model(config: RewardConfig) -> PropertyModel:
    return load_property("band_gap", config.gap_model, config.device)


def _dielectric_model(config: RewardConfig) -> PropertyModel:
    return load_property("dielectric", config.dielectric_model, config.device)


def _property(name: str, model: PropertyModel, config: RewardConfig) -> NamedReward:
    """A property itself, or minus its distance, squared or absolute, from a target."""
    target, squared = config.target, config.distance == "square"
    about = f"{label(model)} by {model.name}"
    if target is None:
        # A crystal without a value counts as one that has none of the property.
        unit, failure = model.unit, 0.0
    else:
        # A crystal without a value counts as one ten units from the target.
        about, failure = f"{about}, aiming at {target:g}", -(100.0 if squared else 10.0)
        unit = f"({model.unit})^2" if squared and model.unit else model.unit

    def evaluate(structures: Structures) -> RewardBatch:
        batch = model.evaluate(structures)
        value = np.asarray(batch.value, float)
        if target is not None:
            off = np.abs(value - target)
            value = np.maximum(-(off**2) if squared else -off, failure)
        return make_batch(value, batch.reasons, predictions(model, batch))

    return NamedReward(name, about, unit, failure, evaluate)


def _figure_of_merit(name: str, config: RewardConfig, open_hull: OpenHull) -> NamedReward:
    """The dielectric figure of merit, see `predictors.bundled`."""
    model = bundled.FigureOfMerit(_gap_model(config), _dielectric_model(config))

    def evaluate(structures: Structures) -> RewardBatch:
        batch = model.evaluate(structures)
        return make_batch(batch.value, batch.reasons, batch.parts)

    return NamedReward(name, model.name, "eV", 0.0, evaluate, kl_coef=1.0)


LOADERS: dict[str, Callable[[str, RewardConfig, OpenHull], NamedReward]] = {
    "ehull": _ehull,
    "fom": _figure_of_merit,
    "gap": _gap,
    "dielectric": _dielectric,
    "property:MODEL": _own_property,
    "force": _force,
    "energy": _energy,
}
"""All rewards of cfx."""
