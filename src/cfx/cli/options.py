"""Options of commands, made from the fields of configurations, and the options that are not fields.

A command takes a dictionary for each configuration that it fills, `Annotated[Given, Fields(EvalConfig)]`; `as_command`
puts an option for each field into the signature that Typer reads, and gives the command what stood on the line.
"""

import contextlib
import dataclasses
import functools
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from cfx.cli.console import FLAGS
from cfx.config import DataConfig, EvalConfig
from cfx.config.evaluation import SORTABLE
from cfx.config.fields import check_value, converted, kinds_of, takes_tuple
from cfx.errors import UsageError
from cfx.io.files import followed

Given = dict[str, Any]
"""Fields of a configuration that were given on the command line."""

MODEL_HELP = "A name (cfx fetch --list), a checkpoint directory, a published .pkl file, or hf:owner/repo/path."
DATA_HELP = "a .csv, .parquet, .cif, .extxyz, .jsonl, .lmdb, POSCAR, a directory or zip; or a name (cfx fetch --list)."

READ = ("reference", "validation", "pairs", "prototype", "crystals", "sites", "config")
"""Options that name files to read, as all arguments may."""

WRITTEN: list[Any] = []
"""Options that name files to write."""


def _one_of(*words: str) -> Callable[[str], list[str]]:
    """What a shell completes where one of some words is wanted."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def _published(*kinds: str) -> Callable[[str], list[str]]:
    """What a shell completes where something published is wanted; files are completed by the shell itself."""

    def complete(begun: str) -> list[str]:
        from cfx.catalog import CATALOG

        return [
            name for name, entry in CATALOG.items() if entry.kind in (kinds or {entry.kind}) and name.startswith(begun)
        ]

    return complete


COMPLETIONS: dict[str, Callable[[str], list[str]]] = {
    "model": _published("model"),
    "published": _published(),
    "hull": _published("hull"),
    "reference": _published("data"),
    "validation": _published("data"),
    "potential": _one_of("chgnet", "orb:", "matgl:", "ase:"),
    "reward": _one_of("ehull", "fom", "gap", "dielectric", "property:", "force", "energy"),
    "hull_scale": _one_of("raw", "mp2020"),
    "sort": _one_of(*SORTABLE),
    "device": _one_of("cpu", "cuda"),
}
"""What a shell completes after the flags of fields whose types do not say."""


class Fields:
    """Options for the fields of a configuration.

    Args:
        cls: the configuration.
        names: of the fields that have options; none: all.
        without: fields that have none.
        shown: values that the help shows as defaults where they are not those of the fields.
    """

    def __init__(self, cls: Any, *names: str, without: Iterable[str] = (), shown: Mapping[str, Any] | None = None):
        known = {field.name: field for field in dataclasses.fields(cls)}
        self.cls, self.fields = cls, {name: known[name] for name in names or known if name not in without}
        self.shown = shown or {}

    def parameters(self) -> Iterator[inspect.Parameter]:
        """What Typer makes the options from; each is None unless it is given."""
        for name, field in self.fields.items():
            info = _option(self.cls, field, None, _shown(self.shown.get(name, field.default)))
            yield inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=_kind(self.cls, name) | None
            )

    def take(self, found: dict[str, Any]) -> Given:
        """Takes the values of these options out of those of the command, without those that were not given."""
        texts = {name: found.pop(name) for name in self.fields}
        return {name: self._value(name, value) for name, value in texts.items() if value not in (None, [])}

    def _value(self, name: str, value: Any) -> Any:
        if isinstance(value, list):  # the option was repeated
            value = ",".join(value)
        if value is True:
            return not self.fields[name].metadata["flag"].startswith("--no-")
        return converted(self.cls, name, value)


def single(cls: Any, name: str, flag: str = "") -> Any:
    """The option of one field for a command that does not have the configuration; its value is checked as there."""
    [field] = (field for field in dataclasses.fields(cls) if field.name == name)
    default = ... if field.default is dataclasses.MISSING else field.default
    info = _option(cls, field, default, "", flag)

    def check(value: Any) -> Any:
        check_value(cls, name, value)
        return value

    info.callback = check
    return info


def _option(cls: Any, field: dataclasses.Field[Any], default: Any, shown: str, flag: str = "") -> Any:
    text = re.sub(r"`([a-z_]+)`", lambda match: flags(match[1])[0], field.metadata["help"]) + shown
    names = flags(field.name, flag or field.metadata["flag"])
    choices = [kind for kind in kinds_of(cls)[field.name] if get_origin(kind) is Literal]
    completion = _one_of(*get_args(choices[0])) if choices else COMPLETIONS.get(field.name)
    metavar = "<str>" if takes_tuple(cls, field.name) else None
    return typer.Option(default, *names, help=text, autocompletion=completion, metavar=metavar)


def flags(name: str, given: str = "") -> list[str]:
    """The flags of a field."""
    return given.split() or [f"--{name.replace('_', '-')}"]


def _kind(cls: Any, name: str) -> Any:
    """The type that Typer converts to; what is parsed here is text, and what is a,b,c may also be given one by one."""
    if takes_tuple(cls, name):
        return list[str]
    [kind, *_] = kinds_of(cls)[name]
    return str if get_origin(kind) is not None else kind


def _shown(default: Any) -> str:
    """A default as the help ends with it; nothing where there is none to speak of."""
    if isinstance(default, bool) or not isinstance(default, (int, float, str)):
        return ""
    return f" [default: {default}]" if isinstance(default, str) else f" [default: {default:g}]"


def as_command(function: Callable[..., None]) -> Callable[..., None]:
    """What Typer can call: options in the place of dictionaries, and FLAGS of the command while it runs."""
    signature = inspect.signature(function, eval_str=True)
    groups = {name: found for name, one in signature.parameters.items() if (found := _fields(one))}
    written = [name for name, one in signature.parameters.items() if any(one.default is option for option in WRITTEN)]

    @functools.wraps(function)
    def run(context: typer.Context, **found: Any) -> None:
        FLAGS.clear()
        FLAGS.update(_flags(context.command.params))
        arguments = {parameter.name for parameter in context.command.params if parameter.param_type_name == "argument"}
        _check_apart([found[name] for name in written], [found[name] for name in {*arguments, *READ} & found.keys()])
        if "context" in signature.parameters:
            found["context"] = context
        given = {name: fields.take(found) for name, fields in groups.items()}
        function(**found, **given)

    parameters = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for name, one in signature.parameters.items():
        parameters += groups[name].parameters() if name in groups else [one] if name != "context" else []
    keywords = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    vars(run)["__signature__"] = inspect.Signature(keywords)
    run.__annotations__ = {one.name: one.annotation for one in keywords}
    return run


def _check_apart(outputs: list[Path | None], inputs: list[Any]) -> None:
    """Refuses an output that is an input, too: --force would destroy it."""
    names = [name for one in inputs for name in (one if isinstance(one, (list, tuple)) else [one]) if name]
    for path in filter(None, outputs):
        for name in names:
            with contextlib.suppress(OSError, ValueError):  # what is no file
                if os.path.samefile(path, name):
                    raise UsageError(f"{path} is an input and cannot be the output", "choose another name")


def _fields(parameter: inspect.Parameter) -> Fields | None:
    return next((one for one in getattr(parameter.annotation, "__metadata__", ()) if isinstance(one, Fields)), None)


def _flags(parameters: Iterable[Any]) -> dict[str, str]:
    """Flags by the names of their parameters, and by their own with underscores."""
    found = {}
    for parameter in parameters:
        if flag := next((one for one in parameter.opts if one.startswith("--")), None):
            found |= {parameter.name: flag, flag.strip("-").replace("-", "_"): flag}
    return found


def named(context: typer.Context) -> set[str]:
    """The flags on a command line."""
    given = {name: context.get_parameter_source(name) for name in context.params if name in FLAGS}
    return {FLAGS[name] for name, source in given.items() if source is not None and source.name == "COMMANDLINE"}


def output(help: str, default: Any = None, stdout: bool = False) -> Any:
    """-o: what a command writes; see `writes`."""
    return writes("-o", "--output", help=help, default=default, stdout=stdout)


def writes(*names: str, help: str, default: Any = None, stdout: bool = False) -> Any:
    """A file or directory that a command writes. A symbolic link stands for what it leads to.

    Args:
        names: of the option.
        help: what is written.
        default: `...` where it must be given.
        stdout: whether `-` is stdout, that is: no file.
    """

    def check(context: typer.Context, path: Path | None) -> Path | None:
        if path == Path("-"):
            if not stdout:
                prints = any(parameter.name == "as_json" for parameter in context.command.params)
                raise UsageError(
                    f"{names[-1]} - : this cannot be written to stdout",
                    "name a file" + (", or use --json, which prints on stdout" if prints else ""),
                )
            return None
        return path if path is None else followed(path)

    WRITTEN.append(typer.Option(default, *names, help=help, callback=check))
    return WRITTEN[-1]


def space_groups(shown: str = "") -> Any:
    """--sg: the space groups to draw."""
    return typer.Option(
        None,
        "--sg",
        "--space-group",
        help="Space groups: 194 or P6_3/mmc; 2,14,62 or 1-230, in turn; uniform; or as frequent as in data:FILE, or in "
        f"what the model was trained on, data:model.{shown}",
    )


def model(help: str = "") -> Any:
    """--model."""
    return typer.Option("auto", "--model", help=f"{help}{MODEL_HELP}", autocompletion=COMPLETIONS["model"])


def models(help: str = "") -> Any:
    """--model, which may be given more than once; None stands for auto."""
    text = f"{help}{MODEL_HELP} [default: auto]"
    return typer.Option(None, "--model", help=text, autocompletion=COMPLETIONS["model"])


WORKERS = typer.Option(0, help="Processes that read and compare crystals; 0: one for each core.")
DEVICE = single(EvalConfig, "device")
SYMPREC = single(DataConfig, "symprec")
JSON = typer.Option(False, "--json", help="Print JSON on stdout.")
FORCE = typer.Option(False, "--force", help="Overwrite the output, finished or not.")
RESUME = typer.Option(False, "--resume", help="Continue an interrupted run; give the same options as before.")
RESUME_RUN = typer.Option(False, "--resume", help="Continue the interrupted run in -o, with its own options.")
DISTRIBUTED = typer.Option(False, "--distributed", help="This is one of several processes started by srun or mpirun.")
COORDINATOR = typer.Option(None, help="HOST:PORT of process 0, if the processes were not started by srun or mpirun.")
NUM_PROCESSES = typer.Option(None, help="With --coordinator: number of processes of this run.")
PROCESS_ID = typer.Option(None, help="With --coordinator: number of this process, from 0.")
OF_PROCESSES = {"--distributed", "--coordinator", "--num-processes", "--process-id", "--scheduler"}
"""Options that say where a run is made, not what it does: a resumed run takes them, too."""

Processes = tuple[str | None, int | None, int | None]
"""Coordinator, number of processes, and number of this one; None each where the environment says it."""


def processes(
    distributed: bool, coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Processes | None:
    """The processes of a run; None for a single one.

    Raises:
        UsageError: if only some of them are named.
    """
    found = (coordinator, num_processes, process_id)
    if any(value is not None for value in found) and None in found:
        raise UsageError("--coordinator, --num-processes and --process-id must be given together")
    return found if distributed or coordinator else None


Crystals = Annotated[str, typer.Argument(help=f"Crystals: {DATA_HELP}")]
