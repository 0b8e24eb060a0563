"""Fine-tuning by reinforcement learning: draw, reward, learn; PPO as published, or with advantages by group (GRPO).

A step draws crystals from the policy, rewards them, and makes some updates on them. The policy starts as a model, which
stays the reference that the KL term holds it to, also of a run that is resumed.
"""

import dataclasses
import functools
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cfx.config.finetuning import RewardRun, RLConfig
from cfx.errors import NumericsError, RewardError, UsageError
from cfx.model import Model
from cfx.reporter import Reporter
from cfx.rl.crystal_log import CrystalLog
from cfx.rl.fine_tuning import FineTuning
from cfx.rl.quotas import NUM_DRAWS, Quotas, class_shares, classes_of
from cfx.rl.replay import Experience, Replay, effective_share
from cfx.rl.rewards import EVALUATIONS, Diversity, Reward
from cfx.rl.rollout import SHARES, Baseline, Rollout, draw, roll_out, step_request
from cfx.rl.updates import Lesson, TrustRegion, Updates, kl_estimate
from cfx.sampling.request import left_out, possible_groups, prepare
from cfx.training.learner import PolicyState
from cfx.training.objectives import group_advantage

QUANTILES = (0.1, 0.5, 0.9)


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
        model: where the policy starts; not read when resuming, where RUN/reference says it.
        diversity: what is added to it.
        resume: continue from the latest checkpoint.

    Raises:
        UsageError: if `run` exists and `resume` is False, or the request cannot be met.
        NumericsError: if too many crystals fail, or a gradient is not finite.
        RewardError: if the reward itself fails, after a checkpoint.
        OutputError: if something cannot be written.
        Interrupted: after a signal, once the work is saved.
    """
    loop = _Reinforcement(run, config, model, reward, diversity, reporter)
    with loop.files.sole_writer() if loop.devices.writes else nullcontext():
        return loop.execute(resume)


class _Reinforcement(FineTuning):
    kind = "rl"
    remedy = "lower `learning_rate`, or raise `kl_coef`"
    config: RLConfig

    def __init__(self, run: Path, config: RewardRun, model: Model, reward: Reward, diversity: Diversity, reporter):
        self.config = config.rl
        super().__init__(run, config, model, reporter, config.rl.steps)
        self.reward, self.diversity = reward, diversity
        self.prepared = prepare(config.sample, model.config)
        # The groups of grpo share a space group that is drawn here: it must be one that can meet the request.
        self.sample = possible_groups(config.sample, self.prepared.impossible)
        if self.prepared.impossible:
            reporter.warning(left_out(self.prepared.impossible))
        self.policy = None if config.rl.likelihood == "published" else self.prepared.policy
        self.kl_coef = config.rl.kl_coef if config.rl.kl_coef is not None else reward.kl_coef
        self.trust = TrustRegion.of(config.rl)
        self.learner = Updates(config.rl, model, self.policy, self.kl_coef, self.trust, self.devices)
        self.reference_params = self.devices.replicate(model.params)
        self.log = CrystalLog(run, config.rl.keep, config.rl.diversity_steps, self.devices.writes)
        self.baseline = Baseline(config.rl)
        self.quotas: Quotas | None = None
        if self.learner.truncates and config.rl.replay != "none":
            raise UsageError(
                "a replay has no exact ratios under top-p: what earlier policies could draw, this one may not",
                "leave out `replay` or `top_p`",
            )
        self.replay = Replay(config.rl)
        self.rewards: list[float] = []
        self.num_best = 0
        self.warned = False

    def execute(self, resume: bool) -> RLResult:
        """Runs from the beginning, or from the latest checkpoint, to the last step."""
        state, done = self.open(resume)
        if self.devices.processes > 1:
            self.reporter.message(f"{self.devices.count} devices, {self.devices.processes} processes")
        state, done = self.make_steps(state, done)
        self.finish(state, done)
        first, last = (self.rewards[0], self.rewards[-1]) if self.rewards else (None, None)
        return RLResult(done, first, last, self.num_best, self.ended)

    # A step.

    def step(self, state: PolicyState, step: int) -> PolicyState:
        """A rollout, and what is learnt from it."""
        policy = Model("policy", self.reference.config, jax.device_get(state.params), self.reference.info)
        try:
            rollout = roll_out(
                policy,
                self.sample,
                self.config,
                step,
                self.reward,
                self.diversity,
                self.log.cache,
                self.prepared,
                self.devices,
            )
        except RewardError as error:
            if not all(self.devices.exchange(self.files.checkpoint(step).exists())):
                self.save(state, step, final=True)
            where = f"the run is saved in {self.files.checkpoint(step)}"
            raise RewardError(
                f"step {step + 1}: {error.message}; {where}", f"{error.hint}; once it is mended, `resume` goes on"
            ) from error
        self._check(rollout, step)
        advantage = self._advantage(rollout)
        start = time.perf_counter()
        state, drawn, learnt = self._learn(state, rollout, advantage, step)
        seconds = rollout.seconds | {"updating": time.perf_counter() - start}
        self.devices.together(lambda: self.log.append(step + 1, rollout, drawn))
        line = self._describe(rollout) | learnt | {f"seconds_{name}": value for name, value in seconds.items()}
        self.devices.first(lambda: self.files.append_metrics({"step": step + 1, self.kind: line}))
        self.rewards.append(line["reward"])
        self.progress.update(step + 1, _summary(line, self.reward))
        return state

    def _learn(
        self, state: PolicyState, rollout: Rollout, advantage: np.ndarray, step: int
    ) -> tuple[PolicyState, Experience, dict[str, float]]:
        """The state after the updates of a step, what it drew as later steps may learn from it, and what is told."""
        log_prob, discrete = self.learner.score(state.params, rollout.crystals)
        reference, _ = self.learner.score(self.reference_params, rollout.crystals, drew=False)
        drawn = Experience(rollout.crystals, rollout.value, advantage, log_prob, reference)
        told = kl_estimate(drawn)
        if self.config.max_kl and told["kl_reference"] > self.config.max_kl:
            self.ended = f"the KL from the reference is {told['kl_reference']:.2f} nats"
            return state, drawn, told | {"updates": 0}
        parts = [Lesson.of(drawn, log_prob, self._changing(drawn, discrete, discrete.mean()))]
        if again := self.replay.choose(step):
            log_prob_now, discrete_now = self.learner.score(state.params, again.crystals)
            parts.append(Lesson.of(again, log_prob_now, self._changing(again, discrete_now, discrete.mean())))
            told |= {"replayed": len(again), "replay_effective": effective_share(parts[-1].weight)}
        self.replay.add(drawn)
        apply = functools.partial(self.update, step=step)
        state, learnt = self.learner.learn(state, Lesson.joined(parts), [self.config.seed, step], apply)
        return state, drawn, told | learnt

    def _check(self, rollout: Rollout, step: int) -> None:
        """Stops before anything is learnt from failures."""
        self._warn_of_the_worst(rollout.value, step)
        failures = rollout.failures
        if failures.total() <= self.config.max_failures * len(rollout.reasons):
            return
        said = ", ".join(f"{count} x {reason}" for reason, count in failures.most_common(3))
        raise NumericsError(
            f"{failures.total()} of {len(rollout.reasons)} crystals of step {step + 1} have no reward: {said}",
            "check whether reward and hull suit what the model draws; `max_failures` allows more",
        )

    def _warn_of_the_worst(self, value: np.ndarray, step: int) -> None:
        """Warns once of a reward below what a failure counts as, for then it pays to fail."""
        lowest, failure = np.min(value, initial=np.inf, where=np.isfinite(value)), self.reward.failure
        if self.warned or lowest >= failure - 1e-6 * max(1.0, abs(failure)):
            return
        self.warned = True
        self.reporter.warning(
            f"a crystal of step {step + 1} has a reward of {lowest:.4g}, below the {failure:.4g} that a failure counts "
            "as: the policy may learn to fail; lower the reward's `failure`, or bound it with `clip`"
        )

    def _advantage(self, rollout: Rollout) -> np.ndarray:
        """Rewards about their baseline, float32 [B]; quotas take note of the classes."""
        if self.config.algorithm == "grpo":
            advantage = group_advantage(rollout.reward, self.config.group_size)
        else:
            kinds = rollout.kinds if self.config.baseline == "class" else rollout.crystals.space_group
            advantage = rollout.reward - self.baseline.update(rollout.reward, np.asarray(kinds))
        if self.config.quotas == "class":
            self.quotas = self.quotas or Quotas(self._prior())
            self.quotas.update(rollout.kinds, float(advantage.std()))
        return advantage.astype(np.float32)

    def _changing(self, drawn: Experience, discrete: np.ndarray, mean: float) -> np.ndarray:
        """What advantages have besides, as the policy is now: the entropy bonus, and the multipliers of quotas; [B].

        Args:
            drawn: the crystals.
            discrete: log-probability of their letters and species, nats [B].
            mean: of that over draws of the policy.
        """
        bonus = self.config.entropy_coef * (mean - discrete)
        if self.quotas is None:
            return bonus
        return bonus - self.quotas.multipliers[classes_of(drawn.crystals)].astype(np.float32)

    def _prior(self) -> np.ndarray:
        """Shares of the classes among the reference's draws, by place in CLASSES."""
        request = dataclasses.replace(step_request(self.sample, self.config, self.num_steps), n=NUM_DRAWS)
        crystals, _ = draw(self.reference, request, self.prepared, self.devices)
        return np.array(list(class_shares(classes_of(crystals)).values()))

    # What a run tells.

    def _describe(self, rollout: Rollout) -> dict[str, Any]:
        """The line of metrics of a rollout; parts of the reward are means over the crystals that have them."""
        ok = np.isfinite(rollout.value)
        line: dict[str, Any] = {"reward": float(rollout.reward.mean()), "baseline": self.baseline.mean}
        for quantile in QUANTILES if ok.any() else ():
            line[f"reward_q{100 * quantile:.0f}"] = float(np.quantile(rollout.value[ok], quantile))
        line["failures"] = 1 - float(ok.mean())
        line["reasons"] = dict(rollout.failures.most_common(3))
        line |= {name: float(rollout.metrics[name].mean()) for name in SHARES if name in rollout.metrics}
        parts = {name: values for name, values in rollout.metrics.items() if name not in (*SHARES, EVALUATIONS)}
        line["parts"] = {name: float(np.nanmean(v)) for name, v in parts.items() if np.isfinite(v).any()}
        line["entropy"] = rollout.entropy
        line |= self.log.diversity()
        if "class" in (self.config.baseline, self.config.quotas):
            line["classes"] = class_shares(rollout.kinds)
        if EVALUATIONS in rollout.metrics:
            line["evaluations"] = int(np.nansum(rollout.metrics[EVALUATIONS]))
        return line | {"cached": rollout.cached, "kl_coef": self.kl_coef}

    # Files of the run.

    def close(self) -> None:
        """Writes the best crystals."""
        self.num_best = self.devices.together(self._write_best)[0]

    def _write_best(self) -> int:
        return self.log.write_best(self.files.path / "best.cif") if self.devices.writes else 0

    def saved(self, done: int) -> dict[str, Any]:
        """See `FineTuning`."""
        baseline, reward = self.baseline.saved(), self.reward.about
        return {
            "step": done,
            "baseline": baseline,
            "lr_scale": self.trust.scale,
            "quotas": self.quotas and self.quotas.saved(),
            "kl_coef": self.kl_coef,
            "reward": reward,
        }

    def restore_saved(self, saved: dict[str, Any]) -> None:
        """See `FineTuning`."""
        self.baseline.restore(saved["baseline"])
        self.trust.scale = saved.get("lr_scale", self.trust.scale)
        self.quotas = Quotas.restored(saved["quotas"]) if saved.get("quotas") else None
        for experience in self.log.restore(saved["step"], self.reference.config.n_max, self.replay.steps):
            self.replay.add(experience)


def _summary(line: dict[str, Any], reward: Reward) -> str:
    """The progress line of a step."""
    seconds = sum(line[f"seconds_{name}"] for name in ("sampling", "rewarding", "updating"))
    distance = f"KL(policy || reference) {line['kl_reference']:.2f} +- {line['kl_error']:.2f} nats"
    return (
        f"reward {line['reward']:.3f} {reward.unit}".rstrip()
        + f"  {distance}  unique {100 * line['unique']:.0f} %"
        + f"  compositions {100 * line['compositions']:.0f} %, {line['vendi_compositions']:.0f} in effect"
        + (f"  {line['evaluations']:,} evaluations" if "evaluations" in line else "")
        + f"  {seconds:.1f} s"
    )
