"""cfx data, cfx plot, cfx view and cfx doctor: what is there, to look at."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfx.cli import options, values
from cfx.cli.console import REPORTER, print_json, print_table, printable, shown, size, stdout
from cfx.errors import UsageError
from cfx.io.files import claimed, write_table
from cfx.reporter import counted
from cfx.runs.curves import SUFFIXES, Curves, Panel, log_ticks, read_run, round_ticks

if TYPE_CHECKING:
    from cfx.runs.figures import Similarity

MOST = 10
"""Space groups and elements of a data set that are shown; --json has all."""

BAR = 40
"""Columns of the longest bar."""

WELL_KNOWN = ("H", "Li", "Na", "K", "Ca", "Ti", "Fe", "Cu", "Al", "Si", "O", "S", "Cl", "La", "U")
"""Elements whose neighbours a terminal shows; --json has all."""

TERMINAL_COLOURS = ("blue", "orange", "green", "magenta")
MOST_STEPS, FRAME_ROWS = 6, 4
"""Steps between the ticks of a vertical axis, at most; rows of the frame, the ticks and the label below a panel."""

PLAIN_MARKERS, PLAIN_WIDTH = "o+x*", 80
"""A character for each series, and columns, where stdout is not a terminal."""


def data(
    data: options.Crystals,
    as_json: bool = options.JSON,
    failures: Path | None = options.writes("--failures", help="A .csv file for the skipped rows: row, name, reason."),
    symprec: float = options.SYMPREC,
    n_max: Annotated[
        int, typer.Option(help="Slots of the model; a crystal has at most one symmetry-inequivalent site fewer.")
    ] = 21,
    workers: int = options.WORKERS,
    force: bool = options.FORCE,
) -> None:
    """Describe a data set: space groups, sites, elements, failures.

    DATA is encoded once and cached, as by cfx train and cfx score. Interrupt it at any time: the same command goes on
    where it was.

    Examples:
      cfx data data.csv
      cfx data mp-20 --json
      cfx data crystals.zip --failures failures.csv
    """
    if n_max < 2 or n_max > 255:
        raise UsageError(
            f"--n-max {n_max} is not a number of slots", "write one from 2 to 255; published models have 21"
        )
    with claimed(failures, (".csv",), force):
        from cfx.data.dataset import read, summarize

        dataset = read(data, n_max, REPORTER, symprec, workers or os.cpu_count() or 1)
        if failures is not None:
            write_table(failures, [one._asdict() for one in dataset.failures], ("row", "name", "reason"))
    summary = summarize(dataset)
    if as_json:
        print_json(summary)
    else:
        _print_data(summary)


def _print_data(summary: dict[str, Any]) -> None:
    console = stdout()
    groups, elements = summary["space_groups"], summary["elements"]
    console.print(shown(f"{summary['source']}: {summary['crystals']:,} crystals of {summary['rows']:,} rows"))
    console.print(f"digest {summary['digest']}")
    console.print(shown(f"cache {summary['cache']} ({size(summary['cache_bytes'])})"))
    for reason in summary["reasons"]:
        text = f"{reason['rows']:,} x {reason['reason']} (first: {reason['example']})"
        console.print(f"[yellow]skipped[/] {shown(text)}")
    frequent = sorted(groups.items(), key=lambda item: -item[1])[:MOST]
    _bars(console, f"{len(groups)} space groups", {_group_name(group): count for group, count in frequent})
    _bars(console, "crystal systems", summary["crystal_systems"])
    _bars(console, "symmetry-inequivalent sites", summary["sites"])
    _bars(console, f"{len(elements)} elements, crystals that hold them", dict(list(elements.items())[:MOST]))


def _bars(console, title: str, counts: dict[Any, int]) -> None:
    """A small plot: a line for each count, `#` where there is no terminal."""
    block = "█" if console.is_terminal else "#"
    width, most = max(len(str(key)) for key in counts), max(counts.values())
    console.print(f"\n[bold]{shown(title)}[/]")
    for key, count in counts.items():
        bar = block * max(round(BAR * count / most), bool(count))
        console.print(f"  {key!s:>{width}} {count:>9,} [cyan]{bar}[/]".rstrip())


def _group_name(space_group: int) -> str:
    import spglib

    from cfx.core.symmetry import symmetry_table

    hall_number = int(symmetry_table().hall_number[space_group - 1])
    setting = spglib.get_spacegroup_type(hall_number)
    assert setting is not None  # our table has spglib's own numbers
    return f"{setting.international_short} {space_group:>3}"


def plot(
    what: Annotated[str, typer.Argument(help="The directory of a run, or its metrics.jsonl; or the word: embeddings.")],
    model: Annotated[
        str | None,
        typer.Argument(
            help="With embeddings, the model: a name, a checkpoint directory, or a .pkl file. [default: auto]",
            autocompletion=options.COMPLETIONS["model"],
        ),
    ] = None,
    output: Path | None = options.output("A .png, .svg or .pdf file; the terminal without it."),
    as_json: bool = options.JSON,
    force: bool = options.FORCE,
) -> None:
    """Plot the curves of a run, or how alike a model finds elements.

    A training: loss and its parts in nats per crystal, learning rate, norm of the gradient. A fine-tuning: reward and
    its parts, KL, what becomes of the crystals, entropy. A run that is going on will do.

    embeddings: cosine similarity of the species embeddings, as they are (no mean is subtracted), of the elements that
    the model has learned. The terminal gets means by family and the nearest elements; -o FILE a heat map of all.

    Examples:
      cfx plot run
      cfx plot run -o curves.svg
      cfx plot embeddings mini --json
    """
    if what != "embeddings" and (model is not None or as_json):
        raise UsageError(f"{'a model' if model else '--json'} is only for embeddings", "write: cfx plot embeddings")
    with claimed(output, SUFFIXES, force):
        subject = _similarity(model or "auto") if what == "embeddings" else read_run(Path(what))
        if output is not None:
            from cfx.runs.figures import save_figure

            save_figure(subject, output)
            REPORTER.message(f"written: {output}")
    if isinstance(subject, Curves):
        if output is None:
            _print_curves(subject)
    elif as_json:
        print(json.dumps(subject.as_json()))
    elif output is None:
        _print_similarity(subject)


def _similarity(name: str) -> Similarity:
    from cfx.runs.figures import species_similarity

    similarity = species_similarity(values.load(name))
    if similarity.left_out:
        REPORTER.message(f"not learned by {similarity.model}, left out: {', '.join(similarity.left_out)}")
    return similarity


def _print_similarity(similarity: Similarity) -> None:
    """Prints similarity by family, and the nearest elements of some, on stdout."""
    print(f"Mean cosine similarity of species embeddings in {printable(similarity.model)}")
    if families := similarity.families():
        print_table(families, decimals=2)
    nearest = similarity.nearest()
    print("Nearest elements")
    for symbol in filter(nearest.get, WELL_KNOWN):
        print(f"  {symbol:2}  " + "  ".join(f"{other:2} {value:.2f}" for other, value in nearest[symbol]))


def _print_curves(curves: Curves) -> None:
    """Draws a run on stdout, in colours if that is a terminal."""
    coloured = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if coloured else PLAIN_WIDTH
    print(printable(f"{curves.name}: {curves.headline}"))
    for panel in curves.panels:
        print(f"\n{draw_panel(panel, curves.x_label, width, 18 if panel.wide else 10, coloured)}")


def draw_panel(panel: Panel, x_label: str, width: int, height: int, coloured: bool) -> str:
    """A panel as text: lines of dots in colours, or else a character for each series.

    The height is changed a little, so that there are equally many rows between the ticks.
    """
    import plotext

    values = [y for series in panel.series for y in series.y]
    ticks = (log_ticks if panel.log else functools.partial(round_ticks, most=MOST_STEPS))(min(values), max(values))
    steps = len(ticks) - 1
    scale = math.log10 if panel.log else float
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.limit_size(False, False)
    plotext.plot_size(width, steps * max(1, round((height - FRAME_ROWS - 1) / steps)) + 1 + FRAME_ROWS)
    plotext.xlabel(x_label)
    plotext.ylim(scale(ticks[0]), scale(ticks[-1]))
    plotext.yticks(list(map(scale, ticks)), [f"{tick:g}" for tick in ticks])
    _set_x_ticks(max(x for series in panel.series for x in series.x))
    names = []
    for series, colour, marker in zip(panel.series, TERMINAL_COLOURS, PLAIN_MARKERS, strict=False):
        y = list(map(scale, series.y))
        plotext.plot(series.x, y, color=colour, marker="braille" if coloured else marker)
        names.append(plotext.colorize(f"{'━' if coloured else marker} {series.label}", colour))
    names = (names if len(names) > 1 else []) + ([panel.best[0]] if panel.best else [])
    title = f"{panel.title}, {panel.unit}" if panel.unit else panel.title
    text = "\n".join([title, *(["   ".join(names)] if names else []), plotext.build()])
    text = text if coloured else plotext.uncolorize(text)
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())


def _set_x_ticks(last: float) -> None:
    """The axis from 0 to the last epoch or step, ticks at the round numbers in between."""
    import plotext

    if last > 0:
        ticks = [tick for tick in round_ticks(0, last, 2 * MOST_STEPS) if tick <= last]
        plotext.xlim(0, last)
        plotext.xticks(ticks, [f"{tick:g}" for tick in ticks])


def view(
    crystals: options.Crystals,
    output: Path | None = options.output("An .html file; by default named after the crystals."),
    first: Annotated[int, typer.Option("-n", "--first", help="Crystals on the page, at most.", min=1)] = 200,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page.")] = False,
    force: bool = options.FORCE,
) -> None:
    """Make a page of crystals to rotate and zoom.

    The page is one file that needs no network. The space group is the one that a symmetry search finds.

    Examples:
      cfx view crystals.cif --browser
      cfx view data.csv -n 50 -o some.html
    """
    from cfx.report import write_viewer

    page = output or Path(f"{Path(crystals).name.partition('.')[0] or 'crystals'}.html")
    with claimed(page, (".html",), force):
        drawn, total = write_viewer(crystals, page, first, REPORTER)
    more = f", the first of {total:,}; -n shows more" if drawn == first < total else ""
    REPORTER.message(f"{counted(drawn, 'crystal')}{more}: {page}")
    if browser:
        typer.launch(page.resolve().as_uri())


def doctor(as_json: bool = options.JSON) -> None:
    """Check the installation: versions, devices, cache, models.

    Says what is missing for which command, and how to install it. Nothing is downloaded. Exit code 6 if cfx cannot
    work as it is.

    Examples:
      cfx doctor
      cfx doctor --json
    """
    from cfx.runs.doctor import examine

    found = examine()
    if as_json:
        print_json(found)
    else:
        _print_installation(found)
    if not found["healthy"]:
        raise typer.Exit(6)


def _print_installation(found: dict[str, Any]) -> None:
    print(f"cfx {found['cfx']}, Python {found['python']}\n{found['platform']}")
    print_table(
        [
            {"library": one["package"], "version": one["version"] or "missing", "for": one["purpose"]}
            for one in found["libraries"]
        ]
    )
    for library, devices in found["devices"].items():
        print(f"devices of {library}: {', '.join(devices) or 'none'}")
    cache = found["cache"]
    print(f"cache: {cache['directory'] or cache['problem']}, {size(cache['bytes'])}")
    print(f"models: {', '.join(found['models'])}" + (" (HF_HUB_OFFLINE is set)" if found["offline"] else ""))
    for line in found["advice"]:
        print(f"- {line}")
    if not found["advice"]:
        print("Nothing is missing.")
