"""Commands killed at random moments and resumed until they end, and two of them at one output.

    python benchmarks/interruptions.py [--kills 25] [--minutes 60] [--only sample-zip,relax] [--json FILE]

Each command first runs undisturbed. Then it is started, killed (SIGKILL) at a moment drawn from the time that it takes,
resumed, killed again, until it ends; this is repeated until --kills processes were killed. Whenever it ends, every file
that it made must have the bytes of the undisturbed run, lines of metrics without their times. With each output a second
process that wants to write the same is started while the first is stopped in the middle: it must be refused with exit
code 8 in one line, and the first must end with the same bytes.

Processes are forked from one that has its imports (tests/processes.py), so that kills hit the work and not the imports;
--fresh starts them from nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

from density_reward import DENSITY

EMT = "ase:ase.calculators.emt:EMT"

CONFIG = """
[model]
num_layers = 2
num_heads = 2
key_size = 8
model_size = 16
embed_size = 8
first_hidden = 16
coord_components = 4

[train]
epochs = 40
batch_size = 4
checkpoint_steps = 7
log_steps = 5

[data]
train = "crystals.csv"
validation = "crystals.csv"
"""


class Command(NamedTuple):
    """A command that can be interrupted.

    Attributes:
        words: without its output.
        output: its name.
        begun: a file that is there once it can be resumed; "" for one that is repeated as it was.
        again: what --resume needs of the words; by default all.
        option: that names the output.
        lock: a file that is there while the command works on its output.
    """

    words: str
    output: str
    begun: str
    again: str | None = None
    option: str = "-o"
    lock: str = ""

    def started(self) -> list[str]:
        return [*self.words.split(), self.option, self.output]

    def resumed(self) -> list[str]:
        return [*(self.again or self.words).split(), "-o", self.output, "--resume"] if self.begun else self.started()

    @property
    def sign(self) -> str:
        """A file that tells that the work has begun."""
        return self.begun or self.lock


SAMPLE = "sample --model mini --batch-size 16 --sg 225,221 -n 120 --unique"
COMMANDS = {
    "sample": Command(SAMPLE, "out.zip", "out.zip.partial.json"),
    "sample-cif": Command(SAMPLE, "out.cif", "out.cif.partial.json"),
    "sample-jsonl": Command(SAMPLE, "out.jsonl", "out.jsonl.partial.json"),
    "relax": Command(f"relax many.jsonl --potential {EMT} --steps 30 --workers 1", "out.jsonl", "out.jsonl.partial"),
    "train": Command("train --config config.toml", "run", "run/config.toml", "train"),
    "rl": Command(
        "rl --model mini --reward own:Density --sg 221 --max-sites 2 --batch-size 16 --inner-epochs 1 --steps 6 "
        "--checkpoint-every 4 --max-failures 1",
        "run",
        "run/config.toml",
        "rl",
    ),
    "eval": Command(
        f"eval many.jsonl --potential {EMT} --relax --workers 1", "records.csv", "", lock="records.csv.lock"
    ),
    "data": Command(
        "data thousands.csv --workers 2", "failures.csv", "", option="--failures", lock="failures.csv.lock"
    ),
}


def prepare(directory: Path, rows: int = 4000) -> None:
    """Makes what the commands read: crystals of copper and gold, a configuration, a reward."""
    import numpy as np
    from pymatgen.core import Lattice, Structure

    def l12(a: float) -> Structure:
        places = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
        return Structure(Lattice.cubic(a), ["Cu", "Au", "Au", "Au"], places)

    np.random.seed(0)  # which perturb uses
    many = [(l12(3.9 + i / 1000) * (2, 1, 1)).perturb(0.05).to(fmt="cif") for i in range(24)]
    lines = [json.dumps({"id": f"c{i}", "cif": cif}) + "\n" for i, cif in enumerate(many)]
    (directory / "many.jsonl").write_text("".join(lines))
    cells = [l12(3.9 + i / 100).to(fmt="cif") for i in range(6)]
    (directory / "crystals.csv").write_text("id,cif\n" + "".join(f'c{i},"{cif}"\n' for i, cif in enumerate(cells)))
    texts = (cells[i % len(cells)] if i % 5 else "nonsense" for i in range(rows))
    (directory / "thousands.csv").write_text("id,cif\n" + "".join(f'=c{i},"{cif}"\n' for i, cif in enumerate(texts)))
    (directory / "config.toml").write_text(CONFIG)
    (directory / "own.py").write_text(DENSITY)


def content(path: Path) -> dict[str, object]:
    """All that a command made: bytes, and of lines that tell the time, the rest."""
    found: dict[str, object] = {}
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        name = str(file.relative_to(path))
        if file.name == "metrics.jsonl":
            found[name] = [timeless(json.loads(line)) for line in file.read_text().splitlines()]
        elif file.is_file():
            found[name] = file.read_bytes()
    return found


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics without what depends on the machine."""
    return {
        key: timeless(value) if isinstance(value, dict) else value
        for key, value in line.items()
        if not key.startswith("seconds") and "per_second" not in key
    }


class Trial:
    """Runs of one command, one after the other in one directory."""

    def __init__(self, name: str, inputs: Path, root: Path, moments: random.Random, fresh: bool):
        self.name, self.command, self.inputs, self.root = name, COMMANDS[name], inputs, root
        self.moments, self.fresh, self.figures = moments, fresh, {"killed": 0, "rounds": 0, "same": 0}
        self.whole: dict[str, object] = {}
        self.seconds = 0.0

    def directory(self) -> Path:
        """Where the command runs, with nothing but the inputs; always the same, since runs keep absolute paths."""
        place = self.root / self.name
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.inputs, place)
        return place

    def start(self, words: list[str], place: Path):
        """Starts cfx there; rewards of one's own are found there too."""
        import processes

        script = self.root / "entry.py"
        script.write_text("import os, sys\nsys.path.append(os.getcwd())\nfrom cfx.cli import main\nmain()\n")
        cache = place / "cache" if self.name == "data" else self.root / "cache"
        env = {**os.environ, "CFX_CACHE": str(cache)}
        return processes.start(["python", str(script), *words], place, env, stdout=False, fresh=self.fresh)

    def finish(self, process) -> tuple[int, str]:
        """The exit code and stderr of a process, at its end."""
        _, stderr = process.communicate(timeout=1200)
        return process.returncode, stderr

    def undisturbed(self) -> None:
        """The run that all others are compared with."""
        self.finish(self.start(self.command.started(), self.directory()))  # which compiles
        place = self.directory()
        begin = time.monotonic()
        code, stderr = self.finish(self.start(self.command.started(), place))
        if code:
            raise SystemExit(f"{self.name} fails undisturbed: {stderr}")
        self.seconds, self.whole = time.monotonic() - begin, self.made(place)

    def made(self, place: Path) -> dict[str, object]:
        """The output; of `cfx data`, what it keeps for later as well."""
        kept = content(place / "cache" / "encoded") if self.name == "data" else {}
        return {**content(place / self.command.output), **kept}

    def check(self, place: Path) -> bool:
        """Whether a run left what the undisturbed one did, and nothing else."""
        found = self.made(place)
        left = [path.name for path in place.iterdir() if path.name.startswith(self.command.output)]
        return found == self.whole and left == [self.command.output]

    def killed_and_resumed(self, most: int, until: float) -> None:
        """Kills so many processes, in rounds that each end."""
        while self.figures["killed"] < most and time.monotonic() < until:
            place = self.directory()
            code = -signal.SIGKILL
            while code == -signal.SIGKILL:
                begun = bool(self.command.begun) and (place / self.command.begun).exists()
                there = (place / self.command.output).exists()
                process = self.start(self.command.resumed() if begun else self.command.started(), place)
                if self.figures["killed"] < most:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(self.moments.uniform(0, self.seconds))
                    process.kill()
                code, stderr = self.finish(process)
                self.figures["killed"] += code == -signal.SIGKILL
                # What was killed between its last act and its end is told so.
                complete = code == 8 and there and ("is complete" if begun else " exists") in stderr
                if code not in (0, -signal.SIGKILL) and not complete:
                    self.figures.setdefault("failures", []).append([code, stderr[-500:]])
            self.figures["rounds"] += 1
            self.figures["same"] += self.check(place)

    def second_writer(self) -> None:
        """Stops a run in the middle, tries to begin and to resume the same, and lets it end."""
        place = self.directory()
        first = self.start(self.command.started(), place)
        while not (place / self.command.sign).exists() and first.poll() is None:
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        refused = []
        for words in dict.fromkeys((tuple(self.command.started()), tuple(self.command.resumed()))):
            second = self.start(list(words), place)
            code, stderr = self.finish(second)
            errors = [line for line in stderr.splitlines() if line.startswith("error:")]
            refused.append(code == 8 and len(errors) == 1 and "being written by another process" in errors[0])
        first.send_signal(signal.SIGCONT)
        code, _ = self.finish(first)
        self.figures["second_refused"] = refused
        self.figures["first_same"] = code == 0 and self.check(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25, help="of each command")
    parser.add_argument("--minutes", type=float, default=60, help="after which no more are begun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(COMMANDS), help="commands: a,b,c")
    parser.add_argument("--fresh", action="store_true", help="start every process from nothing")
    import record

    record.add_json(parser)
    asked = parser.parse_args()
    names, begin = asked.only.split(","), time.monotonic()
    figures = {}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "inputs").mkdir()
        prepare(root / "inputs")
        for i, name in enumerate(names):
            trial = Trial(name, root / "inputs", root, random.Random(f"{asked.seed} {name}"), asked.fresh)
            trial.undisturbed()
            trial.second_writer()
            spent, whole = time.monotonic() - begin, 60 * asked.minutes
            trial.killed_and_resumed(asked.kills, time.monotonic() + (whole - spent) / (len(names) - i))
            figures[name] = {"seconds": round(trial.seconds, 1), **trial.figures}
            print(name, json.dumps(figures[name]), flush=True)
    record.keep(figures, asked)


if __name__ == "__main__":
    main()
