"""cfx score: how likely given crystals are, and which of two models finds them likelier."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cfx.cli import options, values
from cfx.cli.console import REPORTER, print_json, print_table
from cfx.config.texts import percentage
from cfx.io.files import claimed, csv_text, write_table
from cfx.reporter import counted
from cfx.runs.curves import NAMES

if TYPE_CHECKING:
    from cfx.runs.score import Comparison

MOST_GROUPS = 15
"""Space groups that a terminal shows."""


def score(
    data: options.Crystals,
    output: Path | None = options.output("A .csv file; stdout without it.", stdout=True),
    model: list[str] | None = options.models("Twice or more to compare others with the first. "),
    held_out: Annotated[
        str | None,
        typer.Option(help="A share, as 10%: only the crystals that cfx train --validation 10% does not learn from."),
    ] = None,
    symprec: float = options.SYMPREC,
    workers: int = options.WORKERS,
    summary: Annotated[
        bool,
        typer.Option("--summary", help="Mean negative log-likelihoods of the data instead of a row for each crystal."),
    ] = False,
    as_json: bool = options.JSON,
    force: bool = options.FORCE,
) -> None:
    """Compute log-probabilities of crystals, or compare models.

    They are in nats: in total, and by part (Wyckoff letters, species, coordinates, lattice). A terminal
    gets a table; a file or a pipe gets CSV. Rows that are not crystals for the model are skipped and named.

    With --summary: mean negative log-likelihood (nll, nats per crystal, as the loss of cfx train) with the standard
    error of the total, of all crystals, by number of sites, by crystal system and by space group.

    With several models: the mean nll of the same crystals under each of the others and under the first, in total and by
    part, and the mean difference with its 95 % interval (paired); with --summary, in total for each group of crystals.

    Examples:
      cfx score data.csv --model run/best -o scores.csv
      cfx score data.csv --held-out 10% --model mini --model run/best
      cfx score mp-20:val --model mp20 --summary
    """
    if held_out is not None:
        percentage(held_out)
    with claimed(output, (".csv",), force):
        values.start_jax()

        from cfx.runs import score as runs

        loaded = [values.load(name) for name in model or ["auto"]]
        reading = (data, REPORTER, symprec, workers or os.cpu_count() or 1, held_out)
        if len(loaded) > 1:
            comparisons = runs.compare(loaded, *reading)
            rows = [row for one in comparisons for row in (one.summary() if summary else one.parts())]
            _write(rows, output, as_json, _print_comparison)
            for one in comparisons:
                _tell_difference(one)
            return
        scores = runs.score(loaded[0], *reading)
        rows = scores.summary() if summary else scores.rows()
        _write(rows, output, as_json, _print_summary if summary else _print_rows)
    total = scores.log_prob.total
    mean = f"nll {-total.mean():.3f}" if summary else f"{total.mean():.3f}"
    REPORTER.message(f"{counted(len(total), 'crystal')}, {mean} nats each on average by model {loaded[0].name}")


def _tell_difference(comparison: Comparison) -> None:
    total = comparison.parts()[0]
    side = "lower" if total["difference"] < 0 else "higher"
    interval = "" if total["low"] is None else f", 95 % interval {total['low']:+.3f} to {total['high']:+.3f}"
    REPORTER.message(
        f"{counted(total['crystals'], 'crystal')}: nll {abs(total['difference']):.3f} nats {side} by {total['model']} "
        f"than by {total['against']}{interval}; lower for {100 * total['better']:.0f} % of them"
    )


def _write(rows: list[dict], output: Path | None, as_json: bool, print_rows: Callable[[list[dict]], None]) -> None:
    """To a file as CSV; to stdout as JSON if asked, or else, unless there is a file, as a table or CSV."""
    if output is not None:
        write_table(output, rows, decimals=4)
    if as_json:
        print_json(rows)
    elif output is None and sys.stdout.isatty():
        print_rows(rows)
    elif output is None:
        sys.stdout.write(csv_text(rows, decimals=4))


def _print_rows(rows: list[dict]) -> None:
    print("log-probabilities, nats")
    shorter = {"space_group": "group", "log_prob": "total", "log_prob_wyckoff": "letters"}

    def title(key: str) -> str:
        return shorter.get(key) or key.removeprefix("log_prob_")

    print_table([{title(key): value for key, value in row.items()} for row in rows], decimals=2)


def _print_summary(records: list[dict]) -> None:
    """A table for each grouping; of the space groups only the most frequent."""
    print("negative log-likelihood (nll), nats per crystal, ± its standard error, and its parts")
    for grouping in dict.fromkeys(record["grouping"] for record in records):
        _print_grouping([record for record in records if record["grouping"] == grouping], _summary_row)


def _print_grouping(records: list[dict], row: Callable[[dict], dict]) -> None:
    shown = records
    if records[0].get("grouping") == "space_group":
        frequent = sorted(records, key=lambda record: -record["crystals"])[:MOST_GROUPS]
        shown = [record for record in records if record in frequent]
    print_table([row(record) for record in shown])
    if len(shown) < len(records):
        print(f"the {len(shown)} most frequent of {len(records)} space groups; --json or -o FILE.csv has all")


def _group(record: dict) -> dict:
    """What a row is of, and how many crystals that are."""
    title = record["grouping"].replace("_", " ").removeprefix("crystal ")
    return {title: record["value"], "crystals": record["crystals"]}


def _summary_row(record: dict) -> dict:
    from cfx.core.likelihood import PARTS

    error = "" if record["nll_error"] is None else f"±{record['nll_error']:.2f}"
    return {
        **_group(record),
        "nll": f"{record['nll']:.2f}{error}",
        **{part: f"{record[f'nll_{part}']:.2f}" for part in PARTS},
    }


def _print_comparison(records: list[dict]) -> None:
    """A table for each model and grouping; of the space groups only the most frequent."""
    print("negative log-likelihood (nll), nats per crystal, and how it differs from that of the first model")
    for one in dict.fromkeys((record["model"], record.get("grouping")) for record in records):
        _print_grouping([rest for rest in records if (rest["model"], rest.get("grouping")) == one], _comparison_row)


def _comparison_row(record: dict) -> dict:
    about = _group(record) if "grouping" in record else {"part": NAMES.get(record["part"], record["part"])}
    interval = "" if record["low"] is None else f"{record['low']:+.3f} to {record['high']:+.3f}"
    return {
        **about,
        record["against"]: f"{record['nll_against']:.3f}",
        record["model"]: f"{record['nll']:.3f}",
        "difference": f"{record['difference']:+.3f}",
        "95 % interval": interval,
        "lower for": f"{100 * record['better']:.0f} %",
    }
