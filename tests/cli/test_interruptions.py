"""Commands that are killed, resumed and killed again, and two of them at one output: always what one run would give."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from .test_eval import EMT, l12, write
from .test_train import TINY

pytestmark = pytest.mark.slow

REWARD = """
import numpy as np
from cfx.rl.rewards import make_batch

class Density:
    name, about, unit, kl_coef, failure = "density", "mass over volume", "g/cm3", 0.5, 0.0
    def evaluate(self, structures):
        value = [np.nan if one is None else float(one.density) for one in structures]
        return make_batch(np.array(value), ["" if one is not None else "no cell" for one in structures])
"""


class Command(NamedTuple):
    """A command that can be resumed.

    Attributes:
        words: without its output.
        output: its name.
        begun: a file that is there once it can be resumed.
        again: what --resume needs of the words; by default all.
    """

    words: str
    output: str
    begun: str
    again: str | None = None

    def started(self) -> list[str]:
        return [*self.words.split(), "-o", self.output]

    def resumed(self) -> list[str]:
        return [*(self.again or self.words).split(), "-o", self.output, "--resume"]


COMMANDS = {
    "sample": Command(
        "sample --model mini --batch-size 16 --sg 225,221 -n 120 --unique", "out.zip", "out.zip.partial.json"
    ),
    "relax": Command(f"relax many.jsonl --potential {EMT} --steps 30 --workers 1", "out.jsonl", "out.jsonl.partial"),
    "train": Command("train --config config.toml", "run", "run/config.toml", "train"),
    "rl": Command(
        "rl --model mini --reward own:Density --sg 221 --max-sites 2 --batch-size 16 --inner-epochs 1 --steps 6 "
        "--checkpoint-every 4 --max-failures 1",
        "run",
        "run/config.toml",
        "rl",
    ),
}


@pytest.fixture(autouse=True)
def own_modules(tmp_path, monkeypatch):
    """Rewards are found where the commands run."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


@pytest.fixture(params=COMMANDS)
def command(request, tmp_path) -> Command:
    """Each command, with what it reads."""
    crystals = {f"c{i}": (l12("Cu", "Au", 3.9 + i / 1000) * (2, 1, 1)).perturb(0.05) for i in range(24)}
    write(tmp_path / "many.jsonl", **crystals)
    rows = [json.loads(line) for line in (tmp_path / "many.jsonl").read_text().splitlines()][:6]
    cells = [l12("Cu", "Au", 3.9 + i / 100).to(fmt="cif") for i in range(len(rows))]
    (tmp_path / "crystals.csv").write_text("id,cif\n" + "".join(f'c{i},"{cif}"\n' for i, cif in enumerate(cells)))
    (tmp_path / "config.toml").write_text(TINY)
    (tmp_path / "own.py").write_text(REWARD)
    return COMMANDS[request.param]


def wait_for(path: Path, process) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)


def content(path: Path) -> dict[str, object]:
    """All that a command made: bytes, and of lines that tell the time, the rest."""
    found: dict[str, object] = {}
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        name = str(file.relative_to(path))
        if file.name == "metrics.jsonl":
            found[name] = [timeless(json.loads(line)) for line in file.read_text().splitlines()]
        elif file.suffix == ".jsonl" and path.is_file():  # relaxations depend on their batch in the last digits
            found[name] = [json.loads(line)["name"] for line in file.read_text().splitlines()]
        elif file.is_file():
            found[name] = file.read_bytes()
    return found


def timeless(line: dict) -> dict:
    return {
        key: timeless(value) if isinstance(value, dict) else value
        for key, value in line.items()
        if not key.startswith("seconds") and "per_second" not in key
    }


def assert_as_undisturbed(cfx, command: Command, tmp_path: Path) -> None:
    """Nothing but the output is left, and that is what one run gives."""
    found = content(tmp_path / command.output)
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(command.output)]
    assert left == [command.output] and "lock" not in found
    (tmp_path / command.output).rename(tmp_path / "disturbed")
    result = cfx(*command.started())
    assert result.returncode == 0, result.stderr
    whole = content(tmp_path / command.output)
    assert found.keys() == whole.keys()
    assert [name for name in whole if found[name] != whole[name]] == []


def test_killed_again_and_again(cfx, start_cfx, command, tmp_path):
    moments, begun = random.Random(command.output), False
    for _ in range(5):
        process = start_cfx(*(command.resumed() if begun else command.started()))
        wait_for(tmp_path / command.begun, process)
        time.sleep(moments.uniform(0, 2))
        begun = (tmp_path / command.begun).exists()
        process.send_signal(signal.SIGKILL)
        _, stderr = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), stderr
        if process.returncode == 0:
            break
    else:
        result = cfx(*command.resumed())
        assert result.returncode == 0, result.stderr
    assert_as_undisturbed(cfx, command, tmp_path)


def test_two_writers(cfx, start_cfx, command, tmp_path):
    """The second is refused in one line, and the first gives what it would have given alone."""
    first = start_cfx(*command.started())
    wait_for(tmp_path / command.begun, first)
    first.send_signal(signal.SIGSTOP)
    for arguments in (command.resumed(), command.started()):
        second = cfx(*arguments)
        assert second.returncode == 8, second.stderr
        [error] = [line for line in second.stderr.splitlines() if line.startswith("error:")]
        assert f"{command.output} is being written by another process" in error
    first.send_signal(signal.SIGCONT)
    _, stderr = first.communicate()
    assert first.returncode == 0, stderr
    assert_as_undisturbed(cfx, command, tmp_path)


def test_two_evaluations_with_one_table(cfx, start_cfx, tmp_path):
    write(tmp_path / "many.jsonl", **{f"c{i}": l12("Cu", "Au", 3.9 + i / 1000) for i in range(30)})
    words = ["eval", "many.jsonl", "--potential", EMT, "--relax", "--workers", 1, "-o", "records.csv"]
    first = start_cfx(*words)
    wait_for(tmp_path / "records.csv.lock", first)
    first.send_signal(signal.SIGSTOP)
    second = cfx(*words)
    assert second.returncode == 8 and "records.csv is being written by another process" in second.stderr
    first.send_signal(signal.SIGCONT)
    _, stderr = first.communicate()
    assert first.returncode == 0, stderr
    assert len((tmp_path / "records.csv").read_text().splitlines()) == 31
    assert [path.name for path in tmp_path.glob("records*")] == ["records.csv"]


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hangup_saves_unless_it_is_ignored(start_cfx, tmp_path, ignored):
    """As under nohup."""
    command = COMMANDS["sample"]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    process = start_cfx(*command.started())
    signal.signal(signal.SIGHUP, before)
    wait_for(tmp_path / command.begun, process)
    process.send_signal(signal.SIGHUP)
    _, stderr = process.communicate()
    if ignored:
        assert process.returncode == 0 and (tmp_path / command.output).exists(), stderr
    else:
        assert process.returncode == 128 + signal.SIGHUP and "stopped after" in stderr, stderr


def test_a_second_interrupt_ends_at_once(start_cfx, tmp_path):
    (tmp_path / "slow.py").write_text(
        REWARD + "\nimport time\nclass Slow(Density):\n    def evaluate(self, structures):\n"
        "        open('rewarding', 'w').close()\n        time.sleep(10_000)\n"
    )
    process = start_cfx("rl", "--model", "mini", "--reward", "slow:Slow", "--sg", 221, "--batch-size", 16, "-o", "run")
    wait_for(tmp_path / "rewarding", process)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None  # a step is made to its end
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == -signal.SIGINT and "Traceback" not in stderr
