"""Rewards by name: ehull:1,fom:0.2, MODULE:CLASS, or what another package has registered."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from importlib.metadata import entry_points

from cfx.config import RewardConfig
from cfx.errors import DependencyError, UsageError
from cfx.metrics.hull import Hull
from cfx.potentials.base import Potential
from cfx.rewards.base import Reward
from cfx.rewards.compose import WeightedSum

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
            raise UsageError(f"{part!r} is no reward with a weight", "write --reward ehull, or ehull:1,fom:0.2")
        if weight < 0:
            raise UsageError(
                f"{part!r} has a negative weight, with which what fails would be best",
                "for a property that is to be small, say --target, as: --reward gap --target 0",
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
        return _checked(name, _imported(name))
    others = f", {', '.join(sorted(registered))}" if registered else ""
    raise UsageError(f"no reward is called {name}", f"there are: {', '.join(NAMES)}{others}; or MODULE:CLASS")


def _from_potential(name: str, config: RewardConfig, open_hull: Callable[[Potential], Hull]) -> Reward:
    from cfx.potentials.base import load_potential
    from cfx.rewards.energy import EHull, Energy, Force

    potential = load_potential(config.potential, config.device)
    if name != "ehull":
        return (Energy if name == "energy" else Force)(potential)
    return EHull(potential, open_hull(potential), config.e_hull_limit, config.e_hull_floor)


def _from_properties(name: str, config: RewardConfig) -> Reward:
    from cfx.properties.base import load_property
    from cfx.rewards.property import FigureOfMerit, Property

    def gap():
        return load_property("band_gap", config.gap_model, config.device)

    def dielectric():
        return load_property("dielectric", config.dielectric_model, config.device)

    if name == "fom":
        return FigureOfMerit(gap(), dielectric())
    if name in ("gap", "dielectric"):
        return Property(name, gap() if name == "gap" else dielectric(), config.target, config.distance)
    path = name.removeprefix("property:")
    model = load_property(config.property_name, path if path.startswith("matgl:") else f"matgl:{path}", config.device)
    return Property(name, model, config.target, config.distance)


def _imported(name: str) -> object:
    module, _, attribute = name.partition(":")
    if not module or not attribute or module.startswith("."):
        raise UsageError(f"{name} does not name a class", "write MODULE:CLASS")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise DependencyError(f"the module {module} cannot be imported: {error}", "write MODULE:CLASS") from error
    except AttributeError as error:
        raise UsageError(f"there is no {attribute} in {module}", "write MODULE:CLASS") from error


def _checked(name: str, found: object) -> Reward:
    """A reward of somebody else's, made without arguments if it is a class."""
    try:
        reward = found() if isinstance(found, type) else found
    except TypeError as error:
        raise UsageError(f"{name} cannot be made without arguments: {error}", "see docs/howto/own-reward.md") from error
    missing = [
        part for part in ("name", "about", "unit", "kl_coef", "failure", "evaluate") if not hasattr(reward, part)
    ]
    if missing:
        raise UsageError(f"{name} is no reward: it has no {', '.join(missing)}", "see docs/howto/own-reward.md")
    return reward
