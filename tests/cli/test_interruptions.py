"""Commands that are killed, resumed and killed again, and two of them at one output: always what one run would give."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import time
from pathlib import Path

import pytest

from ..density_reward import DENSITY
from .test_eval import EMT, l12, write

pytestmark = pytest.mark.slow

SPECIFICATION = importlib.util.spec_from_file_location(
    "interruptions", Path(__file__).parents[2] / "benchmarks" / "interruptions.py"
)
interruptions = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(interruptions)
COMMANDS, Command = interruptions.COMMANDS, interruptions.Command
SHORT = ("sample", "relax", "train", "rl")


@pytest.fixture(autouse=True)
def own_modules(tmp_path, monkeypatch):
    """Rewards are found where the commands run."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


@pytest.fixture(params=SHORT)
def command(request, tmp_path) -> Command:
    """Each command that can be resumed, with what it reads."""
    interruptions.prepare(tmp_path, rows=10)
    return COMMANDS[request.param]


def wait_for(path: Path, process) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)


def assert_as_undisturbed(cfx, command: Command, tmp_path: Path) -> None:
    """Nothing but the output is left, and that is what one run gives."""
    found = interruptions.content(tmp_path / command.output)
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(command.output)]
    assert left == [command.output] and "lock" not in found
    (tmp_path / command.output).rename(tmp_path / "disturbed")
    result = cfx(*command.started())
    assert result.returncode == 0, result.stderr
    whole = interruptions.content(tmp_path / command.output)
    assert found.keys() == whole.keys()
    assert [name for name in whole if found[name] != whole[name]] == []


def test_killed_again_and_again(cfx, start_cfx, command, tmp_path):
    moments, begun = random.Random(command.output), False
    for _ in range(5):
        process = start_cfx(*(command.resumed() if begun else command.started()))
        wait_for(tmp_path / command.begun, process)
        time.sleep(moments.uniform(0, 2))
        process.send_signal(signal.SIGKILL)
        _, stderr = process.communicate()
        begun = (tmp_path / command.begun).exists()
        told = process.returncode == 8 and "is complete" in stderr  # killed between its last act and its end
        assert process.returncode in (0, -signal.SIGKILL) or told, stderr
        if process.returncode != -signal.SIGKILL or (not begun and (tmp_path / command.output).exists()):
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
        DENSITY + "\nimport time\nclass Slow(Density):\n    def evaluate(self, structures):\n"
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
