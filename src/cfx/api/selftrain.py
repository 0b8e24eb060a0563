"""cfx.selftrain: a model that was trained on its own stable crystals, too."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfx.api.results import frame
from cfx.api.runs import Run, directory_of, drawn_from
from cfx.config import (
    SYMPREC,
    DataConfig,
    EvalConfig,
    SampleConfig,
    SelfTrainConfig,
    SelfTrainRun,
    TrainConfig,
    selftraining,
)
from cfx.config.fields import sorted_out
from cfx.data.given import Crystals, given_file
from cfx.model import Model, given_model, load_model
from cfx.progress import reporting
from cfx.reporter import counted
from cfx.runs import selftrain as runs
from cfx.training.run import RunDirectory

if TYPE_CHECKING:
    from pandas import DataFrame

OWN = ("model", "crystals", "run", "space_group", "n", "validation", "symprec", "workers", "resume", "progress")
TAKEN = {
    SelfTrainConfig: {one.name for one in dataclasses.fields(SelfTrainConfig)},
    TrainConfig: set(selftraining.LEARNING),
    SampleConfig: set(selftraining.DRAWING),
    EvalConfig: set(selftraining.JUDGING),
}
"""What is said of each part of a run: of two that have a field, the first is meant."""

NOT_GIVEN = {one.name for kind in TAKEN for one in dataclasses.fields(kind)} - set().union(*TAKEN.values())


@dataclass(frozen=True, repr=False)
class SelfTraining(Run):
    """A self-training that has ended; `model` is the one of the last round, and `steps` are those of all its trainings.

    Attributes:
        reports: of each round, as its report.json has it.
    """

    reports: list[dict[str, Any]] = field(repr=False)

    @property
    def rounds(self) -> DataFrame:
        """pandas DataFrame: a row for each round, with rates of its draws (valid, neutral, metastable, sun, ...) and
        how many crystals it kept."""
        return frame([{"round": one["round"], **runs.numbers(one)} for one in self.reports])

    def headline(self) -> str:
        """See `Run`."""
        kept = sum(one["kept"]["crystals"] for one in self.reports)
        return f"{counted(len(self.reports), 'round')}, {counted(kept, 'crystal')} kept"


def selftrain(
    model: Model | str,
    crystals: Crystals,
    run: str | Path | None = None,
    *,
    space_group: int | str | Sequence[int | str] = "data:model",
    n: int = 1000,
    validation: Crystals | None = None,
    symprec: float = SYMPREC,
    workers: int = -1,
    resume: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> SelfTraining:
    """Trains a model on its own crystals: draws, relaxes, keeps what is stable and new, trains; in rounds.

    Args:
        model: that the first round draws from, or what `load_model` takes.
        crystals: that it was trained on, and goes on with: pymatgen Structures, ASE Atoms, a `CrystalBatch`, a file or
            a name, or several of these.
        run: directory of the run, new or empty; None: a temporary one.
        space_group: drawn from, as `Model.sample` takes it; by default as in the training data of the model.
        n: crystals drawn in a round.
        validation: held-out crystals, likewise.
        symprec: tolerance of the symmetry search, angstrom.
        workers: processes that read and compare; -1: one for each core.
        resume: continue the run, with the same crystals and settings.
        progress: whether bars are shown; by default in notebooks.
        **settings: of `cfx selftrain`: fields of `SelfTrainConfig`, as rounds=3 or max_e_hull=0.05; of `EvalConfig`, as
            potential="orb"; of `SampleConfig`, as elements="La,Ni,O"; of `TrainConfig`, as epochs=2.

    Raises:
        TypeError: for a name that is no setting.
        UsageError: for values that cannot be meant, or a directory that is not empty.
        DataError: if nothing can be read, or a round keeps no crystal.
        Interrupted: after a signal, once the work is saved.
    """
    keep, learning, drawing, judge = sorted_out("selftrain", settings, *TAKEN, own=OWN, without=NOT_GIVEN)
    with reporting(progress) as told:
        held_out = None if validation is None else given_file(validation, told)
        data = DataConfig(train=given_file(crystals, told), validation=held_out, symprec=symprec)
        parts = SelfTrainRun.parts(data, keep, judge, learning, workers)
        model = given_model(model, told)
        sample = SampleConfig(**drawn_from(space_group, model, told), n=n, **drawing)
        config = SelfTrainRun(model=model.name, sample=sample, **parts).with_whole_paths()
        files = RunDirectory(directory_of(run))
        if not resume:
            files.check_free()
        reports = runs.selftrain(files.path, config, model, told, resume)
        last = load_model(files.path / "final", reporter=told)
    return SelfTraining(last, files.path, sum(one["training"]["steps"] for one in reports), reports)
