"""Fine-tuning by reinforcement: draw, reward, learn; PPO as published, or with advantages by group (GRPO).

A step draws crystals from the policy, rewards them, and makes some updates on them. The policy starts as a model, which
stays the reference that the KL term holds it to, also of a run that is resumed.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfx.config.finetuning import RewardRun
from cfx.core.batches import BatchPlan, fill, num_tokens
from cfx.errors import NumericsError
from cfx.model import Model
from cfx.reporter import Reporter
from cfx.rl.crystal_log import CrystalLog
from cfx.rl.rewards import Diversity, Reward
from cfx.rl.rollout import Baseline, Rollout, roll_out
from cfx.sampling.request import prepare
from cfx.signals import Interrupted, StopRequest
from cfx.training import objectives
from cfx.training.finetune import FineTuneState, Sums, add, ppo_gradient, score, update
from cfx.training.objectives import group_advantage
from cfx.training.run_directory import PolicyRun

QUANTILES = (0.1, 0.5, 0.9)

LENGTHS = (3, 5, 8, 12)
"""Slots of a batch, besides all; few, for each costs two compilations before the first step is done."""


@dataclass(frozen=True)
class RLResult:
    """Where a run ended.

    Attributes:
        step: steps taken.
        first: mean reward of the first step, with failures as what they count for; None if nothing was left to do.
        last: of the last step.
        best: crystals in best.cif.
        ended: why it ended before its last step, or "".
    """

    step: int
    first: float | None
    last: float | None
    best: int
    ended: str = ""


def fine_tune(
    run: Path,
    config: RewardRun,
    model: Model,
    reward: Reward,
    diversity: Diversity,
    reporter: Reporter,
    resume: bool = False,
) -> RLResult:
    """Fine-tunes a model into the directory `run`.

    Args:
        run: directory; must be new or empty unless `resume`. It gets config.toml, metrics.jsonl, crystals.jsonl,
            checkpoints/, reference/ (the model it started from), final/ (the policy) and best.cif.
        config: what to do.
        model: where the policy starts; not read when resuming, where RUN/reference says it.
        reward: what makes a crystal good.
        diversity: what is added to it.
        reporter: receives progress.
        resume: continue from the latest checkpoint.

    Raises:
        UsageError: if `run` exists and `resume` is False, or the request cannot be met.
        NumericsError: if too many crystals fail, or a gradient is not finite.
        OutputError: if something cannot be written.
        Interrupted: after a signal, once the work is saved.
    """
    files = PolicyRun(run, config, model, "rl")
    with files.sole_writer():
        return _Run(files, config, model, reward, diversity, reporter).execute(resume)


class _Run:
    def __init__(self, files: PolicyRun, config: RewardRun, model: Model, reward, diversity, reporter):
        self.files, self.sample, self.config = files, config.sample, config.rl
        self.reference, self.reward, self.diversity, self.reporter = model, reward, diversity, reporter
        self.prepared = prepare(config.sample, model.config)
        published = config.rl.likelihood == "published"
        self.policy = None if published else self.prepared.policy
        self.kl_coef = config.rl.kl_coef if config.rl.kl_coef is not None else reward.kl_coef
        self.log = CrystalLog(files.path, config.rl.keep)
        self.baseline = Baseline(config.rl)

    def execute(self, resume: bool) -> RLResult:
        """Runs from the beginning, or from the latest checkpoint, to the last step."""
        state, step = self._restore() if resume and self.files.checkpoints() else self._begin()
        first = last = None
        ended = ""
        with StopRequest() as stop, self.reporter.progress("fine-tuning", self.config.steps) as progress:
            progress.update(step, "compiling")
            while step < self.config.steps:
                state, line = self._step(state, step)
                step += 1
                last = line["reward"]
                first = last if first is None else first
                progress.update(step, _summary(line, self.reward))
                if self.config.max_kl and line["kl_reference"] > self.config.max_kl:
                    ended = f"the KL from the reference is {line['kl_reference']:.2f} nats"
                if stop or ended:
                    break
                if step % self.config.checkpoint_steps == 0:
                    self.files.save(state, self._saved(step))
            self.files.save(state, self._saved(step))
            best = self.log.write_best(self.files.path / "best.cif")
            if stop.signum is not None and step < self.config.steps:
                raise Interrupted(stop.signum, f"stopped at step {step}; continue with `resume`")
        self.files.finish(state, self._saved(step))
        return RLResult(step, first, last, best, ended)

    # A step.

    def _step(self, state: FineTuneState, step: int) -> tuple[FineTuneState, dict[str, Any]]:
        policy = Model("policy", self.reference.config, state.params, self.reference.info)
        rollout = roll_out(
            policy,
            self.sample,
            self.config,
            step,
            self.reward,
            self.diversity,
            self.log.cache,
            self.prepared,
        )
        self._check(rollout, step)
        advantage = self._advantage(rollout)
        start = time.perf_counter()
        state, learnt = self._learn(state, rollout, advantage, step)
        seconds = rollout.seconds | {"updating": time.perf_counter() - start}
        line = self._describe(rollout) | learnt | {f"seconds_{name}": value for name, value in seconds.items()}
        self.log.append(step + 1, rollout)
        self.files.append_metrics({"step": step + 1, "rl": line})
        return state, line

    def _check(self, rollout: Rollout, step: int) -> None:
        """Stops before anything is learnt from failures."""
        failures = rollout.failures
        if failures.total() <= self.config.max_failures * len(rollout.reasons):
            return
        said = ", ".join(f"{count} x {reason}" for reason, count in failures.most_common(3))
        raise NumericsError(
            f"{failures.total()} of {len(rollout.reasons)} crystals of step {step + 1} have no reward: {said}",
            "see whether reward and hull fit what the model draws; `max_failures` allows more",
        )

    def _advantage(self, rollout: Rollout) -> np.ndarray:
        """Rewards about their baseline, float32 [B]."""
        if self.config.algorithm == "grpo":
            return group_advantage(rollout.reward, self.config.group_size).astype(np.float32)
        baseline = self.baseline.update(rollout.reward, rollout.crystals.space_group)
        return (rollout.reward - baseline).astype(np.float32)

    def _learn(
        self, state: FineTuneState, rollout: Rollout, advantage: np.ndarray, step: int
    ) -> tuple[FineTuneState, dict[str, float]]:
        """The inner epochs on one rollout, and means of what was watched in the last of them."""
        crystals, config = rollout.crystals, self.config
        known = objectives.Rollout(
            advantage, self._score(state.params, crystals), self._score(self.reference.params, crystals)
        )
        rng = np.random.default_rng([config.seed, step])
        updates, watched, norm = 0, Counter(), 0.0
        for _ in range(config.inner_epochs):
            watched = Counter()
            for rows in np.array_split(rng.permutation(len(crystals)), config.minibatches):
                sums = self._gradient(state.params, crystals, np.sort(rows), known)
                state, size = update(state, sums, learning_rate=config.learning_rate, clip_norm=config.clip_norm)
                norm, updates = float(size), updates + 1
                if not math.isfinite(norm):
                    raise NumericsError(
                        f"the gradient is not finite at step {step + 1}; the last checkpoint is {self.files.latest()}",
                        "lower `learning_rate`, or raise `kl_coef`",
                    )
                watched.update({name: float(value) for name, value in sums.watched.items()})
            if config.target_kl and watched["kl_old"] / watched["count"] > config.target_kl:
                break
        means = {name: value / watched["count"] for name, value in watched.items() if name not in ("count", "loss")}
        return state, {**means, "objective": -watched["loss"] / watched["count"], "grad_norm": norm, "updates": updates}

    def _plan(self, crystals) -> BatchPlan:
        """Short batches: those of each length are filled up."""
        tokens = max(len(crystals) // 8, 8) * num_tokens(6)
        return BatchPlan(crystals.num_sites, self.reference.config.n_max, tokens, LENGTHS)

    def _score(self, params: Any, crystals) -> np.ndarray:
        """Log-probabilities under the likelihood of the run, nats, float32 [B]."""
        total = np.zeros(len(crystals), np.float32)
        for batch in self._plan(crystals).epoch():
            rows, _ = fill(batch)
            part = score(params, self.reference.config, crystals.take(rows, batch.slots), self.policy)
            total[batch.rows] = np.asarray(part.total)[: len(batch.rows)]
        return total

    def _gradient(self, params: Any, crystals, chosen: np.ndarray, known: objectives.Rollout) -> Sums:
        """Sums over the chosen rows, batch by batch of equal length."""
        total: Sums | None = None
        part = crystals[chosen]
        for batch in self._plan(part).epoch():
            rows, weight = fill(batch)
            one = ppo_gradient(
                params,
                part.take(rows, batch.slots),
                weight,
                objectives.Rollout(*(values[chosen][rows] for values in known)),
                self.policy,
                np.float32(self.kl_coef),
                np.float32(self.config.clip_range),
                config=self.reference.config,
            )
            total = one if total is None else add(total, one)
        return total

    # What a run tells.

    def _describe(self, rollout: Rollout) -> dict[str, Any]:
        """The line of metrics of a rollout; parts of the reward are means over the crystals that have them."""
        ok = np.isfinite(rollout.value)
        line: dict[str, Any] = {"reward": float(rollout.reward.mean()), "baseline": self.baseline.mean}
        for quantile in QUANTILES:
            line[f"reward_q{100 * quantile:.0f}"] = float(np.quantile(rollout.value[ok], quantile))
        line["failures"] = 1 - float(ok.mean())
        line["reasons"] = dict(rollout.failures.most_common(3))
        line |= {name: float(rollout.metrics[name].mean()) for name in ("valid", "unique")}
        if "novel" in rollout.metrics:
            line["novel"] = float(rollout.metrics["novel"].mean())
        parts = {name: values for name, values in rollout.metrics.items() if name not in ("valid", "unique", "novel")}
        line["parts"] = {name: float(np.nanmean(v)) for name, v in parts.items() if np.isfinite(v).any()}
        line["entropy"] = rollout.entropy
        return line | {"cached": rollout.cached, "kl_coef": self.kl_coef}

    # Files of the run.

    def _begin(self) -> tuple[FineTuneState, int]:
        state = self.files.begin()
        self.files.save(state, self._saved(0))
        return state, 0

    def _restore(self) -> tuple[FineTuneState, int]:
        state, saved = self.files.restore()
        step = saved["step"]
        self.baseline.restore(saved["baseline"])
        self.log.restore(step, self.reference.config.n_max)
        self.reporter.message(f"resuming {self.files.path} at step {step} of {self.config.steps}")
        return state, step

    def _saved(self, step: int) -> dict[str, Any]:
        return {"step": step, "baseline": self.baseline.saved(), "kl_coef": self.kl_coef, "reward": self.reward.about}


def _summary(line: dict[str, Any], reward: Reward) -> str:
    """The progress line of a step."""
    seconds = sum(line[f"seconds_{name}"] for name in ("sampling", "rewarding", "updating"))
    return (
        f"reward {line['reward']:.3f} {reward.unit}".rstrip()
        + f"  KL {line['kl_reference']:.2f} nats  unique {100 * line['unique']:.0f} %  {seconds:.1f} s"
    )
