"""cfx score: how likely given crystals are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cfx.cli import options

MOST_GROUPS = 15
"""Space groups that a terminal shows."""


def command(
    data: Annotated[Path, typer.Argument(help=f"Crystals: {options.DATA_HELP}")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A .csv file; stdout without it.")] = None,
    model: options.Model = "auto",
    symprec: options.Symprec = 0.01,
    workers: options.Workers = 0,
    summary: Annotated[
        bool, typer.Option("--summary", help="Mean negative log-likelihoods of the data instead of a row a crystal.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
) -> None:
    """Compute the log-probabilities of crystals under a model.

    They are in nats: in total, and by part (Wyckoff letters, species, coordinates, lattice). A terminal
    gets a table; a file or a pipe gets CSV. Rows that are no crystal for the model are skipped and named.

    With --summary: mean negative log-likelihood (nll, nats per crystal, as the loss of cfx train) with the standard
    error of the total, of all crystals, by number of sites, by crystal system and by space group.
    """
    from cfx.cli.console import ConsoleReporter
    from cfx.cli.start import load, start_jax
    from cfx.io.files import check_file

    reporter = ConsoleReporter()
    check_file(output, (".csv",), force)
    start_jax(reporter)

    from cfx.runs.score import score

    loaded = load(model, reporter)
    scores = score(loaded, data, reporter, symprec, workers or os.cpu_count() or 1)
    rows = scores.summary() if summary else scores.rows()
    _write(rows, output, as_json, _print_summary if summary else _print_rows)
    total = scores.log_prob.total
    mean = f"nll {-total.mean():.3f}" if summary else f"{total.mean():.3f}"
    reporter.message(f"{len(total)} crystals, {mean} nats each on average by model {loaded.name}")


def _write(rows: list[dict], output: Path | None, as_json: bool, print_rows: Callable[[list[dict]], None]) -> None:
    """To a file as CSV; to stdout as JSON if asked, or else, unless there is a file, as a table or CSV."""
    import json
    import sys

    from cfx.io.tables import csv_text, write_table

    if output is not None:
        write_table(output, rows, decimals=4)
    if as_json:
        print(json.dumps(rows, indent=1))
    elif output is None and sys.stdout.isatty():
        print_rows(rows)
    elif output is None:
        sys.stdout.write(csv_text(rows, decimals=4))


def _four_decimals(row: dict) -> dict:
    return {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()}


def _print_rows(rows: list[dict]) -> None:
    from cfx.cli.console import print_table

    print_table([_four_decimals(row) for row in rows])


def _print_summary(records: list[dict]) -> None:
    """A table for each grouping; of the space groups only the most frequent."""
    from cfx.cli.console import print_table

    print("negative log-likelihood (nll), nats per crystal, ± its standard error, and its parts")
    for grouping in dict.fromkeys(record["grouping"] for record in records):
        shown = chosen = [record for record in records if record["grouping"] == grouping]
        if grouping == "space_group":
            frequent = sorted(chosen, key=lambda record: -record["crystals"])[:MOST_GROUPS]
            shown = [record for record in chosen if record in frequent]
        print_table([_summary_row(record) for record in shown])
        if len(shown) < len(chosen):
            print(f"the {len(shown)} most frequent of {len(chosen)} space groups; --json or -o FILE.csv has all")


def _summary_row(record: dict) -> dict:
    from cfx.core.likelihood import PARTS

    error = "" if record["nll_error"] is None else f"±{record['nll_error']:.2f}"
    return {
        record["grouping"].replace("_", " ").removeprefix("crystal "): record["value"],
        "crystals": record["crystals"],
        "nll": f"{record['nll']:.2f}{error}",
        **{part: f"{record[f'nll_{part}']:.2f}" for part in PARTS},
    }
