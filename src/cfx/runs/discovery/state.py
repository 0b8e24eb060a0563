"""A discovery under way: what is known of its crystals so far, and what all of its stages need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cfx.config import DiscoverRun
from cfx.config.texts import budget
from cfx.core import Structure
from cfx.evaluation.hull import Hull
from cfx.evaluation.setup import EvaluationSetup
from cfx.model import Model
from cfx.predictors.base import Potential, PropertyModel
from cfx.reporter import Interrupted, Noting, StopRequest
from cfx.runs.discovery.funnel import Stage
from cfx.runs.steps import Budget, Steps

Record = dict[str, Any]
"""What is known of a crystal, under the names of `cfx eval`."""

Update = Callable[[float], None]

EVALUATED_AT_ONCE = 64
"""Structures that are evaluated together, in one step."""


@dataclass
class Discovering:
    """A discovery under way.

    Attributes:
        run: what is asked.
        model: draws the crystals.
        setup: what they are judged with.
        properties: models of the properties that are asked for, by name.
        steps: those that were made.
        records: what is known of each crystal drawn, in order; `left_out` is what it was lost to, or "".
        structures: each as drawn, in its primitive cell, and then as relaxed; None where no cell closes.
        budget: what is left of it.
    """

    run: DiscoverRun
    model: Model
    setup: EvaluationSetup
    properties: dict[str, PropertyModel]
    reporter: Noting
    steps: Steps
    stop: StopRequest
    records: list[Record] = field(default_factory=list)
    structures: list[Structure | None] = field(default_factory=list)
    budget: Budget = field(init=False)

    def __post_init__(self):
        allowed = self.run.keep.budget
        self.budget = Budget(None, math.inf) if allowed is None else Budget(*budget(allowed))

    @property
    def potential(self) -> Potential:
        """The first one."""
        assert self.setup.potential is not None  # `DiscoverConfig.check` asks for it
        return self.setup.potential

    @property
    def hull(self) -> Hull:
        """That of the first potential."""
        assert self.setup.hull is not None  # `DiscoverConfig.check` asks for it
        return self.setup.hull

    def left(self) -> list[int]:
        """Crystals that have passed all stages so far."""
        return [row for row, record in enumerate(self.records) if not record["left_out"]]

    def ranked(self, column: str, descending: bool = False) -> list[int]:
        """Those that are left, by a column that all of them have."""
        sign = -1 if descending else 1
        return sorted(self.left(), key=lambda row: sign * self.records[row][column])

    def lose(self, rows: Sequence[int], stage: Stage) -> None:
        """Notes that crystals do not pass a stage."""
        for row in rows:
            self.records[row]["left_out"] = stage.lost

    @contextmanager
    def step(self, title: str, total: int | None) -> Iterator[Update]:
        """Shows the progress of a step, which ends when a signal has come."""
        with self.reporter.progress(title, total) as progress:

            def update(done: float) -> None:
                progress.update(done)
                self.check()

            yield update

    def check(self) -> None:
        """Raises Interrupted after a signal."""
        if self.stop.signum is not None:
            raise Interrupted(self.stop.signum, f"stopped; {self.steps.where}")

    def energies(self, rows: Sequence[int], potential: Potential, title: str, share: float | None) -> list[float]:
        """Energies of the first of some crystals, eV/atom, NaN where there is none.

        Args:
            rows: of the crystals.
            potential: that gives the energies.
            title: of the steps.
            share: of the budget that may be spent then; None: all crystals, at no cost.
        """
        found: list[float] = []
        with self.step(title, len(rows)) as update:
            while len(found) < len(rows):
                number = min(EVALUATED_AT_ONCE, len(rows) - len(found))
                number = number if share is None else self.budget.next_evaluations(number, share)
                if not number:
                    break
                part = [self.structures[row] for row in rows[len(found) : len(found) + number]]
                row = self.steps.take(title, lambda part=part: self._evaluate(potential, part))
                if share is not None:
                    self.budget.charge(row)
                found += [math.nan if one is None else one for one in row["energies"]]
                update(len(found))
        return found

    def _evaluate(self, potential: Potential, part: Sequence[Structure | None]) -> dict[str, Any]:
        self.check()
        energy = potential.evaluate(part, forces=False).energy
        per_atom = [
            float(total) / len(one) if one is not None and math.isfinite(total) else None
            for total, one in zip(energy, part, strict=True)
        ]
        return {"energies": per_atom, "evaluations": len(part)}

    def place(
        self, rows: Sequence[int], energies: Sequence[float], hull: Hull, scale: str, keys: Sequence[str]
    ) -> None:
        """Notes of crystals, under three keys: energy, eV/atom; that above the hull; what the hull has there."""
        structures = [self.structures[row] for row in rows]
        whole = [energy * len(one or ()) for energy, one in zip(energies, structures, strict=True)]
        batch = hull.evaluate(structures, whole, scale)
        found = zip(rows, energies, batch.e_above_hull, batch.decompositions, strict=True)
        for row, energy, height, decomposition in found:
            noted = (if_finite(energy), if_finite(height), decomposition or None)
            self.records[row] |= dict(zip(keys, noted, strict=True))


def if_finite(value: float) -> float | None:
    """A number, None for one that is not finite."""
    return float(value) if math.isfinite(value) else None
