"""Training on real crystals: it learns, resumes exactly, survives a full disk, and refuses what it cannot mean."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from cfx.config import DataConfig, ModelConfig, TrainConfig
from cfx.config.training import TrainRun
from cfx.data.dataset import load_dataset
from cfx.errors import NumericsError, OutputError, UsageError
from cfx.io.checkpoint import load_checkpoint
from cfx.io.files import content_digest
from cfx.model import Model, load_model
from cfx.reporter import Interrupted, Silent
from cfx.training.train import mean_loss, train

pytestmark = pytest.mark.integration

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = ModelConfig(
    num_layers=2, num_heads=2, key_size=8, model_size=16, embed_size=8, first_hidden=16, coord_components=4
)
# Everything that a resumed run must bring back: dropout, accumulated batches, decay, averages, a schedule, totals.
CONFIG = TrainConfig(
    epochs=6,
    batch_size=8,
    accumulate=2,
    optimizer="adamw",
    weight_decay=0.01,
    learning_rate=1e-2,
    warmup_steps=2,
    ema_decay=0.9,
    log_steps=3,
    checkpoint_steps=4,
    keep_checkpoints=2,
)
RUN = TrainRun(model=TINY, train=CONFIG, data=DataConfig())


class At(Silent):
    """A reporter that acts once when a step is reached, and keeps warnings."""

    def __init__(self, step: int, action):
        self.step, self.action, self.warnings = step, action, []

    def update(self, done: float, text: str = "") -> None:
        if done >= self.step:
            self.step = float("inf")
            self.action()

    def warning(self, text: str) -> None:
        self.warnings.append(text)


class Killed(BaseException):
    """Ends a run as kill -9 does: nothing in it may catch this."""


def die():
    raise Killed


def signal(signum: int):
    return lambda: os.kill(os.getpid(), signum)


def write_crystals(directory: Path) -> None:
    """Those of the fixture `data`."""
    num_sites = (np.load(GOLDEN / "v042_dev_expected.npz")["W"] > 0).sum(1)
    for i, entry in enumerate(json.loads((GOLDEN / "v042_dev_cifs.json").read_text())):
        if num_sites[i] <= 2:
            (directory / f"{i:03d}.cif").write_text(entry["cif"])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Golden prototypes of at most two sites, as a directory of CIFs: two lengths, two compilations."""
    directory = tmp_path_factory.mktemp("cifs")
    write_crystals(directory)
    previous, os.environ["CFX_CACHE"] = os.environ.get("CFX_CACHE"), str(tmp_path_factory.mktemp("cache"))
    yield load_dataset(directory, num_workers=1)
    os.environ["CFX_CACHE"] = previous or ""


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    return run, train(run, RUN, data, data, Silent())


def last_checkpoint(run: Path) -> Path:
    return sorted((run / "checkpoints").iterdir())[-1]


def metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["train"].pop("crystals_per_second") > 0
    return lines


def assert_same_run(one: Path, other: Path) -> None:
    """To the last bit: parameters, optimiser and average, the best model, and every line of metrics."""
    first, second = last_checkpoint(one), last_checkpoint(other)
    assert first.name == second.name
    for name in ("params.safetensors", "opt_state.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert (one / "best/params.safetensors").read_bytes() == (other / "best/params.safetensors").read_bytes()
    assert metrics(one) == metrics(other)


def test_the_loss_falls_and_the_run_is_complete(uninterrupted, data):
    run, result = uninterrupted
    lines = metrics(run)
    ends = [line for line in lines if "validation" in line]
    assert [line["epoch"] for line in ends] == [1, 2, 3, 4, 5, 6]
    steps = result.step // 6
    expected = {*range(3, result.step + 1, 3), *range(steps, 6 * steps + 1, steps)}
    assert [line["step"] for line in lines] == sorted(expected)
    losses = [line["validation"]["loss"] for line in ends]
    assert losses[-1] < losses[0] - 1 and result.best_loss == min(losses)
    for line in ends:
        for part in ("train", "validation"):
            total = sum(line[part][name] for name in ("wyckoff", "species", "coords", "lattice"))
            assert total == pytest.approx(line[part]["loss"], rel=1e-5)
    model = load_model(run / "best")
    assert model.trained_on(225) > 0
    assert model.info["elements"]["O"] == sum(8 in row for row in data.batch.species)
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        f"step_{step:08d}" for step in ((result.step - 1) // 4 * 4, result.step)
    ]


def test_a_model_that_reads_a_composition_is_not_trained(data, tmp_path):
    model = dataclasses.replace(TINY, composition="required")
    with pytest.raises(UsageError, match="composition as input are not trained"):
        train(tmp_path / "run", dataclasses.replace(RUN, model=model), data, data, Silent())
    assert not (tmp_path / "run").exists()


def test_learning_rate_and_gradient_norm_are_told(uninterrupted):
    lines = metrics(uninterrupted[0])
    assert all(line["train"]["grad_norm"] > 0 for line in lines)
    rates = [line["train"]["learning_rate"] for line in lines]
    assert max(rates) <= 1e-2 and rates[-1] < rates[0]


def test_the_reported_loss_is_the_mean_log_probability(uninterrupted, data):
    """The best model is the averaged one, and not the last parameters."""
    run, result = uninterrupted
    model = load_model(run / "best")
    assert -model.log_prob(data.batch).total.mean() == pytest.approx(result.best_loss, rel=1e-5)
    raw = load_checkpoint(last_checkpoint(run)).params
    assert abs(mean_loss(raw, TINY, data, 16)["loss"] - result.validation_loss) > 1e-4


@pytest.mark.parametrize(("signum", "step"), [(2, 5), (15, 13)])
def test_interrupted_and_resumed_is_bit_identical(uninterrupted, data, tmp_path, signum, step):
    with pytest.raises(Interrupted) as stopped:
        train(tmp_path / "run", RUN, data, data, At(step, signal(signum)))
    assert stopped.value.exit_code == 128 + signum
    resumed = train(tmp_path / "run", RUN, data, data, Silent(), resume=True)
    run, result = uninterrupted
    assert resumed.step == result.step and resumed.best_loss == result.best_loss
    assert_same_run(run, tmp_path / "run")


def test_random_settings_are_learned_from_and_resumed_exactly(uninterrupted, data, tmp_path):
    """Every epoch shows other settings, a resumed run the same ones; those of the validation are the given ones."""
    augmented = dataclasses.replace(RUN, train=dataclasses.replace(CONFIG, augment=True))
    result = train(tmp_path / "whole", augmented, data, data, Silent())
    with pytest.raises(Interrupted):
        train(tmp_path / "run", augmented, data, data, At(5, signal(2)))
    train(tmp_path / "run", augmented, data, data, Silent(), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    best = load_model(tmp_path / "run" / "best")
    assert -best.log_prob(data.batch).total.mean() == pytest.approx(result.best_loss, rel=1e-5)
    first = metrics(tmp_path / "run")[0]["train"]["loss"]
    assert first != metrics(uninterrupted[0])[0]["train"]["loss"]
    with pytest.raises(UsageError, match=r"different settings \(train\)"):
        train(tmp_path / "run", RUN, data, data, Silent(), resume=True)


def test_resuming_from_an_older_checkpoint_repeats_the_steps_after_it(uninterrupted, data, tmp_path):
    """What kill -9 between two checkpoints leaves: later lines of metrics, the last of them unfinished."""

    with pytest.raises(Killed):
        train(tmp_path / "run", RUN, data, data, At(11, die))
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 12, "epo')
    assert last_checkpoint(tmp_path / "run").name == "step_00000008"
    train(tmp_path / "run", RUN, data, data, Silent(), resume=True)
    assert_same_run(uninterrupted[0], tmp_path / "run")


def limit_files(size: int):
    """Lets no file of this process grow beyond `size` bytes: what a full disk looks like."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_full_disk_is_survived(uninterrupted, data, tmp_path):
    """Checkpoints fail for a while; the older one stays whole, training continues, and nothing half-written is left."""
    checkpoints, found = tmp_path / "run/checkpoints", []

    def look_and_free():
        found.extend(path.name for path in checkpoints.iterdir())
        load_checkpoint(checkpoints / "step_00000004")
        limit_files(resource.RLIM_INFINITY)()

    class Reporter(At):
        def update(self, done, text=""):
            super().update(done, text)
            if done >= 10 and not found:
                look_and_free()

    reporter = Reporter(6, limit_files(2000))
    try:
        train(tmp_path / "run", RUN, data, data, reporter)
    finally:
        limit_files(resource.RLIM_INFINITY)()
    assert any("step_00000008" in text and "last checkpoint is" in text for text in reporter.warnings)
    assert sorted(found) == ["step_00000000", "step_00000004"]
    one, other = last_checkpoint(uninterrupted[0]), last_checkpoint(tmp_path / "run")
    assert (one / "params.safetensors").read_bytes() == (other / "params.safetensors").read_bytes()


def test_a_disk_that_stays_full_ends_the_run_with_the_previous_checkpoint(uninterrupted, data, tmp_path):
    try:
        with pytest.raises(OutputError, match=r"the last checkpoint is .*step_00000004") as error:
            train(tmp_path / "run", RUN, data, data, At(6, limit_files(2000)))
    finally:
        limit_files(resource.RLIM_INFINITY)()
    assert error.value.exit_code == 8
    train(tmp_path / "run", RUN, data, data, Silent(), resume=True)
    assert_same_run(uninterrupted[0], tmp_path / "run")


def test_a_run_that_ends_before_its_first_step_can_be_resumed(uninterrupted, data, tmp_path):
    """And so can one whose best model was just being replaced."""

    with pytest.raises(Killed):
        train(tmp_path / "run", RUN, data, data, At(1, die))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000004", ignore_errors=True)
    (tmp_path / "run/checkpoints/step_00000004.partial-1").mkdir()
    assert last_checkpoint(tmp_path / "run").name == "step_00000004.partial-1"
    train(tmp_path / "run", RUN, data, data, Silent(), resume=True)
    assert_same_run(uninterrupted[0], tmp_path / "run")


def test_a_used_directory_or_other_settings_are_refused(uninterrupted, data):
    run, _ = uninterrupted
    with pytest.raises(UsageError, match="not empty"):
        train(run, RUN, data, None, Silent())
    other = dataclasses.replace(RUN, train=dataclasses.replace(CONFIG, epochs=9))
    with pytest.raises(UsageError, match=r"different settings \(train\)"):
        train(run, other, data, data, Silent(), resume=True)
    with pytest.raises(UsageError, match=r"different settings \(validation\)"):
        train(run, RUN, data, None, Silent(), resume=True)


def test_a_run_is_continued_by_a_version_that_encodes_otherwise(uninterrupted, data, tmp_path):
    """Its checkpoints name the data by the digest of the earlier version; as many crystals must come from them."""
    cifs = tmp_path / data.source
    cifs.mkdir()
    write_crystals(cifs)
    again, run = load_dataset(cifs, num_workers=1), tmp_path / "run"
    assert again.digest == data.digest
    shutil.copytree(uninterrupted[0], run)
    shutil.rmtree(last_checkpoint(run))
    path = last_checkpoint(run) / "checkpoint.json"
    written = path.read_text()
    path.write_text(written.replace(data.digest, content_digest(cifs, [2, 0.01, 21, cifs.name])))
    reporter = At(10**6, die)
    train(run, RUN, again, again, reporter, resume=True)
    assert_same_run(uninterrupted[0], run)
    assert reporter.warnings[-1].startswith("an earlier version of cfx encoded the data")


def test_another_data_set_is_refused(uninterrupted, data, tmp_path):
    (tmp_path / "one").mkdir()
    name = data.names[0]
    entries = json.loads((GOLDEN / "v042_dev_cifs.json").read_text())
    (tmp_path / "one" / name).write_text(entries[int(name[:3])]["cif"])
    other = load_dataset(tmp_path / "one", num_workers=1)
    with pytest.raises(UsageError, match=r"different settings \(data\)"):
        train(uninterrupted[0], RUN, other, data, Silent(), resume=True)


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path):
    """The step, its crystals and the last good checkpoint are named."""
    wild = dataclasses.replace(CONFIG, optimizer="adam", weight_decay=0.0, learning_rate=1e30, schedule="constant")
    config = dataclasses.replace(RUN, train=dataclasses.replace(wild, checkpoint_steps=1))
    with pytest.raises(NumericsError, match=r"at step 2;.*last good checkpoint is .*step_00000001") as error:
        train(tmp_path / "run", config, data, None, Silent())
    assert any(name in error.value.message for name in data.names)
    header, *lines = (tmp_path / "run" / "failed_step_2.csv").read_text().splitlines()
    assert header == "name,log_prob"
    assert 1 <= len(lines) <= 32 and {line.split(",")[0] for line in lines} <= set(data.names)


def test_training_goes_on_from_a_model(uninterrupted, data, tmp_path):
    """With a learning rate next to nothing, the model stays what it was."""
    start = load_model(uninterrupted[0] / "best")
    slow = TrainConfig(
        epochs=1, batch_size=8, learning_rate=1e-12, schedule="constant", dropout=0.0, attention_dropout=0.0
    )
    config = TrainRun(model=None, train=slow, data=DataConfig(), start=str(uninterrupted[0] / "best"))
    result = train(tmp_path / "run", config, data, data, Silent(), start=start)
    assert result.validation_loss == pytest.approx(uninterrupted[1].best_loss, rel=1e-5)
    assert load_model(tmp_path / "run" / "best").info["run"]["from"] == str(uninterrupted[0] / "best")
    assert not np.allclose(Model.init(TINY).params["~"]["species"], start.params["~"]["species"], atol=1e-3)


class Said(Silent):
    """A reporter that keeps what is said."""

    def __init__(self):
        self.messages, self.warnings = [], []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def further(uninterrupted, **changes) -> TrainRun:
    """A run that starts from the best model of another."""
    learning = dict(epochs=2, batch_size=8, schedule="constant", dropout=0.0, attention_dropout=0.0, checkpoint_steps=2)
    train = TrainConfig(**(learning | changes))
    return TrainRun(model=None, train=train, data=DataConfig(), start=str(uninterrupted[0] / "best"))


def test_the_model_to_start_from_is_best_until_an_epoch_is_better(uninterrupted, data, tmp_path):
    """Steps too long make it worse, and steps of some size better."""
    start, run, said = load_model(uninterrupted[0] / "best"), tmp_path / "worse", Said()
    result = train(run, further(uninterrupted, learning_rate=0.3), data, data, said, start=start)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train" not in line] == [0] == [lines[0]["step"]]
    assert lines[0]["validation"]["loss"] == pytest.approx(uninterrupted[1].best_loss, rel=1e-5)
    assert result.best_loss == lines[0]["validation"]["loss"] < result.validation_loss
    assert said.messages[0].startswith("epoch 0: validation ")
    assert "no epoch was better than the model it started from" in said.warnings[-1]
    best = load_checkpoint(run / "best").params
    jax.tree.map(np.testing.assert_array_equal, best, load_checkpoint(uninterrupted[0] / "best").params)
    said = Said()
    result = train(tmp_path / "better", further(uninterrupted, learning_rate=1e-3), data, data, said, start=start)
    assert result.best_loss < lines[0]["validation"]["loss"]
    assert not any("no epoch was better" in text for text in said.warnings)


@pytest.mark.parametrize("step", [0, 1, 3])
def test_a_run_from_a_model_resumes_to_the_same_bits(uninterrupted, data, tmp_path, step):
    """Killed before the first model is validated, too."""
    start, config = load_model(uninterrupted[0] / "best"), further(uninterrupted, learning_rate=0.3)
    train(tmp_path / "whole", config, data, data, Said(), start=start)
    with pytest.raises(Killed):
        train(tmp_path / "run", config, data, data, At(step, die), start=start)
    if not step:  # as if it had been killed between the first checkpoint and the line of the first model
        shutil.rmtree(tmp_path / "run" / "best")
    said = Said()
    train(tmp_path / "run", config, data, data, said, resume=True)
    whole, resumed = ((tmp_path / name) for name in ("whole", "run"))
    for name in (f"checkpoints/{last_checkpoint(whole).name}/params.safetensors", "best/params.safetensors"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()
    texts = [(run / "metrics.jsonl").read_text().splitlines() for run in (whole, resumed)]
    steps = [[json.loads(line)["step"] for line in text] for text in texts]
    assert steps[0] == steps[1] and len(steps[0]) == len(set(steps[0]))
    assert "no epoch was better" in said.warnings[-1]


def test_a_loss_beyond_reason_ends_the_run(data, tmp_path):
    """Of the training data and, where there is no look at those before the end of an epoch, of the validation data."""
    config = dataclasses.replace(RUN, train=dataclasses.replace(CONFIG, learning_rate=30.0, ema_decay=0.0))
    with pytest.raises(NumericsError, match=r"loss is [0-9.e+]+ nats a crystal after step \d+: the run has diverged"):
        train(tmp_path / "run", config, data, data, Said())
    assert (tmp_path / "run" / "checkpoints" / "step_00000000").is_dir()


def test_validation_data_that_are_the_training_data_are_told(data, tmp_path):
    """By another name, too; and others are not."""
    copied, fewer = tmp_path / "copied", tmp_path / "fewer"
    copied.mkdir()
    write_crystals(copied)
    shutil.copytree(copied, fewer)
    next(iter(sorted(fewer.iterdir()))).unlink()
    for path, told in ((copied, True), (fewer, False)):
        assert data.holds_same_crystals(load_dataset(path, num_workers=1)) is told
    said, short = Said(), dataclasses.replace(RUN, train=dataclasses.replace(CONFIG, epochs=1))
    train(tmp_path / "run", short, data, load_dataset(copied, num_workers=1), said)
    assert sum("validation data are the training data" in text for text in said.warnings) == 1
    assert re.fullmatch(r"epoch 0: validation [0-9.]+ nats, of random weights", said.messages[0])
