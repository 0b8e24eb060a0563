"""Two devices, and two processes, train as one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden"
COMMAND = [sys.executable, "-c", "from cfx.cli import main; main()"]
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
epochs = 3
batch_size = 16
learning_rate = 1e-2
dropout = 0.2
attention_dropout = 0.2
log_steps = 1
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A directory with crystals of at most two sites, a configuration, and a cache of its own."""
    directory = tmp_path_factory.mktemp("parallel")
    (directory / "cifs").mkdir()
    (directory / "config.toml").write_text(CONFIG)
    num_sites = (np.load(GOLDEN / "v042_dev_expected.npz")["W"] > 0).sum(1)
    for i, entry in enumerate(json.loads((GOLDEN / "v042_dev_cifs.json").read_text())):
        if num_sites[i] <= 2:
            (directory / "cifs" / f"{i:03d}.cif").write_text(entry["cif"])
    return directory


def start(work: Path, run: str, devices: int, *options: object) -> subprocess.Popen:
    flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
    arguments = ["train", "cifs", "--validation", "cifs", "--config", "config.toml", "-o", run, *map(str, options)]
    environment = os.environ | {"XLA_FLAGS": flags, "CFX_CACHE": str(work / "cache")}
    return subprocess.Popen(COMMAND + arguments, cwd=work, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return stderr


def losses(work: Path, run: str) -> np.ndarray:
    """Of every step, and of validation at the end of every epoch."""
    lines = [json.loads(line) for line in (work / run / "metrics.jsonl").read_text().splitlines()]
    return np.array([[line["train"]["loss"], line.get("validation", {"loss": np.nan})["loss"]] for line in lines])


@pytest.fixture(scope="module")
def one_device(work):
    finish(start(work, "one", 1))
    found = losses(work, "one")
    assert len(found) > 5 and found[-1, 1] < found[0, 0]
    return found


def test_two_devices_train_as_one(work, one_device):
    """Dropout included: its mask does not depend on how a batch is spread."""
    finish(start(work, "two", 2))
    np.testing.assert_allclose(losses(work, "two"), one_device, rtol=1e-4)


def test_two_processes_train_as_one(work, one_device):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = ["--coordinator", f"localhost:{port}", "--num-processes", 2]
    processes = [start(work, "processes", 1, *together, "--process-id", i) for i in range(2)]
    told = [finish(process) for process in processes]
    np.testing.assert_allclose(losses(work, "processes"), one_device, rtol=1e-4)
    assert "epoch 3" in told[0] and "epoch 3" not in told[1], "only the first process tells and writes"


def test_processes_that_do_not_find_each_other(work):
    process = start(work, "lost", 1, "--distributed")
    _, stderr = process.communicate()
    assert process.returncode == 6 and "--coordinator" in stderr
    half = start(work, "half", 1, "--coordinator", "localhost:1")
    _, stderr = half.communicate()
    assert half.returncode == 2 and "must be given together" in stderr
