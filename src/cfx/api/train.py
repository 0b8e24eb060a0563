"""cfx.train: a model from crystals."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfx.api.runs import Run, directory_of
from cfx.config import SYMPREC, ModelConfig, TrainConfig, TrainRun
from cfx.config.fields import sorted_out
from cfx.data.given import Crystals, given_file
from cfx.data.split import read_data
from cfx.model import Model, load_model
from cfx.progress import reporting
from cfx.reporter import counted
from cfx.training import train as training
from cfx.training.run import RunDirectory

OWN = ("crystals", "run", "validation", "start", "preset", "symprec", "resume", "progress")


@dataclass(frozen=True, repr=False)
class Training(Run):
    """A training that has ended; `model` is the one of lowest validation loss, or the last without validation.

    Attributes:
        epochs: completed.
        validation_loss: lowest, nats per crystal; None without validation.
    """

    epochs: int
    validation_loss: float | None

    def headline(self) -> str:
        """See `Run`."""
        loss = "" if self.validation_loss is None else f", validation {self.validation_loss:.3f} nats"
        return f"{counted(self.epochs, 'epoch')}, {counted(self.steps, 'step')}{loss}"


def train(
    crystals: Crystals,
    run: str | Path | None = None,
    *,
    validation: Crystals | None = None,
    start: Model | str | None = None,
    preset: str = "mini",
    symprec: float = SYMPREC,
    resume: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> Training:
    """Trains a model on crystals.

    Args:
        crystals: pymatgen Structures, ASE Atoms, a `CrystalBatch`, a file or a name, or several of these.
        run: directory of the run, new or empty; None: a temporary one.
        validation: held-out crystals, likewise, to choose the best epoch by, or how many to hold out, as "10%".
        start: model to train further, or what `load_model` takes; None: new weights.
        preset: mini, alex20 or mp20: the architecture and the settings that are not given.
        symprec: tolerance of the symmetry search, angstrom.
        resume: continue the run, with the same crystals and settings.
        progress: whether bars are shown; by default in notebooks.
        **settings: fields of `TrainConfig`, as epochs=10 or learning_rate=1e-4, and of `ModelConfig`.

    Raises:
        TypeError: for a name that is no setting.
        UsageError: for values that cannot be meant, or a directory that is not empty.
        DataError: if nothing can be read.
        NumericsError: if the loss is no longer finite.
        Interrupted: after a signal, once the work is saved.
    """
    learning, architecture = sorted_out("train", settings, TrainConfig, ModelConfig, own=OWN)
    with reporting(progress) as told:
        data: dict[str, Any] = {"train": given_file(crystals, told), "symprec": symprec}
        if validation is not None:
            data["validation"] = given_file(validation, told)
        if start is not None and not isinstance(start, Model):
            start = load_model(start, reporter=told)
        named = {} if start is None else {"from": start.name}
        config = TrainRun.layered({"preset": preset, "model": architecture, "train": learning, "data": data, **named})
        files = RunDirectory(directory_of(run))
        if not resume:
            files.check_free()
        model = start.config if start else config.model
        assert model is not None  # a run that starts from no model has an architecture
        known, held_out = read_data(config.data, model.n_max, told, os.cpu_count() or 1)
        result = training.train(files.path, config.with_whole_paths(), known, held_out, told, resume, start)
        best = load_model(files.latest() if result.best_loss is None else files.best, reporter=told)
    return Training(best, files.path, result.step, result.epoch, result.best_loss)
