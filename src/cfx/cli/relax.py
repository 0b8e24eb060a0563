"""cfx relax: crystals at the nearest minimum of a potential."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfx.cli import options


def command(
    crystals: Annotated[str, typer.Argument(help=f"Crystals: {options.DATA_HELP}")],
    potential: options.Potential,
    output: Annotated[Path, typer.Option("-o", "--output", help="A .jsonl, .extxyz or .cif file.")],
    fmax: options.Fmax = 0.05,
    steps: options.RelaxationSteps = 500,
    fix_symmetry: Annotated[bool, typer.Option("--fix-symmetry", help="Keep the space group of the start.")] = False,
    device: options.Device = "cpu",
    workers: options.Workers = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output, or an unfinished run.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run; give the same options as then.")
    ] = False,
) -> None:
    """Relax positions and cells, many crystals at once.

    Every result is kept as soon as it is there. JSON lines have all of a crystal: cell, energy, steps, convergence,
    RMSD to the start, and why something failed; the other formats hold the crystals that have an energy.
    """
    from cfx.cli.console import ConsoleReporter
    from cfx.runs.relax import RelaxSettings, relax_file

    reporter = ConsoleReporter()
    settings = RelaxSettings(crystals, potential, fmax, steps, fix_symmetry)
    rows = relax_file(settings, output, device, workers or -1, reporter, force, resume)
    converged = sum(row["converged"] for row in rows)
    failed = sum(row["energy"] is None for row in rows)
    reporter.message(
        f"{converged} of {len(rows)} crystals converged"
        + (f", {failed} have no energy" if failed else "")
        + f": {output}"
    )
