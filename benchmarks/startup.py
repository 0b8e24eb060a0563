"""How long commands take to start, against processes that only import what they must.

    python benchmarks/startup.py [--runs 7]

Prints JSON: median wall seconds, and the ratio of each command to its yardstick, both measured in turn in one run.
The first `cfx sample` compiles or fills the cache and is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from record import add_json, keep

CFX = [sys.executable, "-c", "from cfx.cli import main; main()"]
CASES = {
    "help": ([*CFX, "--help"], [sys.executable, "-c", "import typer, rich"]),
    "sample_10": (
        [*CFX, "sample", "--model", "mini", "--sg", "225", "--n", "10"],
        [sys.executable, "-c", "import jax, haiku, pymatgen.core"],
    ),
}


def wall_seconds(command: list[str]) -> float:
    """Wall time of one process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=7)
    add_json(arguments)
    options = arguments.parse_args()
    report = {}
    for name, commands in CASES.items():
        for command in commands:
            wall_seconds(command)
        pairs = [[wall_seconds(command) for command in commands] for _ in range(options.runs)]
        ours, yardstick = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(one / other for one, other in pairs)
        report[name] = {
            "seconds": round(ours, 3),
            "yardstick_seconds": round(yardstick, 3),
            "ratio": round(ratio, 2),
        }
    keep(report, options)


if __name__ == "__main__":
    main()
