"""What the relaxed crystals of a discovery are worth: verdicts, a second opinion, properties."""

from __future__ import annotations

from typing import Any

import numpy as np

from cfx.evaluation.summary import is_below_floor
from cfx.predictors.base import PropertyModel
from cfx.runs.discovery import funnel
from cfx.runs.discovery.sift import lose_known, lose_repeats
from cfx.runs.discovery.state import Discovering, if_finite

RELAXED = ("energy_per_atom", "e_above_hull", "decomposition")
SECOND = ("second_energy_per_atom", "second_e_above_hull", "second_decomposition")


def judge(state: Discovering) -> None:
    """Leaves out what is below the floor, too high, a repeat of a lower one, or known."""
    left = state.left()
    energies = [state.records[row]["energy_per_atom"] for row in left]
    state.place(left, energies, state.hull, state.potential.scale, RELAXED)
    if state.setup.second is not None:
        _ask_second(state, left)
    limits, highest = state.setup.thresholds, state.run.keep.max_e_hull
    for row in left:
        record = state.records[row]
        record["verdict"] = limits.verdict(record["e_above_hull"])
        if is_below_floor(record):
            state.lose([row], funnel.PLAUSIBLE)
        elif highest is not None and not limits.allow(record["e_above_hull"], highest):
            state.lose([row], funnel.LOW)
    lose_repeats(state, state.ranked("e_above_hull"), funnel.STILL_DISTINCT)
    matched = lose_known(state, funnel.STILL_NOVEL)
    for record, name in zip(state.records, matched, strict=True):
        record["matched"] = record["matched"] or name


def _ask_second(state: Discovering, rows: list[int]) -> None:
    """What the second potential says of crystals as the first one left them, on its own hull."""
    assert state.setup.second is not None
    potential, hull = state.setup.second
    energies = state.energies(rows, potential, "energies by the second potential", None)
    state.place(rows, energies, hull, potential.scale, SECOND)
    for row in rows:
        record = state.records[row]
        first, second = record["e_above_hull"], record["second_e_above_hull"]
        record["second_verdict"] = None if second is None else state.setup.thresholds.verdict(second)
        record["e_above_hull_difference"] = None if first is None or second is None else second - first


def predict_properties(state: Discovering) -> None:
    """Properties of the crystals that are left, with standard deviations where models have them.

    NAME_extrapolated: whether a crystal is unlike all that the model was trained on.
    """
    rows = state.left()
    for name, model in state.properties.items():
        step = state.steps.take(f"property {name}", lambda name=name, model=model: _predict(state, rows, name, model))
        for row, *found in zip(rows, step["values"], step["deviations"], step["extrapolated"], strict=True):
            state.records[row] |= dict(zip((name, f"{name}_std", f"{name}_extrapolated"), found, strict=True))


def _predict(state: Discovering, rows: list[int], name: str, model: PropertyModel) -> dict[str, Any]:
    with state.step(name.replace("_", " "), len(rows)):
        batch = model.evaluate([state.structures[row] for row in rows])
    state.check()
    numbers = {"values": batch.value, "deviations": batch.std}
    found = {key: [if_finite(one) for one in np.asarray(array)] for key, array in numbers.items()}
    return {**found, "extrapolated": np.asarray(batch.outside, bool).tolist()}


def require_column(state: Discovering) -> None:
    """Leaves out what has no value to sort by, or one of a property that its model knows nothing about."""
    column = state.run.keep.column
    for row in state.left():
        if state.records[row].get(column) is None:
            state.lose([row], funnel.WITH_COLUMN)
        elif state.records[row].get(f"{column}_extrapolated"):
            state.lose([row], funnel.INTERPOLATED)
