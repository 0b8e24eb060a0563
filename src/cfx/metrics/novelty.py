"""Which crystals a reference does not hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cfx.metrics.matching import by_composition, find_match, reduce_or_say_why
from cfx.metrics.parallel import spread
from cfx.metrics.reference import Reference
from cfx.metrics.screen import what_is_wrong


@dataclass(frozen=True)
class Novelty:
    """Whether a crystal matches none of a reference.

    Attributes:
        novel: it does not; None if there is no reference.
        match: row of the reference that it matches, if it does.
        reason: why it could not be compared, or "".
    """

    novel: bool | None
    match: int | None = None
    reason: str = ""


NO_REFERENCE = Novelty(None, None, "no reference to compare with")


def find_novel(
    structures: Sequence,
    reference: Reference | None,
    n_jobs: int | None = None,
    on_done: Callable[[int], None] | None = None,
) -> list[Novelty]:
    """Which of the crystals match no crystal of the reference, by StructureMatcher.

    Args:
        structures: pymatgen Structures, None for rows that could not be read; these are not novel.
        reference: known crystals. Only those whose compositions occur are looked at.
        n_jobs: processes, see `spread`; they do not change the result.
        on_done: told how many compositions that both have are done.
    """
    if reference is None:
        return [NO_REFERENCE] * len(structures)
    reasons = [what_is_wrong(structure) for structure in structures]
    records = [Novelty(not reason, None, reason) for reason in reasons]
    groups = by_composition(structures, reasons)
    shared = [(rows, known) for key, rows in groups.items() if len(known := reference.of_composition(key))]
    jobs = (
        ([structures[row] for row in rows], [reference.structure(index) for index in known]) for rows, known in shared
    )
    answers = spread(_compare, jobs, n_jobs, on_done)
    for (rows, known), answer in zip(shared, answers, strict=True):
        for row, (match, reason) in zip(rows, answer, strict=True):
            place = None if match is None else int(reference.rows[known[match]])
            records[row] = Novelty(match is None and not reason, place, reason)
    return records


def _compare(structures: Sequence, known: Sequence) -> list[tuple[int | None, str]]:
    """For crystals of one composition: which of the known ones each matches, and why it could not be compared."""
    reduced = [(i, one) for i, one in enumerate(map(reduce_or_say_why, known)) if not isinstance(one, str)]
    answers = []
    for one in map(reduce_or_say_why, structures):
        if isinstance(one, str):
            answers.append((None, one))
            continue
        match = find_match(one, [other for _, other in reduced])
        answers.append((None if match is None else reduced[match][0], ""))
    return answers
