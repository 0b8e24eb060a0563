"""Rewards by name: from interatomic potentials, from property models, or from outside cfx.

Each has a function that takes what the reward is computed with, and says of crystals what they are worth.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from numbers import Real
from typing import Any

from cfx.config import RewardConfig
from cfx.errors import CfxError, UsageError
from cfx.predictors.base import load_attribute
from cfx.predictors.load import choose_property_model
from cfx.rl import energy_rewards, property_rewards
from cfx.rl.judging import conditioned
from cfx.rl.property_rewards import Aim
from cfx.rl.reward_models import OpenHull, RewardModels
from cfx.rl.rewards import ANYTHING, NamedReward, Reward, confined, described, weighted_sum

GROUP = "cfx.rewards"
"""Entry points of other packages: name = module:Class."""

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def load_reward(config: RewardConfig, open_hull: OpenHull, open_second_hull: OpenHull | None = None) -> NamedReward:
    """The reward of a configuration.

    Args:
        config: which one.
        open_hull: called where a reward needs a hull.
        open_second_hull: likewise, of the second potential; by default the same function.

    Raises:
        UsageError: for a reward that does not exist, or lacks something.
        DependencyError: for a library that is not there.
        CheckpointError: for a model that is not there, or predicts what is known to be wrong.
    """
    models, named = RewardModels(config, open_hull, open_second_hull or open_hull), parse_rewards(config.reward)
    if config.second_potential and "ehull" not in dict(named):
        raise UsageError("a second potential is compared by E_hull", "add ehull to `reward`")
    reward = weighted_sum([(_load(name, models), weight) for name, weight in named], config.shape)
    return conditioned(reward, config, lambda: models.potential)


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


def _load(text: str, models: RewardModels) -> Reward:
    """The reward of a part: gap, gap=1..2, package.module:Class."""
    name, aim = _split_aim(text)
    if loader := PROPERTY_REWARDS.get("property:MODEL" if name.startswith("property:") else name):
        reward = loader(name, models, aim)
        reward.name = text
        return reward
    if aim is not None:
        raise UsageError(f"{name} has no target", f"those that may have one: {', '.join(PROPERTY_REWARDS)}")
    if loader := ENERGY_REWARDS.get(name):
        return loader(name, models)
    registered = {point.name: point for point in entry_points(group=GROUP)}
    if name in registered:
        return _checked(name, registered[name].load())
    if ":" in name:
        return _checked(name, load_attribute(name, f"{name} does not name a class", "write MODULE:CLASS"))
    known = [*ENERGY_REWARDS, *PROPERTY_REWARDS, *sorted(registered)]
    raise UsageError(f"there is no reward called {name}", f"there are: {', '.join(known)}; or MODULE:CLASS")


def _split_aim(text: str) -> tuple[str, Aim | None]:
    """gap=1..2 as gap and its range; any other text as it is."""
    name, _, last = text.rpartition("=")
    aim = Aim.read(last) if name else None
    return (text, None) if aim is None else (name, aim)


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


ENERGY_REWARDS: dict[str, Callable[[str, RewardModels], NamedReward]] = {
    "ehull": energy_rewards.e_hull,
    "energy": energy_rewards.energy,
    "force": energy_rewards.force,
}

PROPERTY_REWARDS: dict[str, Callable[[str, RewardModels, Aim | None], NamedReward]] = {
    "fom": property_rewards.figure_of_merit,
    "gap": property_rewards.gap,
    "dielectric": property_rewards.dielectric,
    "property:MODEL": property_rewards.own_property,
}
"""Rewards that may have an aim: gap=1.5, gap=1..2."""
