"""What comes before a reward: crystals of unwanted classes are told apart, the others are relaxed."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from cfx.config import RewardConfig
from cfx.config.evaluation import FMAX
from cfx.core import Structure
from cfx.evaluation.validity import composition_validity
from cfx.predictors.base import Potential
from cfx.predictors.relax import Relaxed, relax
from cfx.reporter import Interrupted, StopRequest
from cfx.rl.rewards import EVALUATIONS, NamedReward, RewardBatch, make_batch

CLASS_WANTED = "class as wanted"
"""The part of a reward that says whether a crystal is of a wanted class, 0 or 1."""

LARGEST_FORCE: float = FMAX[0]
"""At which a relaxation has converged, eV/angstrom."""


def conditioned(reward: NamedReward, config: RewardConfig, load: Callable[[], Potential]) -> NamedReward:
    """A reward under the conditions of a configuration: relaxed crystals, and wanted classes, which come first.

    Args:
        reward: says what crystals are worth.
        config: `relax_steps`, `classes` and `class_penalty`.
        load: gives the potential that relaxes, if one does.
    """
    if config.relax_steps:
        reward = relaxed(reward, load(), config.relax_steps)
    return of_classes(reward, config.classes, config.class_penalty) if config.classes else reward


def relaxed(reward: NamedReward, potential: Potential, steps: int) -> NamedReward:
    """A reward of crystals as they are after a relaxation of cell and atoms that keeps their symmetry.

    One that has not converged after its steps is judged as it is then; one whose relaxation breaks has no value.

    Args:
        reward: says what relaxed crystals are worth.
        potential: relaxes them.
        steps: for a crystal, at most.
    """

    def evaluate(structures: Sequence[Structure | None]) -> RewardBatch:
        found = _relax_all(potential, structures, steps)
        batch = reward.evaluate([None if one.reason else one.structure for one in found])
        reasons = [
            f"its relaxation fails: {one.reason}" if one.reason and one.structure is not None else reason
            for one, reason in zip(found, batch.reasons, strict=True)
        ]
        atoms = np.array([np.nan if one is None else len(one) for one in structures], float)
        metrics = {
            "energy before relaxation (eV/atom)": np.array([one.initial_energy for one in found]) / atoms,
            "converged": np.array([np.nan if one.reason else one.converged for one in found], float),
            EVALUATIONS: np.array([_evaluations(one) for one in found], float),
        }
        return make_batch(batch.value, reasons, batch.metrics | metrics)

    about = f"{reward.about}; relaxed by {potential.name}, {steps} steps at most, symmetry kept"
    return replace(reward, about=about, evaluate=evaluate)


def _relax_all(potential: Potential, structures: Sequence[Structure | None], steps: int) -> list[Relaxed]:
    """What becomes of each crystal.

    Raises:
        Interrupted: if a signal asks to stop on the way.
    """
    done: set[int] = set()
    found = relax(
        potential,
        structures,
        LARGEST_FORCE,
        steps,
        fix_symmetry=True,
        on_done=lambda number, _: done.add(number),
        stop=lambda: StopRequest.heard() is not None,
    )
    if len(done) < len(structures):
        raise Interrupted(StopRequest.heard() or 15, "stopped within a relaxation")
    return found


def _evaluations(one: Relaxed) -> int:
    """How often the potential was asked for a crystal: at the start, after each step, and once more if that failed."""
    return one.steps + 1 + bool(one.reason) if np.isfinite(one.initial_energy) else 0


def of_classes(reward: NamedReward, classes: Sequence[str], penalty: float | None) -> NamedReward:
    """A reward of crystals of some classes of compositions.

    Others are worth what a failure is, and are not evaluated; or they lose a penalty, down to that. They do not count
    among the failures that end a run: a model draws half of its crystals in other classes.

    Args:
        reward: says what crystals are worth.
        classes: those that are wanted, of CLASSES.
        penalty: in the unit of the reward; None: others count as failures.

    Raises:
        DependencyError: without the library that tells classes.
    """
    composition_validity([])

    def evaluate(structures: Sequence[Structure | None]) -> RewardBatch:
        kinds = [record.kind for record in composition_validity(structures)]
        other = np.array([kind is not None and kind not in classes for kind in kinds], bool)
        spared = other if penalty is None else np.zeros_like(other)
        batch = reward.evaluate([None if skip else one for one, skip in zip(structures, spared, strict=True)])
        value = np.where(spared, reward.failure, batch.value)
        if penalty is not None:
            value = np.where(other, np.maximum(value - penalty, reward.failure), value)
        reasons = ["" if skip else reason for reason, skip in zip(batch.reasons, spared, strict=True)]
        wanted = np.array([np.nan if kind is None else kind in classes for kind in kinds], float)
        return make_batch(value, reasons, batch.metrics | {CLASS_WANTED: wanted})

    said = f"; {', '.join(classes)} only" if penalty is None else f"; {penalty:g} less unless {', '.join(classes)}"
    return replace(reward, about=reward.about + said, evaluate=evaluate)
