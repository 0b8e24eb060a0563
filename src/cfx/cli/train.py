"""cfx train: crystals in, a model out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cfx.cli import options
from cfx.cli.options import given, unset
from cfx.config.training import PRESETS, DataConfig
from cfx.errors import DataError, UsageError

DEFAULTS = PRESETS["mini"].train


def command(
    data: Annotated[Path | None, typer.Argument(help=f"Crystals: {options.DATA_HELP}")] = None,
    run: Annotated[Path, typer.Option("-o", "--output", help="Directory of the run.")] = ...,
    validation: Annotated[Path | None, unset("Held-out crystals, to choose the best epoch by.")] = None,
    config: Annotated[Path | None, unset("TOML file; options win over it, and it over the preset.")] = None,
    preset: Annotated[str | None, unset(f"{', '.join(PRESETS)}: architecture and training.")] = None,
    start: Annotated[str | None, unset("Model to train further: as --model of cfx sample.", name="--from")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in -o.")] = False,
    epochs: Annotated[int | None, unset("Passes over the data.", DEFAULTS.epochs)] = None,
    batch_size: Annotated[int | None, unset("Crystals in a batch, on average.", DEFAULTS.batch_size)] = None,
    accumulate: Annotated[
        int | None, unset("Batches whose gradients are added before an update.", DEFAULTS.accumulate)
    ] = None,
    lr: Annotated[float | None, unset("Peak learning rate.", DEFAULTS.learning_rate)] = None,
    schedule: Annotated[
        str | None, unset("Of the learning rate: constant, inverse or cosine.", DEFAULTS.schedule)
    ] = None,
    decay: Annotated[float | None, unset("Of the inverse schedule, lr / (1 + decay * step).", DEFAULTS.decay)] = None,
    warmup: Annotated[int | None, unset("Steps of linear warm-up before the cosine.", DEFAULTS.warmup_steps)] = None,
    optimizer: Annotated[str | None, unset("adam or adamw.", DEFAULTS.optimizer)] = None,
    weight_decay: Annotated[float | None, unset("Decoupled weight decay, for adamw.", DEFAULTS.weight_decay)] = None,
    clip_norm: Annotated[float | None, unset("Largest global norm of the gradient.", DEFAULTS.clip_norm)] = None,
    dropout: Annotated[float | None, unset("Dropout rate after attention and MLP.", DEFAULTS.dropout)] = None,
    attention_dropout: Annotated[
        float | None, unset("Dropout rate on attention weights.", DEFAULTS.attention_dropout)
    ] = None,
    ema: Annotated[
        float | None, unset("Decay of an exponential moving average of the weights; 0: none.", DEFAULTS.ema_decay)
    ] = None,
    precision: Annotated[
        str | None, unset("Of matrix products: float32, bfloat16 or auto.", DEFAULTS.precision)
    ] = None,
    seed: Annotated[
        int | None, unset("Of the initial weights, the order of the data, and dropout.", DEFAULTS.seed)
    ] = None,
    log_every: Annotated[int | None, unset("Steps between lines of metrics.", DEFAULTS.log_steps)] = None,
    checkpoint_every: Annotated[int | None, unset("Steps between checkpoints.", DEFAULTS.checkpoint_steps)] = None,
    symprec: Annotated[float | None, unset("Tolerance of the symmetry search, angstrom.", DataConfig.symprec)] = None,
    workers: options.Workers = 0,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="This is one of several processes started by srun or mpirun.")
    ] = False,
    coordinator: Annotated[
        str | None, unset("HOST:PORT of process 0, where neither srun nor mpirun started them.")
    ] = None,
    num_processes: Annotated[int | None, unset("With --coordinator: processes of this run.")] = None,
    process_id: Annotated[int | None, unset("With --coordinator: which of them this is, from 0.")] = None,
) -> None:
    """Train a model on crystals.

    DATA is encoded once and cached. The run keeps its configuration, its latest checkpoints, the epoch of lowest
    validation loss (RUN/best), and a line of metrics every so many steps: see cfx plot RUN. With --resume, the
    options and the data of the first run are used. Losses in the log are in nats per crystal. Defaults in brackets are
    those of the preset mini.
    """
    training = {
        "epochs": epochs,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "learning_rate": lr,
        "schedule": schedule,
        "decay": decay,
        "warmup_steps": warmup,
        "optimizer": optimizer,
        "weight_decay": weight_decay,
        "clip_norm": clip_norm,
        "dropout": dropout,
        "attention_dropout": attention_dropout,
        "ema_decay": ema,
        "precision": precision,
        "seed": seed,
        "log_steps": log_every,
        "checkpoint_steps": checkpoint_every,
    }
    files = {"train": data and str(data), "validation": validation and str(validation), "symprec": symprec}
    flags: dict[str, Any] = {"train": given(training), "data": given(files)}
    flags |= given({"preset": preset, "from": start})
    processes = (coordinator, num_processes, process_id)
    if any(value is not None for value in processes) and None in processes:
        raise UsageError("--coordinator, --num-processes and --process-id go together")
    _train(run, config, flags, resume, workers, processes if distributed or coordinator else None)


def _train(run: Path, file: Path | None, flags: dict[str, Any], resume: bool, workers: int, processes) -> None:
    import os

    from cfx.cli.console import ConsoleReporter
    from cfx.cli.start import load, start_jax
    from cfx.config.training import TrainRun, read_toml

    if resume and (file or flags["train"] or set(flags) - {"train", "data"}):
        raise UsageError("--resume goes on with the options of the first run", "leave the other options out")
    reporter = ConsoleReporter()
    start_jax(reporter)

    from cfx.data.summary import read
    from cfx.fetch.names import data_path
    from cfx.io.checkpoint import load_checkpoint
    from cfx.reporter import Mute
    from cfx.training.devices import join, process_number
    from cfx.training.run_directory import RunDirectory
    from cfx.training.train import train

    files = RunDirectory(run)
    if resume:
        config = TrainRun.layered(files.config().tables(), flags)
    else:
        config = TrainRun.layered(*([read_toml(file)] if file else []), flags)
        files.check_free()
    if config.data.train is None:
        raise UsageError("there is no data to train on", "name a file: cfx train DATA -o RUN")
    config = config.with_whole_paths()
    start = load(config.start, reporter) if config.start and not (resume and files.checkpoints()) else None
    for name in filter(None, (config.data.train, config.data.validation)):
        if not data_path(name, reporter).exists():
            raise DataError(f"no such file or directory: {name}", "give a file, or a name of cfx fetch --list")
    if processes is not None and process_number(processes[2]) > 0:
        reporter = Mute()
    architecture = config.model or (start.config if start else load_checkpoint(files.latest()).config)

    def encoded(name: str | None):
        # Processes of one run read before they join: one encodes, the others wait for its cache.
        cores = workers or os.cpu_count() or 1
        return name and read(name, architecture.n_max, reporter, config.data.symprec, cores)

    data, held_out = encoded(config.data.train), encoded(config.data.validation)
    if processes is not None:
        join(*processes)
    result = train(run, config, data, held_out, reporter, resume, start)
    best = f"{run}/best" if result.best_loss is not None else files.latest()
    reporter.message(f"done: {result.step} steps; sample from it with: cfx sample --model {best} --sg 225 -n 10")
