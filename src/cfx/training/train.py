"""Training: equal batches for every epoch, metrics and checkpoints on the way, and a resume that changes nothing."""

import functools
import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cfx.config import ModelConfig
from cfx.config.training import TrainRun
from cfx.core.batches import Batch, BatchPlan, Crystals, InRandomSettings, mean_tokens, scoring_plan
from cfx.core.elements import SYMBOLS
from cfx.core.likelihood import PARTS, init_params
from cfx.core.network import Dropout
from cfx.data.dataset import EncodedDataset
from cfx.errors import NumericsError, OutputError, UsageError
from cfx.io.checkpoint import Checkpoint, load_checkpoint, load_opt_state, save_checkpoint
from cfx.model import Model
from cfx.reporter import Reporter, StopRequest, speed
from cfx.training import learner
from cfx.training.devices import Devices
from cfx.training.learner import Gradient, TrainState
from cfx.training.run import Loop, RunDirectory

LOOK_STEPS = 10
"""Steps between two looks at the device: for the progress line, and for a loss that is not finite."""

MOST_LOSS = 1e4
"""Nats a crystal: a run whose mean loss is above this has diverged. New models begin some hundred times below it."""


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
    """Trains a model into the directory `run`; see `training.run` for what it holds.

    Args:
        run: directory; must be new or empty unless `resume`.
        validation: to choose the best epoch by; None keeps the last.
        resume: continue from the latest checkpoint in `run`.
        start: the model of `config.start`; not needed to resume.

    Raises:
        UsageError: if `run` exists and `resume` is False, or was made with other settings; or if the model has a
            composition as input.
        NumericsError: if the loss is no longer finite, or above MOST_LOSS.
        OutputError: if the last checkpoint cannot be written.
        Interrupted: after a signal, once the work is saved.
    """
    architecture = start.config if start else config.model
    if architecture is not None and architecture.composition != "none":
        raise UsageError(
            "models that have a composition as input are not trained: their head of space groups would not learn",
            "choose `composition=none`, or another model to start from",
        )
    loop = _Training(run, config, data, validation, reporter, start)
    with loop.files.sole_writer() if loop.devices.writes else nullcontext():
        return loop.execute(resume)


class _Training(Loop[TrainState]):
    model: ModelConfig

    def __init__(self, run: Path, config: TrainRun, data: EncodedDataset, validation, reporter: Reporter, start):
        train = config.train
        self.run_config, self.config, self.start = config, train, start
        self.data, self.validation = data, validation
        tokens = train.batch_size * mean_tokens(data.num_sites, data.n_max)
        self.plan = BatchPlan(data.num_sites, data.n_max, tokens)
        self.steps_per_epoch = -(-self.plan.num_batches // train.accumulate)
        num_steps = self.steps_per_epoch * train.epochs
        super().__init__(RunDirectory(run), reporter, num_steps, train.checkpoint_steps)
        self.compiling = f"compiling, once for each of {len(self.plan.sizes)} lengths"
        self.devices = Devices()
        self.dropout_key = jax.random.key(train.seed)
        self.dropout = Dropout(train.dropout, train.attention_dropout)
        self.precision = learner.choose_precision(train.precision)
        self.validation_loss: float | None = None
        self.best_loss: float | None = None
        self.best_step: int | None = None
        self.epoch_losses: list[tuple[float, float]] = []
        self.epoch, self.epoch_batches = -1, []
        self.epoch_data: Crystals = data
        self.seen = {
            "space_groups": {str(i + 1): int(n) for i, n in enumerate(data.space_group_counts()) if n},
            "elements": {SYMBOLS[i]: int(n) for i, n in enumerate(data.element_counts()) if n},
        }
        self.settings = {**config.tables(), "data": data.provenance, "validation": validation and validation.provenance}

    def execute(self, resume: bool) -> TrainResult:
        """Trains from the beginning, or from the latest checkpoint, to the last step."""
        if self.validation is not None and self.data.holds_same_crystals(self.validation):
            self.reporter.warning(
                "the validation data are the training data: their loss does not tell when a model learns by heart"
            )
        state, first = self.open(resume)
        if first == 0 and self.validation is not None:
            self._validate_start(state)
        if self.devices.count > 1:
            self.reporter.message(f"{self.devices.count} devices, {jax.process_count()} processes")
        self.clock, self.crystals_before = time.perf_counter(), float(state.totals["crystals"])
        _, done = self.make_steps(state, first)
        self.devices.wait("end")
        if self.run_config.start and self.best_step == 0:
            self.reporter.warning(
                f"no epoch was better than the model it started from (validation {self.best_loss:.3f} nats), "
                f"which {self.files.best} is"
            )
        return TrainResult(done // self.steps_per_epoch, done, self.validation_loss, self.best_loss)

    # A step.

    def step(self, state: TrainState, step: int) -> TrainState:
        """An update, and what is told of it now and then."""
        gradients = (self._gradient(state, step, i, batch) for i, batch in enumerate(self._batches(step)))
        total = functools.reduce(learner.add, gradients)
        mean = np.float32(len(self.data) / self.steps_per_epoch)
        state = learner.update(state, total, np.int32(step), mean, train=self.config, num_steps=self.num_steps)
        done = step + 1
        end_of_epoch = done % self.steps_per_epoch == 0
        logs = end_of_epoch or done % self.config.log_steps == 0
        if logs or done % LOOK_STEPS == 0:
            self._look(state, done)
        return self._log(state, done, end_of_epoch) if logs else state

    def _batches(self, step: int) -> list[Batch]:
        """The batches of a step; they follow from the seed and the step alone."""
        epoch, number = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            self.epoch, self.epoch_batches = epoch, self.plan.epoch(self.config.seed, epoch)
            if self.config.augment:
                self.epoch_data = InRandomSettings.of_epoch(self.data, self.config.seed, epoch)
        return self.epoch_batches[number * self.config.accumulate :][: self.config.accumulate]

    def _gradient(self, state: TrainState, step: int, number: int, batch: Batch) -> Gradient:
        crystals, weight = self.devices.take(self.epoch_data, batch)
        # From the number of the batch in the whole run, so that a resumed run drops the same entries.
        key = jax.random.fold_in(self.dropout_key, step * self.config.accumulate + number)
        return learner.gradient(
            state.params, crystals, weight, key, config=self.model, dropout=self.dropout, precision=self.precision
        )

    def stopping(self, stop: StopRequest, done: int) -> bool:
        """Processes of one run agree on it, now and then."""
        if jax.process_count() == 1:
            return bool(stop)
        return done % LOOK_STEPS == 0 and self.devices.anywhere(bool(stop))

    # What a run tells.

    def _look(self, state: TrainState, done: int) -> None:
        """Waits for the device, shows how it goes, and stops where the numbers did."""
        if int(state.step) < done:
            self._fail(state, int(state.step))
        mean = self._means(state.totals)
        self._check_loss("training", mean["loss"], done)
        epoch = (done - 1) // self.steps_per_epoch + 1
        text = f"epoch {epoch}  loss {mean['loss']:.2f} nats  {speed(mean['crystals_per_second'])}"
        self.progress.update(done, text)

    def _means(self, totals: dict[str, jax.Array]) -> dict[str, float]:
        """Mean metrics over the steps since the last line of metrics."""
        sums = {name: float(value) for name, value in totals.items()}
        parts = {name: sums[name] / sums["crystals"] for name in PARTS}
        return {
            "loss": sum(parts.values()),
            **parts,
            "grad_norm": sums["grad_norm"] / sums["steps"],
            "crystals_per_second": (sums["crystals"] - self.crystals_before) / (time.perf_counter() - self.clock),
        }

    def _check_loss(self, kind: str, loss: float, done: int) -> None:
        """Ends a run that has diverged."""
        if loss > MOST_LOSS:
            raise NumericsError(
                f"the {kind} loss is {loss:.3g} nats a crystal after step {done}: the run has diverged; its last "
                f"checkpoint is {self.files.latest()}",
                "begin a new run with a lower `learning_rate`; cfx score names crystals of extreme loss",
            )

    def _validate_start(self, state: TrainState) -> None:
        """Says where the run starts from. A model that was trained before is the best one until an epoch is better."""
        start, found = self.run_config.start, self._validate(state)
        self.reporter.message(f"epoch 0: validation {found['loss']:.3f} nats, of {start or 'random weights'}")
        if start is None:
            return
        if self.devices.writes:
            self.files.drop_metrics_after(-1)  # of a run that was killed here
            line = {"step": 0, "epoch": 0.0, "validation": found}
            self._attempt(lambda: self.files.append_metrics(line))
        self._keep_best(state, 0, found["loss"])

    def _validate(self, state: TrainState) -> dict[str, float]:
        assert self.validation is not None
        return mean_loss(state.best_params, self.model, self.validation, self.config.batch_size, self.devices)

    def _log(self, state: TrainState, done: int, end_of_epoch: bool) -> TrainState:
        """Writes a line of metrics, with the validation loss at the end of an epoch; totals begin anew."""
        means = self._means(state.totals)
        schedule = learner.learning_rate_schedule(self.config, self.num_steps)
        means["learning_rate"] = float(np.asarray(schedule(done - 1)))
        line: dict[str, Any] = {"step": done, "epoch": done / self.steps_per_epoch, "train": means}
        self.epoch_losses.append((means["loss"], float(state.totals["crystals"])))
        if end_of_epoch and self.validation is not None:
            line["validation"] = self._validate(state)
        if self.devices.writes:
            self._attempt(lambda: self.files.append_metrics(line))
        if end_of_epoch:
            self._tell_epoch(done, line)
        if "validation" in line:
            self._keep_best(state, done, line["validation"]["loss"])
        self.clock, self.crystals_before = time.perf_counter(), 0.0
        return state._replace(totals=self.devices.replicate(learner.no_totals()))

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
        rows = np.concatenate([batch.rows for batch in self._batches(step)])
        model = Model("failed", self.model, jax.device_get(state.params))
        scores = np.asarray(model.log_prob(self.epoch_data.take(rows, self.data.n_max)).total)
        lines = [f"{self.data.names[row]},{score:.4f}\n" for row, score in zip(rows, scores, strict=True)]
        names = [self.data.names[row] for row in rows[np.argsort(np.where(np.isnan(scores), -np.inf, scores))[:3]]]
        table, text = f"failed_step_{step + 1}.csv", "name,log_prob\n" + "".join(lines)
        written = self.devices.writes and self._attempt(lambda: self.files.write(table, text))
        where = f", all in {self.files.path}/{table}" if written else ""
        last = self.files.latest()
        raise NumericsError(
            f"the loss or its gradient is not finite at step {step + 1}; the {len(rows)} crystals of its batch (the "
            f"least likely: {', '.join(names)}{where}); the last good checkpoint is {last}",
            f"look for extreme cells among them, or continue in a new run: `from={last}` with a lower `learning_rate`",
        )

    # Files of the run.

    def begin(self) -> TrainState:
        """The first state, with the weights of the model to start from, or new ones."""
        if self.devices.writes:
            self.files.create(self.run_config)
        if self.start is not None:
            self.model = self.start.config
            params = jax.tree.map(np.asarray, self.start.params)
            # It has not forgotten the elements that it knew, as far as its checkpoint says.
            seen, known = self.seen.pop("elements"), self.start.info.get("elements")
            if known is not None:
                self.seen["elements"] = dict(Counter(seen) + Counter(known))
        else:
            assert self.run_config.model is not None, "a run that starts from no model has an architecture"
            self.model = self.run_config.model
            params = init_params(self.model, jax.random.key(self.config.seed))
        state = self.devices.replicate(learner.init_state(params, self.config, self.num_steps))
        self.save(state, 0, final=True)
        return state

    def restore(self) -> tuple[TrainState, int]:
        """Restores the latest checkpoint after checking that the settings are those of the first run."""
        path = self.files.latest()
        checkpoint = load_checkpoint(path)
        self._check_settings(checkpoint.info["run"])
        self.model = checkpoint.config
        state = learner.init_state(jax.tree.map(np.asarray, checkpoint.params), self.config, self.num_steps)
        opt_state, average = load_opt_state(path, (state.opt_state, state.average))
        step, totals = checkpoint.info["step"], checkpoint.info["totals"]
        self.best_loss = checkpoint.info["best_validation_loss"]
        self.best_step = checkpoint.info.get("best_step")
        self.validation_loss = checkpoint.info["validation_loss"]
        self.seen = {key: checkpoint.info[key] for key in ("space_groups", "elements") if key in checkpoint.info}
        if self.devices.writes:
            self.files.tidy()
            self.files.drop_metrics_after(step)
        totals = {name: np.float32(totals[name]) for name in state.totals}
        state = state._replace(opt_state=opt_state, average=average, step=np.int32(step), totals=totals)
        return self.devices.replicate(state), step

    def _check_settings(self, saved: dict[str, Any]) -> None:
        # Through TrainRun, which fills in what an older version did not have.
        tables = TrainRun.layered({key: saved[key] for key in ("from", "model", "train") if key in saved}).tables()
        saved = {**saved, **tables, "data": saved["data"]}
        changed = [key for key, value in self.settings.items() if saved.get(key) != value]
        sets = {"data": self.data, "validation": self.validation}
        reread = [key for key in changed if sets.get(key) and saved.get(key) and sets[key].continues(saved[key])]
        if len(changed) > len(reread):
            raise UsageError(
                f"{self.files.path} was trained with different settings ({', '.join(changed)})",
                "resume with the data and options of the first run; they are in its config.toml",
            )
        if reread:
            self.reporter.warning("an earlier version of cfx encoded the data; from here on, they are as this one does")

    def _keep_best(self, state: TrainState, done: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise NumericsError(
                f"the validation loss is {loss} after step {done}; the last checkpoint is in {self.files.path}",
                "look for extreme cells in the validation data: cfx score names them",
            )
        self._check_loss("validation", loss, done)
        self.validation_loss = loss
        if self.best_loss is not None and loss >= self.best_loss:
            return
        before = self.best_loss, self.best_step
        self.best_loss, self.best_step = loss, done
        checkpoint = Checkpoint(self.model, jax.device_get(state.best_params), self._info(state, done))
        if self.devices.writes and not self._attempt(lambda: save_checkpoint(self.files.best, checkpoint)):
            self.best_loss, self.best_step = before

    def _attempt(self, write: Callable[[], Any], final: bool = False) -> bool:
        """Writes, or warns: a full disk does not end a run before it must."""
        try:
            write()
        except OutputError as error:
            paths = self.files.checkpoints()
            last = f"the last checkpoint is {paths[-1]}" if paths else "there is no checkpoint yet"
            if final:
                raise OutputError(f"{error.message}; {last}", error.hint) from error
            self.reporter.warning(f"{error.message}; training continues, {last}")
            return False
        return True

    def save(self, state: TrainState, done: int, final: bool = False) -> None:
        """A disk that is full is only warned of, unless the run ends here."""
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
            "best_step": self.best_step,
            "totals": {name: float(value) for name, value in state.totals.items()},
            "run": self.settings,
            **self.seen,
        }


def mean_loss(
    params, model: ModelConfig, data: EncodedDataset, batch_size: int, devices: Devices | None = None
) -> dict[str, float]:
    """Mean loss and its parts over a data set, nats a crystal, without dropout."""
    devices = devices or Devices()
    batches = scoring_plan(data, data.n_max, batch_size).epoch()
    kept = [learner.loss_sums(params, *devices.take(data, batch), config=model) for batch in batches]
    parts = {name: sum(float(sums[name]) for sums in kept) / len(data) for name in PARTS}
    return {"loss": sum(parts.values()), **parts}
