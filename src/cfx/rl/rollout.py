"""A rollout: crystals drawn from the policy, and what they are worth."""

import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cfx.config import RLConfig, SampleConfig
from cfx.core import Structure
from cfx.core.crystal import CrystalBatch, concatenate
from cfx.core.lattice import is_physical
from cfx.evaluation.validity import structure_validity
from cfx.model import Model
from cfx.rl.quotas import classes_of
from cfx.rl.rewards import EVALUATIONS, NO_STRUCTURE, Diversity, Reward, make_batch
from cfx.sampling.request import PreparedRequest
from cfx.training.devices import Devices

SHARES = ("valid", "unique", "novel")
"""What metrics say of a crystal beside the parts of its reward: 0 or 1, so that means are shares."""

SYMPREC = 1e-3
"""Tolerance of the search for the primitive cell, angstrom."""

COORD_STEP, LENGTH_STEP = 1e-3, 1e-2
"""Crystals with coordinates and lattice parameters (angstrom, degree) this near have the same fingerprint."""


@dataclass(frozen=True)
class Rollout:
    """B crystals and their rewards.

    Attributes:
        crystals: as drawn (numpy).
        keys: their fingerprints.
        reward: float64 [B], to learn from: what failed counts as the reward's `failure`, and diversity has its say.
        value: the reward alone, NaN where it failed.
        reasons: why it failed, "" where it did not.
        metrics: parts of the reward and, as 0 or 1, `valid`, `unique` and `novel`; float64 [B].
        entropy: of the draws, by part, nats: minus the mean log-probability.
        cached: rewards that were known already.
        seconds: spent sampling and rewarding.
    """

    crystals: CrystalBatch
    keys: list[bytes]
    reward: np.ndarray
    value: np.ndarray
    reasons: list[str]
    metrics: dict[str, np.ndarray]
    entropy: dict[str, float]
    cached: int
    seconds: dict[str, float]

    @functools.cached_property
    def kinds(self) -> np.ndarray:
        """Classes of the compositions, as places in CLASSES, int [B]; they need SMACT."""
        return classes_of(self.crystals)

    @property
    def failures(self) -> Counter[str]:
        """Reasons and how many crystals failed for them."""
        return Counter(reason for reason in self.reasons if reason)


@dataclass
class RewardCache:
    """Rewards of crystals that were seen before, by fingerprint.

    Attributes:
        known: fingerprint -> value, reason, parts.
        ahead: likewise, of steps that a resumed run makes again: they need no evaluation, and are not repeats either.
    """

    known: dict[bytes, tuple[float, str, dict[str, float]]] = field(default_factory=dict)
    ahead: dict[bytes, tuple[float, str, dict[str, float]]] = field(default_factory=dict)

    def evaluate(
        self,
        reward: Reward,
        keys: Sequence[bytes],
        structures: Sequence[Structure | None],
        devices: Devices | None = None,
    ) -> tuple[np.ndarray, list[str], dict[str, np.ndarray], int]:
        """Values, reasons and parts of crystals, and how many were known; one evaluation of those that were not.

        What was known has cost no EVALUATIONS now.

        Args:
            reward: of those that were not.
            keys: fingerprint of each crystal.
            structures: of each.
            devices: of the run, whose processes divide the crystals among themselves.
        """
        new = {key: row for row, key in reversed(list(enumerate(keys))) if key not in self.known}
        rows = sorted(new.values())
        self.known |= {keys[row]: self.ahead[keys[row]] for row in rows if keys[row] in self.ahead}
        if unknown := [row for row in rows if keys[row] not in self.known]:
            devices = devices or Devices()
            own = slice(devices.process, None, devices.processes)
            found = devices.together(lambda: _evaluate(reward, [structures[row] for row in unknown[own]]))
            for process, rewards in enumerate(found):
                its = unknown[process :: devices.processes]
                self.known |= {keys[row]: one for row, one in zip(its, rewards, strict=True)}
        found = [self.known[key] for key in keys]
        names = dict.fromkeys(name for _, _, parts in found for name in parts)
        metrics = {name: np.array([parts.get(name, np.nan) for _, _, parts in found]) for name in names}
        if EVALUATIONS in metrics:
            metrics[EVALUATIONS] = np.where(np.isin(np.arange(len(keys)), rows), metrics[EVALUATIONS], 0.0)
        return np.array([each[0] for each in found]), [each[1] for each in found], metrics, len(keys) - len(rows)


def _evaluate(reward: Reward, structures: list[Structure | None]) -> list[tuple[float, str, dict[str, float]]]:
    """Value, reason and parts of each crystal."""
    if not structures:
        return []
    batch = reward.evaluate(structures)
    reasons = [
        reason if one is not None else NO_STRUCTURE for reason, one in zip(batch.reasons, structures, strict=True)
    ]
    # Somebody else's reward may say ok to a value that is not a number.
    batch = make_batch(batch.value, reasons, batch.metrics)
    parts = [{name: float(values[i]) for name, values in batch.metrics.items()} for i in range(len(structures))]
    return list(zip(batch.value.tolist(), batch.reasons, parts, strict=True))


def fingerprint(crystals: CrystalBatch, row: int) -> bytes:
    """What crystals that are equal within COORD_STEP and LENGTH_STEP share, up to the edges of a step."""
    coords = np.round(crystals.frac_coords[row] / COORD_STEP).astype(np.int32) % round(1 / COORD_STEP)
    lattice = np.round(np.nan_to_num(crystals.lattice[row], posinf=0, neginf=0) / LENGTH_STEP).astype(np.int64)
    return arrangement(crystals, row) + coords.tobytes() + lattice.tobytes()


def arrangement(crystals: CrystalBatch, row: int) -> bytes:
    """What crystals share that differ in coordinates and cell only: space group, letters and species."""
    parts = [[crystals.space_group[row]], crystals.wyckoff[row], crystals.species[row]]
    return np.concatenate(parts).astype(np.int32).tobytes()


def draw(
    model: Model,
    request: SampleConfig,
    prepared: PreparedRequest | None = None,
    devices: Devices | None = None,
) -> tuple[CrystalBatch, dict[str, float]]:
    """The crystals of a request, and the entropy of the draws by part, nats; each process draws its shard of them."""
    devices = devices or Devices()
    own = dataclasses.replace(request, shard=(devices.process + 1, devices.processes))
    found = devices.together(
        lambda: [(draws.crystals, draws.policy_log_prob.parts()) for draws in model.draws(own, prepared)]
    )
    crystals, parts = zip(*(draws for shard in found for draws in shard), strict=True)
    values = {name: np.concatenate([np.asarray(part[name], float) for part in parts]) for name in parts[0]}
    return concatenate(crystals), {name: -float(value.mean()) for name, value in values.items()}


def step_request(request: SampleConfig, config: RLConfig, step: int) -> SampleConfig:
    """What to draw in a step, from 0; it follows from the seed and the step.

    Unphysical draws stay: they are failures. With grpo, crystals i * group_size to (i + 1) * group_size - 1 share
    their space group.
    """
    # Mixed from both, so that neighbouring steps and runs share no seed; 63 bits are what a request's seed holds.
    seed = int(np.random.SeedSequence([config.seed, step]).generate_state(1, np.uint64)[0] >> 1)
    change: dict[str, Any] = {"n": config.batch_size, "seed": seed, "keep_invalid": True}
    if config.algorithm == "grpo":
        groups = config.batch_size // config.group_size
        weights = np.array(request.weights or (1.0,) * len(request.space_groups))
        rng = np.random.default_rng([config.seed, step])
        chosen = rng.choice(request.space_groups, groups, p=weights / weights.sum())
        # One after the other in each group: crystals take turns, so the groups are gathered afterwards.
        change |= {"space_groups": tuple(int(group) for group in chosen), "weights": ()}
    return dataclasses.replace(request, **change)


def roll_out(
    model: Model,
    request: SampleConfig,
    config: RLConfig,
    step: int,
    reward: Reward,
    diversity: Diversity,
    cache: RewardCache,
    prepared: PreparedRequest | None = None,
    devices: Devices | None = None,
) -> Rollout:
    """Draws the crystals of a step and rewards them; several processes each do their share, and all know the result."""
    start = time.perf_counter()
    crystals, entropy = draw(model, step_request(request, config, step), prepared, devices)
    if config.algorithm == "grpo":
        turns = np.arange(config.batch_size).reshape(config.group_size, -1)
        crystals = crystals[turns.T.reshape(-1)]
    sampled = time.perf_counter()
    structures = primitive_cells(crystals)
    keys = [fingerprint(crystals, row) for row in range(len(crystals))]
    value, reasons, metrics, cached = cache.evaluate(reward, keys, structures, devices)
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    repeated = np.array([first[key] != row for row, key in enumerate(keys)])
    counted, diverse = diversity.apply(
        np.where(np.isnan(value), reward.failure, value), reward.failure, structures, repeated
    )
    valid = np.array([record.valid for record in structure_validity(structures)], float)
    seconds = {"sampling": sampled - start, "rewarding": time.perf_counter() - sampled}
    return Rollout(
        crystals, keys, counted, value, reasons, metrics | {"valid": valid} | diverse, entropy, cached, seconds
    )


def primitive_cells(crystals: CrystalBatch) -> list[Structure | None]:
    """pymatgen Structures of primitive cells, None for lattices that close no cell.

    A potential needs a quarter of the time for a face-centred crystal so. The cell is that of the centring: to search
    for it took longer than all else that a reward did.
    """
    rows = np.flatnonzero(is_physical(np.asarray(crystals.lattice)))
    structures: list[Structure | None] = [None] * len(crystals)
    for row, structure in zip(rows, crystals[rows].to_structures(primitive=True) if len(rows) else [], strict=True):
        structures[row] = structure
    return structures


def primitive_cell(structure: Structure, symprec: float = SYMPREC) -> Structure:
    """The primitive cell as spglib finds it within `symprec` angstrom, atoms where they are; else the cell itself."""
    import spglib
    from pymatgen.core import Structure

    cell = (structure.lattice.matrix, structure.frac_coords, [site.specie.Z for site in structure])
    try:
        found = spglib.standardize_cell(cell, to_primitive=True, no_idealize=True, symprec=symprec)  # pyright: ignore[reportArgumentType]  (arrays will do)
    except spglib.SpglibError:
        return structure
    if found is None:
        return structure
    lattice, coords, numbers = found
    return Structure(lattice, numbers, coords)  # pyright: ignore[reportArgumentType]  (atomic numbers will do)


PRIOR = 4.0
"""Crystals that a space group must have seen to trust its own mean as much as that of all."""


class Baseline:
    """The baseline of a run, brought up to date before it is used, as published.

    `ema` is the published one: b <- decay * b + (1 - decay) * mean reward, at first the mean reward. `batch` is the
    mean reward of the rollout. `group` is an average for each space group: sums over its crystals that fade with the
    same decay, drawn towards `ema` by PRIOR crystals. A policy does not choose space groups; what is easy to reach in
    one of them says nothing of a crystal of another. `class` is the mean reward, in the rollout, of the crystals of the
    same class of compositions: the advantages of each class add up to zero, so that nothing is gained by drawing more
    of an easier one by itself. (What pays within classes may still change their shares: in 180 steps elements grew from
    2 to 27 % of the draws.)
    """

    def __init__(self, config: RLConfig):
        self._kind, self._decay = config.baseline, config.baseline_decay
        self.mean: float | None = None
        self._groups: dict[int, tuple[float, float]] = {}

    def update(self, reward: np.ndarray, kind: np.ndarray) -> np.ndarray:
        """Takes in the rewards of a rollout [B], and gives the baseline of each of its crystals, float64 [B].

        Args:
            reward: of its crystals.
            kind: int [B], space groups, or classes of compositions as places in CLASSES.
        """
        mean = float(reward.mean())
        if self._kind == "batch" or self.mean is None:
            self.mean = mean
        else:
            self.mean = self._decay * self.mean + (1 - self._decay) * mean
        if self._kind == "class":
            return np.array([reward[kind == one].mean() for one in kind])
        if self._kind != "group":
            return np.full(len(reward), self.mean)
        self._groups = {group: (self._decay * n, self._decay * total) for group, (n, total) in self._groups.items()}
        for group in np.unique(kind).tolist():
            own = reward[kind == group]
            n, total = self._groups.get(group, (0.0, 0.0))
            self._groups[group] = (n + len(own), total + float(own.sum()))
        return np.array([self._of(int(group), self.mean) for group in kind])

    def _of(self, group: int, mean: float) -> float:
        n, total = self._groups[group]
        return (total + PRIOR * mean) / (n + PRIOR)

    def saved(self) -> dict[str, Any]:
        """The state of the baseline as JSON can hold it."""
        return {"mean": self.mean, "groups": {str(group): list(sums) for group, sums in self._groups.items()}}

    def restore(self, saved: dict[str, Any]) -> None:
        """Restores what `saved` returned."""
        self.mean = saved["mean"]
        self._groups = {int(group): (float(n), float(total)) for group, (n, total) in saved["groups"].items()}
