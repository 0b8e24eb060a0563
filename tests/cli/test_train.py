"""cfx train as a process: crystals in, a run directory out; killed and continued; what it refuses."""

from __future__ import annotations

import csv
import json
import re
import signal
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

from cfx.model import load_model

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = """
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
DISORDERED = """data_mixed
_cell_length_a 4
_cell_length_b 4
_cell_length_c 4
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
A1 Na 0 0 0 0.5
A2 K 0 0 0 0.5
"""


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["material_id", "cif"])
        writer.writerows(rows)
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Twelve crystals of one site, and three rows that are none; beside them config.toml."""
    num_sites = (np.load(GOLDEN / "v042_dev_expected.npz")["W"] > 0).sum(1)
    entries = json.loads((GOLDEN / "v042_dev_cifs.json").read_text())
    rows = [(f"crystal-{i}", entries[i]["cif"]) for i in np.flatnonzero(num_sites == 1)]
    (tmp_path / "config.toml").write_text(TINY)
    return write(tmp_path / "crystals.csv", [*rows, ("broken-1", "data_x"), ("broken-2", ""), ("mixed", DISORDERED)])


def read_metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["train"].pop("crystals_per_second")
    return lines


def assert_same_run(one: Path, other: Path) -> None:
    first, second = (sorted((run / "checkpoints").iterdir())[-1] for run in (one, other))
    assert first.name == second.name
    for name in ("params.safetensors", "opt_state.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert read_metrics(one) == read_metrics(other)


def test_configuration_file_and_flags(cfx, tmp_path, table):
    """Flags win over the file, the file over the preset; the run's own configuration repeats it."""
    first = cfx("train", "--config", "config.toml", "-o", "run", "--epochs", 2, "--seed", 3)
    assert first.returncode == 0, first.stderr
    assert "3 rows" in first.stderr and "occupancy" in first.stderr
    written = tomllib.loads((tmp_path / "run/config.toml").read_text())
    assert written["train"]["epochs"] == 2 and written["train"]["seed"] == 3
    assert written["train"]["batch_size"] == 4 and written["model"]["num_layers"] == 2
    assert written["train"]["attention_dropout"] == 0.0, "from the preset mini"
    model = load_model(tmp_path / "run" / "best")
    assert model.info["run"]["data"]["crystals"] == 12
    again = cfx("train", "--config", "run/config.toml", "-o", "again")
    assert again.returncode == 0, again.stderr
    assert_same_run(tmp_path / "run", tmp_path / "again")
    used = cfx("train", "crystals.csv", "-o", "run")
    assert used.returncode == 2 and "--resume" in used.stderr


def wait_for(condition, process, timeout: float = 600) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_is_the_same_run(cfx, start_cfx, tmp_path, table):
    whole = cfx("train", "--config", "config.toml", "-o", "whole")
    assert whole.returncode == 0, whole.stderr
    for number, signum in enumerate((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)):
        run = tmp_path / f"run{number}"
        process = start_cfx("train", "--config", "config.toml", "-o", run.name)
        wait_for(lambda run=run: (run / "metrics.jsonl").exists(), process)
        wait_for(lambda run=run: len(list((run / "checkpoints").glob("step_*[0-9]"))) == 2, process)
        process.send_signal(signum)
        _, stderr = process.communicate()
        expected = -signum if signum == signal.SIGKILL else 128 + signum
        assert process.returncode == expected, stderr
        assert (signum == signal.SIGKILL) or "--resume" in stderr
        resumed = cfx("train", "-o", run.name, "--resume")
        assert resumed.returncode == 0 and "resuming" in resumed.stderr, resumed.stderr
        assert_same_run(tmp_path / "whole", run)


def test_fine_tuning_keeps_the_architecture(cfx, tmp_path, table):
    options = ["--epochs", 1, "--lr", 1e-5, "--schedule", "constant", "--validation", "40%"]
    done = cfx("train", "crystals.csv", "-o", "run", "--from", "mini", *options)
    assert done.returncode == 0, done.stderr
    told = re.search(r"held out for validation: (\d+) of 12 crystals", done.stderr)
    assert told and "epoch 0: validation" in done.stderr
    tuned, start = load_model(tmp_path / "run/checkpoints/step_00000001"), load_model("mini")
    assert tuned.config == start.config and tuned.info["run"]["from"] == "mini"
    difference = np.abs(tuned.params["output"]["w"] - start.params["output"]["w"]).max()
    assert 1e-7 < difference < 1e-4
    assert tuned.info["run"]["validation"]["crystals"] == int(told[1])
    assert tuned.info["run"]["data"]["crystals"] == 12 - int(told[1])
    resumed = cfx("train", "-o", "run", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    both = cfx("train", "--config", "config.toml", "-o", "other", "--from", "mini")
    assert both.returncode == 2 and "architecture" in both.stderr


def test_resuming_with_other_data_or_options_is_refused(cfx, tmp_path, table):
    assert cfx("train", "--config", "config.toml", "-o", "run", "--epochs", 1).returncode == 0
    rows = list(csv.reader(table.open()))[1:]
    write(tmp_path / "other.csv", rows[:5])
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    for arguments, words in (
        (["other.csv"], "different settings"),
        (["--validation", "other.csv"], "different settings"),
        (["--epochs", 5], "first run"),
        (["--config", "config.toml"], "first run"),
    ):
        result = cfx("train", "-o", "run", "--resume", *arguments)
        assert result.returncode == 2 and words in result.stderr, result.stderr
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before
    (tmp_path / "empty").mkdir()
    nothing = cfx("train", "-o", "empty", "--resume")
    assert nothing.returncode == 2 and "not a training run" in nothing.stderr


def test_data_without_a_single_crystal(cfx, tmp_path):
    unknown = DISORDERED.replace("A1 Na 0 0 0 0.5\nA2 K 0 0 0 0.5", "A1 Xx 0 0 0 1")
    sites = "".join(f"O{i} O 0.{i:02d} 0.{(7 * i) % 97:02d} 0.{(31 * i) % 89:02d} 1\n" for i in range(1, 26))
    large = DISORDERED.replace("A1 Na 0 0 0 0.5\nA2 K 0 0 0 0.5\n", sites).replace("_a 4", "_a 40")
    write(tmp_path / "bad.csv", [("mixed", DISORDERED), ("unknown", unknown), ("large", large), ("none", "")])
    result = cfx("train", "bad.csv", "-o", "run")
    assert result.returncode == 3 and "none of 4 rows can be used" in result.stderr
    assert not (tmp_path / "run").exists()
