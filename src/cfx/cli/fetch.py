"""cfx fetch: published models, data sets and hulls, to this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfx.cli import options
from cfx.cli.console import REPORTER, print_json, size
from cfx.cli.options import Fields, Given
from cfx.config.fields import option
from cfx.errors import CheckpointError, OutputError, UsageError
from cfx.io.files import cache_directory
from cfx.reporter import counted, interrupted_by_signals

if TYPE_CHECKING:
    from cfx.fetch.files import Request
    from cfx.fetch.names import Status

WIDE, PLAIN_WIDTH = 120, 160
"""Columns from which summaries are shown; columns where there is no terminal."""


@dataclass(frozen=True, kw_only=True)
class HowToFetch:
    """What a command line says of what it fetches."""

    force: bool = option(False, "Fetch again, even if it is on this machine.")
    revision: str | None = option(
        None, "Branch, tag or commit of the repository on the hub; recorded in place of the earlier one."
    )
    accept: bool = option(False, "Fetch the version published now, and accept it if it has changed.")
    token: str | None = option(None, "Access token for the hub; preferably set HF_TOKEN, or use: hf auth login.")


def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names from --list, such as alex20 or mp-20:val; or a file of the hub: hf:owner/repo/path.",
            autocompletion=options.COMPLETIONS["published"],
        ),
    ] = None,
    *,
    show: Annotated[bool, typer.Option("--list", help="List what is available, and what is on this machine.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Fetch everything in the list.")] = False,
    request: Annotated[Given, Fields(HowToFetch)],
    verify: Annotated[
        bool, typer.Option("--verify", help="Check everything on this machine against its SHA-256.")
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option("--export", help="Copy the named files (or everything on this machine) to this directory."),
    ] = None,
    take: Annotated[
        Path | None, typer.Option("--import", help="Import what --export has copied to this directory.")
    ] = None,
    as_json: bool = options.JSON,
) -> None:
    """Fetch published models, data sets and hulls.

    Prints where they are. Every file is checked against the SHA-256 that its server announces, and must be the same
    whenever it is fetched again. Interrupt it at any time: the same command goes on where it was. Models are converted
    to safetensors, and no code in them is run. Files of the Hugging Face hub are kept in its own cache (HF_HOME), the
    rest in CFX_CACHE.

    Examples:
      cfx fetch --list
      cfx fetch alex20
      cfx fetch alex20 --export for-the-cluster
    """
    names = names or []
    asked = [show, verify, take is not None, bool(names) or everything or export is not None]
    if sum(asked) != 1 or (names and everything):
        wrong = "these options cannot be combined" if any(asked) else "there are no names to fetch"
        raise UsageError(wrong, "for example: cfx fetch alex20, or cfx fetch --list")
    if request and not (names or everything):
        raise UsageError(
            "--force, --revision, --accept and --token need names to fetch", "for example: cfx fetch alex20 --force"
        )
    if show:
        _list(as_json)
        return

    from cfx.fetch.files import Request
    from cfx.fetch.names import import_files

    with interrupted_by_signals("stopped; run the same command again to go on where it was"):
        if verify:
            _verify(as_json)
        elif take is not None:
            _say(import_files(take), as_json, f"imported from {take}")
        else:
            _fetch(names, everything, Request(**request), export, as_json)


def _fetch(names: Sequence[str], everything: bool, request: Request, target: Path | None, as_json: bool) -> None:
    from cfx.fetch import names as by_name

    paths: dict[str, Path] = {}
    if names or everything:
        paths = by_name.fetch(names or by_name.everything(), REPORTER, request)
    if target is not None:
        exported = by_name.export(list(paths) if names or everything else None, target)
        _say(exported, as_json, f"exported to {target}; there: cfx fetch --import {target}")
    elif as_json:
        print_json({address: str(path) for address, path in paths.items()})
    else:
        for path in paths.values():
            print(path)


def _say(lines: list[str], as_json: bool, message: str) -> None:
    if as_json:
        print_json(lines)
    else:
        print("\n".join(lines))
    REPORTER.message(f"{len(lines)} {message}")


def _list(as_json: bool) -> None:
    from cfx.fetch.names import statuses

    try:
        cache_directory()
    except OutputError as error:
        REPORTER.warning(f"{error.message}; nothing can be kept on this machine ({error.hint})")
    found = statuses()
    if as_json:
        print_json([_facts(status) for status in found])
    else:
        _print_table(found)


def _print_table(found: list[Status]) -> None:
    """Prints the list as a table, without the summaries if the terminal is too narrow for them."""
    from rich.console import Console
    from rich.table import Column, Table

    console = Console()
    console = console if console.is_terminal else Console(width=PLAIN_WIDTH)
    titles = ["name", "kind", "size", "here", "licence", "what"][: 6 if console.width >= WIDE else 5]
    columns = [Column(title, overflow="fold", justify="right" if title == "size" else "left") for title in titles]
    table = Table(*columns, box=None, pad_edge=False)
    for status in found:
        entry = status.entry
        bytes_text = "" if status.size is None else size(status.size)
        row = (entry.name, entry.kind, bytes_text, status.cached, entry.licence, entry.summary)
        table.add_row(*row[: len(titles)])
    console.print(table)


def _facts(status: Status) -> dict[str, Any]:
    import dataclasses

    entry = status.entry
    return {
        "name": entry.name,
        "kind": entry.kind,
        "summary": entry.summary,
        "bytes": status.size,
        "cached": status.cached,
        "licence": entry.licence,
        "citation": entry.citation,
        "files": dict(entry.files),
        "architecture": dataclasses.asdict(entry.config) if entry.config else None,
        "needs": entry.needs,
    }


def _verify(as_json: bool) -> None:
    from cfx.fetch.names import verify

    checked = verify(REPORTER)
    if as_json:
        print_json([{"what": one.key, "path": str(one.path or ""), "state": one.state} for one in checked])
    else:
        for one in checked:
            print(f"{one.state:8}{one.path or one.key}")
    if damaged := [str(one.path) for one in checked if one.state == "damaged"]:
        were = "was" if len(damaged) == 1 else "were"
        raise CheckpointError(
            f"{counted(len(damaged), 'file')} {were} damaged and removed: {', '.join(damaged)}",
            "fetch them again: cfx fetch NAME",
        )
    missing = sum(one.state == "missing" for one in checked)
    gone = f", {missing} no longer on this machine" if missing else ""
    REPORTER.message(f"{counted(len(checked), 'file')} checked, none damaged{gone}")
