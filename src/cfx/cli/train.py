"""cfx train: crystals in, a model out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cfx.cli import options
from cfx.config.training import PRESETS
from cfx.errors import DataError, UsageError

DEFAULTS = PRESETS["mini"].train
DATA_HELP = f"Crystals: {options.DATA_HELP}"


def _option(text: str, field: str | None = None, name: str | None = None) -> Any:
    """An option that is None unless it is given; its help names the field's default, that of the preset mini."""
    default = "" if field is None else f" [{getattr(DEFAULTS, field):g}]"
    return typer.Option(*([name] if name else []), help=text + default, show_default=False)


def command(
    data: Annotated[Path | None, typer.Argument(help=DATA_HELP)] = None,
    run: Annotated[Path, typer.Option("-o", "--output", help="Directory of the run.")] = ...,
    validation: Annotated[Path | None, _option("Crystals to choose the best epoch by.")] = None,
    config: Annotated[Path | None, _option("TOML file; options win over it, and it over the preset.")] = None,
    preset: Annotated[str | None, _option(f"{', '.join(PRESETS)}: architecture and training.")] = None,
    start: Annotated[str | None, _option("Model to train further.", name="--from")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    epochs: Annotated[int | None, _option("Passes over the data.", "epochs")] = None,
    batch_size: Annotated[int | None, _option("Crystals in a batch, on average.", "batch_size")] = None,
    accumulate: Annotated[
        int | None, _option("Batches whose gradients are added before an update.", "accumulate")
    ] = None,
    lr: Annotated[float | None, _option("Peak learning rate.", "learning_rate")] = None,
    schedule: Annotated[str | None, _option("constant, inverse or cosine [cosine].")] = None,
    decay: Annotated[float | None, _option("Of the inverse schedule, lr / (1 + decay * step).", "decay")] = None,
    warmup: Annotated[int | None, _option("Steps of linear warm-up before the cosine.", "warmup_steps")] = None,
    optimizer: Annotated[str | None, _option("adam or adamw [adam].")] = None,
    weight_decay: Annotated[float | None, _option("Decoupled weight decay, for adamw.", "weight_decay")] = None,
    clip_norm: Annotated[float | None, _option("Largest global norm of the gradient.", "clip_norm")] = None,
    dropout: Annotated[float | None, _option("Rate after attention and MLP.", "dropout")] = None,
    attention_dropout: Annotated[float | None, _option("Rate on attention weights.", "attention_dropout")] = None,
    ema: Annotated[float | None, _option("Decay of a moving average of the weights; 0: none.", "ema_decay")] = None,
    precision: Annotated[str | None, _option("Of products: float32, bfloat16 or auto [auto].")] = None,
    seed: Annotated[int | None, _option("Of weights, order and dropout.", "seed")] = None,
    log_every: Annotated[int | None, _option("Steps between lines of metrics.", "log_steps")] = None,
    checkpoint_every: Annotated[int | None, _option("Steps between checkpoints.", "checkpoint_steps")] = None,
    symprec: Annotated[float | None, _option("Tolerance of the symmetry search, angstrom [0.01].")] = None,
    workers: Annotated[int, typer.Option(help="Processes that encode; 0 for one a core.")] = 0,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Started by srun or mpirun, as one of several.")
    ] = False,
    coordinator: Annotated[str | None, _option("HOST:PORT of process 0.")] = None,
    num_processes: Annotated[int | None, _option("Processes of this run.")] = None,
    process_id: Annotated[int | None, _option("Which of them this is, from 0.")] = None,
) -> None:
    """Train a model on crystals; nats in the log are per crystal.

    DATA is encoded once and cached. The run keeps its configuration, its latest checkpoints, the epoch of lowest
    validation loss (RUN/best), and a line of metrics every so many steps: see cfx plot RUN. With --resume, the
    options and the data of the first run are used. Defaults in brackets are those of the preset mini.
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
    flags: dict[str, Any] = {"train": _given(training), "data": _given(files)}
    flags |= _given({"preset": preset, "from": start})
    processes = (coordinator, num_processes, process_id)
    if any(value is not None for value in processes) and None in processes:
        raise UsageError("--coordinator, --num-processes and --process-id go together")
    _train(run, config, flags, resume, workers, processes if distributed or coordinator else None)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _train(run: Path, file: Path | None, flags: dict[str, Any], resume: bool, workers: int, processes) -> None:
    import os

    from cfx.cli.console import ConsoleReporter
    from cfx.cli.start import load, start_jax
    from cfx.config.training import TrainRun, read_toml

    if resume and (file or flags["train"] or set(flags) - {"train", "data"}):
        raise UsageError("--resume goes on with the options of the first run", "leave the other options out")
    reporter = ConsoleReporter()
    start_jax(reporter)

    from cfx.io.checkpoint import load_checkpoint
    from cfx.reporter import Mute
    from cfx.runs.data import read
    from cfx.runs.fetch import data_path
    from cfx.runs.parallel import join, process_number
    from cfx.runs.rundir import RunDirectory
    from cfx.runs.train import train

    files = RunDirectory(run)
    if resume:
        config = TrainRun.layered(files.config().tables(), flags)
    else:
        config = TrainRun.layered(*([read_toml(file)] if file else []), flags)
        files.check_free()
    if config.data.train is None:
        raise UsageError("there is no data to train on", "name a file: cfx train DATA -o RUN")
    config = config.with_whole_paths()
    start = load(config.start, reporter) if config.start and not resume else None
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
