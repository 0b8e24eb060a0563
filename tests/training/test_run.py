"""The directory of a run: what it takes, what it keeps, and what cannot be written."""

from __future__ import annotations

import dataclasses
import json
import resource
from pathlib import Path

import pytest

from cfx.config import DataConfig, ModelConfig, TrainConfig
from cfx.config.training import TrainRun
from cfx.errors import CheckpointError, OutputError, UsageError
from cfx.training.run import RunDirectory

CONFIG = TrainRun(
    model=ModelConfig(num_layers=2, sigma_min=0.01),
    train=TrainConfig(optimizer="adamw", weight_decay=0.1, learning_rate=3e-4),
    data=DataConfig(train="Å crystals/train.csv", symprec=0.1),
)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """A new one."""
    run = RunDirectory(tmp_path / "runs" / "one")
    run.create(CONFIG)
    return run


def make_checkpoints(run: RunDirectory, *steps: int) -> None:
    for step in steps:
        run.checkpoint(step).mkdir(parents=True)
        (run.checkpoint(step) / "checkpoint.json").write_text("{}")


def names(run: RunDirectory) -> list[str]:
    return [path.name for path in run.checkpoints()]


def metrics(run: RunDirectory) -> Path:
    return run.path / "metrics.jsonl"


def test_the_configuration_is_kept(run):
    assert run.config() == CONFIG
    assert [path.name for path in run.path.iterdir()] == ["config.toml"]


def test_a_run_that_trains_a_model_further_is_kept(tmp_path):
    config = TrainRun(model=None, train=TrainConfig(), data=DataConfig(), start="alex20")
    RunDirectory(tmp_path).create(config)  # an empty directory will do
    assert RunDirectory(tmp_path).config() == config


def test_what_is_there_already_is_not_touched(run, tmp_path):
    """Neither a run, nor a directory with a hidden file, nor a file."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".keep").touch()
    (tmp_path / "file").write_text("mine")
    make_checkpoints(run, 0)
    for path in (run.path, tmp_path / "hidden", tmp_path / "file"):
        with pytest.raises(UsageError, match="is not empty") as error:
            RunDirectory(path).create(TrainRun.layered())
        assert "`resume`" in error.value.hint
    assert run.config() == CONFIG
    assert [path.name for path in (tmp_path / "hidden").iterdir()] == [".keep"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_directory_that_is_no_run(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match=r"not a training run \(config.toml is missing\)"):
            RunDirectory(path).config()


def test_checkpoints_are_in_the_order_of_their_steps(run):
    assert run.checkpoints() == []
    make_checkpoints(run, 900, 12_000_000, 1000, 20)
    (run.path / "checkpoints" / "step_00001000.partial").mkdir()
    (run.path / "checkpoints" / ".step_00002000").mkdir()
    assert names(run) == ["step_00000020", "step_00000900", "step_00001000", "step_12000000"]
    assert run.latest() == run.checkpoint(12_000_000)


def test_rotation_keeps_the_latest(run):
    make_checkpoints(run, 300, 100, 200, 1000)
    run.best.mkdir()
    run.rotate(5)
    assert len(names(run)) == 4
    run.rotate(2)
    assert names(run) == ["step_00000300", "step_00001000"]
    run.rotate(1)
    assert names(run) == ["step_00001000"]
    assert run.best.is_dir() and run.config() == CONFIG


def test_a_run_without_checkpoints_cannot_be_resumed(run, tmp_path):
    run.best.mkdir()
    for directory in (run, RunDirectory(tmp_path / "none")):
        with pytest.raises(CheckpointError, match="holds no checkpoint to resume from") as error:
            directory.latest()
        assert "`resume`" in error.value.hint


def test_metrics_after_the_checkpoint_are_dropped(run):
    """With a last line that was never finished, whatever its step."""
    for step in (10, 20, 25, 30):
        run.append_metrics({"step": step, "train": {"loss": 1 / step}})
    before = metrics(run).read_text()
    with metrics(run).open("a") as file:
        file.write('{"step": 5, "train": {"lo')
    run.drop_metrics_after(30)
    assert metrics(run).read_text() == before
    run.drop_metrics_after(25)
    assert metrics(run).read_text() == "".join(before.splitlines(keepends=True)[:3])
    run.append_metrics({"step": 30})
    assert [json.loads(line)["step"] for line in metrics(run).read_text().splitlines()] == [10, 20, 25, 30]
    run.drop_metrics_after(0)
    assert metrics(run).read_text() == ""


def test_an_unfinished_line_that_could_be_read_is_dropped_too(run):
    """A number may have lost its last digits, and the next line would be glued to it."""
    metrics(run).write_text('{"step": 10}\n{"step": 20}')
    run.drop_metrics_after(20)
    assert metrics(run).read_text() == '{"step": 10}\n'


def test_a_run_without_metrics_has_none_to_drop(run):
    run.drop_metrics_after(10)
    assert not metrics(run).exists()


def test_a_file_is_written_anew(run):
    assert run.write("failed.csv", "a\n") == run.path / "failed.csv"
    run.write("failed.csv", "b\n")
    assert (run.path / "failed.csv").read_text() == "b\n"


def test_what_cannot_be_written_is_said(run, tmp_path):
    """A directory where a file should be, a file where a directory should be."""
    metrics(run).mkdir()
    with pytest.raises(OutputError, match=r"metrics.jsonl: Is a directory"):
        run.append_metrics({"step": 1})
    with pytest.raises(OutputError, match="cannot write"):
        run.write("none/failed.csv", "")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=f"cannot write {tmp_path}/file/run"):
        RunDirectory(tmp_path / "file" / "run").create(CONFIG)


def test_lines_that_were_cut_short_do_not_stop_a_resume(tmp_path):
    """What a full disk leaves: half a line with the next one behind it."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2{"step": 3}\n4\n{"step": 4}\n{"step": 9}\n{"st')
    RunDirectory(tmp_path).drop_metrics_after(4)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 4}\n'


def test_checkpoints_of_very_long_runs(tmp_path):
    for step in (5, 99_999_999, 100_000_000):
        RunDirectory(tmp_path).checkpoint(step).mkdir(parents=True)
    assert [path.name for path in RunDirectory(tmp_path).checkpoints()] == [
        "step_00000005",
        "step_99999999",
        "step_100000000",
    ]


def test_a_line_of_metrics_is_written_whole_or_not_at_all(run):
    """The file may grow by ten more bytes only, as on a disk that is nearly full."""
    run.append_metrics({"step": 1})
    size = (run.path / "metrics.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, resource.RLIM_INFINITY))
    try:
        with pytest.raises(OutputError, match=r"metrics\.jsonl"):
            run.append_metrics({"step": 2, "train": {"loss": 1.0}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    run.append_metrics({"step": 3})
    assert (run.path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 3}\n'


def test_a_run_that_got_no_further_than_its_configuration_begins_again(run):
    other = dataclasses.replace(CONFIG, data=DataConfig(train="other.csv"))
    run.create(other)
    assert run.config() == other


def test_tidy(run):
    """What kills leave goes; a best model that was being replaced comes back."""
    make_checkpoints(run, 3)
    (run.path / "checkpoints" / "step_00000004.partial-7").mkdir()
    (run.path / "best.partial-7").mkdir()
    (run.path / "best.old-7").mkdir()
    (run.path / "best.old-7" / "checkpoint.json").touch()
    run.tidy()
    assert sorted(path.name for path in run.path.rglob("*") if path.is_dir()) == [
        "best",
        "checkpoints",
        "step_00000003",
    ]
    assert (run.best / "checkpoint.json").exists()
    (run.path / "best.old-8").mkdir()
    run.tidy()
    assert not (run.path / "best.old-8").exists() and (run.best / "checkpoint.json").exists()


def test_whole_paths(run, monkeypatch):
    monkeypatch.chdir(run.path)
    (run.path / "model").mkdir()
    (run.path / "a.csv").touch()
    config = dataclasses.replace(CONFIG, model=None, start="model", data=DataConfig(train="a.csv"))
    whole = config.with_whole_paths()
    assert (whole.data.train, whole.data.validation) == (str(run.path / "a.csv"), None)
    assert whole.start == str(run.path / "model")
    assert dataclasses.replace(config, start="mini").with_whole_paths().start == "mini"
