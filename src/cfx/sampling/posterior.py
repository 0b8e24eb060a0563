"""Which space groups a request takes, from the model itself.

A model gives letters and species of a space group; by Bayes' rule it also gives the space groups of a formula:
p(group | formula) is proportional to the group's frequency times p(formula | group), the share of the model's crystals
that have the formula, in cells of any number of formula units. That share is far too small to be counted. It is the
mean weight of draws under the masks of the formula (`sampling.constraints`), where a draw weighs p / q: its probability
under the model over that of being drawn, as far as letters and species go, and nothing if it ended without the formula.
Coordinates are drawn from the model itself, so that they cancel. (Importance sampling: Owen, Monte Carlo theory,
methods and examples, 2013, chapter 9.)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from cfx.config import ModelConfig, SampleConfig
from cfx.core import Params
from cfx.core.crystal import CrystalBatch
from cfx.core.likelihood import LogProb
from cfx.errors import NumericsError
from cfx.sampling import incremental
from cfx.sampling.constraints import satisfied
from cfx.sampling.decode import Drawn
from cfx.sampling.ledger import Ledger, together
from cfx.sampling.policy import request_key
from cfx.sampling.pools import MIN_SLOTS, Decoder
from cfx.sampling.request import PreparedRequest, prepare
from cfx.sampling.sampler import Decoders

DRAWS = 4000
"""Most draws, unless more are asked for."""

FIRST_DRAWS = 8
"""Draws of every space group before any is drawn more often."""

ROUND = 256
"""Draws in each further round."""

ENOUGH = 100.0
"""Effective sample size at which the draws end."""

DEFENSIVE = 0.2
"""Draws by the prior in further rounds, for each one that goes where the weights so far say: those may all be of
arrangements that are not the likely ones (as a defensive mixture; Hesterberg, Technometrics 37, 185, 1995)."""

APART = 0x5047
"""Folded into the key of the seed: the crystals that are sampled with it afterwards share no random numbers."""


@dataclass(frozen=True)
class SpaceGroupPosterior:
    """Space groups of a request, G of them, by their probability under a model.

    Attributes:
        space_groups: their numbers, as asked.
        probability: p(group | request); 0 where the group cannot meet the request, or the model never saw it.
        standard_error: of `probability`, as far as the weights of the draws tell.
        log_likelihood: log p(request | group), nats: of the share of the model's crystals that meet the request; -inf
            where the probability is 0.
        prior: frequency among the crystals that the model was trained on; uniform where that is not known.
        is_uniform: whether the prior is uniform for that reason.
        draws: how many were made of each.
        effective_sample_size: to how many equally likely draws from the posterior all draws together amount (Kish), as
            far as their weights tell: a likely arrangement that was never drawn is missing in it.
        crystals: the B draws that meet the request. Their lattices are as drawn, and may be unphysical.
        log_prob: of `crystals`, published, nats [B].
        log_weights: of `crystals` [B]; their exponentials sum to 1. Crystals that are resampled by them are draws of
            p(group, letters, species | request), with coordinates and lattice from the model.
    """

    space_groups: Int[np.ndarray, " G"]
    probability: Float[np.ndarray, " G"]
    standard_error: Float[np.ndarray, " G"]
    log_likelihood: Float[np.ndarray, " G"]
    prior: Float[np.ndarray, " G"]
    is_uniform: bool
    draws: Int[np.ndarray, " G"]
    effective_sample_size: float
    crystals: CrystalBatch
    log_prob: LogProb
    log_weights: Float[np.ndarray, " B"]

    @property
    def ranked(self) -> list[tuple[int, float]]:
        """The possible space groups with their probabilities, the likeliest first."""
        order = np.argsort(-self.probability, kind="stable")
        pairs = zip(self.space_groups[order].tolist(), self.probability[order].tolist(), strict=True)
        return [(group, probability) for group, probability in pairs if probability]

    def narrow(self, request: SampleConfig) -> SampleConfig:
        """The request with its space groups drawn by their probability."""
        return _narrow(request, self.ranked)


@dataclass(frozen=True)
class SpaceGroupsOfHead:
    """Space groups of a request by p(group | formula) as a model's own head tells it; nothing is drawn for that.

    Attributes:
        ranked: those that can meet the request with their probabilities, the likeliest first.
    """

    ranked: list[tuple[int, float]]

    @classmethod
    def of(cls, log_prob: Float[np.ndarray, "230"], request: SampleConfig, config: ModelConfig) -> SpaceGroupsOfHead:
        """Leaves out the groups that cannot meet the request.

        Raises:
            UsageError: if none can.
        """
        groups = sorted(set(request.space_groups) - set(prepare(request, config).impossible))
        share = np.exp(log_prob[np.array(groups) - 1].astype(float))
        share /= share.sum()
        return cls(sorted(zip(groups, share.tolist(), strict=True), key=lambda pair: -pair[1]))

    def narrow(self, request: SampleConfig) -> SampleConfig:
        """The request with its space groups drawn by their probability."""
        return _narrow(request, self.ranked)


def _narrow(request: SampleConfig, ranked: list[tuple[int, float]]) -> SampleConfig:
    groups, weights = zip(*sorted(ranked), strict=True)
    return dataclasses.replace(request, space_groups=groups, weights=weights)


class _Draws(NamedTuple):
    """Draws of a request's space groups so far.

    Attributes:
        place: of each one's space group in the request.
        log_weight: log p / q of each, nats; -inf where it did not meet the request.
        drawn: the crystals.
    """

    place: Int[np.ndarray, " B"]
    log_weight: Float[np.ndarray, " B"]
    drawn: Drawn


def space_group_posterior(
    params: Params,
    config: ModelConfig,
    request: SampleConfig,
    frequencies: Mapping[int, float] | None,
    draws: int = DRAWS,
    watch: Callable[[int], None] = lambda made: None,
) -> SpaceGroupPosterior:
    """How likely each space group of a request is, given that a crystal meets its constraints, at temperature 1.

    Every possible group is drawn from a few times, in one go. Further draws go to groups in proportion to prior times
    root-mean-square weight, which makes the effective sample size of all draws the largest (Neyman's allocation to
    strata, with the second moment for the variance, since a group of few draws may show none): so where the posterior
    is, and there to groups whose weights differ most; some follow the prior. They end at ENOUGH effective draws. A
    group whose draws all missed its likely arrangements is underestimated.

    Args:
        request: constraints, space groups and seed. Temperature, top-p, bias and weights are not in force, and neither
            is what judges whole crystals, such as `min_distance`.
        frequencies: how likely each space group is beforehand, in any unit: how many crystals of it the model was
            trained on, or the head of a model that has one; None for a uniform prior, which is taken too if the model
            saw none of the groups that can meet the request.
        draws: at most so many, but at least one of every possible group.
        watch: told now and then how many were made.

    Raises:
        UsageError: if no space group can meet the request.
        NumericsError: if no draw met it.
    """
    groups = np.array(list(dict.fromkeys(request.space_groups)))
    plain = {"weights": (), "temperature": 1.0, "top_p": 1.0, "bias": (), "exact": False}
    prepared = prepare(dataclasses.replace(request, space_groups=tuple(groups.tolist()), **plain), config)
    counts = np.array([1.0 if frequencies is None else frequencies.get(group, 0) for group in groups.tolist()])
    is_possible = ~np.isin(groups, list(prepared.impossible))
    if not counts[is_possible].any():
        counts = np.ones(len(groups))
    possible = np.where(is_possible, counts, 0.0)
    prior, possible = counts / counts.sum(), possible / possible.sum()
    with jax.default_matmul_precision("float32"):
        weights = jax.jit(incremental.prepare, static_argnums=1)(params, config)
    draw = functools.partial(_draw, weights, config, request, prepared, groups, watch)
    places = np.flatnonzero(possible)
    made = draw(np.tile(places, np.clip(draws // len(places), 1, FIRST_DRAWS)), 0)
    while (left := draws - len(made.place)) > 0 and _effective_size(share := _shares(made, prior)) < ENOUGH:
        more = draw(_allocate(made.place, share, possible, min(ROUND, left)), len(made.place))
        made = jax.tree.map(lambda *leaves: np.concatenate(leaves), made, more)
    return _posterior(groups, prior, frequencies is None, made)


def _draw(
    weights: incremental.Weights,
    config: ModelConfig,
    request: SampleConfig,
    prepared: PreparedRequest,
    groups: Int[np.ndarray, " G"],
    watch: Callable[[int], None],
    place: Int[np.ndarray, " B"],
    first: int,
) -> _Draws:
    """Draws of the space groups in some places, numbered from `first`; none is rejected, none drawn again."""
    wanted = dict(enumerate(groups[place].tolist(), start=first))
    ledger = Ledger(range(first, first + len(place)), wanted.__getitem__, lambda drawn: [None] * len(drawn))
    key = jax.random.fold_in(request_key(request.seed), APART)
    make = functools.partial(Decoder, weights, config, prepared.policy, key)
    decoders, accepted = Decoders(make, len(place), request.batch_size or MIN_SLOTS), []
    for jobs, drawn in decoders.work(ledger):
        with decoders.changed:
            if drawn is not None:
                ledger.put(jobs, drawn)
            accepted += ledger.release()
            decoders.changed.notify_all()
        watch(first + len(accepted))
    drawn = together(accepted)
    model, policy = drawn.log_prob, drawn.policy_log_prob
    ratio = np.asarray(model.wyckoff + model.species, float) - (policy.wyckoff + policy.species)
    return _Draws(place, np.where(satisfied(prepared.constraints, drawn.crystals), ratio, -np.inf), drawn)


def _shares(made: _Draws, prior: Float[np.ndarray, " G"]) -> Float[np.ndarray, " B"]:
    """What each draw contributes to the sum over groups of prior times mean weight, as a share; 0 if none counts."""
    log_share = made.log_weight + np.log(prior[made.place] / np.bincount(made.place)[made.place])
    share = np.exp(log_share - max(log_share.max(), np.finfo(float).min))
    return share / max(share.sum(), 1.0)


def _effective_size(share: Float[np.ndarray, " B"]) -> float:
    """Kish's effective sample size of draws with these shares of the sum of weights; 0 if none counts."""
    return float(share.sum() / max((share**2).sum(), np.finfo(float).tiny))


def _allocate(
    place: Int[np.ndarray, " B"], share: Float[np.ndarray, " B"], prior: Float[np.ndarray, " G"], n: int
) -> Int[np.ndarray, " n"]:
    """The places of the space groups of the next n draws; see `space_group_posterior`.

    A group's shares are prior times weight over its draws, but for a common factor. So the square of prior times
    root-mean-square weight is the number of draws times the sum of their squares.
    """
    made = np.bincount(place, minlength=len(prior))
    wanted = np.sqrt(made * np.bincount(place, share**2, len(prior)))
    wanted = wanted / max(wanted.sum(), np.finfo(float).tiny) + DEFENSIVE * prior
    missing = np.maximum(wanted / wanted.sum() * (len(place) + n) - made, 0)
    # Evenly spaced points of the cumulative numbers: each group is drawn as often as it misses, rounded.
    bounds = np.cumsum(missing) / missing.sum()
    return np.searchsorted(bounds, (np.arange(n) + 0.5) / n)


def _posterior(
    groups: Int[np.ndarray, " G"], prior: Float[np.ndarray, " G"], is_uniform: bool, made: _Draws
) -> SpaceGroupPosterior:
    share, num = _shares(made, prior), len(groups)
    draws, log_likelihood = np.bincount(made.place, minlength=num), np.full(len(groups), -np.inf)
    np.logaddexp.at(log_likelihood, made.place, made.log_weight)
    if not (counts := share > 0).any():
        raise NumericsError(
            f"none of {len(share)} draws met the request: masks led them into dead ends",
            "allow larger cells with `max_atoms`, or more `draws`",
        )
    probability = np.bincount(made.place, share, num)
    # The squares of shares bound the variance of a group's sum; the quotient by the sum of all: the delta method.
    variance = np.bincount(made.place, share**2, num)
    error = np.sqrt((1 - 2 * probability) * variance + probability**2 * variance.sum())
    return SpaceGroupPosterior(
        space_groups=groups,
        probability=probability,
        standard_error=error,
        log_likelihood=log_likelihood - np.log(np.maximum(draws, 1)),
        prior=prior,
        is_uniform=is_uniform,
        draws=draws,
        effective_sample_size=_effective_size(share),
        crystals=made.drawn.crystals[np.flatnonzero(counts)],
        log_prob=jax.tree.map(lambda leaf: leaf[counts], made.drawn.log_prob),
        log_weights=np.log(share[counts]),
    )
