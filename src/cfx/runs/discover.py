"""From a family of crystals to a list of the best: drawn, sifted, evaluated once, the promising relaxed and judged.

A discovery is a sequence of steps, each a row of a journal: some crystals drawn, the sifting of all, some energies,
some relaxations. A resumed run finds them there and makes the others; everything else follows from these rows. A step
that is interrupted is made anew as a whole: what is relaxed together decides over the last digits of its energies.
"""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from cfx.config import DiscoverRun
from cfx.errors import NumericsError
from cfx.evaluation.setup import load_setup
from cfx.io.journal import JsonLines, complete
from cfx.model import Model
from cfx.predictors.load import load_property
from cfx.reporter import Noting, Reporter, Silent, StopRequest
from cfx.runs.discovery.draw import draw
from cfx.runs.discovery.judge import judge, predict_properties, require_column
from cfx.runs.discovery.relax import evaluate, relax_lowest
from cfx.runs.discovery.result import Discovery, check_discovery, listed
from cfx.runs.discovery.sift import sift
from cfx.runs.discovery.state import Discovering
from cfx.runs.steps import Steps, steps_beside


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
    with steps_beside(directory, check_discovery, force, resume) as (journal, stop):
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
    properties = {name: load_property(name, text, run.judge.device) for name, text in run.keep.property_models.items()}
    steps = Steps(journal, {**header, "potential": setup.potential and setup.potential.name}, resume)
    with warnings.catch_warnings(action="ignore"):
        state = Discovering(run, model, setup, properties, noting, steps, stop)
        draw(state)
        return find_best(state)


def find_best(state: Discovering) -> Discovery:
    """Sifts, evaluates, relaxes, judges and lists what was drawn.

    Raises:
        NumericsError: if no crystal arrives.
        Interrupted: after a signal.
    """
    for stage in (sift, evaluate, relax_lowest, judge, predict_properties, require_column):
        stage(state)
    if not state.left():
        lost = Counter(record["left_out"] for record in state.records)
        reasons = "; ".join(f"{number} {reason}" for reason, number in lost.most_common())
        raise NumericsError(f"none of {len(state.records)} crystals arrives: {reasons}", "draw more with `n`")
    return listed(state)
