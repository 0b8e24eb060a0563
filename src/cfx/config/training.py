"""What a model is, and how it is trained: architecture, training, presets, the file that says all of it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from cfx.config import fields, texts
from cfx.config.fields import BELOW_ONE, NOT_NEGATIVE, POSITIVE, Bound, Config, at_least, option
from cfx.errors import UsageError


def size(default: int, help: str) -> Any:
    """A number of something, one at least."""
    return option(default, help, at_least(1))


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """The architecture of a CrystalFormer; the defaults are the published configuration (2403.15734, Table S1)."""

    position: Literal["rotary", "absolute"] = option(
        "rotary", "How a token knows its place: rotary (Alex-20 and its fine-tuned models) or absolute (MP-20)."
    )
    composition: Literal["none", "required", "optional"] = option(
        "none",
        "Whether the composition is an input: none, required (CrystalFormer-CSP) or optional (CrystalFormer 0.6).",
    )
    num_frequencies: int = size(5, "Fourier frequencies of a coordinate (Nf).")
    coord_components: int = size(16, "Von Mises components of a coordinate (Kx).")
    lattice_components: int = size(4, "Gaussian components of the lattice (Kl).")
    n_max: int = size(21, "Wyckoff slots, of which one at least stays a pad.")
    first_hidden: int = size(256, "Hidden width of the network that draws the first letter (h0).")
    num_layers: int = size(16, "Transformer blocks.")
    num_heads: int = size(16, "Attention heads.")
    key_size: int = size(64, "Width of one head.")
    model_size: int = size(64, "Width of the residual stream.")
    embed_size: int = size(32, "Width of the three embeddings.")
    num_species: int = size(119, "Atomic numbers, with 0 for a pad.")
    num_letters: int = size(28, "Wyckoff letters, with 0 for a pad.")
    widening: int = size(4, "Width of the block's MLP over model_size.")
    sigma_min: float = option(1e-3, "Smallest standard deviation of a lattice component, model frame.", POSITIVE)

    def __post_init__(self):
        super().__post_init__()
        if self.position == "rotary" and self.key_size % 2:
            raise UsageError(f"rotary positions need an even key size, not {self.key_size}")
        if self.output_size < max(self.num_letters, 3 * self.coord_components):
            raise UsageError("the output row is too narrow for its heads; use fewer components, or more species")

    @property
    def condition_size(self) -> int:
        """Width of what joins every token: the embedding of the space group, after that of a composition if any."""
        return self.embed_size * (1 if self.composition == "none" else 2)

    @property
    def output_size(self) -> int:
        """Width of an output row: species logits, then the lattice mixture."""
        return self.num_species + self.lattice_components * 13


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """How a model is trained."""

    epochs: int = option(100, "Passes over the data.", at_least(1))
    # Every batch has about as many tokens as that many average crystals.
    batch_size: int = option(128, "Crystals in a batch, on average.", at_least(1))
    accumulate: int = option(1, "Batches whose gradients are added before an update.", at_least(1))
    learning_rate: float = option(1e-3, "Peak learning rate.", POSITIVE, "--lr")
    # The cosine falls to 1 % of the peak; its warm-up is a tenth of the run at most.
    schedule: Literal["constant", "inverse", "cosine"] = option(
        "cosine", "Schedule of the learning rate: constant, inverse or cosine."
    )
    decay: float = option(0.0, "Decay of the inverse schedule, lr / (1 + decay * step).", NOT_NEGATIVE)
    warmup_steps: int = option(200, "Steps of linear warm-up before the cosine.", NOT_NEGATIVE, "--warmup")
    # Those of `core.symmetry.SettingsTable`; validation crystals stay in the setting that they are given in.
    augment: bool = option(
        False, "Show every crystal in a random one of its equivalent settings (axes, origin, letters), anew each epoch."
    )
    optimizer: Literal["adam", "adamw", "muon"] = option("adam", "Optimiser: adam, adamw or muon.")
    # Of the weights of linear layers and embeddings.
    weight_decay: float = option(0.0, "Decoupled weight decay, for adamw and muon.", NOT_NEGATIVE)
    clip_norm: float = option(*fields.CLIP_NORM)
    dropout: float = option(0.1, "Dropout rate after attention and MLP.", BELOW_ONE)
    attention_dropout: float = option(0.1, "Dropout rate on attention weights.", BELOW_ONE)
    # The average is what is validated and kept as the best.
    ema_decay: float = option(
        0.0, "Decay of an exponential moving average of the weights; 0: none.", BELOW_ONE, "--ema"
    )
    # Sums and everything else stay float32; auto is bfloat16 on accelerators.
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "Precision of matrix products: float32, bfloat16 or auto."
    )
    seed: int = fields.seed(32)
    log_steps: int = option(100, "Steps between lines of metrics.", at_least(1), "--log-every")
    checkpoint_steps: int = option(1000, *fields.CHECKPOINT_STEPS)
    keep_checkpoints: int = option(*fields.KEEP_CHECKPOINTS)

    def __post_init__(self):
        super().__post_init__()
        if self.weight_decay and self.optimizer == "adam":
            raise UsageError("adam has no weight decay", "use `optimizer=adamw` or `optimizer=muon`")
        if self.decay and self.schedule != "inverse":
            raise UsageError(f"the {self.schedule} schedule has no decay", "use `schedule=inverse`")


SYMPREC = 0.01
"""Distance tolerance of symmetry searches, angstrom."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """What a model is trained on."""

    train: str | None = option(None, "Crystals: a file or a name; None: not said yet.")
    validation: str | None = option(
        None, "Held-out crystals, to choose the best epoch by: a file, a name, or a share of the data, as 10%."
    )
    symprec: float = option(
        SYMPREC, "Tolerance of the symmetry search, angstrom.", Bound(POSITIVE.holds, "be a length in angstrom")
    )

    def __post_init__(self):
        super().__post_init__()
        self.names()

    def names(self) -> list[str]:
        """The files, or data sets by name, that it consists of."""
        return [name for name in (self.train, self.validation if self.held_out is None else None) if name]

    @property
    def held_out(self) -> float | None:
        """The share of the crystals in `train` that `validation` holds out; None where it names others.

        Raises:
            UsageError: for 0 % or less, or 100 % or more.
        """
        if self.validation is None or not self.validation.endswith("%"):
            return None
        return texts.percentage(self.validation)


MINI = ModelConfig(num_layers=5, num_heads=6, key_size=32, model_size=192, first_hidden=128)
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
    "mini": Preset(
        model=MINI,
        train=TrainConfig(epochs=14, batch_size=64, learning_rate=4e-3, optimizer="muon", attention_dropout=0.0),
    ),
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
    def layered(cls, *layers: dict[str, Any]) -> Self:
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
            raise UsageError(
                "a model that is trained further keeps its architecture, but the configuration has [model]",
                "leave [model] or `from` out",
            )
        return cls(
            model=None if merged["from"] else fields.from_dict(ModelConfig, merged["model"], preset.model),
            train=fields.from_dict(TrainConfig, merged["train"], preset.train),
            data=fields.from_dict(DataConfig, merged["data"]),
            start=merged["from"],
        )

    def with_whole_paths(self) -> Self:
        """A copy with absolute paths, so that the run can be resumed from another directory; names stay."""
        data = dataclasses.replace(
            self.data, train=fields.whole_path(self.data.train), validation=fields.whole_path(self.data.validation)
        )
        return dataclasses.replace(self, data=data, start=fields.whole_path(self.start))

    def tables(self) -> dict[str, Any]:
        """The configuration as `read_toml` returns it: `TrainRun.layered(config.tables())` gives it back."""
        content = dataclasses.asdict(self)
        return fields.without_none({"from": content.pop("start"), **content})


def read_toml(path: str | Path) -> dict[str, Any]:
    """A configuration file: the tables [model], [train], [data], and above them `preset` and `from`.

    Raises:
        UsageError: if it cannot be read, or holds anything else.
    """
    try:
        content = fields.parse_toml(Path(path).read_text(encoding="utf-8"))
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
        raise UsageError(f"{key} is not part of a configuration", f"its parts are: {', '.join(kinds)}")
    if not isinstance(value, kinds[key]) or value == "":
        what = "a table" if kinds[key] is dict else "a name"
        raise UsageError(f"{key} must be {what}, not {value!r}")
