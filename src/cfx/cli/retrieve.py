"""cfx retrieve: which known crystals a model rediscovers."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfx.cli import options, values
from cfx.cli.console import REPORTER, print_columns, print_json, shown, stdout
from cfx.cli.options import Fields, Given
from cfx.config import SampleConfig
from cfx.config.fields import option
from cfx.config.finetuning import PROPERTY_MODELS
from cfx.config.texts import words
from cfx.core import Structure
from cfx.errors import UsageError
from cfx.io.files import TABLES, check_file, claimed, write_table
from cfx.runs.curves import COLOURS, SUFFIXES

if TYPE_CHECKING:
    from cfx.model import Model

DRAWN = 1000
"""Crystals drawn from each model where --n does not say."""

FEW = 10
"""Crystals of each model that a terminal shows; -o and --json have all."""


@dataclass(frozen=True, kw_only=True)
class RankedBy:
    """What a command line says of the order of the known crystals."""

    property: str | None = option(
        None, "What ranks the known crystals: a column of their table, or a prediction: fom, band_gap, dielectric."
    )
    top: str = option("10,50,100", "Report how many of the best known crystals were found: among the top 10, 50, 100.")
    lowest: bool = option(False, "Rank low values of the property best.")


@dataclass(frozen=True, kw_only=True)
class PredictedBy:
    """What a command line says of the models that predict properties."""

    band_gap: str | None = option(None, f"Predicts band gaps: {PROPERTY_MODELS}", flag="--gap-model")
    dielectric: str | None = option(
        None, f"Predicts dielectric constants: {PROPERTY_MODELS}", flag="--dielectric-model"
    )


def retrieve(
    models: Annotated[
        list[str] | None,
        typer.Argument(help=f"{options.MODEL_HELP} Several are compared.", autocompletion=options.COMPLETIONS["model"]),
    ] = None,
    *,
    reference: Annotated[
        str, typer.Option(help=f"Known crystals: {options.DATA_HELP}", autocompletion=options.COMPLETIONS["reference"])
    ],
    crystals: Annotated[
        list[str] | None, typer.Option("--from", help="A file of crystals drawn earlier. May be repeated.")
    ] = None,
    order: Annotated[Given, Fields(RankedBy)],
    space_group: str | None = options.space_groups(),
    request: Annotated[Given, Fields(SampleConfig, "n", "seed", "temperature", shown={"n": DRAWN})],
    predictors: Annotated[Given, Fields(PredictedBy)],
    device: str = options.DEVICE,
    workers: int = options.WORKERS,
    output: Path | None = options.output("A .csv or .parquet file of all known crystals that were found."),
    plot: Path | None = options.writes(
        "--plot", help="A .png, .svg or .pdf figure of how many of the best were found."
    ),
    as_json: bool = options.JSON,
    force: bool = options.FORCE,
) -> None:
    """Find the known crystals that models rediscover, and rank them.

    Each model draws --n crystals; files with --from hold such as were drawn before. A known crystal is found if one of
    these matches it by pymatgen's StructureMatcher.

    Examples:
      cfx retrieve alex20 run/best --reference data.csv --property fom --sg data:model
      cfx retrieve --from drawn.cif --reference data.csv
    """
    models, crystals, ranking = models or [], crystals or [], RankedBy(**order)
    best = _sizes(ranking.top)
    _check(models, crystals, space_group, ranking.property, output, plot, force)
    asked = functools.partial(SampleConfig, **{"n": DRAWN, **request})
    if models:
        values.check_space_groups(str(space_group))
        asked(space_groups=(1,))  # what is wrong with numbers is found before anything slow starts
        values.start_jax()
    loaded = {name: values.load(name) for name in models}

    from cfx.evaluation.setup import check_inputs
    from cfx.runs import retrieve as runs

    check_inputs(crystals, REPORTER)
    processes, by = workers or -1, (ranking.property, ranking.lowest)
    with claimed(output, TABLES, force), claimed(plot, SUFFIXES, force):
        known = runs.read_known(reference, *by, predictors, device, processes, REPORTER)
        drawn = ((name, _drawn(model, str(space_group), asked)) for name, model in loaded.items())
        read = ((name, runs.read_structures(name, processes, REPORTER)) for name in crystals)
        found = [runs.retrieve(name, some, known, processes, REPORTER) for name, some in itertools.chain(drawn, read)]
        result = runs.as_result(known, found, best, _settings(asked, space_group) if models else {})
        _write(result, output, plot)
    if as_json:
        print_json(result)
    else:
        _print(result)


def _drawn(model: Model, space_group: str, asked: Callable[..., SampleConfig]) -> list[Structure]:
    from cfx.runs.retrieve import sample_structures

    groups, weights = values.drawn_space_groups(space_group, model)
    return sample_structures(model, asked(space_groups=groups, weights=weights), REPORTER)


def _settings(asked: Callable[..., SampleConfig], space_group: str | None) -> dict[str, Any]:
    """How the models drew."""
    first = asked(space_groups=(1,))
    return {"n": first.n, "space_groups": space_group, "seed": first.seed, "temperature": first.temperature}


def _sizes(text: str) -> list[int]:
    """10,50,100 as numbers."""
    parts = words(text)
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"{text!r} is not a list of numbers of crystals", "write --top 10,50,100")
    return sorted({int(part) for part in parts})


def _check(
    models: list[str],
    crystals: list[str],
    space_group: str | None,
    property: str | None,
    output: Path | None,
    plot: Path | None,
    force: bool,
) -> None:
    """What can be known to be wrong before anything slow starts."""
    names = [*models, *crystals]
    if not names:
        raise UsageError("there is nothing to compare", "name a model, or crystals with --from FILE")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{twice} is named twice")
    if models and space_group is None:
        raise UsageError("--sg is required", "for example --sg 194, or --sg data:model")
    if not models and space_group is not None:
        raise UsageError("--sg says what models draw, but no model is named", "name a model, or leave out --sg")
    values.check_table(output, force)
    check_file(plot, SUFFIXES, force)
    if plot is not None and property is None:
        raise UsageError("there is nothing to draw, since nothing is ranked without a property", "name a --property")
    if plot is not None and len(names) > len(COLOURS):
        raise UsageError(f"a figure has at most {len(COLOURS)} curves, not {len(names)}")


def _write(result: dict[str, Any], output: Path | None, plot: Path | None) -> None:
    if output is not None:
        rows = [{"source": source["name"], **one} for source in result["sources"] for one in source["found"]]
        write_table(output, rows, columns=("source", "rank", "name", "row", "formula", "value", "times"))
        REPORTER.message(f"written: {output}")
    if plot is not None:
        from cfx.runs.figures import save_figure
        from cfx.runs.retrieve import as_curves

        save_figure(as_curves(result), plot)
        REPORTER.message(f"written: {plot}")


def _print(result: dict[str, Any]) -> None:
    sources, by, reference = result["sources"], result["property"], result["reference"]
    rows = {
        "crystals": [f"{source['sampled']:,}" for source in sources],
        "of them known": [f"{source['known']:,}" for source in sources],
        "known crystals found": [f"{source['distinct']:,}" for source in sources],
    }
    for places in zip(*(source["top"] for source in sources), strict=True):
        rows[f"of the top {places[0]['k']}"] = [f"{place['found']} of {place['of']}" for place in places]
    print_columns([source["name"] for source in sources], rows)
    console = stdout()
    console.print(shown(f"reference: {reference['name']}, {reference['crystals']:,} crystals"))
    if by["name"] is not None:
        console.print(shown(f"ranked by: {by['about']}, {by['best']} first, {reference['ranked']:,} crystals"))
    for source in sources:
        if source["failed"]:
            console.print(f"[yellow]{shown(source['name'])}: {source['failed']:,} could not be compared[/]")
        for line in _found(source, by["name"] is not None, by["unit"]):
            console.print(shown(line))


def _found(source: dict[str, Any], ranked: bool, unit: str) -> Iterator[str]:
    """Lines about the known crystals that a source found."""
    found = source["found"]
    more = f" (the first {FEW} of {len(found)})" if len(found) > FEW else ""
    yield ""
    yield f"{source['name']}, known crystals found{more}:" if found else f"{source['name']}: no known crystal found"
    for one in found[:FEW]:
        place = f"{one['rank'] or '-':>6}  " if ranked else ""
        value = f"  {one['value']:.4g} {unit}".rstrip() if one["value"] is not None else ""
        times = f"  {one['times']} times" if one["times"] > 1 else ""
        yield f"{place}{one['name']}  {one['formula']}{value}{times}"
