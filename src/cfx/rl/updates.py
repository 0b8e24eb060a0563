"""What is learnt from a rollout: passes over its minibatches, with updates that go no further than is measured."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import numpy as np

from cfx.config import RLConfig
from cfx.core import Params
from cfx.core.batches import Batch, BatchPlan, num_tokens
from cfx.core.crystal import CrystalBatch, concatenate
from cfx.model import Model
from cfx.rl.fine_tuning import watched_means
from cfx.rl.replay import Experience
from cfx.sampling.policy import Policy
from cfx.training.devices import Devices
from cfx.training.learner import Gradient, PolicyState, add, loss_gradient, score
from cfx.training.objectives import PPOBatch, ppo_loss

LENGTHS = (3, 5, 8, 12)
"""Slots of a batch, besides all; few, for each costs two compilations before the first step is done."""

FIRST_SCALE, GROWTH = 1 / 16, 1.25
"""Adam's first updates move every weight by the learning rate in the direction of one gradient, and so go furthest. The
scale reaches 1 after 13 updates."""

HALVINGS = 3
"""How often an update is halved before it is taken back."""

Apply = Callable[[PolicyState, Gradient, float], tuple[PolicyState, float]]
"""The state after an update by a gradient at a scale of the learning rate, and the norm of the gradient."""


@dataclass
class TrustRegion:
    """How far updates go: a scale of the learning rate that follows what is measured.

    An update is too far if of the next minibatch, which it has not seen, more than `max_clipped` has a probability
    ratio outside the clip range. It is then halved; the scale is halved with it, and grows again with later updates.

    Attributes:
        max_clipped: share of a minibatch; 0: none, and the scale is always 1.
        scale: of the learning rate for the next update.
    """

    max_clipped: float
    scale: float

    @classmethod
    def of(cls, config: RLConfig) -> Self:
        """The one that a run begins with."""
        return cls(config.max_clipped, FIRST_SCALE if config.max_clipped else 1.0)

    def holds(self, gradient: Gradient) -> bool:
        """Whether a minibatch is within it."""
        return not self.max_clipped or float(gradient.sums["clipped"] / gradient.sums["count"]) <= self.max_clipped

    def grow(self) -> None:
        """Has the next update go further, up to the learning rate."""
        self.scale = min(1.0, GROWTH * self.scale)


@dataclass(frozen=True)
class Lesson:
    """What a step learns from.

    Attributes:
        crystals: N of them.
        known: of each; `old` is the log-probability under the policy that the step begins with.
        weight: float32 [N], 1 for a draw of that policy, else the ratio of its probability to that of what drew it.
    """

    crystals: CrystalBatch
    known: PPOBatch
    weight: np.ndarray

    @classmethod
    def of(cls, drawn: Experience, log_prob: np.ndarray, changing: np.ndarray) -> Self:
        """What is to be learnt from crystals.

        Args:
            drawn: they, and what was known of them when they were drawn.
            log_prob: under the policy that the step begins with, nats [B].
            changing: added to their advantages [B].
        """
        known = PPOBatch(drawn.advantage + changing, log_prob, drawn.log_prob_reference)
        return cls(drawn.crystals, known, np.exp(log_prob - drawn.log_prob))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All of them, one after the other."""
        if len(parts) == 1:
            return parts[0]
        known = PPOBatch(*map(np.concatenate, zip(*(part.known for part in parts), strict=True)))
        weight = np.concatenate([part.weight for part in parts])
        return cls(concatenate([part.crystals for part in parts]), known, weight)


@dataclass(frozen=True)
class Updates:
    """What learns from rollouts.

    Attributes:
        config: how.
        reference: the model that the policy is held to.
        policy: what is in force while crystals are drawn; None for the published likelihood. Under top-p, the policy
            that learns keeps, in every draw, what the one that drew the crystals of a step kept: so ratios are those
            of two distributions of one support, and their mean is 1. The reference keeps all.
        kl_coef: tau, in units of the reward.
        trust: how far updates go.
        devices: that share the crystals.
    """

    config: RLConfig
    reference: Model
    policy: Policy | None
    kl_coef: float
    trust: TrustRegion
    devices: Devices

    def learn(
        self, state: PolicyState, lesson: Lesson, seed: list[int], apply: Apply
    ) -> tuple[PolicyState, dict[str, float]]:
        """The state after all passes, and means over all updates of what was watched.

        `apply` makes an update, which is judged by the next minibatch. Where HALVINGS do not bring that into the trust
        region, the update is taken back, and the passes end.
        """
        before, norm, halved = state, 0.0, 0
        keeping = state.params if self.truncates else None
        passes: list[list[dict[str, float]]] = [[] for _ in range(self.config.inner_epochs)]
        for number, rows in self._minibatches(len(lesson.weight), seed):
            if number and not passes[number] and self._is_far(passes[number - 1]):
                break
            at = functools.partial(self._gradient, lesson=lesson, chosen=rows, keeping=keeping)
            state, gradient, times = self._judge(before, state, at)
            halved += times
            if gradient is None:
                break
            before = state
            state, norm = apply(state, gradient, self.trust.scale)
            self.trust.grow()
            passes[number].append({name: float(value) for name, value in gradient.sums.items()})
        updates = [sums for made in passes for sums in made]
        told = {"grad_norm": norm, "updates": len(updates), "halved": halved, "lr_scale": self.trust.scale}
        return state, _means(updates) | told

    def _minibatches(self, num_crystals: int, seed: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """The number of the pass, from 0, and the rows of each minibatch."""
        rng = np.random.default_rng(seed)
        for number in range(self.config.inner_epochs):
            for rows in np.array_split(rng.permutation(num_crystals), self.config.minibatches):
                yield number, np.sort(rows)

    def _is_far(self, made: list[dict[str, float]]) -> bool:
        """Whether a pass has come further from the rollout's policy than it should."""
        return bool(self.config.target_kl) and _means(made)["kl_old"] > self.config.target_kl

    def _judge(
        self, before: PolicyState, state: PolicyState, at: Callable[[Params], Gradient]
    ) -> tuple[PolicyState, Gradient | None, int]:
        """The state within the trust region, a minibatch's gradient there, and how often the last update was halved.

        Args:
            before: the state before the last update.
            state: the state after it.
            at: gradient of the minibatch at given weights.

        Returns:
            The state before the update and None, where it was taken back.
        """
        for times in range(HALVINGS + 1):
            gradient = at(state.params)
            if self.trust.holds(gradient):
                self.trust.scale /= 2**times
                return state, gradient, times
            state = state._replace(params=jax.tree.map(_halfway, before.params, state.params))
        self.trust.scale /= 2
        return state._replace(params=before.params), None, HALVINGS + 1

    def _plan(self, crystals: CrystalBatch) -> BatchPlan:
        """Short batches: those of each length are filled up."""
        tokens = max(len(crystals) // 8, 8) * num_tokens(6)
        return BatchPlan(np.asarray(crystals.num_sites), self.reference.config.n_max, tokens, LENGTHS)

    @property
    def truncates(self) -> bool:
        """Whether crystals are drawn under top-p."""
        return self.policy is not None and float(self.policy.sharpness.top_p) < 1

    def score(self, params: Params, crystals: CrystalBatch, drew: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities under the likelihood of the run, nats: of crystals, of their letters and species; [B].

        They come from the kernel that learns: the decoder's own numbers differ in the last digits, and ratios are to
        begin at 1. Weights that drew the crystals are under top-p if the run is, others are not.
        """
        policy, keeping = self.policy, ()
        if self.truncates and policy is not None:
            keeping = (params,) if drew else ()
            policy = policy if drew else replace(policy, sharpness=replace(policy.sharpness, top_p=np.float32(1)))
        total, discrete = np.zeros((2, len(crystals)), np.float32)
        for batch in self._plan(crystals).epoch():
            spread, _ = self.devices.take(crystals, batch)
            part = score(params, self.reference.config, spread, policy, *keeping)
            total[batch.rows] = self.devices.whole(part.total)[: len(batch.rows)]
            discrete[batch.rows] = self.devices.whole(part.wyckoff + part.species)[: len(batch.rows)]
        return total, discrete

    def _gradient(self, params: Params, lesson: Lesson, chosen: np.ndarray, keeping: Params | None) -> Gradient:
        """Gradient of the loss over the chosen crystals, summed over batches of equal length."""
        crystals, own = lesson.crystals[chosen], lesson.weight[chosen]
        known = PPOBatch(*(values[chosen] for values in lesson.known))

        coefs = tuple(map(np.float32, (self.kl_coef, self.config.clip_range)))

        def one(batch: Batch) -> Gradient:
            def take(rows: np.ndarray, weight: np.ndarray) -> tuple[CrystalBatch, np.ndarray, PPOBatch]:
                its = PPOBatch(*(values[rows] for values in known))
                return crystals.take(rows, batch.slots), weight * own[rows], its

            spread = self.devices.spread(batch, take)
            arguments = (*spread, self.policy, *coefs, *([] if keeping is None else [keeping]))
            return loss_gradient(ppo_loss, params, self.reference.config, *arguments)

        return functools.reduce(add, map(one, self._plan(crystals).epoch()))


def kl_estimate(drawn: Experience) -> dict[str, float]:
    """KL(p || p_ref) of the policy p that drew the crystals, nats: the mean of log p - log p_ref, and its error.

    The mean over draws of p is unbiased; being of finitely many, it may fall below 0 by a few standard errors.
    """
    log_ratio = drawn.log_prob.astype(float) - drawn.log_prob_reference
    error = log_ratio.std(ddof=1) / math.sqrt(len(log_ratio)) if len(log_ratio) > 1 else 0.0
    return {"kl_reference": float(log_ratio.mean()), "kl_error": float(error)}


def _means(updates: list[dict[str, float]]) -> dict[str, float]:
    """Means over the crystals of updates; `kl_reference` is not among them, for old draws say little of it."""
    if not updates:
        return {}
    means = watched_means({name: sum(sums[name] for sums in updates) for name in updates[0]})
    del means["kl_reference"]
    most = max(sums["clipped"] / sums["count"] for sums in updates)
    return means | {"objective": -means.pop("loss"), "clipped_most": most}


def _halfway(one: Any, other: Any) -> Any:
    return one + (other - one) / 2
