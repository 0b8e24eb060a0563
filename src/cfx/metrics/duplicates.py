"""Which of many crystals are duplicates of earlier ones, as `matching` tells crystals apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cfx.metrics.matching import by_composition, find_match, reduce_or_say_why
from cfx.metrics.parallel import spread
from cfx.metrics.screen import what_is_wrong


@dataclass(frozen=True)
class Uniqueness:
    """Whether a crystal matches no kept crystal of an earlier row.

    Attributes:
        unique: it does not; it is kept.
        match: row of a kept crystal that it matches, if it does.
        reason: why it could not be compared, or "".
    """

    unique: bool
    match: int | None = None
    reason: str = ""


def find_duplicates(
    structures: Sequence, n_jobs: int | None = None, on_done: Callable[[int], None] | None = None
) -> list[Uniqueness]:
    """Which of the crystals match an earlier one that is kept.

    Args:
        structures: pymatgen Structures, None for rows that could not be read; these are not unique.
        n_jobs: processes, see `spread`; they do not change the result.
        on_done: told how many compositions that occur more than once are done.
    """
    reasons = [what_is_wrong(structure) for structure in structures]
    records = [Uniqueness(not reason, None, reason) for reason in reasons]
    groups = [rows for rows in by_composition(structures, reasons).values() if len(rows) > 1]
    answers = spread(_compare_all, (([structures[row] for row in rows],) for rows in groups), n_jobs, on_done)
    for rows, answer in zip(groups, answers, strict=True):
        for row, (match, reason) in zip(rows, answer, strict=True):
            records[row] = Uniqueness(match is None and not reason, None if match is None else rows[match], reason)
    return records


def _compare_all(structures: Sequence) -> list[tuple[int | None, str]]:
    """For crystals of one composition: which earlier one each matches, and why it could not be compared."""
    answers: list[tuple[int | None, str]] = []
    rows, kept = [], []
    for row, one in enumerate(map(reduce_or_say_why, structures)):
        if isinstance(one, str):
            answers.append((None, one))
            continue
        match = find_match(one, kept)
        if match is None:
            rows.append(row)
            kept.append(one)
        answers.append((None if match is None else rows[match], ""))
    return answers
