"""Turns a finished run of cfx train, or of cfx rl with a reward, or a checkpoint, into a bundled model.

    python tools/bundle_model.py RUN mini

Copies RUN/best, of cfx rl RUN/final, or a checkpoint itself, into src/cfx/resources/models/NAME with half-precision
storage and keeps what the model card reports. With --validation it checks that rounding to float16 changed the loss of
these crystals by less than 0.01 nats.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cfx.io.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

MODELS = Path(__file__).resolve().parents[1] / "src" / "cfx" / "resources" / "models"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("name")
    arguments.add_argument("--validation", type=Path, help="crystals to measure the rounding with")
    options = arguments.parse_args()

    if (options.run / "checkpoint.json").exists():
        best = load_checkpoint(options.run)
        info = best.info
    else:
        best, info = finished(options.run)
    target = MODELS / options.name
    target.parent.mkdir(exist_ok=True)
    card = target / "README.md"
    text = card.read_text() if card.exists() else None
    save_checkpoint(target, Checkpoint(best.config, best.params, info), dtype="float16")
    if text is not None:
        card.write_text(text)
    if options.validation:
        measure_rounding(best, target, options.validation)
    print(json.dumps(info.get("metrics"), indent=1))


def finished(run: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """The best model of a run, and what is kept of its information."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    fine_tuned = "rl" in lines[-1]
    best = load_checkpoint(run / ("final" if fine_tuned else "best"))
    step = best.info["rl"]["step"] if fine_tuned else best.info["step"]
    chosen = next(line for line in lines if line["step"] == step)
    kept = {key: best.info[key] for key in ("step", "epoch", "rl", "space_groups", "elements") if key in best.info}
    if fine_tuned:
        kept["rl"] = {key: value for key, value in kept["rl"].items() if key != "baseline"}
    metrics = {part: chosen[part] for part in ("train", "validation", "rl") if part in chosen}
    return best, kept | {"run": anonymous(best.info["run"]), "metrics": metrics}


def anonymous(setting: Any) -> Any:
    """A run's settings, or one of them, with files by their names alone."""
    if isinstance(setting, dict):
        return {key: anonymous(value) for key, value in setting.items()}
    return Path(setting).name if isinstance(setting, str) and Path(setting).is_absolute() else setting


def measure_rounding(best: Checkpoint, target: Path, validation: Path) -> None:
    """Prints and bounds the loss that half precision costs."""
    from cfx.data.dataset import load_dataset
    from cfx.training.train import mean_loss

    data = load_dataset(validation, n_max=best.config.n_max)
    losses = [mean_loss(c.params, c.config, data, 64)["loss"] for c in (best, load_checkpoint(target))]
    print(f"validation loss {losses[0]:.4f} nats, {losses[1]:.4f} after rounding")
    assert abs(losses[1] - losses[0]) < 0.01


if __name__ == "__main__":
    main()
