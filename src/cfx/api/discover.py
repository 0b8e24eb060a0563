"""cfx.discover: from a family of crystals to a list of the best."""

from __future__ import annotations

from typing import Any

from cfx.config import DiscoverRun
from cfx.config.discovery import PARTS
from cfx.config.fields import sorted_out
from cfx.io.journal import JsonLines
from cfx.model import Model, given_model
from cfx.progress import reporting
from cfx.reporter import Reporter
from cfx.runs import discover as runs
from cfx.runs.discovery.result import Discovery

NOT_GIVEN = ("keep_invalid", "shard")
"""Fields that a discovery does not take."""


def discover(
    model: Model | str,
    space_groups: Any = None,
    run: DiscoverRun | None = None,
    reporter: Reporter | None = None,
    journal: JsonLines | None = None,
    resume: bool = False,
    *,
    progress: bool | None = None,
    **settings: Any,
) -> Discovery:
    """Draws crystals and finds the best of them.

    Args:
        model: draws the crystals: a model, or what `load_model` takes.
        space_groups: as `Model.sample` takes them; a formula can do without.
        run: what is asked; by default what `space_groups` and `settings` say.
        reporter: receives progress, messages and warnings instead of what `progress` says.
        journal: keeps what was computed; without one, an interrupted run leaves nothing.
        resume: go on with what is in the journal.
        progress: whether bars are shown; by default in notebooks. Warnings are Python's own.
        **settings: fields of `SampleConfig`, `EvalConfig` and `DiscoverConfig`, as n=1000, elements="La,Ni,O",
            reference="mp-20", relax=50 or sort="density".

    Returns:
        At most `top` crystals, the first by `sort`, and how many were left after each stage.

    Raises:
        TypeError: for a name that is no setting.
        UsageError: for settings that cannot be met, or an interrupted run that was another.
        NumericsError: if no crystal arrives.
        Interrupted: after a signal.
    """
    own = ("model", "space_groups", "run", "reporter", "journal", "resume", "progress")
    sorted_out("discover", settings, *PARTS, own=own, without=NOT_GIVEN)
    with reporting(progress, reporter) as told:
        model = given_model(model, told)
        return runs.discover(model, space_groups, run, told, journal, resume, **settings)
