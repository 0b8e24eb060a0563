"""Crystals of a discovery that are worth an energy: valid, each once, new, likely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cfx.evaluation.matching import find_duplicates
from cfx.evaluation.novelty import find_novel
from cfx.evaluation.validity import composition_validity, structure_validity
from cfx.runs.discovery import funnel
from cfx.runs.discovery.funnel import Stage
from cfx.runs.discovery.state import Discovering

LIKELIHOOD = "log_prob_per_site"
"""Column that says how likely a crystal is: long ones have lower log-probabilities in total."""


def sift(state: Discovering) -> None:
    """Leaves out what is no crystal, a repeat of a likelier one, known, or less likely."""

    def make() -> dict[str, Any]:
        check_one_by_one(state)
        order = state.ranked(LIKELIHOOD, descending=True)
        matched = {"duplicate_of": lose_repeats(state, order, funnel.DISTINCT)}
        matched |= {"matched": lose_known(state, funnel.NOVEL)}
        left = state.ranked(LIKELIHOOD, descending=True)
        state.lose(left[math.ceil(state.run.keep.likeliest * len(left)) :], funnel.LIKELY)
        columns = {name: [record[name] for record in state.records] for name in ("class", "left_out")}
        return {"columns": {**columns, **matched}}

    row = state.steps.take("sift", make)
    for name, values in row["columns"].items():
        for record, value in zip(state.records, values, strict=True):
            record[name] = value


def check_one_by_one(state: Discovering) -> None:
    """Leaves out what is not valid."""
    keep = state.run.keep
    with state.step("checking structures", len(state.structures)) as update:
        for row, (record, structure) in enumerate(zip(state.records, state.structures, strict=True)):
            [composition] = composition_validity([structure], state.run.judge.mixed_valence)
            record["class"] = composition.kind
            if not structure_validity([structure])[0].valid:
                state.lose([row], funnel.VALID)
            elif keep.charge_balanced and not composition.without_alloys:
                state.lose([row], funnel.BALANCED)
            update(row + 1)


def lose_repeats(state: Discovering, order: Sequence[int], stage: Stage) -> list[str | None]:
    """Leaves out what matches a crystal earlier in an order; for each record, the name of that crystal."""
    found: list[str | None] = [None] * len(state.records)
    with state.step("comparing with each other", None) as update:
        repeats = find_duplicates([state.structures[row] for row in order], state.run.judge.workers, update)
    for row, one in zip(order, repeats, strict=True):
        found[row] = None if one.match is None else state.records[order[one.match]]["name"]
    state.lose([row for row, one in zip(order, repeats, strict=True) if not one.unique], stage)
    return found


def lose_known(state: Discovering, stage: Stage) -> list[str | None]:
    """Leaves out what the reference holds; for each record, the name of the known crystal."""
    found: list[str | None] = [None] * len(state.records)
    reference, left = state.setup.reference, state.left()
    if reference is None:
        return found
    with state.step("comparing with known crystals", None) as update:
        novel = find_novel([state.structures[row] for row in left], reference, state.run.judge.workers, update)
    for row, one in zip(left, novel, strict=True):
        found[row] = None if one.match is None else reference.name(one.match)
    state.lose([row for row, one in zip(left, novel, strict=True) if not one.novel], stage)
    return found
