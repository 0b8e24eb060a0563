"""What ranking crystals as drawn saves: the halide perovskites of docs/howto/shortlist.md, by command and in Python.

    python benchmarks/discovery.py --n 400 --relax 40 --json benchmarks/results/discovery.json

The same crystals are drawn three times: by `cfx.discover` relaxing all of them, by `cfx.discover` relaxing the --relax
lowest above the hull as drawn, and by `cfx discover` as a process, which has to give the same list as the second. The
first knows what ranking misses: for several numbers of relaxations, how many of the crystals within 0.1 eV/atom of
the hull, and of the 10 lowest, are among those that come first by energy as drawn, by likelihood, or as drawn; and how
many evaluations that takes, the energies as drawn included where they decide.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import add_json, keep

import cfx
from cfx.cli.values import start_jax
from cfx.runs.discovery.result import Discovery
from cfx.runs.discovery.state import Record

HALIDES = {"atom_mask": [[], [], ["F", "Cl", "Br", "I"]]}
METASTABLE, BEST = 0.1, 10


def main() -> None:
    asked = parse()
    start_jax()
    in_python(asked, asked.n, n=2)  # imports and compiles, so that neither of the two pays for it
    whole, whole_seconds = timed(lambda: in_python(asked, asked.n))
    found = [row for number in sizes(asked) for row in compare(whole, number)]
    print(json.dumps({"all relaxed": figures_of(whole, whole_seconds), "found": found}, indent=1), flush=True)
    ranked, ranked_seconds = timed(lambda: in_python(asked, asked.relax))
    by_command, command_seconds = command(asked)
    told = [[row["name"], row["e_above_hull"]] for row in ranked.rows]
    figures = {
        "the same list by command and in Python": told
        == [[row["name"], row["e_above_hull"]] for row in by_command["crystals"]],
        "ranked": figures_of(ranked, ranked_seconds) | {"seconds_of_the_command": command_seconds["seconds"]},
        "all relaxed": figures_of(whole, whole_seconds),
        "found": found,
    }
    keep({**figures, "funnel": ranked.funnel, "list": [listed(row) for row in ranked.rows]}, asked)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=60, help="crystals")
    parser.add_argument("--relax", type=int, default=20, help="relaxations of the ranked runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="mini")
    add_json(parser)
    return parser.parse_args()


def command(asked: argparse.Namespace) -> tuple[dict[str, Any], dict[str, float]]:
    """The JSON of the command, and its seconds."""
    with tempfile.TemporaryDirectory() as place:
        sites = Path(place) / "halides.json"
        sites.write_text(json.dumps(HALIDES))
        words = ["--sg", "221", "--wyckoff", "a,b,c", "--sites", sites, "--exclude", "Pb", "--workers", 1]
        words += ["-n", asked.n, "--seed", asked.seed, "--model", asked.model, "--relax", asked.relax]
        words += ["-o", Path(place) / "out"]
        start = [sys.executable, "-c", "from cfx.cli import main; main()", "discover", *map(str, words), "--json"]
        done, seconds = timed(lambda: subprocess.run(start, capture_output=True, text=True, check=True))
        return json.loads(done.stdout), seconds


def in_python(asked: argparse.Namespace, relax: int, n: int | None = None) -> Discovery:
    """The same in Python, or with another number of crystals."""
    model = cfx.load_model(asked.model)
    halides = cfx.Template(letters="a,b,c", species=((), (), ("F", "Cl", "Br", "I")))
    return cfx.discover(
        model, 221, n=n or asked.n, seed=asked.seed, template=halides, exclude="Pb", relax=relax, workers=1
    )


def listed(row: Record) -> dict[str, Any]:
    """What is kept of a crystal in the list."""
    names = ("rank", "formula", "e_above_hull", "e_above_hull_unrelaxed", "verdict", "decomposition", "class")
    return {name: row[name] for name in names}


def timed(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What a function gives, and its seconds: by the clock, and of this process on the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    given = function()
    seconds, used = time.perf_counter() - clock, time.process_time() - processor
    return given, {"seconds": round(seconds, 1), "processor_seconds": round(used, 1)}


def figures_of(found: Discovery, seconds: dict[str, float]) -> dict[str, Any]:
    """Costs, and how many crystals are within 0.1 eV/atom of the hull."""
    near = sum(is_near(record) for record in found.records)
    return {"evaluations": found.evaluations, **seconds, "metastable": near, "listed": len(found)}


def is_near(record: Record) -> bool:
    """Whether a crystal is within 0.1 eV/atom of the hull and not left out for more than its rank."""
    height = record["e_above_hull"]
    return height is not None and record["left_out"] in ("", "ranked lower") and height <= METASTABLE


def sizes(asked: argparse.Namespace) -> list[int]:
    """Numbers of relaxations."""
    return [number for number in (10, 20, 30, 40, 60, 100, 150, 200) if number < asked.n]


def compare(whole: Discovery, number: int) -> list[dict[str, Any]]:
    """What so many relaxations find, in three orders."""
    relaxed = [record for record in whole.records if record["steps"] is not None]
    arrived = sorted(
        (record for record in relaxed if record["left_out"] in ("", "ranked lower")),
        key=lambda record: record["e_above_hull"],
    )
    best = {record["name"] for record in arrived[:BEST]}
    orders = {
        "by energy as drawn": lambda record: record["e_above_hull_unrelaxed"],
        "by likelihood": lambda record: -record["log_prob_per_site"],
        "as drawn": lambda record: 0,
    }
    evaluated = sum(record["energy_per_atom_unrelaxed"] is not None for record in whole.records)
    rows = []
    for name, key in orders.items():
        first = sorted(relaxed, key=key)[:number]
        rows.append(
            {
                "relaxed": len(first),
                "order": name,
                "evaluations": sum(one["steps"] + 1 for one in first) + evaluated * (name == "by energy as drawn"),
                "metastable": sum(map(is_near, first)),
                "of_the_best": sum(one["name"] in best for one in first),
            }
        )
    return rows


if __name__ == "__main__":
    main()
