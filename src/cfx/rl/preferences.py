"""Fine-tuning on pairs of crystals, a better and a worse one each (DPO, 2305.18290).

The likelihood is the published one: pairs come from anywhere, and were not drawn in a known order of sites.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cfx.config import SYMPREC, DPOConfig, PairsRun
from cfx.core import Params
from cfx.core.batches import Batch, BatchPlan, mean_tokens
from cfx.core.crystal import CrystalBatch
from cfx.data.dataset import as_batch
from cfx.data.formats.tables import read_rows
from cfx.data.read import Record, encode_records
from cfx.errors import DataError
from cfx.model import Model
from cfx.reporter import Reporter
from cfx.rl.fine_tuning import FineTuning, watched_means
from cfx.training.learner import Gradient, PolicyState, loss_gradient
from cfx.training.objectives import dpo_loss


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
    loop = _Preferences(run, config, model, reporter)
    with loop.files.sole_writer():
        return loop.execute(resume)


class _Preferences(FineTuning):
    kind, title = "dpo", "fine-tuning on pairs"
    remedy = "lower `learning_rate`, or look for extreme cells among the pairs"
    config: DPOConfig

    def __init__(self, run: Path, config: PairsRun, model: Model, reporter: Reporter):
        self.config = config.dpo
        self.pairs = read_pairs(Path(config.pairs), model.config.n_max)
        if self.pairs.failures:
            row, why = self.pairs.failures[0]
            reporter.warning(f"{len({row for row, _ in self.pairs.failures})} pairs skipped, such as row {row}, {why}")
        sides = (self.pairs.chosen, self.pairs.rejected)
        longest = np.max([np.asarray(side.num_sites) for side in sides], axis=0)
        tokens = config.dpo.batch_size * mean_tokens(longest, model.config.n_max)
        self.plan = BatchPlan(longest, model.config.n_max, tokens)
        chosen, rejected = (np.asarray(model.log_prob(side).total, np.float32) for side in sides)
        self.reference_log_prob = chosen, rejected
        self.sums: Counter[str] = Counter()
        self.right = math.nan
        super().__init__(run, config, model, reporter, self.plan.num_batches * config.dpo.epochs)

    def execute(self, resume: bool) -> DPOResult:
        """Runs to the last epoch."""
        state, done = self.make_steps(*self.open(resume))
        self.finish(state, done)
        return DPOResult(len(self.pairs.chosen), done, self.right)

    def step(self, state: PolicyState, step: int) -> PolicyState:
        """An update by a batch of pairs; metrics are means over an epoch."""
        epoch, number = divmod(step, self.plan.num_batches)
        total = self._gradient(state.params, self.plan.epoch(self.config.seed, epoch)[number])
        state, _ = self.update(state, total, step=step)
        self.sums.update({name: float(value) for name, value in total.sums.items()})
        means = watched_means(self.sums)
        self.progress.update(step + 1, f"loss {means['loss']:.4f}  {100 * means['right']:.0f} % right")
        if number + 1 == self.plan.num_batches:
            self.files.append_metrics({"step": step + 1, "epoch": epoch + 1, self.kind: means})
            self.right = means["right"]
            self.sums.clear()
        return state

    def _gradient(self, params: Params, batch: Batch) -> Gradient:
        def take(rows: np.ndarray, weight: np.ndarray) -> tuple[Any, ...]:
            pairs = tuple(side.take(rows, batch.slots) for side in (self.pairs.chosen, self.pairs.rejected))
            return pairs, weight, tuple(log_prob[rows] for log_prob in self.reference_log_prob)

        spread, beta = self.devices.spread(batch, take), np.float32(self.config.beta)
        return loss_gradient(dpo_loss, params, self.reference.config, *spread, beta)

    def saved(self, done: int) -> dict[str, Any]:
        """See `FineTuning`."""
        return {"step": done, "pairs": len(self.pairs.chosen)}


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
    failures, better, worse = [], [], []
    for number, pair in enumerate(zip(*sides, strict=True), 1):
        reasons = [f"{side}: {one}" for side, one in zip(COLUMNS, pair, strict=True) if isinstance(one, str)]
        failures += [(number, reason) for reason in reasons]
        if not reasons:
            better.append(pair[0])
            worse.append(pair[1])
    if not better:
        why = f": row {failures[0][0]}, {failures[0][1]}" if failures else ""
        raise DataError(f"{path} holds no pair of crystals{why}", f"write {FORM}")
    return Pairs(as_batch(better, n_max), as_batch(worse, n_max), failures)


def _rows(path: Path) -> list[dict]:
    try:
        rows = list(read_rows(path))
    except DataError as error:
        raise DataError(error.message, f"write {FORM}") from error
    for i, row in enumerate(rows, 1):
        if not all(row.get(side) for side in COLUMNS):
            raise DataError(f"row {i} of {path} has no chosen and rejected crystal", f"write {FORM}")
    return rows


def _record(row: dict, number: int, side: str) -> Record:
    value = row[side]
    text = value if isinstance(value, str) else json.dumps(value)
    return Record(f"row {number}", "json" if text.lstrip().startswith("{") else "cif", text)
