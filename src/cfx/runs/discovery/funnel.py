"""The stages that drawn crystals pass on the way to a list, and how many are left after each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cfx.config import DiscoverRun


class Stage(NamedTuple):
    """A stage of a funnel.

    Attributes:
        name: what is said of crystals that pass it.
        lost: what is said of those that do not, `left_out` in their records.
    """

    name: str
    lost: str


VALID = Stage("valid", "atoms too close, or no cell")
BALANCED = Stage("charges balance", "charges do not balance")
DISTINCT = Stage("distinct", "a repeat of a likelier one")
NOVEL = Stage("novel", "known")
LIKELY = Stage("likely", "less likely")
WITHIN_BUDGET = Stage("evaluated", "beyond the budget")
WITH_ENERGY = Stage("on a hull", "no energy above the hull")
ABOVE_FLOOR = Stage("above the floor", "below the floor as drawn")
RELAXED = Stage("relaxed", "higher above the hull as drawn than those relaxed")
INTACT = Stage("intact", "the relaxation failed")
PLAUSIBLE = Stage("above the floor once relaxed", "below the floor once relaxed")
LOW = Stage("low enough", "too far above the hull")
STILL_DISTINCT = Stage("distinct once relaxed", "once relaxed, a repeat of a lower one")
STILL_NOVEL = Stage("novel once relaxed", "known once relaxed")
WITH_COLUMN = Stage("with a value to sort by", "without a value to sort by")
INTERPOLATED = Stage("like what its model was trained on", "unlike all that the property model was trained on")
LISTED = Stage("in the list", "ranked lower")


def stages(run: DiscoverRun) -> list[Stage]:
    """The stages of a run, in order; those that it does not ask for are left out."""
    asked = {
        BALANCED: run.keep.charge_balanced,
        NOVEL: run.judge.reference,
        LIKELY: run.keep.likeliest < 1,
        WITHIN_BUDGET: run.keep.budget,
        LOW: run.keep.max_e_hull is not None,
        STILL_NOVEL: run.judge.reference,
        WITH_COLUMN: run.keep.column != "e_above_hull",
        INTERPOLATED: run.keep.column in run.keep.property_models,
    }
    every = (
        *(VALID, BALANCED, DISTINCT, NOVEL, LIKELY, WITHIN_BUDGET, WITH_ENERGY, ABOVE_FLOOR, RELAXED),
        *(INTACT, PLAUSIBLE, LOW, STILL_DISTINCT, STILL_NOVEL, WITH_COLUMN, INTERPOLATED, LISTED),
    )
    return [stage for stage in every if asked.get(stage, True)]


def count(records: Sequence[Mapping[str, Any]], passed: Sequence[Stage]) -> list[dict[str, Any]]:
    """How many crystals are left after each stage: ready for JSON.

    Args:
        records: of all crystals, each with `left_out`, what it was lost to, "" if it arrived.
        passed: the stages, in order.

    Returns:
        Of the draws and then of each stage: stage, left, lost, and why those are lost.
    """
    lost, left = Counter(record["left_out"] for record in records), len(records)
    rows: list[dict[str, Any]] = [{"stage": "drawn", "left": left, "lost": 0, "why": ""}]
    for stage in passed:
        left -= lost[stage.lost]
        rows.append({"stage": stage.name, "left": left, "lost": lost[stage.lost], "why": stage.lost})
    return rows
