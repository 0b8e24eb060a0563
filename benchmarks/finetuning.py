"""The two demonstrations of CrystalFormer-RL on a model: fine-tune, draw anew, judge before and after.

    python benchmarks/finetuning.py ehull OUT --reference mini_train.csv --second ase:MODULE:FACTORY
    python benchmarks/finetuning.py fom OUT --reference mini_train.csv

Runs the commands of cfx that a user would: `cfx rl` (continued where OUT/run exists), `cfx sample` from the model and
from the policy with a seed that the run never used and the run's space groups, unphysical draws kept, `cfx eval` for
validity, uniqueness and novelty, for `fom` also `cfx retrieve`. The reward is computed anew for all draws; one without
a value counts as what it counts in the run, and as unstable. With --second, stability is judged by another potential on
the same hull as well, of `fom` that of the ten best once relaxed; with --second-gap, the figure of merit by another
model of band gaps; with --relaxed 100, by how far the first 100 valid crystals of each are above themselves when
CHGNet has relaxed them. Writes OUT/result.json and OUT/figure.svg. Intervals are of 95 %: Wilson's for shares, of 2,000
bootstrap samples for means.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from record import machine

from cfx.config import RewardConfig
from cfx.data.structures import load_crystals
from cfx.evaluation.setup import open_hull
from cfx.evaluation.summary import wilson_interval
from cfx.predictors.base import Potential
from cfx.reporter import Mute
from cfx.rl.named_rewards import load_reward

SEED = 20_261_124
STABLE = 0.1
"""E_hull up to which the paper counts a crystal, eV/atom; one below the reward's floor counts as unstable."""

OPTIONS = {
    "ehull": [
        *("--sg", "data:model", "--steps", "150", "--batch-size", "256", "--minibatches", "4", "--lr", "2e-4"),
        *("--baseline", "class", "--e-hull-limit", "0.5", "--kl-coef", "0.03", "--novelty-bonus", "0.15"),
        "--no-radioactive",
    ],
    "fom": [
        *("--sg", "225", "--steps", "24", "--batch-size", "128", "--minibatches", "2", "--lr", "3e-4"),
        *("--kl-coef", "2", "--composition-penalty", "10", "--gap-model", "bundled", "--dielectric-model", "bundled"),
    ],
}
BUNDLED = {"gap_model": "bundled", "dielectric_model": "bundled"}
OUTSIDE = "unlike known crystals"
GOOD = (10.0, 20.0)
"""Figures of merit to count crystals above, eV."""


def cfx(*words: str | Path, capture: bool = False) -> str:
    """Runs a command of cfx; its output, if captured."""
    words = tuple(map(str, words))
    print("$ cfx", *words, flush=True)
    command = [sys.executable, "-c", "from cfx.cli import main; main()", *words]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE if capture else None).stdout or ""


def share(found: np.ndarray) -> dict:
    """How many of all are, and the interval."""
    low, high = wilson_interval(int(found.sum()), len(found))
    return {"share": float(found.mean()), "interval": [low, high]}


def mean(values: np.ndarray) -> dict:
    """Their mean, and the interval."""
    rng = np.random.default_rng(0)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(2000)]
    return {"mean": float(values.mean()), "interval": np.quantile(means, [0.025, 0.975]).tolist()}


def judge(name: str, draws: Path, options: argparse.Namespace) -> tuple[dict, dict[str, np.ndarray]]:
    """What draws are worth, in sum and by crystal."""
    report = json.loads(cfx("eval", draws, "--reference", options.reference, "--json", capture=True))
    rates = report["files"][0]["summary"]

    def hull(potential: Potential):
        return open_hull("chgnet-mp", None, potential, Mute())

    reward = load_reward(RewardConfig(reward=name, e_hull_limit=4.0, **BUNDLED), hull)
    structures = [one.structure for one in load_crystals(draws)]
    batch = reward.evaluate(structures)
    counted = np.where(batch.ok, batch.value, reward.failure)
    found = {"evaluated": share(batch.ok), "reward": mean(counted), "rates": rates}
    if name == "ehull":
        height = batch.metrics["E_hull (eV/atom)"]
        found |= {"stable": share(batch.ok & (height <= STABLE)), "median E_hull": float(np.nanmedian(height))}
        found["below the floor"] = share(height < RewardConfig(reward=name).e_hull_floor)
    else:
        found |= {f"above {limit:g}": share(batch.ok & (batch.value > limit)) for limit in GOOD}
        inside = batch.ok & (batch.metrics[OUTSIDE] == 0)
        found |= {"inside both domains": share(inside), "mean inside": mean(batch.value[inside])}
        found["best"] = best(structures, batch, options, draws)
        if options.second_gap:
            other = load_reward(RewardConfig(reward=name, **BUNDLED | {"gap_model": options.second_gap}), hull)
            value = other.evaluate(structures).value
            found["mean inside, second gap model"] = mean(value[inside & np.isfinite(value)])
    return found, {"value": batch.value, **batch.metrics}


def best(structures: list, batch, options: argparse.Namespace, draws: Path, n: int = 10) -> list[dict]:
    """The crystals of highest figure of merit, each formula once: as drawn, and relaxed by CHGNet."""
    rows: dict[str, int] = {}
    for row in np.argsort(-np.where(batch.ok, batch.value, -np.inf)):
        if batch.ok[row] and len(rows) < n:
            rows.setdefault(structures[row].composition.reduced_formula, row)
    drawn, relaxed = (draws.with_name(f"{draws.stem}_{name}") for name in ("best.csv", "best_relaxed.jsonl"))
    with open(drawn, "w", newline="") as file:
        table = csv.writer(file)
        table.writerows([("name", "cif"), *((formula, structures[row].to(fmt="cif")) for formula, row in rows.items())])
    words = ("--potential", "chgnet", "--relax", "--reference", options.reference, "--structures", relaxed)
    second = ("--second-potential", options.second) if options.second else ()
    records = json.loads(cfx("eval", drawn, *words, *second, "--force", "--json", capture=True))["files"][0]["records"]
    after = load_reward(RewardConfig(reward="fom", **BUNDLED), lambda _: None).evaluate(
        [one.structure for one in load_crystals(relaxed)]
    )
    return [
        {
            "formula": formula,
            "as drawn": {key: float(values[row]) for key, values in batch.metrics.items()},
            "relaxed": {key: float(values[place]) for key, values in after.metrics.items()},
            "record": records[place],
        }
        for place, (formula, row) in enumerate(rows.items())
    ]


def second_opinion(draws: Path, potential: str, out: Path) -> dict:
    """Stability by another potential on the same hull."""
    cfx("eval", draws, "--potential", potential, "--hull", "chgnet-mp", "-o", out, "--force", "--json", capture=True)
    with open(out, newline="") as file:
        column = [row["e_above_hull"] for row in csv.DictReader(file)]
    height = np.array([float(text) if text else np.nan for text in column])
    stable = (height <= STABLE) & (height >= RewardConfig(reward="ehull").e_hull_floor)
    return {"potential": potential, "stable": share(stable), "median": float(np.nanmedian(height))}


def relaxation(draws: Path, n: int) -> dict:
    """How far the first n valid crystals are above themselves relaxed, eV/atom, by CHGNet."""
    from cfx.evaluation.validity import structure_validity
    from cfx.predictors.load import load_potential
    from cfx.predictors.relax import relax

    structures = [one.structure for one in load_crystals(draws)]
    valid = [s for s, record in zip(structures, structure_validity(structures), strict=True) if record.valid][:n]
    potential = load_potential("chgnet")
    before = potential.evaluate(valid, forces=False).energy
    after = np.array([one.energy for one in relax(potential, valid)], float)
    drop = (before - after) / np.array([len(one) for one in valid])
    return {"crystals": len(valid), "relaxed": int(np.isfinite(drop).sum()), **mean(drop[np.isfinite(drop)])}


def draw_figure(name: str, run: Path, values: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """The reward during the run, and its distribution before and after."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    from cfx.runs.figures import COLOURS, STYLE

    lines = [json.loads(line)["rl"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    step = np.arange(1, len(lines) + 1)
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
        middle = [line["reward_q50"] for line in lines]
        low, high = ([line[f"reward_q{q}"] for line in lines] for q in (10, 90))
        left.fill_between(step, low, high, color=COLOURS[0], alpha=0.15, lw=0, label="10 to 90 % of the crystals")
        left.plot(step, middle, color=COLOURS[0], alpha=0.5, lw=1, label="median")
        left.plot(step, [line["reward"] for line in lines], color=COLOURS[0], label="mean, failures included")
        left.set(title="Reward, eV/atom" if name == "ehull" else "Reward, eV", xlabel="step")
        left.legend(loc="best", fontsize=8)
        key = "E_hull (eV/atom)" if name == "ehull" else "figure of merit (eV)"
        bins = np.linspace(-0.5, 4, 46) if name == "ehull" else np.linspace(0, 40, 41)
        for colour, (label, found) in zip(COLOURS, values.items(), strict=False):
            shown = np.clip(found[key], bins[0], bins[-1])
            right.hist(shown[np.isfinite(shown)], bins, color=colour, alpha=0.5, label=label)
        title = f"{key[0].upper()}{key[1:]} of new draws"
        right.set(title=title, ylabel="crystals", xlabel="what is beyond is in the first and last bar")
        right.legend()
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demonstration", choices=tuple(OPTIONS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--reference", required=True, help="known crystals: what the model was trained on")
    parser.add_argument("--known", help="known crystals to be found again, if not the reference")
    parser.add_argument("--second", help="a potential for a second opinion on stability")
    parser.add_argument("--second-gap", help="another model of band gaps, as --gap-model of cfx rl takes it")
    parser.add_argument("--relaxed", type=int, default=0, help="crystals to relax")
    parser.add_argument("-n", type=int, default=1000, help="draws to judge by")
    options = parser.parse_args()

    name, run = options.demonstration, options.out / "run"
    options.out.mkdir(parents=True, exist_ok=True)
    if run.exists():
        cfx("rl", "-o", run, "--resume")
    else:
        known = ["--reference", options.reference] if "--novelty-bonus" in OPTIONS[name] else []
        cfx("rl", "--reward", name, "--model", options.model, *OPTIONS[name], *known, "-o", run)
    groups = OPTIONS[name][1]
    result, values = {"machine": machine(), "options": OPTIONS[name], "n": options.n, "seed": SEED}, {}
    for moment, model in (("before", options.model), ("after", run / "final")):
        draws = options.out / f"{moment}.jsonl"
        cfx(
            "sample",
            "--model",
            model,
            "--sg",
            groups,
            "-n",
            options.n,
            "--seed",
            SEED,
            "--keep-invalid",
            "-o",
            draws,
            "--force",
        )
        result[moment], values[moment] = judge(name, draws, options)
        if options.second and name == "ehull":
            result[moment]["second"] = second_opinion(draws, options.second, options.out / f"{moment}_second.csv")
        if options.relaxed:
            result[moment]["above relaxed"] = relaxation(draws, options.relaxed)
    if name == "fom":
        files = [word for moment in ("before", "after") for word in ("--from", options.out / f"{moment}.jsonl")]
        plot = options.out / "retrieval.svg"
        words = (
            "--reference",
            options.known or options.reference,
            "--property",
            "fom",
            "--plot",
            plot,
            "--force",
            "--json",
        )
        result["retrieval"] = json.loads(cfx("retrieve", *files, *words, capture=True))
    draw_figure(name, run, values, options.out / "figure.svg")
    (options.out / "result.json").write_text(json.dumps(result, indent=1))
    for moment in ("before", "after"):
        print(moment, json.dumps({key: value for key, value in result[moment].items() if key != "rates"}, indent=1))


if __name__ == "__main__":
    main()
