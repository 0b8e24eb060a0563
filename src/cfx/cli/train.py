"""cfx train: crystals in, a model out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cfx.cli import options, values
from cfx.cli.options import Fields, Given
from cfx.config import DataConfig, TrainConfig
from cfx.config.training import PRESETS
from cfx.errors import DataError, UsageError


def train(
    data: Annotated[str | None, typer.Argument(help=f"Crystals: {options.DATA_HELP}")] = None,
    *,
    run: Path = options.output("Directory of the run.", ...),
    config: Annotated[Path | None, typer.Option(help="TOML file; options win over it, and it over the preset.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(PRESETS)}: architecture and training.", autocompletion=lambda: list(PRESETS)),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Model to train further: as --model of cfx sample.",
            autocompletion=options.COMPLETIONS["model"],
        ),
    ] = None,
    resume: bool = options.RESUME_RUN,
    learning: Annotated[Given, Fields(TrainConfig, without=("keep_checkpoints",), shown=vars(PRESETS["mini"].train))],
    files: Annotated[Given, Fields(DataConfig, "validation", "symprec")],
    workers: int = options.WORKERS,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="This is one of several processes started by srun or mpirun.")
    ] = False,
    coordinator: Annotated[
        str | None, typer.Option(help="HOST:PORT of process 0, where neither srun nor mpirun started them.")
    ] = None,
    num_processes: Annotated[int | None, typer.Option(help="With --coordinator: processes of this run.")] = None,
    process_id: Annotated[int | None, typer.Option(help="With --coordinator: which of them this is, from 0.")] = None,
) -> None:
    """Train a model on crystals.

    DATA is encoded once and cached. The run keeps its configuration, its latest checkpoints, the epoch of lowest
    validation loss (RUN/best), and a line of metrics every so many steps: see cfx plot RUN. With --resume, the
    options and the data of the first run are used. Losses in the log are in nats per crystal. Defaults in brackets are
    those of the preset mini.

    Examples:
      cfx train data.csv --validation held-out.csv -o run
      cfx train mp-20 --validation mp-20:val --preset mp20 -o run
      cfx train -o run --resume
    """
    flags: Given = {"train": learning, "data": files}
    flags |= {key: value for key, value in (("preset", preset), ("from", start)) if value is not None}
    if data is not None:
        files["train"] = data
    processes = (coordinator, num_processes, process_id)
    if any(value is not None for value in processes) and None in processes:
        raise UsageError("--coordinator, --num-processes and --process-id go together")
    if resume and (config or learning or set(flags) - {"train", "data"}):
        raise UsageError("--resume goes on with the options of the first run", "leave the other options out")
    _train(
        run, config, flags, resume, workers or os.cpu_count() or 1, processes if distributed or coordinator else None
    )


def _train(run: Path, file: Path | None, flags: Given, resume: bool, workers: int, processes) -> None:
    from cfx.cli.console import ConsoleReporter
    from cfx.config.training import TrainRun, read_toml

    reporter = ConsoleReporter()
    values.start_jax(reporter)

    from cfx.data.summary import read
    from cfx.fetch.names import data_path
    from cfx.io.checkpoint import load_checkpoint
    from cfx.reporter import Mute
    from cfx.training.devices import join, process_number
    from cfx.training.run import RunDirectory
    from cfx.training.train import train as learn

    files = RunDirectory(run)
    if resume:
        config = TrainRun.layered(files.config().tables(), flags)
    else:
        config = TrainRun.layered(*([read_toml(file)] if file else []), flags)
        files.check_free()
    if config.data.train is None:
        raise UsageError("there is no data to train on", "name a file: cfx train DATA -o RUN")
    config = config.with_whole_paths()
    start = values.load(config.start, reporter) if config.start and not (resume and files.checkpoints()) else None
    for name in filter(None, (config.data.train, config.data.validation)):
        if not data_path(name, reporter).exists():
            raise DataError(f"no such file or directory: {name}", "give a file, or a name of cfx fetch --list")
    if processes is not None and process_number(processes[2]) > 0:
        reporter = Mute()
    architecture = config.model or (start.config if start else load_checkpoint(files.latest()).config)

    def encoded(name: str):
        # Processes of one run read before they join: one encodes, the others wait for its cache.
        return read(name, architecture.n_max, reporter, config.data.symprec, workers)

    data = encoded(str(config.data.train))
    held_out = encoded(config.data.validation) if config.data.validation else None
    if processes is not None:
        join(*processes)
    result = learn(run, config, data, held_out, reporter, resume, start)
    best = f"{run}/best" if result.best_loss is not None else files.latest()
    reporter.message(f"done: {result.step} steps; sample from it with: cfx sample --model {best} --sg 225 -n 10")
