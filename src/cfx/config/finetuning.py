"""What a fine-tuning run is asked to do: its parts, presets, and how that is written down."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cfx.config.fields import (
    at_least,
    below_one,
    check_fields,
    check_seed,
    from_dict,
    not_negative,
    positive,
    to_dict,
    whole_path,
    without_none,
)
from cfx.config.sampling import SampleConfig, Template
from cfx.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is done to the values of a reward before they are weighed.

    Attributes:
        clip: lowest and highest value; empty: none.
        log1p: take log(1 + value), with the value's sign.
        threshold: 1 for values from here on, 0 below; None: the values themselves.
    """

    clip: tuple[float, float] | tuple[()] = ()
    log1p: bool = False
    threshold: float | None = None

    def __post_init__(self):
        if self.clip and not self.clip[0] < self.clip[1]:
            raise UsageError(f"rewards cannot be clipped to {self.clip[0]:g},{self.clip[1]:g}", "write LOWEST,HIGHEST")
        if self.log1p and self.threshold is not None:
            raise UsageError("a threshold and log1p exclude each other")


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What makes a crystal good.

    Attributes:
        reward: names and weights, as ehull:1,fom:0.2; see `cfx.rewards`.
        shape: of each reward's values.
        potential: of ehull, energy and force.
        hull: of ehull, as a file or a name.
        hull_scale: of its energies where the file does not say: raw or mp2020.
        e_hull_limit: up to which E_hull counts, eV/atom; a crystal without one counts as that.
        e_hull_floor: below which E_hull is not believed, eV/atom: that far under all known phases are gaps of the hull
            and errors of the potential.
        gap_model: of gap and fom: bundled, matgl:NAME or matgl:/directory.
        dielectric_model: of dielectric and fom, likewise.
        property_name: what the model of property:MODEL predicts.
        target: value that a property is to have; None: the larger the better.
        distance: from it: square or absolute.
        novelty_bonus: added for a crystal that is not in `reference`.
        duplicate_penalty: taken off for a crystal that matches an earlier one of its batch; None: it counts as a
            failure.
        composition_penalty: taken off for one of an earlier one's reduced composition, whatever its structure.
        reference: known crystals, as a file or a name.
        device: of potentials and models: cpu or cuda.
    """

    reward: str = "ehull"
    shape: Shape = Shape()
    potential: str = "chgnet"
    hull: str = "chgnet-mp"
    hull_scale: str | None = None
    e_hull_limit: float = 2.0
    e_hull_floor: float = -0.2
    gap_model: str = "bundled"
    dielectric_model: str = "bundled"
    property_name: str = "property"
    target: float | None = None
    distance: Literal["square", "absolute"] = "square"
    novelty_bonus: float = 0.0
    duplicate_penalty: float | None = None
    composition_penalty: float = 0.0
    reference: str | None = None
    device: str = "cpu"

    def __post_init__(self):
        check_fields(self)
        positive(self, "e_hull_limit")
        not_negative(self, "novelty_bonus", "duplicate_penalty", "composition_penalty")
        if not -math.inf < self.e_hull_floor < 0:
            raise UsageError(f"the floor of E_hull must be negative, not {self.e_hull_floor}")
        if self.novelty_bonus and self.reference is None:
            raise UsageError("a bonus for novelty needs known crystals", "name them with `reference`")


@dataclass(frozen=True, kw_only=True)
class RLConfig:
    """How a model is fine-tuned by reinforcement (2504.02367, Section "Method").

    Attributes:
        algorithm: ppo, or grpo, whose advantages are normalised in groups that share a space group.
        steps: rollouts.
        batch_size: crystals in a rollout.
        group_size: crystals in a group of grpo.
        inner_epochs: passes over a rollout.
        minibatches: updates in a pass.
        learning_rate: of Adam.
        clip_norm: largest global norm of the gradient.
        clip_range: epsilon of the clipped objective.
        kl_coef: tau, in units of the reward; None: the reward's own.
        baseline: ema, a moving average of the mean reward; group, one for each space group; or batch, the mean reward
            of the rollout.
        baseline_decay: of the moving average.
        likelihood: policy, the exact one of what is drawn, or published.
        target_kl: mean KL from the policy that drew the rollout at which its inner epochs end, nats; 0: never.
        max_kl: mean KL from the reference at which the run ends, nats; 0: never.
        max_failures: share of a rollout without reward at which the run stops.
        seed: of all draws.
        keep: crystals of highest reward that are kept.
        checkpoint_steps: steps between two checkpoints.
        keep_checkpoints: how many of the latest stay on disk.
    """

    algorithm: Literal["ppo", "grpo"] = "ppo"
    steps: int = 100
    batch_size: int = 128
    group_size: int = 16
    inner_epochs: int = 5
    minibatches: int = 1
    learning_rate: float = 1e-4
    clip_norm: float = 1.0
    clip_range: float = 0.2
    kl_coef: float | None = None
    baseline: Literal["ema", "group", "batch"] = "ema"
    baseline_decay: float = 0.95
    likelihood: Literal["policy", "published"] = "policy"
    target_kl: float = 0.0
    max_kl: float = 0.0
    max_failures: float = 0.5
    seed: int = 0
    keep: int = 100
    checkpoint_steps: int = 10
    keep_checkpoints: int = 2

    def __post_init__(self):
        check_fields(self)
        at_least(self, 1, "steps", "batch_size", "group_size", "inner_epochs", "minibatches", "keep")
        at_least(self, 1, "checkpoint_steps", "keep_checkpoints")
        positive(self, "learning_rate", "clip_norm", "clip_range")
        not_negative(self, "kl_coef", "target_kl", "max_kl")
        below_one(self, "baseline_decay")
        if not 0 < self.max_failures <= 1:
            raise UsageError(f"the share of failures must be above 0 and at most 1, not {self.max_failures}")
        check_seed(self.seed, 63)
        if self.algorithm == "grpo" and (self.group_size < 2 or self.batch_size % self.group_size):
            raise UsageError(
                f"a batch of {self.batch_size} does not divide into groups of {self.group_size}", "choose `group_size`"
            )
        if self.minibatches > self.batch_size:
            raise UsageError(f"there cannot be {self.minibatches} minibatches of {self.batch_size} crystals")


@dataclass(frozen=True, kw_only=True)
class DPOConfig:
    """How a model is fine-tuned on pairs of crystals (2305.18290).

    Attributes:
        epochs: passes over the pairs.
        batch_size: pairs in an update.
        beta: weight of the reference policy.
        learning_rate: of Adam.
        clip_norm: largest global norm of the gradient.
        seed: of the order of the pairs.
        checkpoint_steps: steps between two checkpoints.
        keep_checkpoints: how many of the latest stay on disk.
    """

    epochs: int = 10
    batch_size: int = 64
    beta: float = 0.1
    learning_rate: float = 1e-5
    clip_norm: float = 1.0
    seed: int = 0
    checkpoint_steps: int = 100
    keep_checkpoints: int = 2

    def __post_init__(self):
        check_fields(self)
        at_least(self, 1, "epochs", "batch_size", "checkpoint_steps", "keep_checkpoints")
        positive(self, "beta", "learning_rate", "clip_norm")
        check_seed(self.seed, 63)


PRESETS = {
    "mini": RLConfig(learning_rate=5e-4, inner_epochs=1, minibatches=2, baseline="group"),
    "published": RLConfig(steps=200, batch_size=1000, likelihood="published"),
}
"""By name: for the bundled model on a few cores; the paper's figures (tau 0.1 is its, too: kl_coef=0.1)."""


@dataclass(frozen=True, kw_only=True)
class RewardRun:
    """A run of cfx rl with a reward: the content of its config.toml.

    Attributes:
        model: whose weights it starts from, and which stays the reference.
        sample: what is drawn; n, seed and keep_invalid follow from the step.
        reward: what makes a crystal good.
        rl: how the policy learns.
    """

    model: str
    sample: SampleConfig
    reward: RewardConfig
    rl: RLConfig

    def tables(self) -> dict[str, Any]:
        """As TOML can hold it."""
        parts = {"sample": self.sample, "reward": self.reward, "rl": self.rl}
        return {"model": self.model, **{name: without_none(to_dict(part)) for name, part in parts.items()}}

    def with_whole_paths(self) -> RewardRun:
        """The same with absolute paths, so that the run can be resumed from another directory; names stay."""
        hull, reference = whole_path(self.reward.hull), whole_path(self.reward.reference)
        reward = dataclasses.replace(self.reward, hull=hull, reference=reference)
        return dataclasses.replace(self, model=whole_path(self.model), reward=reward)

    @classmethod
    def of(cls, content: dict[str, Any]) -> RewardRun:
        """The inverse of `tables`."""
        sample, reward = _tuples(content["sample"]), _tuples(content["reward"])
        sample["template"] = from_dict(Template, sample.get("template", {}))
        reward["shape"] = from_dict(Shape, reward.get("shape", {}))
        return cls(
            model=content["model"],
            sample=from_dict(SampleConfig, sample),
            reward=from_dict(RewardConfig, reward),
            rl=from_dict(RLConfig, _tuples(content["rl"])),
        )


@dataclass(frozen=True, kw_only=True)
class PairsRun:
    """A run of cfx rl on pairs of crystals.

    Attributes:
        model: whose weights it starts from, and which stays the reference.
        pairs: file of the pairs.
        dpo: how the policy learns.
    """

    model: str
    pairs: str
    dpo: DPOConfig

    def with_whole_paths(self) -> PairsRun:
        """The same with absolute paths; names stay."""
        return dataclasses.replace(self, model=whole_path(self.model), pairs=whole_path(self.pairs))

    def tables(self) -> dict[str, Any]:
        """As TOML can hold it."""
        return {"model": self.model, "pairs": self.pairs, "dpo": without_none(to_dict(self.dpo))}

    @classmethod
    def of(cls, content: dict[str, Any]) -> PairsRun:
        """The inverse of `tables`."""
        return cls(model=content["model"], pairs=content["pairs"], dpo=from_dict(DPOConfig, content["dpo"]))


def read_run(path: Path) -> RewardRun | PairsRun:
    """What the run in a directory does.

    Raises:
        UsageError: if it is no run of cfx rl.
    """
    try:
        content = tomllib.loads((path / "config.toml").read_text())
        return PairsRun.of(content) if "dpo" in content else RewardRun.of(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no run of cfx rl: {error}", "name the directory given with -o") from error


def _tuples(value: Any) -> Any:
    """The inverse, but for None: that is every field's default where it is allowed."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
