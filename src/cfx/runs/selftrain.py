"""Self-training: a model draws crystals, those that are stable once relaxed are kept, and it is trained on them too.

Each round is a directory of files that are made one after the other, each whole or resumable; a file that is there is
not made again. So a run can be killed at any time:

- draws.jsonl: raw draws of the model, and draws.eval.json, what `cfx eval` says of them, the filter each fails, and
  whether it is a S.U.N. crystal that was learned in a round before.
- candidates.jsonl: those that pass, in primitive cells; relaxed.jsonl: relaxed; relaxed.eval.json: as above.
- kept.jsonl: those that pass again, as `cfx train` reads them.
- training/: a run of `cfx train` on the data and the crystals kept so far; model/: its result.
- report.json: the counts, rates and losses of the round.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfx.config import RelaxConfig, SelfTrainRun, TrainRun
from cfx.core import Structure
from cfx.data.dataset import EncodedDataset, read
from cfx.data.mixture import Mixture, repeated_rows
from cfx.data.split import read_data
from cfx.data.structures import load_crystals
from cfx.errors import DataError
from cfx.evaluation.setup import load_setup
from cfx.evaluation.summary import rate
from cfx.io.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cfx.io.files import parse_json, replace_atomically, writing
from cfx.io.journal import partial_of
from cfx.model import Model, load_model
from cfx.reporter import Interrupted, Reporter, StopRequest
from cfx.rl.rollout import primitive_cell
from cfx.runs.curves import read_lines
from cfx.runs.evaluate import evaluate
from cfx.runs.relax import relax_file
from cfx.runs.sample import sample
from cfx.runs.selection import (
    AFTER,
    BEFORE,
    Record,
    check_classes,
    describe_kept,
    funnel,
    mark_learned,
    mark_repeats,
    mark_unencoded,
    why_not_kept,
    why_not_relaxed,
)
from cfx.training.run import RunDirectory
from cfx.training.train import TrainResult, train

JUDGED = ("settings", "summary", "classes", "reasons", "records")
"""What is kept of an evaluation."""

Structures = list[Structure | None]
Filters = Callable[[Path, list[Record], Structures], list[str]]
"""The filter that each crystal of a file fails, from the records and structures; "" if none."""


def selftrain(
    run: Path, config: SelfTrainRun, model: Model, reporter: Reporter, resume: bool = False
) -> list[dict[str, Any]]:
    """Trains a model on its own crystals into the directory `run`.

    Args:
        run: directory; must be new or empty unless `resume`. It gets config.toml, reference/ (the model it started
            from), round-01/ and so on, metrics.jsonl (a line a round), and final/ (the last model).
        model: that the first round draws from.
        resume: go on with what is there.

    Returns:
        The report of each round.

    Raises:
        UsageError: if `run` exists and `resume` is False, or there is no such class of compositions.
        DataError: if a round keeps no crystal.
        Interrupted: after a signal.
    """
    check_classes(config.keep)
    files = RunDirectory(run)
    with files.sole_writer():
        if not (resume and (run / "reference").exists()):
            files.create(config)
            model.save(run / "reference")
        files.tidy()
        with StopRequest() as stop:
            return _SelfTraining(files, config, model, reporter, stop).execute()


def _once(path: Path, make: Callable[[], str]) -> Path:
    """A text file, made if it is not there."""
    if not path.exists():
        text = make()
        replace_atomically(path, lambda fresh: fresh.write_text(text), path.with_name(f"{path.name}.new"))
    return path


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [parse_json(line) for line in path.read_text().splitlines()]


class _SelfTraining:
    def __init__(self, files: RunDirectory, config: SelfTrainRun, model: Model, reporter: Reporter, stop: StopRequest):
        self.files, self.config, self.reporter, self.first, self.stop = files, config, reporter, model, stop
        self.n_max, self.workers = model.config.n_max, config.judge.workers
        self.setup = load_setup(config.judge, reporter)
        self.data, self.validation = read_data(config.data, self.n_max, reporter, self.workers)

    def _encoded(self, name: str | Path) -> EncodedDataset:
        return read(name, self.n_max, self.reporter, self.config.data.symprec, self.workers)

    def place(self, number: int) -> Path:
        """The directory of a round, from 1."""
        return self.files.path / f"round-{number:02d}"

    def model(self, number: int) -> Model:
        """The model after so many rounds."""
        if number == 0:
            return self.first
        return dataclasses.replace(load_model(self.place(number) / "model"), name=self.place(number).name)

    def execute(self) -> list[dict[str, Any]]:
        """All rounds that are left, and the final model."""
        reports: list[dict[str, Any]] = []
        for number in range(1, self.config.keep.rounds + 1):
            reports.append(self.round(number))
            self._log(reports)
            if reports[-1]["ended"]:
                self.reporter.warning(f"ended after round {number}: {reports[-1]['ended']}")
                break
        last = len(reports) - bool(reports[-1]["ended"])
        model = self.model(last)
        info = {**model.info, "selftrain": {"rounds": last, "run": self.config.tables()}}
        save_checkpoint(self.files.path / "final", Checkpoint(model.config, model.params, info))
        return reports

    def round(self, number: int) -> dict[str, Any]:
        """The report of a round, which is made unless it has been."""
        place = self.place(number)
        with writing(place):
            place.mkdir(exist_ok=True)
        RunDirectory(place).tidy()
        report = place / "report.json"
        if not report.exists():
            self.reporter.message(f"round {number} of {self.config.keep.rounds}")
            try:
                _once(report, lambda: json.dumps(self._make(number, place), indent=1) + "\n")
            except Interrupted as error:
                where = f"stopped in round {number}; continue {self.files.path} with `resume`"
                raise Interrupted(self.stop.signum or error.exit_code - 128, where) from error
        return parse_json(report.read_text())

    def _make(self, number: int, place: Path) -> dict[str, Any]:
        """Draws, relaxes, keeps, trains."""
        model = self.model(number - 1)
        draws = self.draw(model, number, place / "draws.jsonl")
        drawn = self.judge(draws, functools.partial(self._before, number))
        relaxed = self.relax(draws, drawn["records"], place)
        minima = self.judge(relaxed, functools.partial(self._after, number))
        kept = self.keep(drawn["records"], minima["records"], relaxed, number)
        steps = funnel([one["filter"] for one in drawn["records"]], BEFORE)
        steps += funnel([one["filter"] for one in minima["records"]], AFTER)
        told = describe_kept(kept, self.data)
        self.reporter.message(f"round {number}: " + _in_words(steps, told))
        if not kept:
            hint = "allow more with `max_e_hull`, `classes` or `steps`, or draw more with `n`"
            raise DataError(f"round {number} keeps none of its crystals: there is nothing to learn from", hint)
        training = self.train(model, number, place)
        return {
            "round": number,
            "model": model.name,
            "settings": drawn["settings"],
            "filters": steps,
            "kept": told,
            "training": training,
            "ended": self._why_ended(number, training),
            "draws": {key: drawn[key] for key in ("summary", "classes", "reasons")},
            "learned": rate([one.get("learned") for one in drawn["records"]]),
            "relaxed": {key: minima[key] for key in ("summary", "classes", "reasons")},
        }

    def _look(self) -> None:
        """Stops before the next file, if that was asked for."""
        if self.stop.signum is not None:
            raise Interrupted(self.stop.signum, "stopped")

    # Draw and judge.

    def seed(self, number: int) -> int:
        """The seed of a round, 31 bits; different for all rounds of neighbouring runs."""
        return int(np.random.SeedSequence([self.config.keep.seed, number]).generate_state(1)[0] >> 1)

    def draw(self, model: Model, number: int, path: Path) -> Path:
        """Raw draws of a round; unphysical ones stay, and count."""
        self._look()
        if not path.exists():
            request = dataclasses.replace(
                self.config.sample,
                seed=self.seed(number),
                keep_invalid=True,
                radioactive=self.config.keep.radioactive,
            )
            sample(model, request, path, self.reporter, resume=True)
        return path

    def judge(self, crystals: Path, filters: Filters) -> dict[str, Any]:
        """What is known of the crystals of a file; `filter` of each record is what `filters` says."""
        self._look()

        def judge() -> str:
            found = evaluate(str(crystals), self.setup, self.reporter)
            records = found.result["records"]
            for record, reason in zip(records, filters(crystals, records, found.structures), strict=True):
                record["filter"] = reason
            return json.dumps({key: found.result[key] for key in JUDGED})

        return parse_json(_once(crystals.with_suffix(".eval.json"), judge).read_text())

    def _before(self, number: int, draws: Path, records: list[Record], structures: Structures) -> list[str]:
        """The filter that each draw fails; repeats are those of crystals that any round has relaxed, too.

        Of every record it sets `learned`, see `mark_learned`.
        """
        limits = self.setup.thresholds
        reasons = [why_not_relaxed(one, self.config.keep, limits) for one in records]
        rounds = [self._known(one, "candidates.jsonl", "kept.jsonl") for one in range(1, number)]
        earlier = [one for files in rounds for crystals in files for one in crystals]
        mark_repeats(reasons, structures, earlier, self.workers, self.config.keep.once)
        mark_learned(records, structures, [one for _, kept in rounds for one in kept], limits, self.workers)
        return reasons

    def _after(self, number: int, relaxed: Path, records: list[Record], structures: Structures) -> list[str]:
        """The filter that each relaxed crystal fails; repeats are those of crystals that any round has kept, too."""
        keep, limits, goal = self.config.keep, self.setup.thresholds, self.config.judge.fmax
        rows = zip(records, _read_lines(relaxed), strict=True)
        reasons = [why_not_kept(one, row["fmax"], keep, limits, goal) for one, row in rows]
        mark_unencoded(reasons, structures, self.n_max)
        kept = [one for earlier in range(1, number) for one in self._known(earlier, "kept.jsonl")[0]]
        mark_repeats(reasons, structures, kept, self.workers)
        return reasons

    def _known(self, number: int, *names: str) -> list[list[Structure]]:
        """The crystals of some files of a round, file by file."""
        paths = [self.place(number) / name for name in names]
        return [[one for one in self._structures(path) if one is not None] for path in paths]

    def _structures(self, path: Path) -> Structures:
        return [one.structure for one in load_crystals(path, self.workers)]

    # Relax and keep.

    def relax(self, draws: Path, records: list[Record], place: Path) -> Path:
        """The crystals that pass the filters, relaxed."""
        self._look()
        candidates, target = place / "candidates.jsonl", place / "relaxed.jsonl"

        def passing() -> str:
            pairs = zip(records, self._structures(draws), strict=True)
            found = [(record, structure) for record, structure in pairs if not record["filter"] and structure]
            return _lines([{"name": one["name"], "structure": primitive_cell(cell).as_dict()} for one, cell in found])

        if not target.exists():
            if not _once(candidates, passing).stat().st_size:
                raise DataError(
                    f"none of {len(records)} draws is worth relaxing; {draws.with_suffix('.eval.json')} says why",
                    "allow more with `max_e_hull_unrelaxed` or `classes`, or draw more with `n`",
                )
            judge, fix = self.config.judge, self.config.keep.fix_symmetry
            settings = RelaxConfig(
                source=str(candidates),
                potential=str(judge.potential),
                fmax=judge.fmax,
                steps=judge.steps if self.config.keep.relax else 0,
                fix_symmetry=fix,
            )
            resume = partial_of(target).exists()
            relax_file(settings, target, judge.device, self.workers, self.reporter, resume=resume)
        return target

    def keep(self, drawn: list[Record], minima: list[Record], relaxed: Path, number: int) -> list[dict[str, Any]]:
        """The lines of kept.jsonl."""
        self._look()
        candidates = [(draw, one) for draw, one in enumerate(drawn) if not one["filter"]]
        joined = zip(candidates, minima, _read_lines(relaxed), strict=True)

        def passing() -> str:
            return _lines(
                [
                    {
                        "name": f"{row['name']}_round{number}",
                        **{key: after[key] for key in ("formula", "class", "space_group", "e_above_hull", "novel")},
                        **{key: row[key] for key in ("energy_per_atom", "converged", "steps", "fmax", "rmsd")},
                        "e_above_hull_as_drawn": before["e_above_hull"],
                        "volume_change": before["density"] / after["density"] - 1,
                        "round": number,
                        "draw": draw,
                        "cif": row["cif"],
                    }
                    for (draw, before), after, row in joined
                    if not after["filter"]
                ]
            )

        return _read_lines(_once(relaxed.with_name("kept.jsonl"), passing))

    # Train.

    def train(self, model: Model, number: int, place: Path) -> dict[str, Any]:
        """Trains the model of the round before on the data and all crystals kept so far."""
        self._look()
        kept = [self._encoded(self.place(one) / "kept.jsonl") for one in range(1, number + 1)]
        pool = Mixture("kept", [(one, np.arange(len(one))) for one in kept])
        keep, seed = self.config.keep, self.seed(number)
        rows = [row for one in range(1, number + 1) for row in _read_lines(self.place(one) / "kept.jsonl")]
        kinds = {row["name"]: row["class"] for row in rows}
        room = int(keep.share / (1 - keep.share) * len(self.data))
        rows = repeated_rows([kinds[name] for name in pool.names], self._shares(), room, keep.repeats, seed)
        source = f"{self.data.source} and kept crystals of {number} rounds"
        mixture = Mixture(source, [(self.data, np.arange(len(self.data))), (pool, rows)])
        start = f"round-{number - 1:02d}/model" if number > 1 else "reference"
        learning = dataclasses.replace(self.config.train, seed=seed)
        content = TrainRun(model=None, train=learning, data=self.config.data, start=start)
        run = RunDirectory(place / "training")
        result: TrainResult = train(run.path, content, mixture, self.validation, self.reporter, True, model)
        found = load_checkpoint(run.best if keep.take == "best" else run.latest())
        if (groups := self.first.info.get("space_groups")) is not None:
            # Those of the mixture are what was stable: the model is to be asked for space groups as the first one was.
            found = dataclasses.replace(found, info=found.info | {"space_groups": groups})
        save_checkpoint(place / "model", found)
        before = read_lines(run.path / "metrics.jsonl")[0].get("validation", {}).get("loss")
        return {
            "kept": len(pool),
            "share": len(rows) / len(mixture),
            "repeats": len(rows) / len(pool),
            "steps": result.step,
            "validation_before": before,
            "validation": result.validation_loss if keep.take == "last" else result.best_loss,
        }

    def _shares(self) -> dict[str, float]:
        """How frequent each class of compositions is among the first model's draws: what is kept does not change it."""
        classes = parse_json((self.place(1) / "draws.eval.json").read_text())["classes"]
        return {kind: found["frac_of_crystals"]["value"] for kind, found in classes.items()}

    def _why_ended(self, number: int, training: dict[str, Any]) -> str:
        """Why no further round follows, and the model of this one is not used; "" if there is no reason."""
        if not self.config.keep.max_rise:
            return ""
        first = training if number == 1 else self.round(1)["training"]
        rise = training["validation"] - first["validation_before"]
        return f"the validation loss is {rise:.2f} nats above the first model's" * (rise > self.config.keep.max_rise)

    def _log(self, reports: Sequence[dict[str, Any]]) -> None:
        """Writes metrics.jsonl anew."""
        text = _lines([{"step": one["round"], "selftrain": numbers(one)} for one in reports])
        replace_atomically(self.files.path / "metrics.jsonl", lambda fresh: fresh.write_text(text))


def _in_words(steps: Sequence[dict[str, Any]], kept: dict[str, Any]) -> str:
    """What became of the draws of a round, in a line."""
    drawn = steps[0]["taken"] + steps[0]["left"]
    taken = ", ".join(f"{step['taken']} {step['filter']}" for step in steps if step["taken"])
    grown = ", ".join(
        f"{one['element']} {100 * one['data']:.1f} -> {100 * one['kept']:.1f} %" for one in kept["elements"]
    )
    text = f"{drawn} draws, of which {steps[len(BEFORE) - 1]['left']} relaxed and {kept['crystals']} kept ({taken})"
    if not kept["crystals"]:
        return text
    novel = f"{kept['novel']['count']} novel, " if kept["novel"] else ""
    change = f"volume {100 * kept['volume_change']:+.1f} %"
    return f"{text}; {kept['compositions']} compositions, {novel}{change}; crystals with {grown}"


def numbers(report: dict[str, Any]) -> dict[str, Any]:
    """The rates of a round that are compared between rounds: shares of all draws, crystals kept, nats.

    They are of the model that the round drew from; `validation` is of the model that it made.
    """
    summary, classes = report["draws"]["summary"], report["draws"]["classes"]
    neutral, valid = classes.get("charge-neutral", {}), summary["avg_structure_validity"]
    low = neutral.get("frac_stable_structures") or {"count": 0}  # None where none has an energy
    return {
        "valid": valid["value"],
        "neutral": neutral["frac_of_crystals"]["value"] if neutral else 0.0,
        "metastable": summary["frac_stable_structures"]["value"],
        "neutral_metastable": low["count"] / valid["of"],
        "sun": summary["frac_novel_unique_stable_structures"]["value"],
        "sun_learned": (report.get("learned") or {}).get("value"),  # not in reports of older runs
        "kept": report["kept"]["crystals"],
        "validation_before": report["training"]["validation_before"],
        "validation": report["training"]["validation"],
    }
