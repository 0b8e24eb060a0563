"""Training on real crystals: it learns, resumes exactly, and refuses what it cannot mean."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from cfx.config import ModelConfig, TrainConfig
from cfx.errors import NumericsError, UsageError
from cfx.io.checkpoint import load_checkpoint
from cfx.io.dataset import load_dataset
from cfx.model import load_model
from cfx.runs.reporter import Silent
from cfx.runs.signals import Interrupted
from cfx.runs.train import train

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = ModelConfig(
    num_layers=2, num_heads=2, key_size=8, model_size=16, embed_size=8, first_hidden=16, coord_components=4
)
CONFIG = TrainConfig(epochs=5, batch_size=16, learning_rate=1e-2, warmup_steps=2, keep_checkpoints=1)


class StopAt(Silent):
    """A reporter that sends a signal to its own process once a step is reached."""

    def __init__(self, step: int, signum: int):
        self.step, self.signum = step, signum

    def update(self, done: float, text: str = "") -> None:
        import os

        if done >= self.step:
            self.step = float("inf")
            os.kill(os.getpid(), self.signum)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Golden prototypes of at most two sites, as a directory of CIFs: two lengths, two compilations."""
    directory = tmp_path_factory.mktemp("cifs")
    num_sites = (np.load(GOLDEN / "v042_dev_expected.npz")["W"] > 0).sum(1)
    for i, entry in enumerate(json.loads((GOLDEN / "v042_dev_cifs.json").read_text())):
        if num_sites[i] <= 2:
            (directory / f"{i:03d}.cif").write_text(entry["cif"])
    return load_dataset(directory, num_workers=1)


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    return run, train(run, TINY, CONFIG, data, data, Silent())


def assert_same_params(one: Path, other: Path) -> None:
    jax.tree.map(np.testing.assert_array_equal, load_checkpoint(one).params, load_checkpoint(other).params)


def last_checkpoint(run: Path) -> Path:
    return sorted((run / "checkpoints").iterdir())[-1]


def test_the_loss_falls_and_the_run_is_complete(uninterrupted):
    run, result = uninterrupted
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    losses = [line["validation"]["loss"] for line in lines]
    assert losses[-1] < losses[0] - 1 and result.best_loss == min(losses)
    for line in lines:
        parts = [line["validation"][part] for part in ("wyckoff", "species", "coords", "lattice")]
        assert sum(parts) == pytest.approx(line["validation"]["loss"], rel=1e-5)
    model = load_model(run / "best")
    assert model.trained_on(225) > 0
    assert len(list((run / "checkpoints").iterdir())) == 1


def test_the_reported_loss_is_the_mean_log_probability(uninterrupted, data):
    run, result = uninterrupted
    model = load_model(last_checkpoint(run))
    assert -model.log_prob(data.batch).total.mean() == pytest.approx(result.validation_loss, rel=1e-5)


@pytest.mark.parametrize("signum", [2, 15])
def test_interrupted_and_resumed_is_bit_identical(uninterrupted, data, tmp_path, signum):
    with pytest.raises(Interrupted) as stopped:
        train(tmp_path / "run", TINY, CONFIG, data, data, StopAt(10, signum))
    assert stopped.value.exit_code == 128 + signum
    resumed = train(tmp_path / "run", TINY, CONFIG, data, data, Silent(), resume=True)
    run, result = uninterrupted
    assert resumed.step == result.step and resumed.best_loss == result.best_loss
    assert_same_params(last_checkpoint(run), last_checkpoint(tmp_path / "run"))
    assert_same_params(run / "best", tmp_path / "run" / "best")


def test_a_used_directory_or_other_settings_are_refused(uninterrupted, data):
    run, _ = uninterrupted
    with pytest.raises(UsageError, match="not empty"):
        train(run, TINY, CONFIG, data, None, Silent())
    with pytest.raises(UsageError, match="other settings"):
        train(run, TINY, TrainConfig(epochs=9), data, data, Silent(), resume=True)


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path):
    with pytest.raises(NumericsError, match="step"):
        train(
            tmp_path / "run",
            TINY,
            TrainConfig(epochs=2, batch_size=16, learning_rate=1e30, clip_norm=1e30),
            data,
            None,
            Silent(),
        )
    assert not (tmp_path / "run" / "checkpoints").exists()
