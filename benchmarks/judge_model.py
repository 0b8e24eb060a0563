"""How good the crystals are that a model draws: the table by which bundled models are compared.

    python benchmarks/judge_model.py mini OUT --reference known.csv
    python benchmarks/judge_model.py OUT/draws.jsonl OUT --reference known.csv      # of draws that are there already

Draws raw crystals, unphysical ones kept, with the space groups of the model's data; evaluates them as they are by
CHGNet on the bundled hull, with --second by another potential as well. A crystal that could not be read, or has no
energy, counts as a failure. With --relaxed 300, the first 300 are relaxed by CHGNet, with all freedom and 150 steps at
most, and judged again, by --second on the cells that CHGNet leaves. Writes draws.jsonl, records.csv and result.json
into OUT; intervals are Wilson's of 95 %.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from finetuning import cfx
from record import machine

from cfx.data.structures import MIN_DISTANCE, load_crystals
from cfx.evaluation.summary import rate
from cfx.evaluation.validity import CLASSES
from cfx.rl.rollout import primitive_cell

METRICS = {
    "avg_structure_validity": "valid structure",
    "avg_comp_validity": "valid composition",
    "avg_comp_validity_without_alloys": "valid composition, alloys not counted",
    "frac_unique_structures": "unique",
    "frac_novel_structures": "novel",
    "frac_space_group_as_asked": "space group as asked",
    "frac_below_floor_structures": "below -0.2",
    "frac_stable_structures": "-0.2 to 0.1",
    "frac_novel_unique_stable_structures": "-0.2 to 0.1, unique, novel",
    "frac_confirmed_stable_structures": "-0.2 to 0.1 by both potentials",
}
"""Rates of cfx eval that are shown."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", help="a model, or a file of its draws")
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--n", type=int, default=1000)
    arguments.add_argument("--seed", type=int, default=20_261_128)
    arguments.add_argument("--reference", help="known crystals that novelty is judged against")
    arguments.add_argument("--second", help="another potential, as cfx eval takes it")
    arguments.add_argument("--relaxed", type=int, default=0, help="draws to relax")
    options = arguments.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    draws = Path(options.model)
    if not draws.is_file():
        draws = options.out / "draws.jsonl"
        words = ["sample", "--model", options.model, "--sg", "data:model", "--n", str(options.n)]
        cfx(*words, "--seed", str(options.seed), "--keep-invalid", "-o", draws, "--force")
    file = evaluate(draws, options, options.out / "records.csv")
    heights = [record["e_above_hull"] for record in file["records"] if record["e_above_hull"] is not None]
    result = {
        "model": options.model,
        "summary": file["summary"],
        "close": close(draws),
        "classes": by_class(file["records"]),
        "median E_hull": float(np.median(heights)),
        "machine": machine(),
    }
    if options.relaxed:
        first = options.out / "first.csv"
        write_primitive(draws, options.relaxed, first)
        steps = ("--relax", "--steps", "150")
        result["relaxed"] = by_class(evaluate(first, options, options.out / "relaxed.csv", *steps)["records"])
    (options.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    show(result)


def evaluate(crystals: Path, options: argparse.Namespace, records: Path, *words: str) -> dict:
    """What cfx eval says of a file."""
    known = ["--reference", options.reference] if options.reference else []
    second = ["--second-potential", options.second] if options.second else []
    settings = ["--potential", "chgnet", *words, *known, *second, "-o", records, "--force", "--json"]
    return json.loads(cfx("eval", crystals, *settings, capture=True))["files"][0]


def write_primitive(draws: Path, n: int, path: Path) -> None:
    """The first n draws in primitive cells, as CIF; the others cannot be relaxed."""
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "cif"])
        for one in load_crystals(draws)[:n]:
            table.writerow([one.name, "" if one.structure is None else primitive_cell(one.structure).to(fmt="cif")])


def by_class(records: list[dict]) -> dict[str, dict | None]:
    """The share of each class of compositions, and of the metastable ones in it; all are of all draws."""
    found = {}
    for kind in CLASSES:
        found[kind] = rate([record["class"] == kind for record in records])
        for verdict, by in (("verdict", ""), ("second_verdict", ", second potential")):
            if verdict not in records[0]:
                continue
            low = [one["class"] == kind and one[verdict] in ("stable", "metastable") for one in records]
            new = [a and bool(one["unique"] and one["novel"]) for a, one in zip(low, records, strict=True)]
            found |= {f"{kind}, -0.2 to 0.1{by}": rate(low), f"{kind}, these, unique and novel{by}": rate(new)}
    return found


def close(draws: Path) -> dict | None:
    """The share of crystals with atoms on top of each other."""
    structures = [one.structure for one in load_crystals(draws)]
    return rate([one is None or bool(len(one.get_neighbor_list(MIN_DISTANCE)[0])) for one in structures])


def show(result: dict) -> None:
    """Prints the table."""
    rates = {label: result["summary"].get(name) for name, label in METRICS.items()} | result["classes"]
    rates |= {f"relaxed: {label}": found for label, found in result.get("relaxed", {}).items()}
    for label, found in {**rates, f"atoms within {MIN_DISTANCE} angstrom": result["close"]}.items():
        if found is not None:
            print(f"{label:70s} {found['value']:6.1%}  ({found['low']:.1%} to {found['high']:.1%})")
    print(f"{'median E_hull':70s} {result['median E_hull']:6.3f} eV/atom")


if __name__ == "__main__":
    main()
