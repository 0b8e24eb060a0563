"""Rewards from interatomic potentials: the energy above the hull, the energy, the forces."""

from typing import NamedTuple

import numpy as np

from cfx.predictors.base import PotentialBatch
from cfx.rl.reward_models import RewardModels, Structures
from cfx.rl.rewards import NamedReward, RewardBatch, make_batch

STRESS_WEIGHT = 10.0
"""How many eV/angstrom of force 1 eV/angstrom^3 of stress counts as."""

FORCE_LIMIT = 20.0
"""Above which a force counts no further, eV/angstrom; so does a stress above FORCE_LIMIT / STRESS_WEIGHT."""

DISAGREEMENT = "disagreement (eV/atom)"
"""The part of a reward that says how far apart two potentials are."""


def e_hull(name: str, models: RewardModels) -> NamedReward:
    """Minus the energy above the hull, eV/atom (2504.02367, Section "Reward").

    A crystal far below all known phases is a failure: a policy finds the gaps of a hull, and what a potential gets
    wrong, faster than stable crystals. So is one whose chemical system the hull does not cover.
    """
    config, hull, second = models.config, models.hull, models.second
    limit, floor = config.e_hull_limit, config.e_hull_floor

    def evaluate(structures: Structures) -> RewardBatch:
        batch = models.energies(structures)
        judged = [one if ok else None for one, ok in zip(structures, batch.ok, strict=True)]
        found = hull.evaluate(judged, batch.energy.tolist(), models.potential.scale)
        height, under = found.e_above_hull, f"more than {-floor:g} eV/atom below all known phases"
        reasons = [
            of_energy or of_hull or (under if low else "")
            for of_energy, of_hull, low in zip(batch.reasons, found.reasons, height < floor, strict=True)
        ]
        value = np.clip(-height, -limit, -floor)
        metrics = {"E_hull (eV/atom)": height, "energy (eV/atom)": _per_atom(batch, structures)}
        if second is not None:
            # What fails, or is as bad as can be, needs no second opinion.
            asked = [one if value[i] > -limit and not reasons[i] else None for i, one in enumerate(structures)]
            other = _second_opinion(models, asked)
            value = _believed(models, value, height - other.height)
            metrics |= {"second E_hull (eV/atom)": other.height, DISAGREEMENT: np.abs(height - other.height)}
            reasons = [one or of_second for one, of_second in zip(reasons, other.reasons, strict=True)]
        return make_batch(value, reasons, metrics)

    about = f"energies by {models.potential.name}, above the hull {hull}, from {floor:g} up to {limit:g} eV/atom"
    if second is not None:
        about += f"; compared with {second[0].name}, above the hull {second[1]}"
    return NamedReward(name, about, "eV/atom", -limit, evaluate)


class _Opinion(NamedTuple):
    """Energies above a hull, eV/atom, float64 [n], NaN where there is none; and why, "" for what was not asked."""

    height: np.ndarray
    reasons: list[str]


def _second_opinion(models: RewardModels, structures: Structures) -> _Opinion:
    """What the second potential says of crystals; None is not asked."""
    assert models.second is not None
    potential, hull = models.second
    batch = potential.evaluate(structures, forces=False)
    judged = [one if ok else None for one, ok in zip(structures, batch.ok, strict=True)]
    found = hull.evaluate(judged, batch.energy.tolist(), potential.scale)
    reasons = [
        f"second potential: {of_energy or of_hull}" if one is not None and (of_energy or of_hull) else ""
        for one, of_energy, of_hull in zip(structures, batch.reasons, found.reasons, strict=True)
    ]
    return _Opinion(found.e_above_hull, reasons)


def _believed(models: RewardModels, value: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """Rewards [n] less what they lose where two potentials are too far apart; NaN is no difference.

    Energies above the hull are compared: each potential has a hull of its own, in which its errors of elements and
    compounds cancel as they do in the energies.
    """
    config = models.config
    beyond = np.maximum(np.nan_to_num(np.abs(difference)) - config.max_disagreement, 0)
    if config.disagreement_penalty is None:
        return np.where(beyond > 0, -config.e_hull_limit, value)
    return np.maximum(value - config.disagreement_penalty * beyond, -config.e_hull_limit)


def energy(name: str, models: RewardModels) -> NamedReward:
    """Minus the energy, eV/atom, on the potential's own scale."""

    def evaluate(structures: Structures) -> RewardBatch:
        batch = models.energies(structures)
        found = _per_atom(batch, structures)
        return make_batch(-found, batch.reasons, {"energy (eV/atom)": found})

    return NamedReward(name, f"energies by {models.potential.name}", "eV/atom", 0.0, evaluate)


def force(name: str, models: RewardModels) -> NamedReward:
    """Minus the logarithm of mean force plus weighted mean stress, clipped: how close a crystal is to a minimum."""
    potential = models.potential

    def evaluate(structures: Structures) -> RewardBatch:
        batch = potential.evaluate(structures, forces=True)
        mean, stress = np.full((2, len(structures)), np.nan)
        for i, forces in enumerate(batch.forces):
            if forces is not None:
                mean[i] = np.minimum(np.linalg.norm(forces, axis=1), FORCE_LIMIT).mean()
                stress[i] = np.minimum(np.abs(batch.stress[i]), FORCE_LIMIT / STRESS_WEIGHT).mean()
        # A crystal at rest by symmetry has forces of rounding size only, which are no better than none.
        value = -np.log(np.maximum(mean + STRESS_WEIGHT * stress, 1e-4))
        metrics = {"mean force (eV/angstrom)": mean, "mean stress (eV/angstrom^3)": stress}
        return make_batch(value, batch.reasons, metrics)

    worst = -float(np.log(FORCE_LIMIT + FORCE_LIMIT))
    return NamedReward(name, f"forces and stresses by {potential.name}", "", worst, evaluate)


def _per_atom(batch: PotentialBatch, structures: Structures) -> np.ndarray:
    """Energies in eV/atom, float64 [n]; NaN where there is none."""
    return batch.energy / np.array([np.nan if one is None else len(one) for one in structures], float)
