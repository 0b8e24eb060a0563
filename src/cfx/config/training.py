"""What a training run is asked to do: its parts, presets, configuration files, and flags on top of them."""

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
)
from cfx.config.model import ModelConfig
from cfx.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained.

    Attributes:
        epochs: passes over the training data.
        batch_size: crystals in a batch on average; every batch has about as many tokens as that many average crystals.
        accumulate: batches a step.
        optimizer: adam, or adamw with `weight_decay`.
        learning_rate: its peak.
        schedule: constant; inverse, learning_rate / (1 + decay * step), as published; or cosine, a linear warm-up and
            then half a cosine to 1 % of the peak.
        warmup_steps: of the cosine schedule; a tenth of the run at most.
        decay: of the inverse schedule.
        weight_decay: decoupled, of the weights of linear layers and embeddings; for adamw.
        clip_norm: largest global norm of the gradient.
        dropout: rate after attention and after the MLP.
        attention_dropout: rate on the attention weights.
        ema_decay: of an exponential moving average of the weights, which is then validated and kept as the best; 0 for
            none.
        precision: of matrix products in training: float32, bfloat16 (sums and everything else in float32), or auto,
            bfloat16 on accelerators.
        seed: of the initial weights, the order of the data and dropout.
        log_steps: steps between two lines of metrics; the end of an epoch has one too.
        checkpoint_steps: steps between two checkpoints.
        keep_checkpoints: how many of the latest checkpoints stay on disk; the best stays apart from them.
    """

    epochs: int = 100
    batch_size: int = 128
    accumulate: int = 1
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "inverse", "cosine"] = "cosine"
    warmup_steps: int = 200
    decay: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    dropout: float = 0.1
    attention_dropout: float = 0.1
    ema_decay: float = 0.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0
    log_steps: int = 100
    checkpoint_steps: int = 1000
    keep_checkpoints: int = 2

    def __post_init__(self):
        check_fields(self)
        at_least(self, 1, "epochs", "batch_size", "accumulate", "log_steps", "checkpoint_steps", "keep_checkpoints")
        positive(self, "learning_rate", "clip_norm")
        below_one(self, "dropout", "attention_dropout", "ema_decay")
        not_negative(self, "warmup_steps", "decay", "weight_decay")
        check_seed(self.seed, 32)
        if self.weight_decay and self.optimizer == "adam":
            raise UsageError("adam has no weight decay", "use `optimizer=adamw`")
        if self.decay and self.schedule != "inverse":
            raise UsageError(f"the {self.schedule} schedule has no decay", "use `schedule=inverse`")


SYMPREC = 0.01
"""Distance tolerance of symmetry searches, angstrom."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a model is trained on.

    Attributes:
        train: file of crystals, or None: not said yet.
        validation: another, to choose the best epoch by.
        symprec: tolerance of the symmetry search, angstrom.
    """

    train: str | None = None
    validation: str | None = None
    symprec: float = SYMPREC

    def __post_init__(self):
        check_fields(self)
        if not 0 < self.symprec < math.inf:
            raise UsageError(f"symprec must be a length in angstrom, not {self.symprec}")


MINI = ModelConfig(num_layers=4, num_heads=4, key_size=32, model_size=128, first_hidden=128)
"""Architecture of the bundled model, sized for two CPU cores."""

PUBLISHED = TrainConfig(batch_size=100, learning_rate=1e-4, schedule="inverse")
"""The public program's defaults: Adam, no decay, gradients clipped at 1."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """An architecture and how it is trained."""

    model: ModelConfig
    train: TrainConfig


PRESETS = {
    "alex20": Preset(model=ModelConfig(), train=dataclasses.replace(PUBLISHED, epochs=5500)),
    "mp20": Preset(
        model=ModelConfig(position="absolute"),
        train=dataclasses.replace(PUBLISHED, epochs=3800, dropout=0.5, attention_dropout=0.5),
    ),
    "mini": Preset(model=MINI, train=TrainConfig(epochs=26, batch_size=64, attention_dropout=0.0)),
}
"""By name: those of the published checkpoints (as many epochs as they were trained for) and of the bundled model."""


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """What a training run does: the content of a configuration file.

    Attributes:
        model: architecture; None where it is that of the model in `start`.
        train: how it is trained.
        data: what on.
        start: model whose weights are trained further, as `load_model` takes it; None for random weights.
    """

    model: ModelConfig | None
    train: TrainConfig
    data: DataConfig
    start: str | None = None

    @classmethod
    def layered(cls, *layers: dict[str, Any]) -> TrainRun:
        """Merges tables as `read_toml` returns them; later layers win over earlier ones, and all over the preset.

        Raises:
            UsageError: for names and values that do not belong there.
        """
        merged: dict[str, Any] = {"preset": "mini", "from": None, "model": {}, "train": {}, "data": {}}
        for layer in layers:
            for key, value in layer.items():
                _check_entry(key, value)
                merged[key] = {**merged[key], **value} if isinstance(value, dict) else value
        if merged["preset"] not in PRESETS:
            raise UsageError(f"there is no preset {merged['preset']!r}", f"choose one of: {', '.join(PRESETS)}")
        preset = PRESETS[merged["preset"]]
        if merged["from"] and merged["model"]:
            raise UsageError("a model that is trained further keeps its architecture", "leave [model] or `from` out")
        return cls(
            model=None if merged["from"] else from_dict(ModelConfig, merged["model"], preset.model),
            train=from_dict(TrainConfig, merged["train"], preset.train),
            data=from_dict(DataConfig, merged["data"]),
            start=merged["from"],
        )

    def with_whole_paths(self) -> TrainRun:
        """The same with absolute paths, so that the run can be resumed from another directory; names stay."""
        data = dataclasses.replace(
            self.data, train=whole_path(self.data.train), validation=whole_path(self.data.validation)
        )
        return dataclasses.replace(self, data=data, start=whole_path(self.start))

    def tables(self) -> dict[str, Any]:
        """As `read_toml` returns them: `TrainRun.layered(config.tables())` is the configuration again."""
        content = {"from": self.start, "model": self.model and to_dict(self.model), "train": to_dict(self.train)}
        content["data"] = {key: value for key, value in to_dict(self.data).items() if value is not None}
        return {key: value for key, value in content.items() if value is not None}


def read_toml(path: str | Path) -> dict[str, Any]:
    """A configuration file: the tables [model], [train], [data], and above them `preset` and `from`.

    Raises:
        UsageError: if it cannot be read, or holds anything else.
    """
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the configuration {path}: {error}") from error
    try:
        for key, value in content.items():
            _check_entry(key, value)
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", error.hint) from None
    return content


def _check_entry(key: str, value: Any) -> None:
    kinds = {"model": dict, "train": dict, "data": dict, "preset": str, "from": str}
    if key not in kinds:
        raise UsageError(f"{key} does not belong in a configuration", f"it may have: {', '.join(kinds)}")
    if not isinstance(value, kinds[key]) or value == "":
        what = "a table" if kinds[key] is dict else "a name"
        raise UsageError(f"{key} must be {what}, not {value!r}")
