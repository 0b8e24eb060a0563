"""Tries an installed cfx as somebody who has just installed it: from an empty home, in an empty directory.

    make dist
    pipx install "$(ls dist/*.whl)[eval]"
    python tools/try_program.py ~/.local/bin/cfx

Runs five commands, none of which needs torch or a network, checks that their files are there, and prints the seconds
that each took. Needs the standard library only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

LINES = (
    ("sample --model mini --sg 194 --n 20 -o out.jsonl", "out.jsonl"),
    ("view out.jsonl -o out.html", "out.html"),
    ("eval out.jsonl -o records.csv", "records.csv"),
    ("score out.jsonl --model mini -o scores.csv", "scores.csv"),
    ("train out.jsonl --from mini --validation 25% --epochs 1 -o run", "run/best"),
    ("sample --model mini --sg 194 --n 20 -o again.jsonl", "again.jsonl"),
)
"""Arguments of cfx, and what they make. The last is the first once more, to see what the kept compilation brings."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path, help="the cfx to try")
    program = parser.parse_args().program.absolute()
    with tempfile.TemporaryDirectory() as place:
        home, desk = Path(place) / "home", Path(place) / "desk"
        home.mkdir()
        desk.mkdir()
        environment = {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        print(subprocess.check_output([program, "--version"], env=environment, text=True), end="")
        for line, made in LINES:
            start = time.perf_counter()
            done = subprocess.run([program, *line.split()], cwd=desk, env=environment, capture_output=True, text=True)
            assert not done.returncode, f"cfx {line}: {done.stderr}"
            assert (desk / made).exists(), f"cfx {line}: there is no {made}"
            print(f"{time.perf_counter() - start:6.1f} s  cfx {line}", flush=True)
        assert (desk / "out.jsonl").read_bytes() == (desk / "again.jsonl").read_bytes(), "the seed decides no longer"


if __name__ == "__main__":
    main()
