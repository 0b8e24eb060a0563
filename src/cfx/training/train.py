"""Training: equal batches for every epoch, metrics and checkpoints on the way, and a resume that changes nothing."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cfx.config import ModelConfig
from cfx.config.training import TrainRun
from cfx.core.batches import Batch, BatchPlan, mean_tokens, scoring_plan
from cfx.core.elements import SYMBOLS
from cfx.core.likelihood import init_params
from cfx.core.network import Dropout
from cfx.data.dataset import EncodedDataset
from cfx.errors import NumericsError, OutputError, UsageError
from cfx.io.checkpoint import Checkpoint, load_checkpoint, load_opt_state, save_checkpoint
from cfx.model import Model
from cfx.reporter import Reporter
from cfx.signals import Interrupted, StopRequest
from cfx.training.devices import Devices
from cfx.training.learner import (
    LOSS_PARTS,
    Gradient,
    TrainState,
    add,
    gradient,
    init_state,
    learning_rate_schedule,
    loss_sums,
    no_totals,
    update,
)
from cfx.training.run_directory import RunDirectory

LOOK_STEPS = 10
"""Steps between two looks at the device: for the progress line, and for a loss that is not finite."""


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
    config: TrainRun,
    data: EncodedDataset,
    validation: EncodedDataset | None,
    reporter: Reporter,
    resume: bool = False,
    start: Model | None = None,
) -> TrainResult:
    """Trains a model into the directory `run`; see `rundir` for what it holds.

    Args:
        run: directory; must be new or empty unless `resume`.
        config: what to do.
        data: to train on.
        validation: to choose the best epoch by; None keeps the last.
        reporter: receives progress.
        resume: continue from the latest checkpoint in `run`.
        start: the model of `config.start`; not needed to resume.

    Raises:
        UsageError: if `run` exists and `resume` is False, or was made with other settings.
        NumericsError: if the loss is no longer finite.
        OutputError: if the last checkpoint cannot be written.
        Interrupted: after a signal, once the work is saved.
    """
    files = RunDirectory(run)
    loop = _Run(files, config, data, validation, reporter)
    with files.sole_writer() if loop.devices.writes else nullcontext():
        return loop.execute(resume, start)


class _Run:
    def __init__(self, files: RunDirectory, config: TrainRun, data, validation, reporter):
        self.files, self.config, self.reporter = files, config.train, reporter
        self.run_config, self.model = config, config.model
        self.data, self.validation = data, validation
        tokens = config.train.batch_size * mean_tokens(data.num_sites, data.n_max)
        self.plan = BatchPlan(data.num_sites, data.n_max, tokens)
        self.steps_per_epoch = -(-self.plan.num_batches // config.train.accumulate)
        self.num_steps = self.steps_per_epoch * config.train.epochs
        self.devices = Devices()
        self.dropout_key = jax.random.key(config.train.seed)
        self.precision = choose_precision(config.train.precision)
        self.validation_loss: float | None = None
        self.best_loss: float | None = None
        self.epoch_losses: list[tuple[float, float]] = []
        self.seen = {
            "space_groups": {str(i + 1): int(n) for i, n in enumerate(data.space_group_counts()) if n},
            "elements": {SYMBOLS[i]: int(n) for i, n in enumerate(data.element_counts()) if n},
        }
        self.settings = {
            **config.tables(),
            "data": _provenance(data),
            "validation": validation and _provenance(validation),
        }

    def execute(self, resume: bool, start: Model | None) -> TrainResult:
        """Trains from the beginning, or from the latest checkpoint, to the last step."""
        state = self._restore() if resume and self.files.checkpoints() else self._begin(start)
        first = done = int(state.step)
        if self.devices.count > 1:
            self.reporter.message(f"{self.devices.count} devices, {jax.process_count()} processes")
        self.clock, self.crystals_before = time.perf_counter(), float(state.totals["crystals"])
        with StopRequest() as stop, self.reporter.progress("training", self.num_steps) as progress:
            progress.update(first, f"compiling, once for each of {len(self.plan.sizes)} lengths")
            for step, batches in self._steps(first):
                state, done = self._step(state, step, batches), step + 1
                end_of_epoch = done % self.steps_per_epoch == 0
                logs = end_of_epoch or done % self.config.log_steps == 0
                if logs or done % LOOK_STEPS == 0:
                    self._look(state, done, progress)
                if logs:
                    state = self._log(state, done, end_of_epoch)
                if done == self.num_steps:
                    break
                if done % self.config.checkpoint_steps == 0:
                    self._save(state, done)
                if self._stopping(stop, done):
                    self._save(state, done, final=True)
                    raise Interrupted(stop.signum or 15, f"stopped at step {done}; continue with `resume`")
        if done > first:
            self._save(state, done, final=True)
        self.devices.wait("end")
        return TrainResult(done // self.steps_per_epoch, done, self.validation_loss, self.best_loss)

    def _steps(self, first: int) -> Iterator[tuple[int, list[Batch]]]:
        """Every step from `first` on, with its batches; these follow from the seed and the epoch alone."""
        size, batches = self.config.accumulate, []
        for step in range(first, self.num_steps):
            epoch, number = divmod(step, self.steps_per_epoch)
            if number == 0 or not batches:
                batches = self.plan.epoch(self.config.seed, epoch)
            yield step, batches[number * size : (number + 1) * size]

    def _step(self, state: TrainState, step: int, batches: list[Batch]) -> TrainState:
        total: Gradient | None = None
        for i, batch in enumerate(batches):
            crystals, weight = self.devices.take(self.data, batch)
            one = gradient(
                state.params,
                crystals,
                weight,
                jax.random.fold_in(self.dropout_key, step * self.config.accumulate + i),
                config=self.model,
                dropout=Dropout(self.config.dropout, self.config.attention_dropout),
                precision=self.precision,
            )
            total = one if total is None else add(total, one)
        mean = np.float32(len(self.data) / self.steps_per_epoch)
        return update(state, total, np.int32(step), mean, train=self.config, num_steps=self.num_steps)

    def _stopping(self, stop: StopRequest, done: int) -> bool:
        """Whether to stop now; processes of one run agree on it, now and then."""
        if jax.process_count() == 1:
            return bool(stop)
        return done % LOOK_STEPS == 0 and self.devices.anywhere(bool(stop))

    # What a run tells.

    def _look(self, state: TrainState, done: int, progress) -> None:
        """Waits for the device, shows how it goes, and stops where the numbers did."""
        if int(state.step) < done:
            self._fail(state, int(state.step))
        mean = self._means(state.totals)
        epoch = (done - 1) // self.steps_per_epoch + 1
        text = f"epoch {epoch}  loss {mean['loss']:.2f} nats  {mean['crystals_per_second']:.0f} crystals/s"
        progress.update(done, text)

    def _means(self, totals: dict[str, jax.Array]) -> dict[str, float]:
        """Of the steps since the last line of metrics."""
        sums = {name: float(value) for name, value in totals.items()}
        parts = {name: sums[name] / sums["crystals"] for name in LOSS_PARTS}
        return {
            "loss": sum(parts.values()),
            **parts,
            "grad_norm": sums["grad_norm"] / sums["steps"],
            "crystals_per_second": (sums["crystals"] - self.crystals_before) / (time.perf_counter() - self.clock),
        }

    def _log(self, state: TrainState, done: int, end_of_epoch: bool) -> TrainState:
        """Writes a line of metrics, with the validation loss at the end of an epoch; totals begin anew."""
        means = self._means(state.totals)
        means["learning_rate"] = float(learning_rate_schedule(self.config, self.num_steps)(done - 1))
        line: dict[str, Any] = {"step": done, "epoch": done / self.steps_per_epoch, "train": means}
        self.epoch_losses.append((means["loss"], float(state.totals["crystals"])))
        if end_of_epoch and self.validation is not None:
            line["validation"] = mean_loss(
                state.best_params, self.model, self.validation, self.config.batch_size, self.devices
            )
        if self.devices.writes:
            self._attempt(lambda: self.files.append_metrics(line))
        if end_of_epoch:
            self._tell_epoch(done, line)
        if "validation" in line:
            self._keep_best(state, done, line["validation"]["loss"])
        self.clock, self.crystals_before = time.perf_counter(), 0.0
        return state._replace(totals=self.devices.replicate(no_totals()))

    def _tell_epoch(self, done: int, line: dict[str, Any]) -> None:
        """Says the mean losses of an epoch, or of what this process has seen of it."""
        losses, crystals = zip(*self.epoch_losses, strict=True)
        text = f"epoch {done // self.steps_per_epoch}: train {np.average(losses, weights=crystals):.3f}"
        if "validation" in line:
            text += f", validation {line['validation']['loss']:.3f}"
        self.reporter.message(f"{text} nats")
        self.epoch_losses = []

    def _fail(self, state: TrainState, step: int) -> None:
        """Raises the error of a step whose loss or gradient is not finite; `state` is the one before it."""
        number = step % self.steps_per_epoch * self.config.accumulate
        batches = self.plan.epoch(self.config.seed, step // self.steps_per_epoch)
        rows = np.concatenate([batch.rows for batch in batches[number : number + self.config.accumulate]])
        model = Model("failed", self.model, jax.device_get(state.params))
        scores = np.asarray(model.log_prob(self.data.take(rows, self.data.n_max)).total)
        lines = [f"{self.data.names[row]},{score:.4f}\n" for row, score in zip(rows, scores, strict=True)]
        names = [self.data.names[row] for row in rows[np.argsort(np.where(np.isnan(scores), -np.inf, scores))[:3]]]
        where = ""
        if self.devices.writes and self._attempt(
            lambda: self.files.write(f"failed_step_{step + 1}.csv", "name,log_prob\n" + "".join(lines))
        ):
            where = f", all in {self.files.path}/failed_step_{step + 1}.csv"
        last = self.files.latest()
        raise NumericsError(
            f"the loss or its gradient is not finite at step {step + 1}; the {len(rows)} crystals of its batch (the "
            f"least likely: {', '.join(names)}{where}); the last good checkpoint is {last}",
            f"look for extreme cells among them, or go on in a new run: `from={last}` with a lower `learning_rate`",
        )

    # Files of the run.

    def _begin(self, start: Model | None) -> TrainState:
        if self.devices.writes:
            self.files.create(self.run_config)
        if start is not None:
            self.model = start.config
            params = jax.tree.map(np.asarray, start.params)
            self._add_what_was_seen(start)
        else:
            params = init_params(self.model, jax.random.key(self.config.seed))
        state = self.devices.replicate(init_state(params, self.config, self.num_steps))
        self._save(state, 0, final=True)  # a run that is killed at once can be resumed, too
        return state

    def _add_what_was_seen(self, start: Model) -> None:
        """A model that is trained further has not forgotten the elements it knew, as far as its checkpoint says."""
        known = start.info.get("elements")
        if known is None:
            del self.seen["elements"]
        else:
            counts = Counter(self.seen["elements"]) + Counter(known)
            self.seen["elements"] = dict(counts)

    def _restore(self) -> TrainState:
        path = self.files.latest()
        checkpoint = load_checkpoint(path)
        saved = checkpoint.info["run"]
        # Through TrainRun, which fills in what an older version did not have.
        tables = TrainRun.layered({key: saved[key] for key in ("from", "model", "train") if key in saved}).tables()
        saved = {**saved, **tables, "data": saved["data"]}
        if changed := [key for key, value in self.settings.items() if saved.get(key) != value]:
            raise UsageError(
                f"{self.files.path} was trained with other settings ({', '.join(changed)})",
                "resume with the data and options of the first run; they are in its config.toml",
            )
        self.model = checkpoint.config
        state = init_state(jax.tree.map(np.asarray, checkpoint.params), self.config, self.num_steps)
        opt_state, average = load_opt_state(path, (state.opt_state, state.average))
        step, totals = checkpoint.info["step"], checkpoint.info["totals"]
        self.best_loss = checkpoint.info["best_validation_loss"]
        self.validation_loss = checkpoint.info["validation_loss"]
        self.seen = {key: checkpoint.info[key] for key in ("space_groups", "elements") if key in checkpoint.info}
        if self.devices.writes:
            self.files.tidy()
            self.files.drop_metrics_after(step)
        self.reporter.message(f"resuming {self.files.path} at step {step} of {self.num_steps}")
        state = TrainState(
            state.params,
            opt_state,
            average,
            np.int32(step),
            {name: np.float32(totals[name]) for name in state.totals},
        )
        return self.devices.replicate(state)

    def _keep_best(self, state: TrainState, done: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise NumericsError(
                f"the validation loss is {loss} after step {done}; the last checkpoint is in {self.files.path}",
                "look for extreme cells in the validation data: cfx score names them",
            )
        self.validation_loss = loss
        if self.best_loss is not None and loss >= self.best_loss:
            return
        before, self.best_loss = self.best_loss, loss
        checkpoint = Checkpoint(self.model, jax.device_get(state.best_params), self._info(state, done))
        if self.devices.writes and not self._attempt(lambda: save_checkpoint(self.files.best, checkpoint)):
            self.best_loss = before

    def _attempt(self, write: Callable[[], Any], final: bool = False) -> bool:
        """Writes, or warns: a full disk does not end a run before it must."""
        try:
            write()
        except OutputError as error:
            paths = self.files.checkpoints()
            last = f"the last checkpoint is {paths[-1]}" if paths else "there is no checkpoint yet"
            if final:
                raise OutputError(f"{error.message}; {last}", error.hint) from error
            self.reporter.warning(f"{error.message}; training goes on, {last}")
            return False
        return True

    def _save(self, state: TrainState, done: int, final: bool = False) -> None:
        if int(state.step) < done:
            self._fail(state, int(state.step))
        if not self.devices.writes:
            return
        checkpoint = Checkpoint(self.model, jax.device_get(state.params), self._info(state, done))
        rest = (state.opt_state, state.average)
        if self._attempt(lambda: save_checkpoint(self.files.checkpoint(done), checkpoint, rest), final):
            self._attempt(lambda: self.files.rotate(self.config.keep_checkpoints))

    def _info(self, state: TrainState, done: int) -> dict[str, Any]:
        return {
            "step": done,
            "epoch": done / self.steps_per_epoch,
            "validation_loss": self.validation_loss,
            "best_validation_loss": self.best_loss,
            "totals": {name: float(value) for name, value in state.totals.items()},
            "run": self.settings,
            **self.seen,
        }


def choose_precision(precision: str) -> str:
    """How matrix products of training are computed on this machine: float32 or bfloat16."""
    if precision == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return precision


def mean_loss(
    params, model: ModelConfig, data: EncodedDataset, batch_size: int, devices: Devices | None = None
) -> dict[str, float]:
    """Mean loss and its parts over a data set, nats a crystal, without dropout."""
    devices = devices or Devices()
    batches = scoring_plan(data, data.n_max, batch_size).epoch()
    kept = [loss_sums(params, *devices.take(data, batch), config=model) for batch in batches]
    parts = {name: sum(float(sums[name]) for sums in kept) / len(data) for name in LOSS_PARTS}
    return {"loss": sum(parts.values()), **parts}


def _provenance(data: EncodedDataset) -> dict[str, Any]:
    return {"source": data.source, "sha256": data.digest, "crystals": len(data)}
