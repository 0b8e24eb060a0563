"""cfx data: what a data set holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from cfx.cli import options

MOST = 10
"""Space groups and elements that are shown; --json has all."""

BAR = 40
"""Columns of the longest bar."""


def command(
    data: Annotated[Path, typer.Argument(help=f"Crystals: {options.DATA_HELP}")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON on stdout.")] = False,
    failures: Annotated[
        Path | None, typer.Option("--failures", help="A .csv file for the skipped rows: row, name, reason.")
    ] = None,
    symprec: options.Symprec = 0.01,
    n_max: Annotated[
        int, typer.Option(help="Slots of the model; a crystal has one symmetry-inequivalent site less at most.")
    ] = 21,
    workers: options.Workers = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file of --failures.")] = False,
) -> None:
    """Describe a data set: space groups, sites, elements, failures.

    DATA is encoded once and cached, as by cfx train and cfx score. Interrupt it at any time: the same command goes on
    where it was.
    """
    from cfx.cli.console import ConsoleReporter
    from cfx.errors import UsageError
    from cfx.io.files import check_file

    if n_max < 2 or n_max > 255:
        raise UsageError(f"--n-max {n_max} is no number of slots", "write one from 2 to 255; published models have 21")
    check_file(failures, (".csv",), force)

    from cfx.data.summary import read, summarize

    dataset = read(data, n_max, ConsoleReporter(), symprec, workers or os.cpu_count() or 1)
    if failures is not None:
        import shutil

        from cfx.io.files import replace_atomically

        replace_atomically(failures, lambda path: shutil.copyfile(dataset.failures_path, path))
    summary = summarize(dataset)
    if as_json:
        import json

        print(json.dumps(summary, indent=1))
    else:
        _print(summary)


def _print(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape

    from cfx.cli.console import size

    console = Console(highlight=False, soft_wrap=True)
    groups, elements = summary["space_groups"], summary["elements"]
    console.print(escape(f"{summary['source']}: {summary['crystals']:,} crystals of {summary['rows']:,} rows"))
    console.print(f"digest {summary['digest']}")
    console.print(escape(f"cache {summary['cache']} ({size(summary['cache_bytes'])})"))
    for reason in summary["reasons"]:
        text = f"{reason['rows']:,} x {reason['reason']} (first: {reason['example']})"
        console.print(f"[yellow]skipped[/] {escape(text)}")
    frequent = sorted(groups.items(), key=lambda item: -item[1])[:MOST]
    _bars(console, f"{len(groups)} space groups", {_group_name(group): count for group, count in frequent})
    _bars(console, "crystal systems", summary["crystal_systems"])
    _bars(console, "symmetry-inequivalent sites", summary["sites"])
    _bars(console, f"{len(elements)} elements, crystals that hold them", dict(list(elements.items())[:MOST]))


def _bars(console, title: str, counts: dict[Any, int]) -> None:
    """A small plot: a line for each count, `#` where there is no terminal."""
    from rich.markup import escape

    block = "█" if console.is_terminal else "#"
    width, most = max(len(str(key)) for key in counts), max(counts.values())
    console.print(f"\n[bold]{escape(title)}[/]")
    for key, count in counts.items():
        bar = block * max(round(BAR * count / most), bool(count))
        console.print(f"  {key!s:>{width}} {count:>9,} [cyan]{bar}[/]".rstrip())


def _group_name(space_group: int) -> str:
    import spglib

    from cfx.core.symmetry import symmetry_table

    hall_number = int(symmetry_table().hall_number[space_group - 1])
    return f"{spglib.get_spacegroup_type(hall_number).international_short} {space_group:>3}"
