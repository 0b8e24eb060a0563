"""A run as a sequence of steps, each made once, and what a budget leaves for those to come."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfx.errors import DataError, OutputError
from cfx.io.files import sole_writer
from cfx.io.journal import JsonLines, check_same_run, check_unfinished, partial_of, remove_partial
from cfx.reporter import StopRequest

WORTHWHILE = 30
"""Evaluations without which a relaxation is not begun."""


@contextmanager
def steps_beside(
    directory: Path, check: Callable[[Path], None], force: bool, resume: bool
) -> Iterator[tuple[JsonLines, StopRequest]]:
    """The journal of the steps that lead to a directory, DIRECTORY.partial, for its only writer, and requests to stop.

    Args:
        directory: is written from the journal.
        check: makes sure that it may be.
        force: overwrite what is there, finished or not.
        resume: go on with the journal that is there.

    Raises:
        OutputError: if it is there and `force` is False, or there is nothing to go on with.
    """
    with sole_writer(directory), StopRequest() as stop:  # which lets the files be written once all is computed
        check_unfinished(directory, force, resume)
        check(directory)
        journal = JsonLines(partial_of(directory), hint="free disk space, then use `resume`")
        if resume and not journal.path.exists():
            raise OutputError(f"nothing to continue: {journal.path}", "start it without `resume`")
        if not resume:
            remove_partial(directory)
        yield journal, stop


class Steps:
    """What the steps of a run gave; those that a journal has are not made again."""

    def __init__(self, journal: JsonLines | None, header: dict[str, Any], resume: bool):
        self._journal, self._done = journal, deque[dict[str, Any]]()
        self.where = (
            "nothing is kept of it without a directory, `output`"
            if journal is None
            else f"what was computed is in {journal.path}; continue with `resume`"
        )
        header = json.loads(json.dumps(header))
        if journal is None:
            return
        if resume and (lines := list(journal.read())):
            check_same_run(journal.path, lines[0][1], header, "use the same formulas and settings")
            self._done.extend(row for _, row in lines[1:])
            journal.resume(lines[-1][0])
        else:
            journal.begin()
            journal.add(header)

    def take(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of a step, from the journal or made now, with the `seconds` that it took."""
        if self._done:
            row = self._done.popleft()
            if row.get("step") != name:
                raise DataError(f"step {name} is missing: {self.where}", "start again with `force`")
            return row
        start = time.monotonic()
        made = make()
        row = json.loads(json.dumps({"step": name, **made, "seconds": time.monotonic() - start}))
        if self._journal is not None:
            self._journal.add(row)
        return row


@dataclass
class Budget:
    """What is left of the evaluations, or of the time, of a formula, or of a discovery.

    Attributes:
        evaluations: that are allowed; None where time counts.
        seconds: that are allowed; None where evaluations count.
        spent: evaluations so far.
        took: seconds so far.
    """

    evaluations: int | None
    seconds: float | None
    spent: int = 0
    took: float = 0.0

    def charge(self, row: dict[str, Any]) -> None:
        """Counts what a step cost."""
        self.spent += row.get("evaluations", 0)
        self.took += row["seconds"]

    def next_batch(self, structures: int, steps: int, share: float = 1.0) -> tuple[int, int]:
        """How many structures may be relaxed next, and in how many steps each, within a share of the whole budget.

        Args:
            structures: that there are, at most.
            steps: that are of use, at most. Each costs an evaluation, and the first state another one.
            share: of the budget that may be spent then.
        """
        if self.seconds is not None:
            return (structures, steps) if self.took < share * self.seconds else (0, 0)
        left = int(share * (self.evaluations or 0)) - self.spent
        structures = min(structures, left // WORTHWHILE)
        return (structures, min(steps, left // structures - 1)) if structures > 0 else (0, 0)

    def next_evaluations(self, structures: int, share: float) -> int:
        """How many structures, at most, may be evaluated once within a share of the whole budget."""
        if self.seconds is not None:
            return structures if self.took < share * self.seconds else 0
        return max(0, min(structures, int(share * (self.evaluations or 0)) - self.spent))

    def left(self) -> float:
        """Seconds that are left."""
        return math.inf if self.seconds is None else self.seconds - self.took
