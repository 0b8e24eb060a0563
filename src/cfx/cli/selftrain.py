"""cfx selftrain: a model and its data in, a model that was trained on its own stable crystals too out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cfx.cli import options, values
from cfx.cli.console import REPORTER, print_columns
from cfx.cli.options import Fields, Given
from cfx.config import DataConfig, EvalConfig, SampleConfig, SelfTrainConfig, SelfTrainRun, TrainConfig, selftraining
from cfx.errors import UsageError
from cfx.training.run import RunDirectory

if TYPE_CHECKING:
    from cfx.model import Model

RATES = {
    "valid": "valid structure",
    "neutral": "charge-neutral",
    "metastable": "metastable as drawn",
    "neutral_metastable": "both",
    "sun": "S.U.N. at 0.1 eV/atom",
    "sun_learned": "these, learned in an earlier round",
}
"""Rates of the draws of a round, as they are shown."""


def selftrain(
    context: typer.Context,
    data: Annotated[
        str | None, typer.Argument(help=f"What the model was trained on, and goes on with: {options.DATA_HELP}")
    ] = None,
    *,
    run: Path = options.output("Directory of the run.", Path("selftrain")),
    model: str = options.model("Model that the first round draws from. "),
    files: Annotated[Given, Fields(DataConfig, "validation", "symprec")],
    keeping: Annotated[Given, Fields(SelfTrainConfig, shown={"classes": "charge-neutral"})],
    drawing: Annotated[Given, Fields(SampleConfig, "n", *selftraining.DRAWING, shown={"n": 1000})],
    space_group: str | None = options.space_groups(" [default: data:model]"),
    judging: Annotated[
        Given,
        Fields(
            EvalConfig, *selftraining.JUDGING, shown={**vars(selftraining.JUDGE), "hull": None, "reference": "DATA"}
        ),
    ],
    workers: int = options.WORKERS,
    learning: Annotated[Given, Fields(TrainConfig, *selftraining.LEARNING, shown=vars(selftraining.ROUND))],
    resume: bool = options.RESUME_RUN,
) -> None:
    """Train a model on its own crystals, in rounds.

    Each round draws raw crystals, leaves out what is not wanted, relaxes the rest with a potential, and keeps those
    that are valid, near the hull and new. The model is then trained on DATA and all crystals kept so far, and the next
    round draws from it. The run keeps every crystal with its fate and a report of each round (RUN/round-01), and the
    last model (RUN/final).

    Examples:
      cfx selftrain data.csv --model run/best --validation held-out.csv --rounds 2 -n 2000 -o flywheel
      cfx selftrain mp-20 --model mini --class charge-neutral,intermetallic --novel -o flywheel
      cfx selftrain -o flywheel --resume
    """
    values.start_jax()
    if resume:
        if others := {*options.named(context), *["DATA"] * bool(data)} - {"--output", "--resume"}:
            raise UsageError(
                "--resume continues with the options of the first run", f"leave out {', '.join(sorted(others))}"
            )
        config, reference = SelfTrainRun.read(run), run / "reference"
        start = values.load(str(reference) if reference.exists() else config.model)
    else:
        RunDirectory(run).check_free()
        text = space_group or "data:model"
        values.check_space_groups(text)
        parts = SelfTrainRun.parts(DataConfig(train=data, **files), keeping, judging, learning, workers or -1)
        start = values.load(model)
        groups, weights = values.drawn_space_groups(text, start)
        sample = SampleConfig(space_groups=groups, weights=weights, **{"n": 1000, **drawing})
        config = SelfTrainRun(model=model, sample=sample, **parts).with_whole_paths()
    _selftrain(run, config, start, resume)


def _in_percent(share: float | None) -> str:
    """A rate, or a dash for one that older runs do not have."""
    return "-" if share is None else f"{100 * share:.1f} %"


def _selftrain(run: Path, config: SelfTrainRun, model: Model, resume: bool) -> None:
    from cfx.runs.selftrain import numbers, selftrain

    reports = selftrain(run, config, model, REPORTER, resume)
    found = [numbers(report) for report in reports]
    rows = {words: [_in_percent(one[name]) for one in found] for name, words in RATES.items()}
    rows["crystals kept"] = [str(one["kept"]) for one in found]
    if config.data.validation:
        rows["validation (nats), before"] = [f"{one['validation_before']:.3f}" for one in found]
        rows["after"] = [f"{one['validation']:.3f}" for one in found]
    print_columns([f"round {report['round']}" for report in reports], rows)
    REPORTER.message(f"rates are of the model that a round draws from; its report: {run}/round-01/report.json")
    REPORTER.message(f"sample from the last model with: cfx sample --model {run}/final --sg data:model -n 10")
