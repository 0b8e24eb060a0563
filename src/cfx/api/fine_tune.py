"""cfx.fine_tune: a model that draws what a reward likes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfx.api.runs import Run, directory_of, drawn_from
from cfx.config import RewardConfig, RewardRun, RLConfig, SampleConfig, Shape
from cfx.config.fields import sorted_out
from cfx.config.finetuning import PRESETS
from cfx.core import Structure
from cfx.data.given import given_crystals
from cfx.errors import UsageError
from cfx.io.journal import JsonLines
from cfx.model import Model, given_model, load_model
from cfx.predictors.load import load_potential
from cfx.progress import reporting
from cfx.reporter import Reporter, counted
from cfx.rl.judging import conditioned
from cfx.rl.named_rewards import choose_models
from cfx.rl.rewards import DEFAULT_KL_COEF, NO_STRUCTURE, Reward, RewardBatch, make_batch, weighted_sum
from cfx.runs.fine_tuning import fine_tune as run_fine_tuning
from cfx.runs.fine_tuning import named_reward

if TYPE_CHECKING:
    from pandas import DataFrame

OWN = ("model", "reward", "run", "space_group", "preset", "batched", "failure", "resume", "progress")
NOT_GIVEN = (
    *("space_groups", "weights", "n", "keep_invalid", "shape"),
    *("shard", "exact", "refine", "unique", "min_distance", "max_attempts"),
)
"""Fields that follow from the step or have a parameter, and those under which draws are not the policy's alone."""

Rewarding = str | Callable[..., Any] | Reward | Mapping[Any, float]
"""A reward by name, a function of a Structure (or of a list of them), an object as docs/howto/own-reward.md has it, or
several of these with their weights."""


@dataclass(frozen=True, repr=False)
class FineTuning(Run):
    """A fine-tuning that has ended; `model` is the policy.

    Attributes:
        first: mean reward of the first step, with failures as what they count for; None if nothing was left to do.
        last: of the last step.
        unit: of the reward.
        ended: why it ended before its last step, or "".
    """

    first: float | None
    last: float | None
    unit: str = ""
    ended: str = ""

    @property
    def crystals(self) -> DataFrame:
        """pandas DataFrame: every crystal drawn, with step, reward, reason, space_group and parts of the reward."""
        import pandas

        lines = [line for _, line in JsonLines(self.directory / "crystals.jsonl").read()]
        keys = ("step", "reward", "reason", "space_group")
        return pandas.DataFrame([{**{key: line[key] for key in keys}, **line["parts"]} for line in lines])

    @property
    def best(self) -> list[Structure]:
        """The crystals of highest reward, the best first, as pymatgen Structures."""
        path = self.directory / "best.cif"
        if not path.exists() or not path.stat().st_size:
            return []
        return [one.structure for one in given_crystals(path, workers=1) if one.structure is not None]

    def headline(self) -> str:
        """See `Run`."""
        unit = f" {self.unit}" if self.unit else ""
        if self.first is None or self.last is None:
            return counted(self.steps, "step")
        why = f"; ended: {self.ended}" if self.ended else ""
        return f"{counted(self.steps, 'step')}, mean reward {self.first:.3f} -> {self.last:.3f}{unit}{why}"


def fine_tune(
    model: Model | str,
    reward: Rewarding,
    run: str | Path | None = None,
    *,
    space_group: int | str | Sequence[int | str] = "data:model",
    preset: str = "mini",
    batched: bool = False,
    failure: float = 0.0,
    resume: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> FineTuning:
    """Fine-tunes a model by reinforcement learning: it learns to draw crystals of high reward.

    Args:
        model: that the policy starts from, or what `load_model` takes.
        reward: a name, as "ehull" or "ehull:1,fom:0.2"; a function that takes a pymatgen Structure (of the primitive
            cell) and returns a number, the larger the better, or None for a crystal that has none; an object with
            name, about, unit, kl_coef, failure and evaluate; or a dictionary of these with their weights.
        run: directory of the run, new or empty; None: a temporary one.
        space_group: drawn from, as `Model.sample` takes it; by default as in the training data of the model.
        preset: mini or published: the settings that are not given.
        batched: whether a function takes a list of Structures, and returns as many numbers.
        failure: of a function, what a crystal without a value counts as: at most the lowest value.
        resume: continue the run, with the same reward and settings.
        progress: whether bars are shown; by default in notebooks.
        **settings: fields of `RLConfig`, as steps=20, batch_size=32 or kl_coef=0.5; of `RewardConfig`, as
            potential="orb"; of `Shape`, as clip=(-1, 1); and constraints of `SampleConfig`, as elements="La,Ni,O".

    Raises:
        TypeError: for a name that is no setting.
        UsageError: for values that cannot be meant, or a directory that is not empty.
        NumericsError: if too many crystals fail, or a gradient is not finite.
        RewardError: if the reward itself fails, after a checkpoint.
        Interrupted: after a signal, once the work is saved.
    """
    learning, judging, shape, drawing = sorted_out(
        "fine_tune", settings, RLConfig, RewardConfig, Shape, SampleConfig, own=OWN, without=NOT_GIVEN
    )
    if preset not in PRESETS:
        raise UsageError(f"there is no preset {preset!r}", f"choose one of: {', '.join(PRESETS)}")
    config = dataclasses.replace(PRESETS[preset], **learning)
    name = reward if isinstance(reward, str) else "function"
    rewards = RewardConfig(reward=name, shape=Shape(**shape), **judging)
    with reporting(progress) as told:
        model = given_model(model, told)
        rewards = choose_models(rewards)
        if isinstance(reward, str):
            loaded = named_reward(rewards, told)
        else:
            loaded = weighted_sum(_parts(reward, rewards, batched, failure, told), rewards.shape)
            loaded = conditioned(loaded, rewards, lambda: load_potential(rewards.potential, rewards.device))
        sample = SampleConfig(**drawn_from(space_group, model, told), **drawing)
        content = RewardRun(model=model.name, sample=sample, reward=rewards, rl=config).with_whole_paths()
        directory = directory_of(run)
        result, _ = run_fine_tuning(directory, content, model, rewards, told, resume, loaded)
        policy = load_model(directory / "final", reporter=told)
    return FineTuning(policy, directory, result.step, result.first, result.last, loaded.unit, result.ended)


def _parts(
    reward: Rewarding, config: RewardConfig, batched: bool, failure: float, reporter: Reporter
) -> list[tuple[Reward, float]]:
    """Rewards with their weights, without shape or conditions."""
    if isinstance(reward, Mapping):
        return [
            (one, weight * own)
            for key, own in reward.items()
            for one, weight in _parts(key, config, batched, failure, reporter)
        ]
    if isinstance(reward, str):
        alone = dataclasses.replace(config, reward=reward, shape=Shape(), relax_steps=0, classes=(), class_penalty=None)
        if "ehull" not in reward:
            alone = dataclasses.replace(alone, second_potential=None, second_hull=None, disagreement_penalty=None)
        return [(named_reward(alone, reporter), 1.0)]
    if isinstance(reward, type):
        reward = reward()
    if not hasattr(reward, "evaluate"):
        if not callable(reward):
            raise UsageError(f"{reward!r} is not a reward", "give a name, a function, or an object with `evaluate`")
        return [(FunctionReward.of(reward, batched, failure), 1.0)]
    return [(reward, 1.0)]  # pyright: ignore[reportReturnType]  (what it lacks is told when it is asked)


@dataclass
class FunctionReward:
    """A reward that is a function; see `cfx.rl.rewards.Reward` for its attributes.

    Attributes:
        function: of a pymatgen Structure, or of a list of them.
        batched: which of the two.
    """

    function: Callable[..., Any]
    batched: bool
    name: str
    about: str
    failure: float
    unit: str = ""
    kl_coef: float = DEFAULT_KL_COEF

    @classmethod
    def of(cls, function: Callable[..., Any], batched: bool, failure: float) -> FunctionReward:
        """The reward that is named and described as the function is."""
        name = getattr(function, "__name__", type(function).__name__).strip("<>")
        about = (getattr(function, "__doc__", None) or "a function").strip().partition("\n")[0]
        return cls(function, batched, name, about, float(failure))

    def evaluate(self, structures: Sequence[Structure | None], /) -> RewardBatch:
        """See `Reward`."""
        there = [one for one in structures if one is not None]
        values = list(self.function(there)) if self.batched and there else list(map(self.function, there))
        if len(values) != len(there):
            raise ValueError(f"{len(values)} numbers for {len(there)} crystals")
        numbers = iter(np.nan if value is None else float(value) for value in values)
        found = np.array([np.nan if one is None else next(numbers) for one in structures])
        reasons = [NO_STRUCTURE if one is None else "" for one in structures]
        return make_batch(found, reasons)
