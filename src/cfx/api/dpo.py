"""cfx.dpo: a model that prefers the better crystal of each pair."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfx.api.runs import Run, directory_of
from cfx.config import DPOConfig, PairsRun
from cfx.config.fields import sorted_out
from cfx.data.given import Crystals, given_pairs
from cfx.model import Model, given_model, load_model
from cfx.progress import reporting
from cfx.reporter import counted
from cfx.rl.preferences import learn_preferences
from cfx.training.run import RunDirectory

OWN = ("model", "pairs", "run", "resume", "progress")


@dataclass(frozen=True, repr=False)
class PreferenceTuning(Run):
    """A fine-tuning on pairs that has ended; `model` is the policy.

    Attributes:
        pairs: that it learnt from.
        right: share of the pairs, in the last epoch, whose better crystal has become the likelier one of the two, as
            compared with the model it started from; NaN if nothing was left to do.
    """

    pairs: int
    right: float

    def headline(self) -> str:
        """See `Run`."""
        right = "" if self.right != self.right else f", {100 * self.right:.0f} % right"
        return f"{counted(self.pairs, 'pair')}, {counted(self.steps, 'step')}{right}"


def dpo(
    model: Model | str,
    pairs: str | os.PathLike[str] | Sequence[tuple[Crystals, Crystals]],
    run: str | Path | None = None,
    *,
    resume: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> PreferenceTuning:
    """Fine-tunes a model on pairs of crystals, by direct preference optimization (2305.18290).

    Args:
        model: that the policy starts from, or what `load_model` takes.
        pairs: (better, worse), each a pymatgen Structure or ASE Atoms; or a file as `cfx dpo --pairs` reads it.
        run: directory of the run, new or empty; None: a temporary one.
        resume: continue the run, with the same pairs and settings.
        progress: whether bars are shown; by default in notebooks.
        **settings: fields of `DPOConfig`, as epochs=5 or beta=0.2.

    Raises:
        TypeError: for a name that is no setting.
        UsageError: for values that cannot be meant, or a directory that is not empty.
        DataError: if there is no pair that can be encoded.
        NumericsError: if a gradient is not finite.
        Interrupted: after a signal, once the work is saved.
    """
    [settings] = sorted_out("dpo", settings, DPOConfig, own=OWN)
    learning = DPOConfig(**settings)
    with reporting(progress) as told:
        file = given_pairs(pairs, told)
        model = given_model(model, told)
        config = PairsRun(model=model.name, pairs=file, dpo=learning).with_whole_paths()
        files = RunDirectory(directory_of(run))
        if not resume:
            files.check_free()
        result = learn_preferences(files.path, config, model, told, resume)
        policy = load_model(files.path / "final", reporter=told)
    return PreferenceTuning(policy, files.path, result.step, result.pairs, result.right)
