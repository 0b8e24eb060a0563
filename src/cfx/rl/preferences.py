"""Fine-tuning on pairs of crystals, a better and a worse one each (DPO, 2305.18290).

The likelihood is the published one: pairs come from anywhere, and were not drawn in a known order of sites.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cfx.config.finetuning import PairsRun
from cfx.core.batches import Batch, BatchPlan, fill, mean_tokens
from cfx.core.crystal import CrystalBatch
from cfx.data.dataset import as_batch
from cfx.data.encode import SYMPREC
from cfx.data.read import Record, encode_records
from cfx.errors import DataError, NumericsError
from cfx.model import Model
from cfx.reporter import Reporter
from cfx.signals import Interrupted, StopRequest
from cfx.training.finetune import FineTuneState, dpo_gradient, update
from cfx.training.run_directory import PolicyRun


@dataclass(frozen=True)
class DPOResult:
    """Where a run ended.

    Attributes:
        pairs: that it learnt from.
        step: updates.
        right: share of the pairs, in the last epoch, whose better crystal has become the likelier one of the two, as
            compared with the reference.
    """

    pairs: int
    step: int
    right: float


def learn_preferences(run: Path, config: PairsRun, model: Model, reporter: Reporter, resume: bool = False) -> DPOResult:
    """Fine-tunes a model on pairs into the directory `run`; see `rl.fine_tune`.

    Raises:
        DataError: if the pairs cannot be read.
        UsageError: if `run` exists and `resume` is False.
        NumericsError: if a gradient is not finite.
        Interrupted: after a signal, once the work is saved.
    """
    files = PolicyRun(run, config, model, "dpo")
    with files.sole_writer():
        return _Run(files, config, model, reporter).execute(resume)


class _Run:
    def __init__(self, files: PolicyRun, config: PairsRun, model: Model, reporter: Reporter):
        self.files, self.config, self.model, self.reporter = files, config.dpo, model, reporter
        self.pairs = read_pairs(Path(config.pairs), model.config.n_max)
        if self.pairs.failures:
            row, why = self.pairs.failures[0]
            reporter.warning(f"{len({row for row, _ in self.pairs.failures})} pairs left out, as row {row}, {why}")
        longest = np.maximum(self.pairs.chosen.num_sites, self.pairs.rejected.num_sites)
        tokens = self.config.batch_size * mean_tokens(longest, model.config.n_max)
        self.plan = BatchPlan(longest, model.config.n_max, tokens)
        self.reference = tuple(self._score(side) for side in (self.pairs.chosen, self.pairs.rejected))

    def execute(self, resume: bool) -> DPOResult:
        """Runs to the last epoch."""
        if resume and self.files.checkpoints():
            state, saved = self.files.restore()
            step = saved["step"]
        else:
            state, step = self.files.begin(), 0
            self.files.save(state, self._saved(step))
        per_epoch, sums, right = self.plan.num_batches, {}, math.nan
        total = per_epoch * self.config.epochs
        with StopRequest() as stop, self.reporter.progress("fine-tuning on pairs", total) as progress:
            progress.update(step, "compiling")
            while step < total:
                batch = self.plan.epoch(self.config.seed, step // per_epoch)[step % per_epoch]
                state, watched = self._step(state, batch, step)
                step += 1
                sums = {name: sums.get(name, 0.0) + value for name, value in watched.items()}
                means = {name: value / sums["count"] for name, value in sums.items() if name != "count"}
                progress.update(step, f"loss {means['loss']:.4f}  {100 * means['right']:.0f} % right")
                if step % per_epoch == 0:
                    self.files.append_metrics({"step": step, "epoch": step // per_epoch, "dpo": means})
                    right, sums = means["right"], {}
                if stop or step % self.config.checkpoint_steps == 0:
                    self.files.save(state, self._saved(step))
                if stop.signum is not None and step < total:
                    raise Interrupted(stop.signum, f"stopped at step {step}; continue with `resume`")
        self.files.save(state, self._saved(step))
        self.files.finish(state, self._saved(step))
        return DPOResult(len(self.pairs.chosen), step, right)

    def _saved(self, step: int) -> dict[str, int]:
        return {"step": step, "pairs": len(self.pairs.chosen)}

    def _step(self, state: FineTuneState, batch: Batch, step: int) -> tuple[FineTuneState, dict[str, float]]:
        rows, weight = fill(batch)
        sums = dpo_gradient(
            state.params,
            self.pairs.chosen.take(rows, batch.slots),
            self.pairs.rejected.take(rows, batch.slots),
            weight,
            tuple(values[rows] for values in self.reference),
            np.float32(self.config.beta),
            config=self.model.config,
        )
        state, norm = update(state, sums, learning_rate=self.config.learning_rate, clip_norm=self.config.clip_norm)
        if not math.isfinite(float(norm)):
            raise NumericsError(
                f"the gradient is not finite at step {step + 1}; the last checkpoint is {self.files.latest()}",
                "lower `learning_rate`, or look for extreme cells among the pairs",
            )
        return state, {name: float(value) for name, value in sums.watched.items()}

    def _score(self, crystals) -> np.ndarray:
        """Log-probabilities under the reference, nats, float32 [pairs]."""
        return np.asarray(self.model.log_prob(crystals).total, np.float32)


COLUMNS = ("chosen", "rejected")
FORM = "a .jsonl or .csv with `chosen` and `rejected`, each a CIF or a structure of pymatgen as JSON"


class Pairs(NamedTuple):
    """Encoded pairs.

    Attributes:
        chosen: the better crystal of each (numpy).
        rejected: the worse one.
        failures: rows left out, from 1, and why.
    """

    chosen: CrystalBatch
    rejected: CrystalBatch
    failures: list[tuple[int, str]]


def read_pairs(path: Path, n_max: int) -> Pairs:
    """The pairs of a file, those whose two crystals can be encoded.

    Raises:
        DataError: if the file cannot be read, or no pair is left.
    """
    rows = _rows(path)
    sides = [
        encode_records([_record(row, i, side) for i, row in enumerate(rows, 1)], SYMPREC, n_max - 1) for side in COLUMNS
    ]
    failures = [
        (i, f"{side}: {one}")
        for i, pair in enumerate(zip(*sides, strict=True), 1)
        for side, one in zip(COLUMNS, pair, strict=True)
        if isinstance(one, str)
    ]
    left_out = {row for row, _ in failures}
    kept = [i for i in range(len(rows)) if i + 1 not in left_out]
    if not kept:
        why = f": row {failures[0][0]}, {failures[0][1]}" if failures else ""
        raise DataError(f"{path} holds no pair of crystals{why}", f"write {FORM}")
    chosen, rejected = (as_batch([side[i] for i in kept], n_max) for side in sides)
    return Pairs(chosen, rejected, failures)


def _rows(path: Path) -> list[dict]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                csv.field_size_limit(sys.maxsize)
                rows = list(csv.DictReader(file))
            else:
                rows = [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}", f"write {FORM}") from error
    for i, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not all(row.get(side) for side in COLUMNS):
            raise DataError(f"row {i} of {path} has no chosen and rejected crystal", f"write {FORM}")
    return rows


def _record(row: dict, number: int, side: str) -> Record:
    value = row[side]
    text = value if isinstance(value, str) else json.dumps(value)
    return Record(f"row {number}", "json" if text.lstrip().startswith("{") else "cif", text)
