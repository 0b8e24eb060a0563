"""cfx sample: crystals of a space group."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    space_group: Annotated[int, typer.Option("--sg", "--space-group", help="Space group, 1 to 230.")],
    n: Annotated[int, typer.Option("-n", "--n", help="Crystals wanted.")] = 1,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A .cif file; stdout without it.")] = None,
    model: Annotated[
        str, typer.Option("--model", help="A name, a checkpoint directory, or a published .pkl file.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="The same seed gives the same crystals.")] = 0,
    temperature: Annotated[float, typer.Option(help="Below 1: likelier crystals. Above 1: bolder ones.")] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Probability kept in every categorical draw.")] = 1.0,
    batch_size: Annotated[int, typer.Option(help="Crystals drawn at once.")] = 64,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
) -> None:
    """Draw crystals from a model.

    Every CIF block holds the space group's operations and the asymmetric unit, with model, seed and
    log-probability. Lattices that close no cell are drawn again and counted.
    """
    from cfx.config import SampleConfig

    request = SampleConfig(space_group, n, seed, temperature, top_p, batch_size)

    from cfx.cli.console import ConsoleReporter
    from cfx.cli.start import start_jax

    reporter = ConsoleReporter()
    start_jax(reporter)

    from cfx.model import load_model
    from cfx.runs.sample import sample

    loaded = load_model(model)
    result = sample(loaded, request, output, reporter, force)
    as_asked = result.found[space_group]
    reporter.message(
        f"{result.num_crystals} crystals of space group {space_group} from {result.num_drawn} draws "
        f"({result.num_unphysical} unphysical lattices) by model {loaded.name}, seed {seed}, "
        f"in {result.seconds:.1f} s" + (f": {output}" if output else "")
    )
    if others := {group: count for group, count in result.found.most_common() if group != space_group}:
        shown = ", ".join(f"{count} in {group or 'none'}" for group, count in list(others.items())[:5])
        more = ", ..." if len(others) > 5 else ""
        reporter.message(
            f"a symmetry search finds {as_asked} of them in space group {space_group} again; {shown}{more}"
        )
