"""cfx view: crystals that turn under the mouse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfx.cli import options


def command(
    crystals: Annotated[str, typer.Argument(help=f"Crystals: {options.DATA_HELP}")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="An .html file; by default named after the crystals.")
    ] = None,
    first: Annotated[int, typer.Option("-n", "--first", help="Crystals on the page, at most.", min=1)] = 200,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the page.")] = False,
) -> None:
    """Make a page of crystals to turn and zoom.

    The page is one file that needs no network. The space group is the one that a symmetry search finds.
    """
    from cfx.cli.console import ConsoleReporter
    from cfx.io.files import check_file
    from cfx.report import write_viewer

    page = output or Path(f"{Path(crystals).name.partition('.')[0] or 'crystals'}.html")
    check_file(page, (".html",), force)
    reporter = ConsoleReporter()
    shown, total = write_viewer(crystals, page, first, reporter)
    more = f", the first of {total:,}; -n shows more" if shown == first < total else ""
    reporter.message(f"{shown:,} crystals{more}: {page}")
    if browser:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
