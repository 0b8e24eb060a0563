"""What a fine-tuning run is asked to do: its parts, presets, and how that is written down."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from cfx.config import fields, texts
from cfx.config.evaluation import (
    CORRECTIONS,
    DEVICE,
    E_HULL_FLOOR,
    HULL_SCALE,
    POTENTIALS,
    SECOND_HULL,
    own_hull,
)
from cfx.config.fields import BELOW_ONE, NOT_NEGATIVE, POSITIVE, SHARE, Bound, Config, at_least, option
from cfx.config.sampling import SampleConfig, Template
from cfx.config.symbols import CLASSES
from cfx.errors import UsageError

PROPERTY_MODELS = "bundled, matgl:NAME, matgl:/directory, or auto: published if it is here, else bundled."


@dataclass(frozen=True, kw_only=True)
class Shape(Config):
    """What is done to the values of a reward before they are weighed."""

    clip: tuple[float, float] | tuple[()] = option(
        (), "Clip each reward to LOWEST,HIGHEST.", flag="--clip-reward", text=texts.limits
    )
    log1p: bool = option(False, "Take log(1 + reward).")  # with the value's sign
    threshold: float | None = option(None, "Replace each reward by 1 at or above this value, and by 0 below it.")

    def __post_init__(self):
        super().__post_init__()
        if self.clip and not self.clip[0] < self.clip[1]:
            raise UsageError(f"rewards cannot be clipped to {self.clip[0]:g},{self.clip[1]:g}", "write LOWEST,HIGHEST")
        if self.log1p and self.threshold is not None:
            raise UsageError("threshold and log1p cannot be combined")


UNSHAPED = Shape()
"""The values themselves."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig(Config):
    """What makes a crystal good."""

    reward: str = option(
        "ehull",
        "Reward: ehull, fom, gap, dielectric, property:MODEL, force, energy, MODULE:CLASS; sums: ehull:1,fom:0.2; "
        "targets and ranges of properties: gap=1.5, gap=1..2, dielectric=20..",
    )
    shape: Shape = option(UNSHAPED, "Shaping of each reward's values.")
    potential: str = option("chgnet", f"Interatomic potential of ehull, energy and force: {POTENTIALS}")
    hull: str = option("chgnet-mp", "Hull that ehull is measured from: a file or a name (cfx fetch --list).")
    hull_scale: str | None = option(*HULL_SCALE)
    corrections: Literal["mp2020", "published"] = option(*CORRECTIONS)
    # A crystal without an E_hull counts as one at the limit.
    e_hull_limit: float = option(2.0, "Cap on E_hull, eV/atom; the paper has 10.", POSITIVE)
    e_hull_floor: float = option(*E_HULL_FLOOR)
    relax_steps: int = option(
        0, "Steps, at most, that crystals are relaxed by, symmetry kept, before they are judged.", NOT_NEGATIVE
    )
    second_potential: str | None = option(None, "A second potential, whose E_hull ehull is compared with.")
    second_hull: str | None = option(*SECOND_HULL)
    max_disagreement: float = option(
        0.1, "Difference of both E_hull beyond which a crystal is not believed, eV/atom.", POSITIVE
    )
    disagreement_penalty: float | None = option(
        None,
        "Subtracted for each eV/atom beyond `max_disagreement`; by default what is beyond counts as a failure.",
        NOT_NEGATIVE,
    )
    gap_model: str = option("auto", f"Predicts band gaps, for gap and fom: {PROPERTY_MODELS}")
    dielectric_model: str = option("auto", f"Predicts dielectric constants, for dielectric and fom: {PROPERTY_MODELS}")
    property_name: str = option("property", "What the model of property:MODEL predicts.")
    target: float | None = option(
        None, "Target value of properties that have none in `reward`; by default, larger is better."
    )
    distance: Literal["square", "absolute"] = option("square", "Distance from targets: square or absolute.")
    classes: tuple[str, ...] = option(
        (),
        "Classes of compositions that are wanted: element, intermetallic, charge-neutral (or neutral), other; "
        "not:element,other: all but these.",
        Bound(lambda value: set(value) <= set(CLASSES), f"be among {', '.join(CLASSES)}"),
        "--class",
        texts.classes,
    )
    class_penalty: float | None = option(
        None, "Subtracted from the reward of other classes; by default they count as failures.", NOT_NEGATIVE
    )
    reference: str | None = option(None, "Known crystals, a file or a name: for logging novelty and for its bonus.")
    novelty_bonus: float = option(0.0, "Added to the reward of crystals not in `reference`.", NOT_NEGATIVE)
    duplicate_penalty: float | None = option(
        None, "Subtracted from the reward of repeats in a rollout; by default they count as failures.", NOT_NEGATIVE
    )
    composition_penalty: float = option(0.0, "Subtracted from the reward of repeated compositions.", NOT_NEGATIVE)
    device: str = option(*DEVICE)

    def __post_init__(self):
        super().__post_init__()
        if self.novelty_bonus and self.reference is None:
            raise UsageError("a bonus for novelty needs known crystals", "name them with `reference`")
        if self.class_penalty is not None and not self.classes:
            raise UsageError("a penalty for other classes needs those that are wanted", "name them with `classes`")
        if self.second_potential:
            object.__setattr__(self, "second_hull", own_hull(self.second_potential, self.second_hull))
        elif self.second_hull or self.disagreement_penalty is not None:
            raise UsageError("there is no second potential to disagree", "name one with `second_potential`")


@dataclass(frozen=True, kw_only=True)
class RLConfig(Config):
    """How a model is fine-tuned by reinforcement learning (2504.02367, Section "Method")."""

    # The advantages of grpo are normalised in groups that share a space group.
    algorithm: Literal["ppo", "grpo"] = option("ppo", "Algorithm: ppo, or grpo (advantages within groups).")
    steps: int = option(100, "Rollouts, each followed by updates.", at_least(1))
    batch_size: int = option(128, "Crystals in a rollout.", at_least(1))
    inner_epochs: int = option(5, "Passes over a rollout.", at_least(1))
    minibatches: int = option(1, "Updates in a pass.", at_least(1))
    group_size: int = option(16, "Crystals in a group of grpo.", at_least(1))
    learning_rate: float = option(1e-4, "Learning rate of Adam.", POSITIVE, "--lr")
    kl_coef: float | None = option(
        None, "tau, weight of the KL term, in units of the reward; by default the reward's own.", NOT_NEGATIVE
    )
    clip_range: float = option(0.2, "Epsilon of the clipped objective.", POSITIVE)
    clip_norm: float = option(*fields.CLIP_NORM)
    baseline: Literal["ema", "group", "class", "batch"] = option(
        "ema",
        "What rewards are compared with: ema (moving average), group or class (one for each space group, or class of "
        "compositions), or batch (mean of the rollout).",
    )
    quotas: Literal["none", "class"] = option(
        "none",
        "What keeps the reference's shares of the draws: none, or class (elements, intermetallics, neutral compounds, "
        "others); rewards count within each class then.",
    )
    # Of letters and species: the entropy of a density depends on its units.
    entropy_coef: float = option(
        0.0, "Weight of the entropy of letters and species, in units of the reward per nat.", NOT_NEGATIVE
    )
    replay: Literal["none", "uniform", "best"] = option(
        "none",
        "Crystals of earlier steps that a step learns from again: none, uniform (weighed by exact ratios of "
        "probabilities), or best (of highest reward, and so biased).",
    )
    replay_steps: int = option(4, "Steps that a replay reaches back.", at_least(1))
    baseline_decay: float = option(0.95, "Decay of the moving average.", BELOW_ONE)
    likelihood: Literal["policy", "published"] = option(
        "policy", "Likelihood: policy (exactly that of the draws) or published."
    )
    target_kl: float = option(
        0.0, "KL (nats) from the rollout's policy that ends the passes over it; 0: none.", NOT_NEGATIVE
    )
    # Measured on the draws of a step, before any update.
    max_kl: float = option(
        0.0, "KL(policy || reference), nats, at which the run ends, before another update; 0: none.", NOT_NEGATIVE
    )
    # An update is judged by the next minibatch, which it has not seen; what has gone too far is halved.
    max_clipped: float = option(
        0.0,
        "Share of a minibatch that an update may move out of the clip range; learning warms up then. 0: any.",
        Bound(lambda value: 0 <= value <= 1, "be between 0 and 1"),
    )
    max_failures: float = option(0.5, "Share of crystals without a reward above which a run stops.", SHARE)
    seed: int = fields.seed()
    diversity_steps: int = option(10, "Steps over whose crystals compositions are counted.", at_least(1))
    keep: int = option(100, "Number of crystals of highest reward kept in best.cif.", at_least(1))
    checkpoint_steps: int = option(10, *fields.CHECKPOINT_STEPS)
    keep_checkpoints: int = option(*fields.KEEP_CHECKPOINTS)

    def __post_init__(self):
        super().__post_init__()
        if self.algorithm == "grpo" and (self.group_size < 2 or self.batch_size % self.group_size):
            raise UsageError(
                f"a batch of {self.batch_size} does not divide into groups of {self.group_size}", "choose `group_size`"
            )
        if self.minibatches > self.batch_size:
            raise UsageError(f"there cannot be {self.minibatches} minibatches of {self.batch_size} crystals")


@dataclass(frozen=True, kw_only=True)
class DPOConfig(Config):
    """How a model is fine-tuned on pairs of crystals (2305.18290)."""

    epochs: int = option(10, "Passes over the pairs.", at_least(1))
    batch_size: int = option(64, "Pairs in an update.", at_least(1))
    beta: float = option(0.1, "Weight of the reference.", POSITIVE)
    learning_rate: float = option(1e-5, "Learning rate of Adam.", POSITIVE, "--lr")
    clip_norm: float = option(*fields.CLIP_NORM)
    seed: int = fields.seed()
    checkpoint_steps: int = option(100, *fields.CHECKPOINT_STEPS)
    keep_checkpoints: int = option(*fields.KEEP_CHECKPOINTS)


PRESETS = {
    "mini": RLConfig(learning_rate=2e-4, inner_epochs=1, minibatches=2, baseline="group", max_clipped=0.3),
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
        """The run as nested dictionaries that TOML can hold."""
        return fields.without_none(dataclasses.asdict(self))

    def with_whole_paths(self) -> Self:
        """A copy with absolute paths, so that the run can be resumed from another directory; names stay."""
        hull, reference = fields.whole_path(self.reward.hull), fields.whole_path(self.reward.reference)
        second = fields.whole_path(self.reward.second_hull)
        reward = dataclasses.replace(self.reward, hull=hull, second_hull=second, reference=reference)
        return dataclasses.replace(self, model=fields.whole_path(self.model), reward=reward)

    @classmethod
    def of(cls, content: dict[str, Any]) -> Self:
        """The run that `tables` describes."""
        sample, reward = fields.as_tuples(content["sample"]), fields.as_tuples(content["reward"])
        sample["template"] = fields.from_dict(Template, sample.get("template", {}))
        reward["shape"] = fields.from_dict(Shape, reward.get("shape", {}))
        return cls(
            model=content["model"],
            sample=fields.from_dict(SampleConfig, sample),
            reward=fields.from_dict(RewardConfig, reward),
            rl=fields.from_dict(RLConfig, fields.as_tuples(content["rl"])),
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

    def with_whole_paths(self) -> Self:
        """A copy with absolute paths; names stay."""
        return dataclasses.replace(self, model=fields.whole_path(self.model), pairs=fields.whole_path(self.pairs))

    def tables(self) -> dict[str, Any]:
        """The run as nested dictionaries that TOML can hold."""
        return fields.without_none(dataclasses.asdict(self))

    @classmethod
    def of(cls, content: dict[str, Any]) -> Self:
        """The run that `tables` describes."""
        return cls(model=content["model"], pairs=content["pairs"], dpo=fields.from_dict(DPOConfig, content["dpo"]))


def read_run(path: Path) -> RewardRun | PairsRun:
    """What the run in a directory does.

    Raises:
        UsageError: if it is not a run of cfx rl.
    """
    try:
        content = fields.parse_toml((path / "config.toml").read_text(encoding="utf-8"))
        return PairsRun.of(content) if "dpo" in content else RewardRun.of(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a run of cfx rl: {error}", "name the directory given with -o") from error
