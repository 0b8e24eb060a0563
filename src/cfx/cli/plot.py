"""cfx plot: how a run goes, and what a model has learned of the elements."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cfx.runs.curves import Curves, Panel
    from cfx.runs.figures import Similarity

WELL_KNOWN = ("H", "Li", "Na", "K", "Ca", "Ti", "Fe", "Cu", "Al", "Si", "O", "S", "Cl", "La", "U")
"""Elements whose neighbours a terminal shows; --json has all."""

TERMINAL_COLOURS = ("blue", "orange", "green", "magenta")
PLAIN_MARKERS, PLAIN_WIDTH = "o+x*", 80
"""A character for each series, and columns, where stdout is no terminal."""


def command(
    what: Annotated[
        str,
        typer.Argument(help="The directory of a run, or its metrics.jsonl; or the word: embeddings."),
    ],
    model: Annotated[
        str | None,
        typer.Argument(help="With embeddings, the model: a name, a checkpoint directory, or a .pkl file. [auto]"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A .png, .svg or .pdf file; the terminal without it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With embeddings: print all numbers as JSON.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
) -> None:
    """Plot the curves of a run, or how alike a model finds elements.

    A training: loss and its parts in nats per crystal, learning rate, norm of the gradient. A fine-tuning: reward and
    its parts, KL, what becomes of the crystals, entropy. A run that is going on will do.

    embeddings: cosine similarity of the species embeddings, as they are (no mean is subtracted), of the elements that
    the model has learned. The terminal gets means by family and the nearest elements; -o FILE a heat map of all.
    """
    from cfx.errors import UsageError

    if output is not None:
        from cfx.io.files import check_file
        from cfx.runs.figures import SUFFIXES

        check_file(output, SUFFIXES, force)
    if what == "embeddings":
        subject = _similarity(model or "auto")
    elif model is not None or as_json:
        raise UsageError(f"{'a model' if model else '--json'} goes with embeddings only", "write: cfx plot embeddings")
    else:
        from cfx.runs.curves import read_run

        subject = read_run(Path(what))
    _show(subject, output, as_json)


def _similarity(name: str) -> Similarity:
    from cfx.cli.console import ConsoleReporter
    from cfx.cli.start import load
    from cfx.runs.figures import species_similarity

    reporter = ConsoleReporter()
    similarity = species_similarity(load(name, reporter))
    if similarity.left_out:
        reporter.message(f"not learned by {similarity.model}, left out: {', '.join(similarity.left_out)}")
    return similarity


def _show(subject: Curves | Similarity, output: Path | None, as_json: bool) -> None:
    import json

    from cfx.cli.console import ConsoleReporter
    from cfx.runs.curves import Curves

    if output is not None:
        from cfx.runs.figures import save_figure

        save_figure(subject, output)
        ConsoleReporter().message(f"drawn: {output}")
    if as_json:
        print(json.dumps(subject.as_json()))
    elif output is None and isinstance(subject, Curves):
        _print_curves(subject)
    elif output is None:
        _print_similarity(subject)


def _print_similarity(similarity: Similarity) -> None:
    """Prints similarity by family, and the nearest elements of some, on stdout."""
    from cfx.cli.console import print_table

    print(f"Mean cosine similarity of species embeddings in {similarity.model}")
    families = [
        {key: f"{value:.2f}" if isinstance(value, float) else value for key, value in row.items()}
        for row in similarity.families()
    ]
    if families:
        print_table(families)
    nearest = similarity.nearest()
    print("Nearest elements")
    for symbol in filter(nearest.get, WELL_KNOWN):
        print(f"  {symbol:2}  " + "  ".join(f"{other:2} {value:.2f}" for other, value in nearest[symbol]))


def _print_curves(curves: Curves) -> None:
    """Draws a run on stdout, in colours if that is a terminal."""
    import shutil

    coloured = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if coloured else PLAIN_WIDTH
    print(f"{curves.name}: {curves.headline}")
    for panel in curves.panels:
        print(f"\n{draw_panel(panel, curves.x_label, width, 18 if panel.wide else 10, coloured)}")


def draw_panel(panel: Panel, x_label: str, width: int, height: int, coloured: bool) -> str:
    """A panel as text: lines of dots in colours, or else a character for each series."""
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.limit_size(False, False)
    plotext.plot_size(width, height)
    plotext.xlabel(x_label)
    if panel.log:
        plotext.yscale("log")
    names = []
    for series, colour, marker in zip(panel.series, TERMINAL_COLOURS, PLAIN_MARKERS, strict=False):
        plotext.plot(series.x, series.y, color=colour, marker="braille" if coloured else marker)
        names.append(plotext.colorize(f"{'━' if coloured else marker} {series.label}", colour))
    names = (names if len(names) > 1 else []) + ([panel.best[0]] if panel.best else [])
    title = f"{panel.title}, {panel.unit}" if panel.unit else panel.title
    text = "\n".join([title, *(["   ".join(names)] if names else []), plotext.build()])
    text = text if coloured else plotext.uncolorize(text)
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())
