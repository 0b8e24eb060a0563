"""cfx.predict: from formulas to their likely structures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cfx.config import PredictConfig
from cfx.config.fields import sorted_out
from cfx.io.journal import JsonLines
from cfx.model import Model, given_model
from cfx.progress import reporting
from cfx.reporter import Reporter
from cfx.runs import predict as runs
from cfx.runs.candidates import Formula
from cfx.runs.predictions import Prediction


def predict(
    model: Model | str,
    formulas: str | Sequence[str | Formula],
    config: PredictConfig | None = None,
    reporter: Reporter | None = None,
    journal: JsonLines | None = None,
    resume: bool = False,
    *,
    progress: bool | None = None,
    **settings: Any,
) -> list[Prediction]:
    """Predicts the structures of formulas.

    Args:
        model: draws the structures: a model, or what `load_model` takes.
        formulas: one, as "SrTiO3", or several, as texts or as symbols with numbers of atoms.
        config: how; by default what `settings` say.
        reporter: receives progress, messages and warnings instead of what `progress` says.
        journal: keeps what was computed; without one, an interrupted run leaves nothing.
        resume: go on with what is in the journal.
        progress: whether bars are shown; by default in notebooks. Warnings are Python's own.
        **settings: fields of `PredictConfig`, as draws=50 or space_groups="Pm-3m".

    Returns:
        Of each formula in turn, at most `top` structures, those of lowest energy first.

    Raises:
        TypeError: for a name that is no setting.
        UsageError: if no formula can be met, or an interrupted run was another.
        NumericsError: if no formula has a structure with an energy.
        Interrupted: after a signal.
    """
    own = ("model", "formulas", "config", "reporter", "journal", "resume", "progress")
    [settings] = sorted_out("predict", settings, PredictConfig, own=own)
    with reporting(progress, reporter) as told:
        config = config or PredictConfig(**settings)
        model = given_model(model, told)
        return runs.predict(model, formulas, config, told, journal, resume)
