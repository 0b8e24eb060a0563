"""From a family of crystals to a list of the best: drawn, sifted, evaluated once, the promising relaxed and judged.

A discovery is a sequence of steps, each a row of a journal: some crystals drawn, the sifting of all, some energies,
some relaxations. A resumed run finds them there and makes the others; everything else follows from these rows. A step
that is interrupted is made anew as a whole: what is relaxed together decides over the last digits of its energies.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cfx.config import DiscoverRun, SampleConfig
from cfx.config.texts import budget
from cfx.core import Structure
from cfx.core.crystal import CrystalBatch, concatenate
from cfx.data.structures import MIN_DISTANCE, closest_approach
from cfx.errors import NumericsError, OutputError
from cfx.evaluation.matching import find_duplicates, rms_displacement
from cfx.evaluation.novelty import find_novel
from cfx.evaluation.setup import EvaluationSetup, load_setup
from cfx.evaluation.summary import is_below_floor
from cfx.evaluation.validity import composition_validity, find_space_groups, structure_validity
from cfx.io.files import sole_writer
from cfx.io.journal import JsonLines, check_unfinished, complete, partial_of, remove_partial
from cfx.model import Model
from cfx.predictors.base import Potential
from cfx.predictors.relax import relax
from cfx.reporter import Interrupted, Noting, Reporter, Silent, StopRequest
from cfx.rl.rollout import primitive_cells
from cfx.runs import funnel
from cfx.runs.candidates import structure_as_json, structure_of
from cfx.runs.discoveries import Discovery, Record, check_discovery, listed
from cfx.runs.evaluate import facts
from cfx.runs.space_groups import find_space_groups as likely_space_groups
from cfx.runs.steps import Budget, Steps
from cfx.sampling.sampler import Draws, Resumed

EVALUATED_AT_ONCE, RELAXED_AT_ONCE = 64, 16
"""Structures that are evaluated, or relaxed, together, in one step."""

AS_DRAWN = 0.5
"""Share of the budget that may go into structures as drawn."""

Update = Callable[[float], None]


def discover(
    model: Model,
    space_groups: Any = None,
    run: DiscoverRun | None = None,
    reporter: Reporter | None = None,
    journal: JsonLines | None = None,
    resume: bool = False,
    **settings: Any,
) -> Discovery:
    """Draws crystals and finds the best of them.

    Args:
        model: draws the crystals.
        space_groups: as `cfx sample --sg` or `Model.sample` take them; a formula can do without.
        run: what is asked; by default what `space_groups` and `settings` say.
        reporter: receives progress, messages and warnings; by default warnings go to Python's own machinery.
        journal: keeps what was computed; without one, an interrupted run leaves nothing.
        resume: go on with what is in the journal.
        **settings: fields of `SampleConfig`, `EvalConfig` and `DiscoverConfig`, as n=1000, elements="La,Ni,O",
            reference="mp-20", relax=50 or sort="density".

    Returns:
        At most `top` crystals, the first by `sort`, and how many were left after each stage.

    Raises:
        UsageError: for settings that cannot be met, or an interrupted run that was another.
        NumericsError: if no crystal arrives.
        Interrupted: after a signal.
    """
    with StopRequest() as stop:
        asked = run or DiscoverRun.of(space_groups, **settings)
        return _discover(model, asked, reporter or Silent(), journal, resume, stop)


def discover_into(
    directory: Path, model: Model, run: DiscoverRun, reporter: Reporter, force: bool = False, resume: bool = False
) -> Discovery:
    """Draws crystals, finds the best of them, and writes them to a directory; see `discover` and `Discovery.write`.

    Args:
        directory: until it is complete, what was computed is in DIRECTORY.partial.
        force: overwrite a discovery that is there, finished or not.
        resume: go on with DIRECTORY.partial.

    Raises:
        OutputError: if it is there and `force` is False, or cannot be written.
    """
    with sole_writer(directory), StopRequest() as stop:  # which lets the files be written once all is computed
        check_unfinished(directory, force, resume)
        check_discovery(directory)
        journal = JsonLines(partial_of(directory), hint="free disk space, then use `resume`")
        if resume and not journal.path.exists():
            raise OutputError(f"nothing to continue: {journal.path}", "start it without `resume`")
        if not resume:
            remove_partial(directory)
        found = _discover(model, run, reporter, journal, resume, stop)
        complete(directory, lambda fresh: found.write_files(fresh, run.keep.inputs))
    reporter.message(f"written: {directory}: {found.in_words()}")
    return found


def _discover(
    model: Model, run: DiscoverRun, reporter: Reporter, journal: JsonLines | None, resume: bool, stop: StopRequest
) -> Discovery:
    noting = Noting(reporter)
    setup = load_setup(run.judge, noting)
    header = {**run.header(), "by_probability": run.by_probability, "model": model.digest()}
    steps = Steps(journal, {**header, "potential": setup.potential and setup.potential.name}, resume)
    with warnings.catch_warnings(action="ignore"):
        return _Discovery(run, model, setup, noting, steps, stop).execute()


class _Discovery:
    """A discovery under way.

    Attributes:
        records: what is known of each crystal drawn, in order.
        structures: each as drawn, in its primitive cell, and then as relaxed; None where no cell closes.
    """

    def __init__(
        self, run: DiscoverRun, model: Model, setup: EvaluationSetup, reporter: Noting, steps: Steps, stop: StopRequest
    ):
        self.run, self.model, self.setup, self.reporter = run, model, setup, reporter
        self.steps, self.stop = steps, stop
        self.budget = Budget(None, math.inf) if run.keep.budget is None else Budget(*budget(run.keep.budget))
        self.records: list[Record] = []
        self.structures: list[Structure | None] = []

    def execute(self) -> Discovery:
        """Draws, sifts, evaluates, relaxes, judges, lists."""
        self.draw()
        self.sift()
        self.evaluate()
        self.relax()
        self.judge()
        if not self.left():
            lost = Counter(record["left_out"] for record in self.records)
            reasons = "; ".join(f"{number} {reason}" for reason, number in lost.most_common())
            raise NumericsError(f"none of {len(self.records)} crystals arrives: {reasons}", "draw more with `n`")
        return listed(self.run, self.records, self.structures, self.setup, self.reporter.warnings, self._costs())

    def left(self) -> list[int]:
        """Crystals that have passed all stages so far."""
        return [row for row, record in enumerate(self.records) if not record["left_out"]]

    def lose(self, rows: Sequence[int], stage: funnel.Stage) -> None:
        """Notes that crystals do not pass a stage."""
        for row in rows:
            self.records[row]["left_out"] = stage.lost

    # Draw and sift.

    def draw(self) -> None:
        """The crystals of the request, a few in each step."""
        request, batches, resumed = self.request(), None, Resumed()
        parts: list[CrystalBatch] = []

        def make() -> dict[str, Any]:
            nonlocal batches
            self.check()
            if batches is None:
                batches = self.model.draws(request, resumed=resumed, stop=lambda: bool(self.stop))
            draws = next(batches, None)
            self.check()
            return {"ended": True} if draws is None else _as_json(draws)

        with self.reporter.progress("drawing", request.n) as progress:
            progress.update(0, "compiling")
            while len(self.records) < request.n:
                row = self.steps.take("draw", make)
                if row.get("ended"):
                    self.reporter.warning(
                        f"{len(self.records)} of {request.n} crystals: the space groups give no more new ones"
                    )
                    break
                parts.append(_crystals(row).with_slots(self.model.config.n_max))
                self._add(parts[-1], row)
                progress.update(len(self.records))
                kept = concatenate(parts) if request.unique and batches is None else None
                before = () if kept is None else tuple(kept[i : i + 1] for i in range(len(kept)))
                resumed = Resumed(len(self.records), Counter(row["rejected"]), before, tuple(row["exhausted"]))

    def request(self) -> SampleConfig:
        """What is drawn, with the space groups that the model finds likely if it is left to choose."""
        if not self.run.by_probability:
            return self.run.sample

        def make() -> dict[str, Any]:
            self.check()
            found = likely_space_groups(self.model, self.run.sample, self.reporter).narrow(self.run.sample)
            return {"space_groups": found.space_groups, "weights": found.weights}

        row = self.steps.take("space groups", make)
        return replace(self.run.sample, space_groups=tuple(row["space_groups"]), weights=tuple(row["weights"]))

    def _add(self, crystals: CrystalBatch, row: Mapping[str, Any]) -> None:
        """Records of crystals that were drawn."""
        sites = crystals.num_sites
        for i, structure in enumerate(primitive_cells(crystals)):
            known = facts(structure)
            number, log_prob = row["number"][i], row["log_prob"][i]
            self.records.append(
                {
                    "name": f"{known['formula']}_{number}",
                    **known,
                    "space_group_asked": int(crystals.space_group[i]),
                    "log_prob": log_prob,
                    "log_prob_per_site": log_prob / int(sites[i]),
                    "left_out": "",
                }
            )
            self.structures.append(structure)

    def sift(self) -> None:
        """Leaves out what is no crystal, a repeat of a likelier one, known, or less likely."""

        def make() -> dict[str, Any]:
            self._check_one_by_one()
            order = sorted(self.left(), key=lambda row: -self.records[row]["log_prob_per_site"])
            matched = {"duplicate_of": self._without_repeats(order, funnel.DISTINCT)}
            matched |= {"matched": self._without_known(funnel.NOVEL)}
            left = [row for row in order if not self.records[row]["left_out"]]
            self.lose(left[math.ceil(self.run.keep.likeliest * len(left)) :], funnel.LIKELY)
            columns = {name: [record[name] for record in self.records] for name in ("class", "left_out")}
            return {"columns": {**columns, **matched}}

        row = self.steps.take("sift", make)
        for name, values in row["columns"].items():
            for record, value in zip(self.records, values, strict=True):
                record[name] = value

    def _check_one_by_one(self) -> None:
        with self.step("checking structures", len(self.structures)) as update:
            for row, structure in enumerate(self.structures):
                record, keep = self.records[row], self.run.keep
                [composition] = composition_validity([structure], self.run.judge.mixed_valence)
                record["class"] = composition.kind
                if not structure_validity([structure])[0].valid:
                    self.lose([row], funnel.VALID)
                elif keep.charge_balanced and not composition.without_alloys:
                    self.lose([row], funnel.BALANCED)
                update(row + 1)

    def _without_repeats(self, order: Sequence[int], stage: funnel.Stage) -> list[str | None]:
        """Leaves out what matches a crystal earlier in an order; for each record, the name of that crystal."""
        found: list[str | None] = [None] * len(self.records)
        with self.step("comparing with each other", None) as update:
            repeats = find_duplicates([self.structures[row] for row in order], self.run.judge.workers, update)
        for row, one in zip(order, repeats, strict=True):
            found[row] = None if one.match is None else self.records[order[one.match]]["name"]
        self.lose([row for row, one in zip(order, repeats, strict=True) if not one.unique], stage)
        return found

    def _without_known(self, stage: funnel.Stage) -> list[str | None]:
        """Leaves out what the reference holds; for each record, the name of the known crystal."""
        found: list[str | None] = [None] * len(self.records)
        reference, left = self.setup.reference, self.left()
        if reference is None:
            return found
        with self.step("comparing with known crystals", None) as update:
            novel = find_novel([self.structures[row] for row in left], reference, self.run.judge.workers, update)
        for row, one in zip(left, novel, strict=True):
            found[row] = None if one.match is None else reference.name(one.match)
        self.lose([row for row, one in zip(left, novel, strict=True) if not one.novel], stage)
        return found

    # Evaluate and relax.

    def evaluate(self) -> None:
        """Energies above the hull of the crystals as drawn, the likeliest first."""
        left = sorted(self.left(), key=lambda row: -self.records[row]["log_prob_per_site"])
        energies = self.energies(left, self.potential, "energies", AS_DRAWN)
        self.lose(left[len(energies) :], funnel.WITHIN_BUDGET)
        left = left[: len(energies)]
        self._place(left, energies, "energy_per_atom_unrelaxed", "e_above_hull_unrelaxed")
        for row in left:
            height = self.records[row]["e_above_hull_unrelaxed"]
            if height is None:
                self.lose([row], funnel.WITH_ENERGY)
            elif not self.setup.thresholds.allow(height, math.inf):
                self.lose([row], funnel.ABOVE_FLOOR)

    @property
    def potential(self) -> Potential:
        """The first one."""
        assert self.setup.potential is not None  # `DiscoverConfig.check` asks for it
        return self.setup.potential

    def energies(self, rows: Sequence[int], potential: Potential, title: str, share: float | None) -> list[float]:
        """Energies of the first of some crystals, eV/atom, NaN where there is none: all, or a share of the budget."""
        found: list[float] = []
        with self.step(title, len(rows)) as update:
            while len(found) < len(rows):
                number = min(EVALUATED_AT_ONCE, len(rows) - len(found))
                number = number if share is None else self.budget.next_evaluations(number, share)
                if not number:
                    break
                part = [self.structures[row] for row in rows[len(found) : len(found) + number]]

                def make(part: Sequence[Structure | None] = part) -> dict[str, Any]:
                    self.check()
                    energy = potential.evaluate(part, forces=False).energy
                    per_atom = [
                        float(total) / len(one) if one is not None and math.isfinite(total) else None
                        for total, one in zip(energy, part, strict=True)
                    ]
                    return {"energies": per_atom, "evaluations": len(part)}

                row = self.steps.take(title, make)
                if share is not None:
                    self.budget.charge(row)
                found += [math.nan if one is None else one for one in row["energies"]]
                update(len(found))
        return found

    def _place(self, rows: Sequence[int], energies: Sequence[float], energy_name: str, height_name: str) -> None:
        """Notes energies, eV/atom, and those above the hull."""
        hull = self.setup.hull
        assert hull is not None  # `DiscoverConfig.check` asks for it
        structures = [self.structures[row] for row in rows]
        whole = [energy * len(one or ()) for energy, one in zip(energies, structures, strict=True)]
        batch = hull.evaluate(structures, whole, self.potential.scale)
        heights = zip(rows, energies, batch.e_above_hull, batch.decompositions, strict=True)
        for row, energy, height, decomposition in heights:
            self.records[row] |= {
                energy_name: _if_finite(energy),
                height_name: _if_finite(height),
                "decomposition": decomposition or None,
            }

    def relax(self) -> None:
        """Relaxes the crystals that are lowest above the hull as drawn, as many as are wanted and the budget allows."""
        order = sorted(self.left(), key=lambda row: self.records[row]["e_above_hull_unrelaxed"])
        wanted, done = order[: self.run.keep.relax], 0
        with self.step("relaxing", len(wanted)) as update:
            while done < len(wanted):
                number, steps = self.budget.next_batch(min(RELAXED_AT_ONCE, len(wanted) - done), self.run.judge.steps)
                if not number:
                    break
                part = wanted[done : done + number]

                def make(part: Sequence[int] = part, steps: int = steps, done: int = done) -> dict[str, Any]:
                    return self._relax(part, steps, done, update)

                row = self.steps.take("relax", make)
                self.budget.charge(row)
                for i, minimum in zip(part, row["minima"], strict=True):
                    self._note_minimum(i, minimum)
                done += number
                update(done)
        self.lose(order[done:], funnel.RELAXED)

    def _relax(self, rows: Sequence[int], steps: int, done: int, update: Update) -> dict[str, Any]:
        """The row of a few structures that are relaxed together."""
        began, left, ended = time.monotonic(), self.budget.left(), 0

        def over() -> bool:
            return bool(self.stop) or time.monotonic() - began > left

        def count(number: int, result: object) -> None:
            nonlocal ended
            ended += 1
            update(done + ended)

        starts, judge = [self.structures[row] for row in rows], self.run.judge
        results = relax(
            self.potential, starts, judge.fmax, steps, judge.fix_symmetry, count, over, at_once=RELAXED_AT_ONCE
        )
        self.check()
        minima = []
        for start, one in zip(starts, results, strict=True):
            after = one.structure
            if after is None or not math.isfinite(one.energy) or closest_approach(after) < MIN_DISTANCE:
                minima.append(None)
                continue
            told = {"energy": one.energy / len(after), "converged": one.converged, "steps": one.steps}
            minima.append({**structure_as_json(after), **told, "rmsd": rms_displacement(start, after)})
        return {"minima": minima, "evaluations": sum(one.steps + 1 for one in results)}

    def _note_minimum(self, row: int, minimum: Mapping[str, Any] | None) -> None:
        """Puts a relaxed crystal in the place of the drawn one."""
        if minimum is None:
            self.lose([row], funnel.INTACT)
            return
        relaxed = structure_of(dict(minimum))
        before, after = find_space_groups([self.structures[row], relaxed])
        self.structures[row] = relaxed
        self.records[row] |= {
            **facts(relaxed),
            "space_group": before.found,
            "space_group_relaxed": after.found,
            "energy_per_atom": minimum["energy"],
            "rmsd_to_relaxed": minimum["rmsd"],
            "converged": minimum["converged"],
            "steps": minimum["steps"],
        }

    def judge(self) -> None:
        """What relaxed crystals are worth."""
        left = self.left()
        self._place(left, [self.records[row]["energy_per_atom"] for row in left], "energy_per_atom", "e_above_hull")
        for row in left:
            record, limits = self.records[row], self.setup.thresholds
            record["verdict"] = limits.verdict(record["e_above_hull"])
            highest = self.run.keep.max_e_hull
            if is_below_floor(record):
                self.lose([row], funnel.PLAUSIBLE)
            elif highest is not None and not limits.allow(record["e_above_hull"], highest):
                self.lose([row], funnel.LOW)
        lowest_first = sorted(self.left(), key=lambda row: self.records[row]["e_above_hull"])
        self._without_repeats(lowest_first, funnel.STILL_DISTINCT)
        matched = self._without_known(funnel.STILL_NOVEL)
        for record, name in zip(self.records, matched, strict=True):
            record["matched"] = record["matched"] or name

    # What all steps need.

    @contextmanager
    def step(self, title: str, total: int | None) -> Iterator[Update]:
        """A step that ends when a signal has come."""
        with self.reporter.progress(title, total) as progress:

            def update(done: float) -> None:
                progress.update(done)
                self.check()

            yield update

    def check(self) -> None:
        """Raises Interrupted after a signal."""
        if self.stop.signum is not None:
            raise Interrupted(self.stop.signum, f"stopped; {self.steps.where}")

    def _costs(self) -> dict[str, float]:
        return {"evaluations": self.budget.spent, "seconds": self.budget.took}


def _if_finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _as_json(draws: Draws) -> dict[str, Any]:
    """Some crystals, to the last bit, and how far the request has come."""
    crystals = draws.crystals.numpy()
    crystals = crystals.with_slots(int(np.max(crystals.num_sites)))
    return {
        **{name: array.tolist() for name, array in vars(crystals).items()},
        "number": [job.number for job in draws.jobs],
        "log_prob": np.asarray(draws.log_prob.total, float).tolist(),
        "rejected": dict(draws.rejected),
        "exhausted": draws.exhausted,
    }


def _crystals(row: Mapping[str, Any]) -> CrystalBatch:
    """The crystals that `_as_json` gave."""
    names = ("space_group", "lattice", "frac_coords", "species", "wyckoff")
    return CrystalBatch(*(np.array(row[name]) for name in names)).numpy()
