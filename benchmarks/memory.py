"""The most memory that commands hold, with the processes that they start, at a quarter of a size and at the whole.

    python benchmarks/memory.py [--scale 1] [--json FILE]

`cfx sample` of 20,000 crystals, `cfx eval` of 5,000 (validity, uniqueness, novelty against 2,000 known ones),
`cfx data` of 20,000 rows, and `cfx rl` of 200 steps of 16 crystals with a reward that costs nothing; all with the
bundled model, and crystals that it drew. Memory is what /proc says of every process of a command, as its proportional
set size (pages that several share count once), looked at four times a second. Prints a table in MB, and how much each
further row takes.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from interruptions import DENSITY
from record import add_json, keep

CFX = [sys.executable, "-c", "import os, sys; sys.path.append(os.getcwd()); from cfx.cli import main; main()"]
SECONDS = 0.25
SIZES = {"sample": 20_000, "eval": 5_000, "data": 20_000, "rl": 200}


def descendants(pid: int) -> list[int]:
    """A process and all that it started."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def megabytes(pid: int) -> float:
    """What a process holds, shared pages in part."""
    with contextlib.suppress(OSError):
        return int(re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1]) / 1024
    return 0.0


def peak(words: list[str], place: Path) -> tuple[float, float]:
    """Runs cfx there: most MB, and seconds."""
    start, most = time.monotonic(), 0.0
    with open(place / "log", "w") as log:
        process = subprocess.Popen([*CFX, *words], cwd=place, stdout=log, stderr=log)
        while process.poll() is None:
            most = max(most, sum(map(megabytes, descendants(process.pid))))
            time.sleep(SECONDS)
    if process.returncode:
        raise SystemExit(f"cfx {' '.join(words)}: {(place / 'log').read_text()[-2000:]}")
    return most, time.monotonic() - start


def take(source: Path, target: Path, n: int) -> None:
    """The first n rows of a table under another name."""
    with open(source, newline="") as rows, open(target, "w", newline="") as file:
        csv.writer(file).writerows(itertools.islice(csv.reader(rows), n + 1))


def command(name: str, n: int, place: Path) -> list[str]:
    """What is measured."""
    if name == "sample":
        return f"sample --model mini --sg 1-230 -n {n} --max-sites 4 -o drawn-{n}.csv".split()
    if name == "eval":
        take(place / "drawn.csv", place / f"eval-{n}.csv", n)
        return f"eval eval-{n}.csv --reference known.csv --workers 2 -o records-{n}.csv".split()
    if name == "data":
        take(place / "drawn.csv", place / f"data-{n}.csv", n)
        return f"data data-{n}.csv --workers 2".split()
    return (
        f"rl --model mini --reward own:Density --sg 221 --max-sites 3 --batch-size 16 --inner-epochs 1 --steps {n} "
        f"--max-failures 1 -o run-{n}"
    ).split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1, help="of all sizes, for a shorter run")
    parser.add_argument("--only", default=",".join(SIZES), help="commands: a,b,c")
    add_json(parser)
    asked = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        os.environ.setdefault("CFX_CACHE", str(place / "cache"))
        (place / "own.py").write_text(DENSITY)
        most = max(int(asked.scale * SIZES[name]) for name in SIZES)
        peak(f"sample --model mini --sg 1-230 -n {most} --max-sites 4 --seed 1 -o drawn.jsonl".split(), place)
        as_table(place / "drawn.jsonl", place / "drawn.csv")
        take(place / "drawn.csv", place / "known.csv", 2000)
        for name in asked.only.split(","):
            whole = int(asked.scale * SIZES[name])
            peak(command(name, whole // 4 - 1, place), place)  # which compiles, and takes memory for that
            (few, less), (many, seconds) = (peak(command(name, n, place), place) for n in (whole // 4, whole))
            figures[name] = {
                "n": whole,
                "quarter_mb": round(few),
                "whole_mb": round(many),
                "kb_per_further": round(1024 * (many - few) / (whole - whole // 4), 2),
                "quarter_seconds": round(less),
                "seconds": round(seconds),
            }
            print(name, figures[name], flush=True)
    print("\n| command | n | MB at n / 4 | MB at n | kB for each further |\n|---|--:|--:|--:|--:|")
    for name, one in figures.items():
        cells = [one["n"], one["quarter_mb"], one["whole_mb"], one["kb_per_further"]]
        print(f"| cfx {name} | " + " | ".join(f"{cell:,}" for cell in cells) + " |")
    keep(figures, asked)


def as_table(lines: Path, table: Path) -> None:
    """JSON lines of crystals as a table of names and CIF blocks."""
    import json

    with open(lines) as file, open(table, "w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["id", "cif"])
        writer.writerows((line["name"], line["cif"]) for line in map(json.loads, file))


if __name__ == "__main__":
    main()
