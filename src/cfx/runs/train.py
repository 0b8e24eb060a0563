"""Training: batches by length, one metrics line an epoch, checkpoints that resume exactly."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cfx.config import ModelConfig, TrainConfig, from_dict, to_dict
from cfx.core.batches import bucket_slots, iterate, plan_batches, take
from cfx.core.likelihood import init_params
from cfx.core.optim import TrainState, evaluate_step, make_optimizer, train_step
from cfx.errors import CheckpointError, DataError, NumericsError, OutputError, UsageError
from cfx.io.checkpoint import Checkpoint, load_checkpoint, load_opt_state, save_checkpoint
from cfx.io.dataset import EncodedDataset
from cfx.runs.reporter import Reporter
from cfx.runs.signals import Interrupted, StopRequest

PARTS = ("wyckoff", "species", "coords", "lattice")


@dataclass(frozen=True)
class TrainResult:
    """Where a run ended.

    Attributes:
        epoch: epochs completed.
        step: steps taken.
        validation_loss: of the last epoch, nats a crystal, or None without validation data.
        best_loss: lowest validation loss, likewise; its model is RUN/best.
    """

    epoch: int
    step: int
    validation_loss: float | None
    best_loss: float | None


def train(
    run: Path,
    model: ModelConfig,
    config: TrainConfig,
    data: EncodedDataset,
    validation: EncodedDataset | None,
    reporter: Reporter,
    resume: bool = False,
) -> TrainResult:
    """Trains a model into the directory `run`.

    `run` holds metrics.jsonl (a line an epoch), checkpoints/ (the latest) and best/ (lowest validation loss).

    Args:
        run: directory; must be new or empty unless `resume`.
        model: architecture.
        config: of the training.
        data: to train on.
        validation: to choose the best epoch by; None keeps the last.
        reporter: receives progress.
        resume: continue from the latest checkpoint in `run`.

    Raises:
        UsageError: if `run` exists and `resume` is False, or was made with other settings.
        NumericsError: if the loss is no longer finite.
        Interrupted: after a signal, once the work is saved.
    """
    return _Run(run, model, config, data, validation, reporter).execute(resume)


class _Run:
    def __init__(self, run, model, config, data, validation, reporter):
        self.run, self.model, self.config, self.reporter = Path(run), model, config, reporter
        self.data, self.validation = data, validation
        self.slots = bucket_slots(data.batch)
        self.steps_per_epoch = len(plan_batches(self.slots, config.batch_size, config.seed))
        self.num_steps = self.steps_per_epoch * config.epochs
        self.dropout_key = jax.random.key(config.seed, impl="rbg")
        self.best_loss: float | None = None
        self.settings = {
            "model": to_dict(model),
            "train": to_dict(config),
            "data": {"source": data.source, "sha256": data.digest, "crystals": len(data.batch)},
            "validation": validation and {"source": validation.source, "sha256": validation.digest},
        }

    def execute(self, resume: bool) -> TrainResult:
        """Trains from the beginning, or from the latest checkpoint, to the last step."""
        state, step = self._restore() if resume else self._start()
        loss = None
        with StopRequest() as stop, self.reporter.progress("training", self.num_steps) as progress:
            while step < self.num_steps:
                epoch, first = divmod(step, self.steps_per_epoch)
                state, step, metrics = self._epoch(state, epoch, first, progress, stop)
                self._check(metrics["loss"], step)
                if step % self.steps_per_epoch == 0:
                    loss = self._finish_epoch(state, step, epoch, metrics)
                if stop and step < self.num_steps:
                    self._save(self._checkpoint_path(step), state, step, loss)
                    raise Interrupted(stop.signum, f"stopped at step {step}; continue with --resume")
        return TrainResult(step // self.steps_per_epoch, step, loss, self.best_loss)

    def _epoch(self, state: TrainState, epoch: int, first: int, progress, stop):
        """Trains from batch `first` of an epoch to its end, or until asked to stop."""
        batches = plan_batches(self.slots, self.config.batch_size, self.config.seed, epoch)
        step, start, crystals, kept = epoch * self.steps_per_epoch + first, time.perf_counter(), 0, []
        for rows in batches[first:]:
            batch, weight = take(self.data.batch, self.slots, rows, self.config.batch_size)
            state, metrics = train_step(
                state,
                batch,
                weight,
                jax.random.fold_in(self.dropout_key, step),
                config=self.model,
                train=self.config,
                num_steps=self.num_steps,
            )
            step, crystals = step + 1, crystals + len(rows)
            kept.append((len(rows), metrics))
            if step % 10 == 0 or step == self.num_steps:
                # The only place that waits for the device: the loss is checked and shown every ten steps.
                loss = self._check(metrics["loss"], step)
                rate = crystals / (time.perf_counter() - start)
                progress.update(step, f"epoch {epoch + 1}  loss {loss:.2f} nats  {rate:.0f} crystals/s")
            if stop:
                break
        return state, step, _mean_metrics(kept, time.perf_counter() - start)

    def _check(self, value, step: int) -> float:
        value = float(value)
        if not math.isfinite(value):
            raise NumericsError(
                f"the loss is {value} at step {step}; the last checkpoint is in {self.run}/checkpoints",
                "lower --lr, or look for extreme cells in the data",
            )
        return value

    def _finish_epoch(self, state: TrainState, step: int, epoch: int, metrics: dict[str, float]) -> float | None:
        line: dict[str, Any] = {"epoch": epoch + 1, "step": step, "train": metrics}
        loss = None
        if self.validation is not None:
            line["validation"] = evaluate(state.params, self.model, self.validation, self.config.batch_size)
            loss = self._check(line["validation"]["loss"], step)
        self._append_metrics(line)
        if loss is not None and (self.best_loss is None or loss < self.best_loss):
            self.best_loss = loss
            self._save(self.run / "best", state, step, loss=loss, with_opt_state=False)
        if (epoch + 1) % self.config.checkpoint_epochs == 0 or step == self.num_steps:
            self._save(self._checkpoint_path(step), state, step, loss=loss)
            self._rotate()
        text = f"epoch {epoch + 1}: train {metrics['loss']:.3f}"
        self.reporter.message(text + (f", validation {loss:.3f} nats" if loss is not None else " nats"))
        return loss

    # Files of the run.

    def _start(self) -> tuple[TrainState, int]:
        if self.run.exists() and any(self.run.iterdir()):
            raise UsageError(f"{self.run} is not empty", "continue it with --resume, or choose another directory")
        try:
            self.run.mkdir(parents=True, exist_ok=True)
            (self.run / "config.json").write_text(json.dumps(self.settings, indent=1) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.run}: {error.strerror}") from error
        params = init_params(self.model, jax.random.key(self.config.seed))
        return TrainState(params, make_optimizer(self.config, self.num_steps).init(params)), 0

    def _restore(self) -> tuple[TrainState, int]:
        paths = self._checkpoints()
        if not paths:
            raise CheckpointError(f"{self.run} holds no checkpoint to resume from")
        checkpoint = load_checkpoint(paths[-1])
        if changed := [key for key, value in self.settings.items() if checkpoint.info["run"].get(key) != value]:
            raise UsageError(
                f"{self.run} was trained with other settings ({', '.join(changed)})",
                "resume with the options of the first run; they are in its config.json",
            )
        params = jax.tree.map(jax.numpy.asarray, checkpoint.params)
        optimizer = make_optimizer(self.config, self.num_steps)
        opt_state = jax.tree.map(jax.numpy.asarray, load_opt_state(paths[-1], optimizer.init(params)))
        self.best_loss = checkpoint.info["best_validation_loss"]
        step = checkpoint.info["step"]
        self._drop_metrics_after(step)
        self.reporter.message(f"resuming {self.run} at step {step} of {self.num_steps}")
        return TrainState(params, opt_state), step

    def _checkpoint_path(self, step: int) -> Path:
        return self.run / "checkpoints" / f"step_{step:08d}"

    def _checkpoints(self) -> list[Path]:
        return sorted((self.run / "checkpoints").glob("step_" + "[0-9]" * 8))

    def _rotate(self) -> None:
        import shutil

        for path in self._checkpoints()[: -self.config.keep_checkpoints]:
            shutil.rmtree(path)

    def _save(self, path: Path, state: TrainState, step: int, loss=None, with_opt_state: bool = True) -> None:
        info = {
            "step": step,
            "epoch": step / self.steps_per_epoch,
            "validation_loss": loss,
            "best_validation_loss": self.best_loss,
            "run": self.settings,
            "space_groups": {str(i + 1): int(n) for i, n in enumerate(self.data.space_group_counts()) if n},
        }
        save_checkpoint(path, Checkpoint(self.model, state.params, info), state.opt_state if with_opt_state else None)

    def _append_metrics(self, line: dict[str, Any]) -> None:
        try:
            with open(self.run / "metrics.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.run}/metrics.jsonl: {error.strerror}") from error

    def _drop_metrics_after(self, step: int) -> None:
        """Forgets epochs that ended after the checkpoint that a run resumes from; they will be run again."""
        path = self.run / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
            path.write_text("".join(line + "\n" for line in kept))


def evaluate(params, model: ModelConfig, data: EncodedDataset, batch_size: int) -> dict[str, float]:
    """Mean loss and its parts over a data set, nats a crystal."""
    kept = [
        (len(rows), evaluate_step(params, batch, weight, config=model))
        for rows, batch, weight in iterate(data.batch, batch_size)
    ]
    return _mean_metrics(kept)


def _mean_metrics(kept: list[tuple[int, dict]], seconds: float | None = None) -> dict[str, float]:
    """Means over batches, weighted by their crystals."""
    if not kept:
        raise DataError("no crystals to average over")
    weights = np.array([count for count, _ in kept], float)
    means = {
        name: float(np.average([float(metrics[name]) for _, metrics in kept], weights=weights)) for name in kept[0][1]
    }
    if seconds is not None:
        means["crystals_per_second"] = weights.sum() / seconds
    return means


def load_settings(run: Path) -> tuple[ModelConfig, TrainConfig]:
    """The configurations a run was started with, for `--resume`.

    Raises:
        UsageError: if `run` is no training run.
    """
    try:
        settings = json.loads((Path(run) / "config.json").read_text())
        return from_dict(ModelConfig, settings["model"]), from_dict(TrainConfig, settings["train"])
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{run} is no training run: {error}") from error
