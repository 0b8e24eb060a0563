"""What a training run is asked to do: presets, configuration files, and flags on top of them."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfx.config import DataConfig, ModelConfig, TrainConfig, from_dict, to_dict
from cfx.errors import UsageError

MINI = ModelConfig(num_layers=4, num_heads=4, key_size=32, model_size=128, first_hidden=128)
"""Architecture of the bundled model, sized for two CPU cores."""

PUBLISHED = TrainConfig(batch_size=100, learning_rate=1e-4, schedule="inverse")
"""The public program's defaults: Adam, no decay, gradients clipped at 1."""


@dataclass(frozen=True)
class Preset:
    """An architecture and how it is trained."""

    model: ModelConfig
    train: TrainConfig


PRESETS = {
    "alex20": Preset(ModelConfig(), dataclasses.replace(PUBLISHED, epochs=5500)),
    "mp20": Preset(
        ModelConfig(position="absolute"),
        dataclasses.replace(PUBLISHED, epochs=3800, dropout=0.5, attention_dropout=0.5),
    ),
    "mini": Preset(MINI, TrainConfig(epochs=26, batch_size=64, attention_dropout=0.0)),
}
"""By name: those of the published checkpoints (as many epochs as they were trained for) and of the bundled model."""


@dataclass(frozen=True)
class RunConfig:
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
    def layered(cls, *layers: dict[str, Any]) -> RunConfig:
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
            raise UsageError("a model that is trained further keeps its architecture", "leave [model] or --from out")
        return cls(
            None if merged["from"] else from_dict(ModelConfig, merged["model"], preset.model),
            from_dict(TrainConfig, merged["train"], preset.train),
            from_dict(DataConfig, merged["data"], DataConfig()),
            merged["from"],
        )

    def with_whole_paths(self) -> RunConfig:
        """The same with absolute paths, so that the run can be resumed from another directory; names stay."""

        def whole(text: str | None) -> str | None:
            return str(Path(text).absolute()) if text is not None and Path(text).exists() else text

        data = dataclasses.replace(self.data, train=whole(self.data.train), validation=whole(self.data.validation))
        return dataclasses.replace(self, data=data, start=whole(self.start))

    def tables(self) -> dict[str, Any]:
        """As `read_toml` returns them: `RunConfig.layered(config.tables())` is the configuration again."""
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
