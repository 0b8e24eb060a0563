"""cfx train: crystals in, a model out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfx.config import TrainConfig

DEFAULTS = TrainConfig()


def command(
    data: Annotated[Path, typer.Argument(help="CSV, CIF, extended XYZ, or a directory or zip of crystals.")],
    run: Annotated[Path, typer.Option("-o", "--output", help="Directory of the run.")],
    validation: Annotated[
        Path | None, typer.Option("--validation", help="Crystals to choose the best epoch by.")
    ] = None,
    architecture: Annotated[str, typer.Option(help="mini, alex20 or mp20.")] = "mini",
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = DEFAULTS.epochs,
    batch_size: Annotated[int, typer.Option(help="Crystals a step.")] = DEFAULTS.batch_size,
    lr: Annotated[float, typer.Option(help="Peak learning rate of Adam.")] = DEFAULTS.learning_rate,
    schedule: Annotated[str, typer.Option(help="constant or cosine.")] = DEFAULTS.schedule,
    weight_decay: Annotated[float, typer.Option(help="Decoupled weight decay.")] = DEFAULTS.weight_decay,
    clip_norm: Annotated[float, typer.Option(help="Largest global norm of the gradient.")] = DEFAULTS.clip_norm,
    dropout: Annotated[float, typer.Option(help="Rate after attention and MLP.")] = DEFAULTS.dropout,
    attention_dropout: Annotated[float, typer.Option(help="Rate on attention weights.")] = DEFAULTS.attention_dropout,
    seed: Annotated[int, typer.Option(help="Of weights, order and dropout.")] = DEFAULTS.seed,
    symprec: Annotated[float, typer.Option(help="Tolerance of the symmetry search, angstrom.")] = 0.01,
    workers: Annotated[int, typer.Option(help="Processes that encode; -1 for all cores.")] = -1,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
) -> None:
    """Train a model on crystals; nats in the log are per crystal.

    DATA is encoded once and cached. The run keeps its latest checkpoints, the epoch of lowest validation loss
    (RUN/best), and a line of metrics for every epoch. With --resume, the options of the first run are used.
    """
    from cfx.cli.console import ConsoleReporter
    from cfx.cli.options import architecture_preset
    from cfx.cli.start import start_jax
    from cfx.runs.score import read
    from cfx.runs.train import TrainResult, load_settings
    from cfx.runs.train import train as train_run

    reporter = ConsoleReporter()
    if resume:
        model, config = load_settings(run)
    else:
        model = architecture_preset(architecture)
        config = TrainConfig(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=lr,
            schedule=schedule,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            dropout=dropout,
            attention_dropout=attention_dropout,
            seed=seed,
        )
    start_jax(reporter)
    encoded = read(data, model.n_max, reporter, symprec, workers)
    held_out = validation and read(validation, model.n_max, reporter, symprec, workers)
    result: TrainResult = train_run(run, model, config, encoded, held_out, reporter, resume)
    best = f"{run}/best" if result.best_loss is not None else f"the last of {run}/checkpoints"
    reporter.message(f"done: {result.step} steps; sample from it with: cfx sample --model {best} --sg 225 -n 10")
