"""What self-training is asked to do: what is drawn, judged, kept, and trained on."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from cfx.config import fields, texts
from cfx.config.evaluation import EvalConfig
from cfx.config.fields import NOT_NEGATIVE, Bound, Config, at_least, option
from cfx.config.sampling import SampleConfig, Template
from cfx.config.training import DataConfig, TrainConfig
from cfx.errors import UsageError

Given = dict[str, Any]
"""Settings by name."""

LEARNING = (
    *("epochs", "batch_size", "accumulate", "learning_rate", "schedule", "decay", "warmup_steps", "optimizer"),
    *("augment", "weight_decay", "clip_norm", "dropout", "attention_dropout", "ema_decay", "precision", "log_steps"),
    "checkpoint_steps",
)
"""Settings of `cfx train` that self-training takes; the seed is that of the run."""

DRAWING = ("temperature", "top_p", "elements", "exclude", "bias", "max_atoms", "max_sites")
"""Settings of `cfx sample` that self-training takes."""

JUDGING = (
    *("reference", "potential", "hull", "hull_scale", "e_hull_floor", "corrections", "mixed_valence"),
    *("fmax", "steps", "device"),
)
"""Settings of `cfx eval` that self-training takes."""


@dataclass(frozen=True, kw_only=True)
class SelfTrainConfig(Config):
    """What is kept of a model's own crystals, and how it is mixed with the data."""

    rounds: int = option(2, "Rounds: draw, relax, keep, train.", at_least(1))
    classes: tuple[str, ...] = option(
        ("charge-neutral",),
        "Classes of compositions that are kept: element, intermetallic, charge-neutral, other.",
        flag="--class",
        text=texts.classes,
    )
    # What is far above the hull as drawn seldom ends on it, and costs as many steps as what does.
    max_e_hull_unrelaxed: float = option(
        1.0, "E_hull up to which a crystal is worth relaxing, eV/atom.", Bound(math.isfinite, "be finite")
    )
    max_e_hull: float = option(
        0.1, "E_hull up to which a relaxed crystal is kept, eV/atom.", Bound(math.isfinite, "be finite")
    )
    # They are what a loop spreads most: rare in the data, and new wherever they are put.
    radioactive: bool = option(False, "Let elements without a stable isotope be drawn, too: Tc, Pm, Po and beyond.")
    novel: bool = option(False, "Keep only crystals that are not in `reference`.")
    # What is drawn often is likely enough; to learn it again makes it crowd out the rest.
    once: bool = option(False, "Keep only crystals that were drawn once.")
    # Relaxing costs dozens of evaluations for a crystal; as many draws by themselves hold many that need none.
    relax: bool = option(True, "Keep crystals as drawn, by their energy unrelaxed.", flag="--no-relax")
    fix_symmetry: bool = option(True, "Relax without keeping the space group.", flag="--no-fix-symmetry")
    share: float = option(
        0.2, "Share of kept crystals in an epoch, at most.", Bound(lambda value: 0 < value < 1, "be between 0 and 1")
    )
    repeats: int = option(4, "How often an epoch repeats a kept crystal to reach that share, at most.", at_least(1))
    take: Literal["last", "best"] = option(
        "last", "Epoch that the next round draws from: last, or best (lowest validation loss)."
    )
    max_rise: float = option(
        0.0, "Rise of the validation loss over the first model's (nats) that ends the run; 0: none.", NOT_NEGATIVE
    )
    seed: int = fields.seed()


JUDGE = EvalConfig(potential="chgnet", steps=200)
"""How crystals of self-training are judged and relaxed, where nothing else is said."""

ROUND = TrainConfig(epochs=4, batch_size=64, learning_rate=2e-4, warmup_steps=100, attention_dropout=0.0)
"""How a round of self-training trains, where nothing else is said: gently, from a model that is trained already."""


@dataclass(frozen=True, kw_only=True)
class SelfTrainRun:
    """A run of cfx selftrain: the content of its config.toml.

    Attributes:
        model: that the first round draws from.
        data: what it was trained on, and goes on with.
        sample: what is drawn; seed and keep_invalid follow from the round, radioactive from `keep`.
        judge: the potential, the hull and the known crystals; how to relax.
        keep: what is kept, and how it is mixed with the data.
        train: how a round trains; its seed follows from the round.
    """

    model: str
    data: DataConfig
    sample: SampleConfig
    judge: EvalConfig
    keep: SelfTrainConfig
    train: TrainConfig

    def __post_init__(self):
        if self.data.train is None:
            raise UsageError("the data to train on are missing", "name a file: cfx selftrain DATA -o RUN")
        if self.judge.hull is None:
            raise UsageError("what is kept is said by a hull", "name one with `hull`")
        if self.train.ema_decay and self.keep.take == "last":
            raise UsageError("averaged weights are kept of the best epoch only", "use `take=best`")
        if self.data.validation is None and (self.keep.take == "best" or self.keep.max_rise):
            raise UsageError("the best epoch, and a rise of the loss, need crystals held out", "name `validation`")

    @staticmethod
    def parts(data: DataConfig, keep: Given, judge: Given, train: Given, workers: int) -> Given:
        """All but `model` and `sample`, with JUDGE, ROUND and the data as known crystals where nothing else is said."""
        # Made anew: which hull goes without saying depends on the potential.
        usual = {"potential": JUDGE.potential, "steps": JUDGE.steps, "reference": data.train, "workers": workers}
        return {
            "data": data,
            "judge": EvalConfig(**{**usual, **judge}),
            "keep": SelfTrainConfig(**keep),
            "train": dataclasses.replace(ROUND, **train),
        }

    def tables(self) -> dict[str, Any]:
        """The run as nested dictionaries that TOML can hold."""
        return fields.without_none(dataclasses.asdict(self))

    def with_whole_paths(self) -> Self:
        """A copy with absolute paths; names stay."""
        data = {name: fields.whole_path(getattr(self.data, name)) for name in ("train", "validation")}
        judge = {name: fields.whole_path(getattr(self.judge, name)) for name in ("reference", "hull")}
        return dataclasses.replace(
            self,
            model=fields.whole_path(self.model),
            data=dataclasses.replace(self.data, **data),
            judge=dataclasses.replace(self.judge, **judge),
        )

    @classmethod
    def read(cls, run: Path) -> Self:
        """What the run in a directory does.

        Raises:
            UsageError: if it is not a run of cfx selftrain.
        """
        try:
            content = fields.as_tuples(fields.parse_toml((run / "config.toml").read_text(encoding="utf-8")))
            content["sample"]["template"] = fields.from_dict(Template, content["sample"].get("template", {}))
            kinds = {
                "data": DataConfig,
                "sample": SampleConfig,
                "judge": EvalConfig,
                "keep": SelfTrainConfig,
                "train": TrainConfig,
            }
            parts = {name: fields.from_dict(kind, content[name]) for name, kind in kinds.items()}
            return cls(model=content["model"], **parts)
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"{run} is not a run of cfx selftrain: {error}"
            raise UsageError(message, "name the directory given with -o") from error
