"""From formulas to their likely structures: drawn, relaxed within a budget, ranked by energy.

The prediction of a formula is a sequence of steps: to draw, to evaluate what was drawn, and to relax it, a few
structures at a time, first with the symmetry that it was drawn with and then, displaced a little, without. What a step
gives is a row of a journal, in which a resumed run finds it; everything else follows from these rows. A step that is
interrupted is made anew as a whole: what is relaxed together decides over the last digits of its energies.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cfx.config import PredictConfig
from cfx.config.texts import formula as parse_formula
from cfx.core import Structure
from cfx.core.elements import lowest_terms
from cfx.data.structures import structure_from_json
from cfx.errors import NumericsError, UsageError
from cfx.evaluation.hull import Hull
from cfx.evaluation.setup import open_hull
from cfx.evaluation.validity import symmetry_dataset
from cfx.io.journal import JsonLines, complete
from cfx.model import Model
from cfx.predictors.base import Potential
from cfx.predictors.load import load_potential
from cfx.reporter import Interrupted, Reporter, Silent, StopRequest, counted, interrupted_by_signals
from cfx.runs.candidates import Candidate, Formula, draw_candidates, draws_request
from cfx.runs.predictions import Minimum, Prediction, check_predictions, merge, ranked, symbol_of, write_predictions
from cfx.runs.relaxing import AS_DRAWN, AT_ONCE, relax_together
from cfx.runs.steps import Budget, Steps, steps_beside
from cfx.sampling.request import prepare

LIKELY = 5
"""Space groups that are named."""

WITH_SYMMETRY = 0.75
"""Share of the budget after which no relaxation that keeps the symmetry begins."""

DISPLACED = 0.03
"""Mean displacement of atoms, angstrom, before a relaxation without symmetry: forces that it forbids are exactly 0."""


def predict(
    model: Model,
    formulas: str | Sequence[str | Formula],
    config: PredictConfig | None = None,
    reporter: Reporter | None = None,
    journal: JsonLines | None = None,
    resume: bool = False,
    **settings: Any,
) -> list[Prediction]:
    """Predicts the structures of formulas.

    Args:
        model: draws the structures.
        formulas: one, as "SrTiO3", or several, as texts or as symbols with numbers of atoms.
        config: how; by default what `settings` say.
        reporter: receives progress, messages and warnings; by default warnings go to Python's own machinery.
        journal: keeps what was computed; without one, an interrupted run leaves nothing.
        resume: go on with what is in the journal.
        **settings: fields of `PredictConfig`, as draws=50 or space_groups="Pm-3m".

    Returns:
        Of each formula in turn, at most `top` structures, in the order of `sort`.

    Raises:
        UsageError: if no formula can be met, or an interrupted run was another.
        NumericsError: if no formula has a structure with an energy.
        Interrupted: after a signal.
    """
    with StopRequest() as stop:
        return _predict(
            model, formulas, config or PredictConfig(**settings), reporter or Silent(), journal, resume, stop
        )


def _predict(
    model: Model,
    formulas: str | Sequence[str | Formula],
    config: PredictConfig,
    reporter: Reporter,
    journal: JsonLines | None,
    resume: bool,
    stop: StopRequest,
) -> list[Prediction]:
    several = [formulas] if isinstance(formulas, str) else formulas
    parsed = [parse_formula(one) if isinstance(one, str) else one for one in several]
    possible = _possible(model, [tuple(lowest_terms(dict(one)).items()) for one in parsed], config, reporter)
    potential = load_potential(config.potential, config.device)
    hull = None
    if config.hull:
        hull = open_hull(config.hull, config.hull_scale, potential, reporter, config.corrections)
    else:
        reporter.warning("without a hull, energies above it are unknown; name one with `hull`")
    steps = Steps(journal, _header(model, possible, config, potential), resume)
    found: list[Prediction] = []
    with warnings.catch_warnings(action="ignore"):
        for formula in possible:
            try:
                found += _Prediction(formula, model, config, potential, hull, reporter, steps, stop).execute()
            except NumericsError as error:
                if len(possible) == 1:
                    raise
                reporter.warning(f"{name_of(formula)}: {error.message}")
    if not found:
        raise NumericsError("none of the formulas has a structure with an energy", "draw more with `draws`")
    return found


def predict_into(
    directory: Path,
    model: Model,
    formulas: Sequence[Formula],
    config: PredictConfig,
    reporter: Reporter,
    force: bool = False,
    resume: bool = False,
) -> list[Prediction]:
    """Predicts the structures of formulas, and writes them to a directory; see `predict`.

    Args:
        directory: gets predictions.csv, .json and .html, and a CIF of each structure. Until then, what was computed is
            in DIRECTORY.partial.
        force: overwrite predictions that are there, finished or not.
        resume: go on with DIRECTORY.partial.

    Raises:
        OutputError: if it is there and `force` is False, or cannot be written.
    """
    with steps_beside(directory, check_predictions, force, resume) as (journal, stop):
        found = _predict(model, formulas, config, reporter, journal, resume, stop)
        complete(directory, lambda fresh: write_predictions(fresh, found, config, model.name))
    reporter.message(f"written: {directory}: {counted(len(found), 'structure')}")
    return found


def name_of(formula: Formula) -> str:
    """The reduced formula as pymatgen writes it."""
    from pymatgen.core import Composition

    return Composition(dict(formula)).reduced_formula


def _possible(model: Model, formulas: Sequence[Formula], config: PredictConfig, reporter: Reporter) -> list[Formula]:
    """The formulas that some space group can hold; of several, the others are named."""
    possible: list[Formula] = []
    for formula in dict.fromkeys(formulas):
        try:
            prepare(draws_request(formula, config), model.config)
            possible.append(formula)
        except UsageError as error:
            if len(formulas) == 1:
                raise
            reporter.warning(f"{name_of(formula)} is left out: {error.message}")
    if not possible:
        raise UsageError(
            "none of the formulas can be met", "allow larger cells with `max_atoms`, or other space groups"
        )
    return possible


def _header(model: Model, formulas: Sequence[Formula], config: PredictConfig, potential: Potential) -> dict[str, Any]:
    """What a run has to share with the one that it continues."""
    names = [name_of(formula) for formula in formulas]
    return {**asdict(config), "formulas": names, "model": model.digest(), "potential": potential.name}


class _Prediction:
    """The prediction of one formula."""

    def __init__(
        self,
        formula: Formula,
        model: Model,
        config: PredictConfig,
        potential: Potential,
        hull: Hull | None,
        reporter: Reporter,
        steps: Steps,
        stop: StopRequest,
    ):
        self.formula, self.name, self.model, self.config = formula, name_of(formula), model, config
        self.potential, self.hull, self.reporter, self.stop = potential, hull, reporter, stop
        self.steps, self.budget = steps, Budget(config.evaluations, config.seconds)
        self.lowest: tuple[float, str] | None = None

    def execute(self) -> list[Prediction]:
        """Draws, evaluates, relaxes, ranks."""
        candidates = self.draw()
        energies = self.energies(candidates)
        known = sorted((energy, i) for i, energy in enumerate(energies) if energy is not None)
        starts = [Minimum(candidates[i].structure, energy, frozenset({i})) for energy, i in known]
        relaxed = self.relax(starts) if self.config.relax else []
        if starts and self.config.relax and not relaxed:
            self.reporter.warning(f"{self.name}: no structure could be relaxed within `budget`: ranked as drawn")
        minima = merge(relaxed or starts)
        if not minima:
            raise NumericsError(
                f"none of {self.config.draws} draws of {self.name} has an energy", "draw more with `draws`"
            )
        found = ranked(self.name, minima, candidates, self.potential, self.hull, self.config)
        likeliest = max(found, key=lambda one: one.probability)
        if likeliest.rank > 1:
            share = f"{likeliest.symbol or 'without symmetry'} ({100 * likeliest.probability:.0f} %)"
            self.reporter.message(
                f"{self.name}: likeliest of the list, by draws and energy, is number {likeliest.rank}, {share}"
            )
        return found

    def draw(self) -> list[Candidate]:
        """The candidates, the likeliest first."""

        def make() -> dict[str, Any]:
            self.check()
            stopped = f"stopped at {self.name}; {self.steps.where}"
            with self.reporter.progress(f"{self.name}: drawing", None) as progress, interrupted_by_signals(stopped):
                progress.update(0, "compiling")
                drawn = draw_candidates(self.model, self.formula, self.config, progress.update)
            likely = [[group, round(share, 6)] for group, share in drawn.space_groups]
            return {
                "candidates": [one.as_json() for one in drawn.candidates],
                "left_out": drawn.left_out,
                "space_groups": likely,
                "effective_sample_size": drawn.effective_sample_size,
            }

        row = self.take("draw", make)
        groups = ", ".join(f"{symbol_of(group)} {100 * share:.0f} %" for group, share in row["space_groups"][:LIKELY])
        size = row["effective_sample_size"]
        drawn = f"{self.name}: {len(row['candidates'])} distinct structures drawn; space groups by the model: {groups}"
        self.reporter.message(drawn if size is None else f"{drawn} (effective sample size {size:.0f})")
        return [Candidate.of(one) for one in row["candidates"]]

    def energies(self, candidates: Sequence[Candidate]) -> list[float | None]:
        """Energy of each candidate as drawn, eV/atom; None where there is none, or the budget does not reach."""
        number = len(candidates)
        if self.config.evaluations is not None:
            number = min(number, math.ceil(AS_DRAWN * self.config.evaluations))

        def make() -> dict[str, Any]:
            energies: list[float | None] = []
            with self.reporter.progress(f"{self.name}: energies", number) as progress:
                for first in range(0, number, AT_ONCE):
                    part = [one.structure for one in candidates[first : min(first + AT_ONCE, number)]]
                    batch = self.potential.evaluate(part, forces=False)
                    energies += [
                        float(energy) / len(structure) if math.isfinite(energy) else None
                        for energy, structure in zip(batch.energy, part, strict=True)
                    ]
                    progress.update(len(energies))
                    self.check()
            return {"energies": energies, "evaluations": number}

        return self.take("energies", make)["energies"] + [None] * (len(candidates) - number)

    def relax(self, starts: Sequence[Minimum]) -> list[Minimum]:
        """Minima within the budget: those of the starts with their symmetry, and of the lowest of these without."""
        kept = list(self.relaxed(starts, "with symmetry", WITH_SYMMETRY, fix_symmetry=True))
        best = merge(kept)[: self.config.top]
        random = np.random.default_rng(self.config.seed)
        shaken = [Minimum(_displaced(one.structure, random), one.energy, one.members) for one in best]
        return [*kept, *self.relaxed(shaken, "without symmetry", 1.0, fix_symmetry=False)]

    def relaxed(self, starts: Sequence[Minimum], how: str, share: float, fix_symmetry: bool) -> Iterator[Minimum]:
        """Minima of the starts, in their order, as long as a share of the budget lasts."""
        done = 0
        while done < len(starts):
            number, steps = self.budget.next_batch(min(AT_ONCE, len(starts) - done), self.config.steps, share)
            if not number:
                return
            part = starts[done : done + number]
            done += number
            make = functools.partial(self._relax, part, how, steps, fix_symmetry)
            for start, one in zip(part, self.take(f"relax {how}", make)["minima"], strict=True):
                if one is not None:
                    yield Minimum(structure_from_json(one), one["energy"], start.members, one["converged"])

    def _relax(self, part: Sequence[Minimum], how: str, steps: int, fix_symmetry: bool) -> dict[str, Any]:
        """The row of a few structures that are relaxed together."""
        with self.reporter.progress(f"{self.name}: relaxing {how}", self.config.evaluations) as progress:
            row = relax_together(
                self.potential,
                [one.structure for one in part],
                self.config.fmax,
                steps,
                fix_symmetry,
                self.budget,
                self.stop,
                lambda evaluations, ended: progress.update(self.budget.spent + evaluations, self._best()),
            )
        self.check()
        return row

    def take(self, step: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of a step, whose cost is counted."""
        row = self.steps.take(f"{self.name}: {step}", make)
        self.budget.charge(row)
        for one in row.get("minima", []):
            if one is not None and (self.lowest is None or one["energy"] < self.lowest[0]):
                dataset, _ = symmetry_dataset(structure_from_json(one))
                self.lowest = one["energy"], symbol_of(None if dataset is None else int(dataset.number))
        return row

    def check(self) -> None:
        """Raises Interrupted after a signal."""
        if self.stop.signum is not None:
            raise Interrupted(self.stop.signum, f"stopped at {self.name}; {self.steps.where}")

    def _best(self) -> str:
        return "" if self.lowest is None else f"best {self.lowest[1]} {self.lowest[0]:.3f} eV/atom"


def _displaced(structure: Structure, random: np.random.Generator) -> Structure:
    """A copy whose atoms are displaced at random."""
    from pymatgen.core import Structure

    moved = structure.cart_coords + random.normal(0, DISPLACED / math.sqrt(3), (len(structure), 3))
    return Structure(structure.lattice, structure.species, moved, coords_are_cartesian=True)
