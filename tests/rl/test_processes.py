"""Several processes fine-tune as one does: each draws and rewards its share, and learns from what all have found."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfx.config import ModelConfig, RLConfig, SampleConfig
from cfx.errors import CfxError, RewardError
from cfx.io.checkpoint import load_checkpoint
from cfx.model import Model
from cfx.rl.rewards import Diversity, make_batch
from cfx.rl.rollout import RewardCache, roll_out
from cfx.training.devices import Devices

TINY = ModelConfig(
    n_max=3, num_layers=1, num_heads=2, key_size=8, model_size=16, embed_size=8, first_hidden=16, coord_components=2
)


class Thread(Devices):
    """A process that is a thread of this one, as far as telling the others goes."""

    def __init__(self, number: int, said: list[Any], barrier: threading.Barrier):
        super().__init__()
        self.process, self.processes, self.writes = number, len(said), number == 0
        self._said, self._barrier = said, barrier

    def exchange(self, value):
        self._said[self.process] = value
        self._barrier.wait(timeout=60)
        found = list(self._said)
        self._barrier.wait(timeout=60)
        return found


def in_processes(number: int, work: Callable[[Devices], Any]) -> list[Any]:
    """What `work` gives in each, or the error that it raises."""
    said, barrier, found = [None] * number, threading.Barrier(number), [None] * number

    def run(one: int) -> None:
        try:
            found[one] = work(Thread(one, said, barrier))
        except Exception as error:
            found[one] = error

    threads = [threading.Thread(target=run, args=(one,)) for one in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


class Places:
    """A reward by the number of a crystal; keeps what it was asked."""

    name, about, unit, kl_coef, failure = "places", "a table", "", 1.0, -5.0

    def __init__(self):
        self.asked: list[list[int]] = []

    def evaluate(self, structures):
        self.asked.append([len(one) for one in structures])
        value = np.array([float(len(one)) if len(one) != 4 else np.nan for one in structures])
        return make_batch(value, [""] * len(structures), {"size": value})


def test_processes_divide_what_is_to_be_rewarded():
    """Copies and what is known are nobody's; a process without a share asks for nothing."""
    keys = [b"a", b"b", b"a", b"c", b"d", b"e"]
    structures: list[Any] = [[0] * n for n in (1, 2, 1, 3, 4, 5)]
    one = RewardCache().evaluate(Places(), keys, structures)

    def share(devices: Devices):
        reward, cache = Places(), RewardCache(known={b"e": (5.0, "", {"size": 5.0})})
        found = cache.evaluate(reward, keys, structures, devices)
        cache.evaluate(reward, keys, structures, devices)
        return reward.asked, found

    for number, shares in ((2, [[[1, 3]], [[2, 4]]]), (5, [[[1]], [[2]], [[3]], [[4]], []])):
        for (asked, (value, reasons, parts, _)), own in zip(in_processes(number, share), shares, strict=True):
            assert asked == own
            np.testing.assert_array_equal(value, one[0])
            np.testing.assert_array_equal(parts["size"], one[2]["size"])
            assert reasons == one[1] and reasons[4]


@pytest.mark.parametrize("error", [RewardError("no good", "mend it"), KeyError("x")])
def test_an_error_of_one_process_is_raised_in_all(error):
    def fail(devices: Devices):
        def work():
            if devices.process == 1:
                raise error
            return devices.process

        return devices.together(work)

    others, own = in_processes(2, fail)
    assert own is error and isinstance(others, CfxError)
    if isinstance(error, RewardError):
        assert isinstance(others, RewardError) and (others.message, others.hint) == ("no good", "mend it")
    else:
        assert "process 1 failed: KeyError: 'x'" in str(others)


@pytest.mark.integration
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_processes_draw_the_crystals_that_one_would(algorithm):
    """Crystals are numbered as in one process, also where there are more processes than crystals."""
    config = RLConfig(batch_size=6, group_size=3, algorithm=algorithm, seed=5)
    model, request = Model.init(TINY, seed=3), SampleConfig(space_groups=(221, 225, 2), weights=(0.3, 0.3, 0.4))

    class Sites(Places):
        def evaluate(self, structures):
            value = np.array([0.0 if one is None else float(len(one)) for one in structures])
            return make_batch(value, [""] * len(structures))

    def rolled(devices: Devices | None = None):
        return roll_out(model, request, config, 2, Sites(), Diversity(), RewardCache(), None, devices)

    one = rolled()
    for each in [*in_processes(2, rolled), *in_processes(7, rolled)]:
        assert each.keys == one.keys and each.reasons == one.reasons
        np.testing.assert_array_equal(each.value, one.value)
        np.testing.assert_array_equal(each.crystals.lattice, one.crystals.lattice)
        assert each.entropy == one.entropy


REWARD = """
import os, signal
import numpy as np
from cfx.rl.rewards import make_batch

class Size:
    name, about, unit, kl_coef, failure = "size", "atoms", "", 0.5, -5.0
    calls = 0
    def evaluate(self, structures):
        self.calls += 1
        if self.calls == 2 and "STOPS" in os.environ:
            os.kill(os.getpid(), signal.SIGTERM)
        value = [np.nan if one is None else float(np.log(len(one))) for one in structures]
        with open("asked_" + os.environ["NAME"], "a") as file:
            file.write(f"{len(structures)}\\n")
        return make_batch(np.array(value), ["" if one is not None else "no cell" for one in structures])
"""


def start(work: Path, name: str, devices: int, *options: object, **environment: str) -> subprocess.Popen:
    flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-c", "from cfx.cli import main; main()", "rl", *map(str, options)]
    own = {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join([str(work), *sys.path]), "NAME": name}
    return subprocess.Popen(command, cwd=work, env=os.environ | own | environment, stderr=subprocess.PIPE, text=True)


def start_two(work: Path, *options: object, **environment: str) -> list[subprocess.Popen]:
    """Two processes of one run; the environment is that of the second."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = ["--coordinator", f"localhost:{port}", "--num-processes", 2, "--process-id"]
    return [start(work, f"{i}", 1, *options, *together, i, **(environment if i else {})) for i in range(2)]


def finish(process: subprocess.Popen, code: int = 0) -> str:
    _, stderr = process.communicate()
    assert process.returncode == code, stderr
    return stderr


def told(run: Path) -> list[dict[str, float]]:
    """The numbers in the lines of metrics, without times."""
    lines = [json.loads(line)["rl"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if isinstance(value, float) and not name.startswith("seconds")}
        for line in lines
    ]


def assert_same(one: Path, other: Path) -> None:
    """Two runs drew the same crystals and learnt the same, but for the order in which gradients are added up."""
    drawn = [[json.loads(line) for line in (run / "crystals.jsonl").read_text().splitlines()] for run in (one, other)]
    for left, right in zip(*drawn, strict=True):
        for name in ("step", "space_group", "wyckoff", "species", "reward", "reason"):
            assert left[name] == right[name]
        assert left["log_prob"] == pytest.approx(right["log_prob"], rel=1e-3, abs=1e-3)
    for left, right in zip(told(one), told(other), strict=True):
        assert left == pytest.approx(right, rel=1e-2, abs=1e-4)
    params = [load_checkpoint(run / "final").params for run in (one, other)]
    for module, values in params[0].items():
        for name, value in values.items():
            np.testing.assert_allclose(value, params[1][module][name], rtol=1e-3, atol=1e-5)


OPTIONS = ("--reward", "own_size:Size", "--model", "tiny", "--sg", "221,225", "--max-failures", 1, "--steps", 4)
LEARNING = ("--batch-size", 18, "--lr", 3e-3, "--replay", "uniform", "--quotas", "class", "--max-clipped", 0.3)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A directory with a model, a reward, and `one`, a run of one process."""
    directory = tmp_path_factory.mktemp("processes")
    (directory / "own_size.py").write_text(REWARD)
    dataclasses.replace(Model.init(TINY, seed=3), name="tiny").save(directory / "tiny")
    finish(start(directory, "alone", 1, *OPTIONS, *LEARNING, "-o", "one"))
    return directory


@pytest.mark.slow
def test_two_processes_fine_tune_as_one_stopped_and_resumed(work):
    """A signal to the second ends both after the same step; only the first writes and tells."""
    stopped = start_two(work, *OPTIONS, *LEARNING, "-o", "two", STOPS="1")
    for process in stopped:
        assert "stopped at step" in finish(process, 128 + signal.SIGTERM)
    done = len(told(work / "two"))
    assert 1 <= done < 4
    first, second = map(finish, start_two(work, "-o", "two", "--resume"))
    assert f"resuming two at step {done} of 4" in first and "2 devices, 2 processes" in first and not second
    assert_same(work / "one", work / "two")
    asked = {name: sum(map(int, (work / f"asked_{name}").read_text().split())) for name in ("alone", "0", "1")}
    assert asked["0"] + asked["1"] == asked["alone"] and abs(asked["0"] - asked["1"]) < 8


@pytest.mark.slow
def test_two_devices_fine_tune_as_one(work):
    finish(start(work, "devices", 2, *OPTIONS, *LEARNING, "-o", "devices"))
    assert_same(work / "one", work / "devices")
