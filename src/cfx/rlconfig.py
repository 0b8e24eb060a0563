"""What a fine-tuning run is asked to do, and how that is written down."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfx.config import DPOConfig, RewardConfig, RLConfig, SampleConfig, Shape, Template, from_dict, to_dict
from cfx.errors import UsageError

PRESETS = {
    "mini": RLConfig(learning_rate=5e-4, inner_epochs=1, minibatches=2, baseline="group"),
    "published": RLConfig(steps=200, batch_size=1000, likelihood="published"),
}
"""By name: for the bundled model on a few cores; the paper's figures (tau 0.1 is its, too: --kl-coef 0.1)."""


@dataclass(frozen=True)
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
        return {"model": self.model, **{name: _plain(to_dict(part)) for name, part in parts.items()}}

    @classmethod
    def of(cls, content: dict[str, Any]) -> RewardRun:
        """The inverse of `tables`."""
        sample, reward = _tuples(content["sample"]), _tuples(content["reward"])
        sample["template"] = from_dict(Template, sample.get("template", {}))
        reward["shape"] = from_dict(Shape, reward.get("shape", {}))
        return cls(
            content["model"],
            from_dict(SampleConfig, sample),
            from_dict(RewardConfig, reward),
            from_dict(RLConfig, _tuples(content["rl"])),
        )


@dataclass(frozen=True)
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

    def tables(self) -> dict[str, Any]:
        """As TOML can hold it."""
        return {"model": self.model, "pairs": self.pairs, "dpo": _plain(to_dict(self.dpo))}

    @classmethod
    def of(cls, content: dict[str, Any]) -> PairsRun:
        """The inverse of `tables`."""
        return cls(content["model"], content["pairs"], from_dict(DPOConfig, content["dpo"]))


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


def _plain(value: Any) -> Any:
    """Without None, which TOML does not know, and with lists for tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _tuples(value: Any) -> Any:
    """The inverse, but for None: that is every field's default where it is allowed."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def with_whole_paths(run: RewardRun) -> RewardRun:
    """The same with absolute paths, so that the run can be resumed from another directory; names stay."""

    def whole(text: str | None) -> str | None:
        return str(Path(text).absolute()) if text is not None and Path(text).exists() else text

    reward = dataclasses.replace(run.reward, hull=whole(run.reward.hull), reference=whole(run.reward.reference))
    return dataclasses.replace(run, model=whole(run.model), reward=reward)
