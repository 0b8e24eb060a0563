"""cfx hull: phases that stability is judged against."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfx.cli import options

app = typer.Typer(help="Build or show the phases that stability is judged against.")

SHOWN = 20
"""Missing formulas that are shown; --json has all."""


@app.command("build")
@options.as_command
def build(
    structures: Annotated[list[str], typer.Argument(help=f"Crystals: {options.DATA_HELP}")],
    potential: options.Potential,
    output: Annotated[Path, typer.Option("-o", "--output", help="A .npz file.")],
    name: Annotated[str | None, typer.Option(help="Name of the hull in reports; by default that of the file.")] = None,
    device: options.Device = "cpu",
    workers: options.Workers = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
) -> None:
    """Build a hull: the lowest energy of each composition.

    Energies are those of the crystals as they are, not relaxed. Candidates that are judged by the same potential are
    then on the same footing. Each element must be among the crystals.
    """
    from cfx.cli.console import ConsoleReporter
    from cfx.io.files import check_file

    check_file(output, (".npz",), force)
    from cfx.runs.hull import build as build_hull

    reporter = ConsoleReporter()
    title = name or output.name.removesuffix(".npz").removesuffix(".hull")
    hull = build_hull(structures, potential, output, title, device, workers or -1, reporter)
    reporter.message(f"{hull}: {output}")


@app.command("show")
@options.as_command
def show(
    hull: Annotated[str, typer.Argument(help="A file (.npz, .json, .json.bz2), or a name of cfx fetch --list.")],
    scale: Annotated[
        str | None, typer.Option(help="Scale of the energies where the file does not say: raw or mp2020.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="A .csv with a column `formula`: which of them does the hull lack?")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Show what a hull holds, and which phases of a list it lacks."""
    from cfx.cli.console import ConsoleReporter
    from cfx.runs.hull import describe

    content = describe(hull, scale, reference, ConsoleReporter())
    if as_json:
        import json

        print(json.dumps(content, indent=1))
        return
    missing = content.pop("missing", None)
    for key, value in content.items():
        if isinstance(value, dict):
            value = ", ".join(f"{size}: {count:,}" for size, count in value.items())
        elif isinstance(value, list):
            value = ", ".join(value) or "none"
        if value not in (None, ""):
            print(f"{key.replace('_', ' ')}: {value}")
    if missing is not None:
        few = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
        print(f"missing: {len(missing)}{': ' * bool(few)}{few}")
