"""A step that relaxes a few structures together, within what is left of a budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from cfx.core import Structure
from cfx.data.structures import MIN_DISTANCE, closest_approach, structure_as_json
from cfx.predictors.base import Potential
from cfx.predictors.relax import Relaxed, relax
from cfx.reporter import StopRequest
from cfx.runs.steps import Budget

AT_ONCE = 16
"""Structures that are evaluated or relaxed together, in one step."""

AS_DRAWN = 0.5
"""Share of a budget that may go into structures as drawn."""


def relax_together(
    potential: Potential,
    structures: Sequence[Structure | None],
    fmax: float,
    steps: int,
    fix_symmetry: bool,
    budget: Budget,
    stop: StopRequest,
    watch: Callable[[int, int], None],
) -> dict[str, Any]:
    """The row of a step: `minima`, one a structure, None where there is none, and the `evaluations` that they took.

    Args:
        potential: whose minima are wanted.
        structures: to start from; None has no minimum.
        fmax: largest force on an atom of a minimum, eV/angstrom.
        steps: for each structure, at most.
        fix_symmetry: keep the symmetry of each structure.
        budget: whose seconds may not be exceeded.
        stop: a request to stop, after which the row is good for nothing.
        watch: told after each step how many evaluations there were, and how many structures have ended.
    """
    began, left = time.monotonic(), budget.left()
    evaluated = ended = 0

    def over() -> bool:
        nonlocal evaluated
        watch(evaluated, ended)
        evaluated += len(structures) - ended
        return bool(stop) or time.monotonic() - began > left

    def count(number: int, one: Relaxed) -> None:
        nonlocal ended
        ended += 1

    settings = fmax, steps, fix_symmetry
    results = relax(potential, structures, *settings, on_done=count, stop=over, at_once=AT_ONCE)
    return {"minima": [_minimum(one) for one in results], "evaluations": sum(one.steps + 1 for one in results)}


def _minimum(one: Relaxed) -> dict[str, Any] | None:
    """A relaxed structure with its energy, eV/atom; None without one, or if its atoms have come too close."""
    if one.structure is None or not math.isfinite(one.energy) or closest_approach(one.structure) < MIN_DISTANCE:
        return None
    told = {"energy": one.energy / len(one.structure), "converged": one.converged, "steps": one.steps}
    return {**structure_as_json(one.structure), **told}
