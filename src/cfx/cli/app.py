"""The application: its commands, and the one place where exceptions become exit codes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cfx.cli import data, doctor, eval, fetch, hull, plot, relax, retrieve, rl, sample, score, train, view
from cfx.cli.options import as_command, in_flags
from cfx.errors import CfxError

app = typer.Typer(
    name="cfx",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # help in plain text: rich would double the time it takes
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Crystals from a space group: sample CrystalFormer models, and train your own.",
)
app.command("fetch")(as_command(fetch.command))
app.command("train")(as_command(train.command))
app.command("sample")(as_command(sample.command))
app.command("rl")(as_command(rl.command))
app.command("eval")(as_command(eval.command))
app.command("score")(as_command(score.command))
app.command("relax")(as_command(relax.command))
app.add_typer(hull.app, name="hull")
app.command("data")(as_command(data.command))
app.command("plot")(as_command(plot.command))
app.command("retrieve")(as_command(retrieve.command))
app.command("view")(as_command(view.command))
app.command("doctor")(as_command(doctor.command))


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"cfx {version('cfx-crystal')}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of every command."""


def run(arguments: list[str] | None = None) -> None:
    """Runs a command line and exits with its code (see the README for what the codes mean)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        app(arguments, standalone_mode=True)
    except CfxError as error:
        if debug:
            import traceback

            traceback.print_exc()
        _print_error(error.message, error.hint)
        sys.exit(error.exit_code)


def _print_error(message: str, hint: str | None) -> None:
    from cfx.cli.console import stderr

    stderr().print(f"[bold red]error:[/] {_escape(in_flags(message))}", soft_wrap=True, highlight=False)
    if hint:
        stderr().print(f"[bold]hint:[/] {_escape(in_flags(hint))}", soft_wrap=True, highlight=False)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
