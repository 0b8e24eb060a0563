"""Crystals of a discovery that are relaxed: the lowest above the hull, as each is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cfx.data.structures import structure_from_json
from cfx.evaluation.matching import rms_displacement
from cfx.evaluation.validity import find_space_groups
from cfx.runs.discovery import funnel
from cfx.runs.discovery.sift import LIKELIHOOD
from cfx.runs.discovery.state import Discovering, Update
from cfx.runs.evaluate import facts
from cfx.runs.relaxing import AS_DRAWN, AT_ONCE, relax_together

UNRELAXED = ("energy_per_atom_unrelaxed", "e_above_hull_unrelaxed", "decomposition")


def evaluate(state: Discovering) -> None:
    """Places the crystals above the hull as drawn, the likeliest first; one energy each."""
    order = state.ranked(LIKELIHOOD, descending=True)
    energies = state.energies(order, state.potential, "energies", AS_DRAWN)
    state.lose(order[len(energies) :], funnel.WITHIN_BUDGET)
    state.place(order[: len(energies)], energies, state.hull, state.potential.scale, UNRELAXED)
    for row in state.left():
        height = state.records[row]["e_above_hull_unrelaxed"]
        if height is None:
            state.lose([row], funnel.WITH_ENERGY)
        elif not state.setup.thresholds.allow(height, math.inf):
            state.lose([row], funnel.ABOVE_FLOOR)


def relax_lowest(state: Discovering) -> None:
    """Relaxes the lowest above the hull, as many as are wanted and the budget allows."""
    order = state.ranked("e_above_hull_unrelaxed")
    wanted, done = order[: state.run.keep.relax], 0
    with state.step("relaxing", len(wanted)) as update:
        while done < len(wanted):
            number, steps = state.budget.next_batch(min(AT_ONCE, len(wanted) - done), state.run.judge.steps)
            if not number:
                break
            part = wanted[done : done + number]

            def make(part: Sequence[int] = part, steps: int = steps, done: int = done) -> dict[str, Any]:
                return _relax(state, part, steps, lambda ended: update(done + ended))

            row = state.steps.take("relax", make)
            state.budget.charge(row)
            for i, minimum in zip(part, row["minima"], strict=True):
                _note(state, i, minimum)
            done += number
            update(done)
    state.lose(order[done:], funnel.RELAXED)


def _relax(state: Discovering, rows: Sequence[int], steps: int, update: Update) -> dict[str, Any]:
    """The row of a few structures that are relaxed together."""
    starts, judge = [state.structures[row] for row in rows], state.run.judge
    settings = judge.fmax, steps, judge.fix_symmetry
    row = relax_together(
        state.potential, starts, *settings, state.budget, state.stop, lambda evaluations, ended: update(ended)
    )
    state.check()
    for start, minimum in zip(starts, row["minima"], strict=True):
        if minimum is not None:
            minimum["rmsd"] = rms_displacement(start, structure_from_json(minimum))
    return row


def _note(state: Discovering, row: int, minimum: Mapping[str, Any] | None) -> None:
    """Puts a relaxed crystal in the place of the drawn one."""
    if minimum is None:
        state.lose([row], funnel.INTACT)
        return
    relaxed = structure_from_json(dict(minimum))
    before, after = find_space_groups([state.structures[row], relaxed])
    state.structures[row] = relaxed
    state.records[row] |= {
        **facts(relaxed),
        "space_group": before.found,
        "space_group_relaxed": after.found,
        "energy_per_atom": minimum["energy"],
        "rmsd_to_relaxed": minimum["rmsd"],
        "converged": minimum["converged"],
        "steps": minimum["steps"],
    }
