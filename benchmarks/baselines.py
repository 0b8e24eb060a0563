"""What reinforcement finds for its energy evaluations, beside supervised fine-tuning.

    python benchmarks/baselines.py run RUN            # of what a run of cfx rl --reward ehull evaluated
    python benchmarks/baselines.py sft OUT --reference known.csv

`run` counts, among all crystals of a run, the charge-neutral ones from -0.2 to 0.1 eV/atom that are unlike the
reference of the run and unlike each other, after each tenth of its draws, beside the shares of classes in that tenth.

`sft` draws from a model, evaluates all draws, counts likewise, and trains the model on those that are charge-neutral,
from -0.2 to 0.1 eV/atom and unlike each other, known or not. `benchmarks/judge_model.py` judges the last weights.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from finetuning import STABLE, cfx

from cfx.config import RewardConfig
from cfx.core.crystal import CrystalBatch
from cfx.data.structures import load_crystals
from cfx.evaluation.matching import find_duplicates
from cfx.evaluation.validity import CLASSES
from cfx.rl.quotas import classes_of
from cfx.rl.rollout import primitive_cells

NEUTRAL = "charge-neutral"
PARTS = 10
TRAINING = ["--epochs", "8", "--batch-size", "64", "--lr", "2e-4", "--warmup", "10", "--dropout", "0.1"]


def count_run(run: Path) -> None:
    """Prints what a run has found, and the classes of its draws."""
    lines = [json.loads(text) for text in (run / "crystals.jsonl").read_text().splitlines()]
    crystals = crystals_of(lines)
    height, valid, novel = (part(lines, name) for name in ("E_hull (eV/atom)", "valid", "novel"))
    kinds = np.array(CLASSES)[classes_of(crystals)]
    low = (height >= RewardConfig(reward="ehull").e_hull_floor) & (height <= STABLE) & (valid == 1) & (kinds == NEUTRAL)
    rows = np.flatnonzero(low & (novel == 1))
    unique = np.array([one.unique for one in find_duplicates(primitive_cells(crystals[rows]))], bool)
    for tenth in np.array_split(np.arange(len(lines)), PARTS):
        found = int(unique[rows <= tenth[-1]].sum())
        shares = [f"{kind} {np.mean(kinds[tenth] == kind):.1%}" for kind in CLASSES]
        print(
            f"{tenth[-1] + 1:6d} draws, {found:5d} found; low and neutral {low[tenth].mean():.1%},", ", ".join(shares)
        )


def crystals_of(lines: list[dict]) -> CrystalBatch:
    """The crystals of crystals.jsonl."""
    slots = max(len(line["wyckoff"]) for line in lines) + 1
    letters, species = np.zeros((2, len(lines), slots), np.int32)
    coords = np.zeros((len(lines), slots, 3), np.float32)
    for row, line in enumerate(lines):
        sites = len(line["wyckoff"])
        letters[row, :sites], species[row, :sites] = line["wyckoff"], line["species"]
        coords[row, :sites] = np.reshape(line["frac_coords"], (-1, 3))
    lattice = np.array([line["lattice"] for line in lines], np.float32)
    return CrystalBatch(np.array([line["space_group"] for line in lines], np.int32), lattice, coords, species, letters)


def part(lines: list[dict], name: str) -> np.ndarray:
    """A part of the rewards, NaN where there is none."""
    return np.array([(line["parts"] or {}).get(name) for line in lines], float)


def supervise(options: argparse.Namespace) -> None:
    """Trains a model on its own draws that are wanted."""
    draws, records, kept = (options.out / name for name in ("draws.jsonl", "records.csv", "kept.csv"))
    options.out.mkdir(parents=True, exist_ok=True)
    words = ["--model", options.model, "--sg", "data:model", "--n", str(options.n), "--seed", str(options.seed)]
    cfx("sample", *words, "--no-radioactive", "--keep-invalid", "-o", draws, "--force")
    cfx("eval", draws, "--potential", "chgnet", "--reference", options.reference, "-o", records, "--force")
    with open(records, newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = [
        row["class"] == NEUTRAL and row["verdict"] in ("stable", "metastable") and row["unique"] == "True"
        for row in rows
    ]
    found = sum(want and row["novel"] == "True" for want, row in zip(wanted, rows, strict=True))
    print(f"{len(rows)} draws, {found} found, {sum(wanted)} kept")
    with open(kept, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "cif"])
        for want, one in zip(wanted, load_crystals(draws), strict=True):
            if want and one.structure is not None:
                table.writerow([one.name, one.structure.to(fmt="cif")])
    run = ["--from", options.model, "-o", options.out / "training"]
    cfx("train", kept, *(["--validation", options.validation] if options.validation else []), *run, *TRAINING)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("run").add_argument("run", type=Path)
    sft = kinds.add_parser("sft")
    sft.add_argument("out", type=Path)
    sft.add_argument("--model", default="mini")
    sft.add_argument("--reference", required=True, help="known crystals that novelty is judged against")
    sft.add_argument("--validation", help="held-out crystals")
    sft.add_argument("--n", type=int, default=8000, help="draws to evaluate")
    sft.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    count_run(options.run) if options.kind == "run" else supervise(options)


if __name__ == "__main__":
    main()
