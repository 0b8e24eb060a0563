"""Fine-tuning on pairs of crystals, a better and a worse one each (DPO, 2305.18290).

The likelihood is the published one: pairs come from anywhere, and were not drawn in a known order of sites.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfx.config.finetuning import PairsRun
from cfx.core.batches import Batch, BatchPlan, fill, mean_tokens
from cfx.core.finetune import FineTuneState, dpo_gradient, update
from cfx.errors import NumericsError
from cfx.io.pairs import read_pairs
from cfx.model import Model
from cfx.reporter import Reporter
from cfx.runs.policyrun import PolicyRun
from cfx.runs.signals import Interrupted, StopRequest


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
    return _Run(PolicyRun(run, config, model, "dpo"), config, model, reporter).execute(resume)


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
        if resume:
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
                    raise Interrupted(stop.signum, f"stopped at step {step}; continue with --resume")
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
                "lower --lr, or look for extreme cells among the pairs",
            )
        return state, {name: float(value) for name, value in sums.watched.items()}

    def _score(self, crystals) -> np.ndarray:
        """Log-probabilities under the reference, nats, float32 [pairs]."""
        return np.asarray(self.model.log_prob(crystals).total, np.float32)
