"""How good the crystals are that a model draws: the table by which bundled models are compared.

    python benchmarks/judge_model.py mini OUT --reference known.csv
    python benchmarks/judge_model.py OUT/draws.jsonl OUT --reference known.csv      # of draws that are there already

Draws raw crystals, unphysical ones kept, with the space groups of the model's data; evaluates them as they are by
CHGNet on the bundled hull, with --second by another potential as well. A crystal that could not be read, or has no
energy, counts as a failure. Writes draws.jsonl, records.csv and result.json into OUT; intervals are Wilson's of 95 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from record import machine

from cfx.data.structures import load_crystals
from cfx.evaluation.summary import wilson_interval
from cfx.evaluation.validity import CLASSES

CLOSE = 0.5
"""angstrom. Atoms nearer than this are on top of each other."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", help="a model, or a file of its draws")
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--n", type=int, default=1000)
    arguments.add_argument("--seed", type=int, default=20_261_128)
    arguments.add_argument("--reference", help="known crystals that novelty is judged against")
    arguments.add_argument("--second", help="another potential, as cfx eval takes it")
    options = arguments.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    draws = Path(options.model)
    if not draws.is_file():
        draws = options.out / "draws.jsonl"
        words = ["sample", "--model", options.model, "--sg", "data:model", "--n", str(options.n)]
        cfx(*words, "--seed", str(options.seed), "--keep-invalid", "-o", str(draws), "--force")
    words = ["eval", str(draws), "--potential", "chgnet", "-o", str(options.out / "records.csv"), "--force", "--json"]
    words += ["--reference", options.reference] if options.reference else []
    words += ["--second-potential", options.second] if options.second else []
    file = json.loads(cfx(*words))["files"][0]
    result = {"model": options.model, "summary": file["summary"], "close": close(draws), "rows": table(file["records"])}
    result |= {"median E_hull": median(file["records"]), "machine": machine()}
    (options.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    show(result)


def cfx(*words: str) -> str:
    """What a command of cfx prints on stdout."""
    print("$ cfx", *words, flush=True, file=sys.stderr)
    command = [sys.executable, "-c", "from cfx.cli import main; main()", *words]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def share(found: Sequence[bool]) -> dict:
    """How many of all are, with the interval."""
    count, of = sum(found), len(found)
    low, high = wilson_interval(count, of)
    return {"value": count / of, "low": low, "high": high, "count": count, "of": of}


def table(records: list[dict]) -> dict[str, dict]:
    """The rates that models are compared by; all are of all draws."""
    low = [record["verdict"] in ("stable", "metastable") for record in records]
    new = [bool(record["unique"] and record["novel"]) for record in records]
    found = {
        "-0.2 to 0.1": share(low),
        "-0.2 to 0.1, unique, novel": share([a and b for a, b in zip(low, new, strict=True)]),
    }
    for kind in CLASSES:
        of_kind = [record["class"] == kind for record in records]
        found[kind] = share(of_kind)
        found[f"{kind}, -0.2 to 0.1"] = share([a and b for a, b in zip(of_kind, low, strict=True)])
    return found


def median(records: list[dict]) -> float:
    """Median energy above the hull, eV/atom, of those that have one."""
    return float(np.median([record["e_above_hull"] for record in records if record["e_above_hull"] is not None]))


def close(draws: Path) -> dict:
    """The share of crystals with atoms on top of each other."""
    structures = [one.structure for one in load_crystals(draws)]
    return share([one is None or bool(len(one.get_neighbor_list(CLOSE)[0])) for one in structures])


def show(result: dict) -> None:
    """Prints the table."""
    names = {
        "avg_structure_validity": "valid structure",
        "avg_comp_validity": "valid composition",
        "avg_comp_validity_without_alloys": "valid composition, alloys not counted",
        "frac_unique_structures": "unique",
        "frac_novel_structures": "novel",
        "frac_space_group_as_asked": "space group as asked",
        "frac_below_floor_structures": "below -0.2",
    }
    rates = {label: result["summary"][name] for name, label in names.items()} | result["rows"]
    for label, rate in {**rates, f"atoms within {CLOSE} angstrom": result["close"]}.items():
        if rate is not None:
            print(f"{label:50s} {rate['value']:6.1%}  ({rate['low']:.1%} to {rate['high']:.1%})")
    print(f"{'median E_hull':50s} {result['median E_hull']:6.3f} eV/atom")


if __name__ == "__main__":
    main()
