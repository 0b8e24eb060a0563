"""The application: its commands, and the one place where exceptions become exit codes."""

import inspect
import itertools
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cfx.cli import discover, eval, fetch, look, predict, retrieve, sample, score, selftrain, train
from cfx.cli.console import guard_streams, printable, say
from cfx.cli.options import as_command
from cfx.errors import CfxError, OutputError

hull = typer.Typer(help="Build or show the hull that stability is judged against.")

SECTIONS: dict[str, dict[str, Callable[..., None] | typer.Typer]] = {
    "Commands": {
        "fetch": fetch.fetch,
        "train": train.train,
        "sample": sample.sample,
        "predict": predict.predict,
        "discover": discover.discover,
        "rl": train.rl,
        "eval": eval.evaluate,
    },
    "More commands": {
        "dpo": train.dpo,
        "selftrain": selftrain.selftrain,
        "score": score.score,
        "relax": eval.relax,
        "hull": hull,
        "retrieve": retrieve.retrieve,
        "data": look.data,
        "plot": look.plot,
        "view": look.view,
        "doctor": look.doctor,
    },
}
"""All commands as the help lists them."""


class Commands(TyperGroup):
    """Lists the main commands before the others, all in the order of SECTIONS."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes two sections of names and what they do."""
        width = formatter.width - 6 - max(map(len, self.commands))
        for title, names in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(width)) for name in names])


app = typer.Typer(
    name="cfx",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,  # help in plain text: rich would double the time it takes
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Crystals from a space group: sample CrystalFormer models, and train your own.",
)


def add(to: typer.Typer, name: str, function: Callable[..., None]) -> None:
    """Adds a command; the examples of its docstring stand below its options, line by line."""
    text, _, examples = (inspect.getdoc(function) or "").partition("\n\nExamples:\n")
    to.command(name, help=text, epilog=f"\b\nExamples:\n{examples}")(as_command(function))


add(hull, "build", eval.build_hull)
add(hull, "show", eval.show_hull)
for name, command in itertools.chain(*(section.items() for section in SECTIONS.values())):
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
    else:
        add(app, name, command)


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
    guard_streams()
    warnings.formatwarning = lambda message, category, *place: f"{category.__name__}: {printable(message)}\n"
    try:
        try:
            check_working_directory()
            app(arguments, prog_name="cfx", standalone_mode=True)
        finally:
            sys.stdout.flush()
    except CfxError as error:
        if debug:
            traceback.print_exc()
        say(error.message, "[bold red]error:[/] ")
        if error.hint:
            say(error.hint, "[bold]hint:[/] ")
        sys.exit(error.exit_code)


def check_working_directory() -> None:
    """Refuses to work in a directory that was deleted, where every relative name fails in a way of its own.

    Raises:
        OutputError: if it was.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise OutputError("the working directory was deleted", "change to another one") from error
