"""cfx score: how likely given crystals are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cfx.cli.options import MODEL_HELP


def command(
    data: Annotated[Path, typer.Argument(help="Crystals: .cif, .csv, .extxyz, .jsonl, POSCAR, a directory or zip.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A .csv file; stdout without it.")] = None,
    model: Annotated[str, typer.Option("--model", help=MODEL_HELP)] = "auto",
    symprec: Annotated[float, typer.Option(help="Tolerance of the symmetry search, angstrom.")] = 0.01,
    workers: Annotated[int, typer.Option(help="Processes that encode; 0 for one a core.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
) -> None:
    """Log-probability of crystals under a model, in nats, by part.

    A terminal gets a table; a file or a pipe gets CSV. Rows that are no crystal for the model are skipped and named.
    """
    from cfx.cli.console import ConsoleReporter, print_table
    from cfx.cli.start import start_jax

    reporter = ConsoleReporter()
    _check(output, force)
    start_jax(reporter)

    from cfx.model import load_model
    from cfx.runs.score import score

    loaded = load_model(model)
    scores = score(loaded, data, reporter, symprec, workers or os.cpu_count() or 1)
    rows = scores.rows()
    _write(rows, output, print_table)
    mean = sum(row["log_prob"] for row in rows) / len(rows)
    reporter.message(f"{len(rows)} crystals, {mean:.3f} nats each on average by model {loaded.name}")


def _check(output: Path | None, force: bool) -> None:
    from cfx.errors import UsageError
    from cfx.io.outputs import check_target

    if output is not None and output.suffix != ".csv":
        raise UsageError(f"cannot write {output}", "name a .csv file")
    check_target(output, force)


def _write(rows: list[dict], output: Path | None, print_table) -> None:
    import csv
    import io
    import sys

    from cfx.io.cache import replace_atomically

    shown = [{key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()} for row in rows]
    if output is None and sys.stdout.isatty():
        print_table(shown)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(shown[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(shown)
    if output is None:
        sys.stdout.write(text.getvalue())
    else:
        replace_atomically(output, lambda path: path.write_text(text.getvalue()))
