"""Trains the pretrained `mini` on its own crystals, in the five runs of cfx selftrain that its card describes.

    python tools/selftrain_mini.py OUT --model PRETRAINED --data mp20.csv --validation val.csv --reference known.csv

PRETRAINED is a checkpoint, `decay/best` in the card; mp20.csv is what `tools/make_training_data.py` makes of MP-20's
training part. Takes an hour and a half on two fast CPU cores; what is finished is not made again. OUT/mean, the mean of
the weights of the third and the fifth run, is what `tools/bundle_model.py` bundles.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
from pathlib import Path

import jax

from cfx.io.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

HIGHEST = 0.08
"""E_hull up to which crystals are kept from the second run on, and learned from again in the last one, eV/atom."""

COMMON = [
    *("--sg", "data:model", "--class", "charge-neutral,intermetallic,other", "--no-relax", "--novel"),
    *("--lr", "2e-4", "--warmup", "10"),
]
AGAIN = ["--max-e-hull", str(HIGHEST), "--epochs", "5", "--augment", "-n", "10000"]
RUNS = {
    "one": ["--rounds", "2", "-n", "8000", "--share", "0.8", "--repeats", "6", "--seed", "1"],
    "two": ["--rounds", "2", *AGAIN, "--share", "0.8", "--repeats", "4", "--seed", "11"],
    "three": [
        *("--rounds", "1", *AGAIN, "--share", "0.8", "--repeats", "4", "--seed", "21"),
        *("--once", "--temperature", "0.85"),
    ],
    "four": ["--rounds", "1", *AGAIN, "--share", "0.6", "--repeats", "3", "--seed", "31", "--once"],
    "five": [
        *("--rounds", "1", "--max-e-hull", str(HIGHEST), "--epochs", "4", "--augment", "-n", "8000", "--share", "0.3"),
        *("--repeats", "2", "--seed", "41", "--once", "--temperature", "0.85"),
    ],
}
"""The runs, each from the model of the one before."""

PARTS = {"one": (0, 1500), "two": (0, 1500), "three": (0, 1500), "four": (1500, 5500), "five": (5500, 9500)}
"""Which of the crystals of MP-20, in random order, each run is given as its data."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("out", type=Path)
    for name in ("--model", "--data", "--validation", "--reference"):
        arguments.add_argument(name, required=True)
    options = arguments.parse_args()
    csv.field_size_limit(sys.maxsize)
    with open(options.data, newline="") as file:
        crystals = [(row["id"], row["cif"]) for row in csv.DictReader(file)]
    random.Random(1).shuffle(crystals)
    options.out.mkdir(parents=True, exist_ok=True)
    model = options.model
    for name, settings in RUNS.items():
        run, data = options.out / name, options.out / f"{name}.csv"
        if not (run / "final").exists():
            if run.exists():
                cfx("--resume", "-o", run)
            else:
                first, last = PARTS[name]
                write(data, crystals[first:last] + (kept(options.out) if name == "five" else []))
                files = ["--validation", options.validation, "--reference", options.reference]
                cfx(data, "--model", model, *files, *COMMON, *settings, "-o", run)
        model = run / "final"
    save_mean(options.out / "mean", Path(options.model), [options.out / name / "final" for name in ("three", "five")])


def save_mean(target: Path, first: Path, models: list[Path]) -> None:
    """Writes the mean of the weights of two models that learned from the first, whose information it keeps."""
    before, one, other = map(load_checkpoint, (first, *models))
    params = jax.tree.map(lambda a, b: (a + b) / 2, one.params, other.params)
    info = {key: value for key, value in before.info.items() if key != "metrics"}
    info["self_training"] = {name: " ".join(settings) for name, settings in RUNS.items()}
    save_checkpoint(target, Checkpoint(before.config, params, info))


def cfx(*words: object) -> None:
    """Runs cfx selftrain."""
    subprocess.run([Path(sys.executable).with_name("cfx"), "selftrain", *map(str, words)], check=True)


def kept(out: Path) -> list[tuple[str, str]]:
    """What the runs before have kept up to HIGHEST, each formula in each space group once."""
    found: dict[tuple[str, int], tuple[str, str]] = {}
    paths = [path for name in RUNS for path in sorted((out / name).glob("round-*/kept.jsonl"))]
    for line in (json.loads(text) for path in paths for text in path.read_text().splitlines()):
        if line["e_above_hull"] <= HIGHEST:
            found.setdefault((line["formula"], line["space_group"]), (line["name"], line["cif"]))
    return list(found.values())


def write(path: Path, crystals: list[tuple[str, str]]) -> None:
    """A table that cfx reads."""
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("id", "cif"), *crystals])


if __name__ == "__main__":
    main()
