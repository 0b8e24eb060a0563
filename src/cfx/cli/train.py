"""cfx train, cfx rl and cfx dpo: crystals, or a model and what its crystals should be good at, in; a model out."""

from __future__ import annotations

import dataclasses
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cfx.cli import options, values
from cfx.cli.console import REPORTER
from cfx.cli.options import Fields, Given
from cfx.config import DataConfig, DPOConfig, RewardConfig, RLConfig, SampleConfig, Shape, TrainConfig, finetuning
from cfx.config.training import PRESETS, TrainRun, read_toml
from cfx.errors import DataError, UsageError
from cfx.reporter import Mute, Reporter, counted
from cfx.training.run import RunDirectory

if TYPE_CHECKING:
    from cfx.model import Model
    from cfx.training.devices import Devices


def train(
    data: Annotated[str | None, typer.Argument(help=f"Crystals: {options.DATA_HELP}")] = None,
    *,
    run: Path = options.output("Directory of the run.", ...),
    config: Annotated[
        Path | None, typer.Option(help="TOML file; it overrides the preset, and options override it.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(PRESETS)}: architecture and training.", autocompletion=lambda: list(PRESETS)),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Model to train further, as in --model of cfx sample.",
            autocompletion=options.COMPLETIONS["model"],
        ),
    ] = None,
    resume: bool = options.RESUME_RUN,
    learning: Annotated[Given, Fields(TrainConfig, without=("keep_checkpoints",), shown=vars(PRESETS["mini"].train))],
    files: Annotated[Given, Fields(DataConfig, "validation", "symprec")],
    workers: int = options.WORKERS,
    distributed: bool = options.DISTRIBUTED,
    coordinator: str | None = options.COORDINATOR,
    num_processes: int | None = options.NUM_PROCESSES,
    process_id: int | None = options.PROCESS_ID,
) -> None:
    """Train a model on crystals.

    DATA is encoded once and cached. The run keeps its configuration, its latest checkpoints, the epoch of lowest
    validation loss (RUN/best), and a line of metrics every so many steps: see cfx plot RUN. With --resume, the
    options and the data of the first run are used. Losses in the log are in nats per crystal. Defaults in brackets are
    those of the preset mini.

    Examples:
      cfx train data.csv --validation 10% -o run
      cfx train mp-20 --validation mp-20:val --preset mp20 -o run
      cfx train -o run --resume
    """
    flags: Given = {"train": learning, "data": files}
    flags |= {key: value for key, value in (("preset", preset), ("from", start)) if value is not None}
    if data is not None:
        files["train"] = data
    processes = options.processes(distributed, coordinator, num_processes, process_id)
    if resume and (config or learning or set(flags) - {"train", "data"}):
        raise UsageError("--resume continues with the options of the first run", "leave the other options out")
    _train(run, config, flags, resume, workers or os.cpu_count() or 1, processes)


def _train(
    run: Path, file: Path | None, flags: Given, resume: bool, workers: int, processes: options.Processes | None
) -> None:
    values.start_jax()

    from cfx.data.split import read_data
    from cfx.fetch.names import data_path
    from cfx.io.checkpoint import load_checkpoint
    from cfx.training import devices
    from cfx.training.train import train as learn

    files = RunDirectory(run)
    if resume:
        config = TrainRun.layered(files.config().tables(), flags)
    else:
        config = TrainRun.layered(*([read_toml(file)] if file else []), flags)
        files.check_free()
    if config.data.train is None:
        raise UsageError("the data to train on is missing", "name a file: cfx train DATA -o RUN")
    config = config.with_whole_paths()
    start = values.load(config.start) if config.start and not (resume and files.checkpoints()) else None
    for name in config.data.names():
        if not data_path(name, REPORTER).exists():
            raise DataError(f"no such file or directory: {name}", "give a file, or a name from cfx fetch --list")
    reporter = _reporter(processes)
    architecture = config.model or (start.config if start else load_checkpoint(files.latest()).config)
    # Processes of one run read before they join: one encodes, the others wait for its cache.
    data, held_out = read_data(config.data, architecture.n_max, reporter, workers)
    if processes:
        devices.join(*processes)
    result = learn(run, config, data, held_out, reporter, resume, start)
    best = f"{run}/best" if result.best_loss is not None else files.latest()
    reporter.message(f"done: {result.step} steps; sample from it with: cfx sample --model {best} --sg 225 -n 10")


def _reporter(processes: options.Processes | None) -> Reporter:
    """Of several processes the first one tells."""
    from cfx.training.devices import process_number

    return Mute() if processes and process_number(processes[2]) > 0 else REPORTER


UNSEEN = ("baseline_decay", "keep_checkpoints")
"""Fields without an option."""


def rl(
    context: typer.Context,
    *,
    reward: Annotated[Given, Fields(RewardConfig, "reward", shown={"reward": None})],
    run: Path | None = options.output("Directory of the run; by default rl- and the reward, as rl-ehull."),
    model: str = options.model("Model that the policy starts from. "),
    preset: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(finetuning.PRESETS)} (the paper's: 200 steps of 1000 crystals).",
            autocompletion=lambda: list(finetuning.PRESETS),
        ),
    ] = "mini",
    space_group: str | None = options.space_groups(" [default: data:model]"),
    learning: Annotated[Given, Fields(RLConfig, without=UNSEEN, shown=vars(finetuning.PRESETS["mini"]))],
    judging: Annotated[Given, Fields(RewardConfig, without=("reward", "shape"))],
    shape: Annotated[Given, Fields(Shape)],
    drawing: Annotated[
        Given,
        Fields(
            SampleConfig,
            *("temperature", "top_p", "elements", "require", "any_of", "exclude", "radioactive", "formula", "bias"),
            *("max_atoms", "max_sites"),
        ),
    ],
    arrangement: Annotated[Given, Fields(values.Arrangement)],
    resume: bool = options.RESUME_RUN,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler, to compute rewards on its cluster.")
    ] = None,
    distributed: bool = options.DISTRIBUTED,
    coordinator: str | None = options.COORDINATOR,
    num_processes: int | None = options.NUM_PROCESSES,
    process_id: int | None = options.PROCESS_ID,
) -> None:
    """Fine-tune a model by reinforcement learning.

    Each step draws crystals from the model (the policy), rewards them, and updates it. The run keeps the policy
    (RUN/final), the crystals of highest reward (best.cif), all crystals with the parts of their rewards
    (crystals.jsonl), and metrics.jsonl: see cfx plot RUN. The model it started from stays the reference of the KL term.
    What failed counts as the worst, and so do repeats within a rollout.

    Examples:
      cfx rl --reward ehull --steps 100
      cfx rl --reward fom --sg 225 --steps 100 -o fom
      cfx rl -o fom --resume
    """
    processes = options.processes(distributed, coordinator, num_processes, process_id)
    if resume:
        _resume(run, options.named(context) - options.OF_PROCESSES, processes, scheduler)
        return
    if learning.get("algorithm") == "dpo":
        raise UsageError("dpo is a command of its own", "write: cfx dpo --pairs FILE")
    if not reward:
        raise UsageError("--reward is required", "for example: cfx rl --reward ehull --steps 100")
    if preset not in finetuning.PRESETS:
        raise UsageError(f"there is no preset {preset!r}", f"choose one of: {', '.join(finetuning.PRESETS)}")
    config = dataclasses.replace(finetuning.PRESETS[preset], **learning)
    rewards = RewardConfig(**reward, **judging, shape=Shape(**shape))
    template, own_group = values.template(arrangement)
    if space_group and own_group:
        raise UsageError("--from uses the space group of its structure", "leave --sg out")
    groups = space_group or (str(own_group) if own_group else "data:model")
    values.check_space_groups(groups)
    run = run or Path(f"rl-{_slug(rewards.reward)}")
    _rewarded(run, model, groups, {**drawing, "template": template}, rewards, config, processes, scheduler)


def dpo(
    context: typer.Context,
    *,
    pairs: Annotated[
        Path | None, typer.Option(help="A .jsonl or .csv of pairs of crystals, with columns chosen and rejected.")
    ] = None,
    run: Path = options.output("Directory of the run.", Path("rl-dpo")),
    model: str = options.model("Model that the policy starts from. "),
    learning: Annotated[Given, Fields(DPOConfig, without=UNSEEN)],
    resume: bool = options.RESUME_RUN,
) -> None:
    """Fine-tune a model on pairs of crystals.

    By direct preference optimization: of each pair the model learns to draw the chosen crystal rather than the
    rejected one. It needs no reward and draws nothing. The run keeps the policy (RUN/final) and metrics.jsonl: see
    cfx plot RUN.

    Examples:
      cfx dpo --pairs pairs.jsonl -o dpo
      cfx dpo --pairs pairs.csv --model run/best --epochs 5 --beta 0.2 -o dpo
      cfx dpo -o dpo --resume
    """
    if resume:
        _resume(run, options.named(context))
        return
    config = DPOConfig(**learning)
    if pairs is None:
        raise UsageError("dpo needs pairs of crystals", "name a file of them with --pairs")
    values.start_jax()
    RunDirectory(run).check_free()
    content = finetuning.PairsRun(model=model, pairs=str(pairs), dpo=config).with_whole_paths()
    _learn_preferences(run, content, values.load(model), REPORTER)


def _slug(text: str) -> str:
    """A reward as the name of a directory."""
    return "".join(letter if letter.isalnum() else "-" for letter in text).strip("-")


def _rewarded(
    run: Path,
    name: str,
    space_group: str,
    drawing: Given,
    rewards: RewardConfig,
    config: RLConfig,
    processes: options.Processes | None,
    scheduler: str | None,
) -> None:
    devices = _join(processes)

    from cfx.rl.named_rewards import choose_models

    devices.first(lambda: RunDirectory(run).check_free())
    rewards = choose_models(rewards)
    model = values.load(name)
    groups, weights = values.drawn_space_groups(space_group, model)
    sample = SampleConfig(space_groups=groups, weights=weights, **drawing)
    content = finetuning.RewardRun(model=name, sample=sample, reward=rewards, rl=config).with_whole_paths()
    _fine_tune(run, content, model, rewards, _reporter(processes), scheduler)


def _join(processes: options.Processes | None) -> Devices:
    """Makes JAX ready; of several processes, each waits for the others."""
    values.start_jax()

    from cfx.training import devices

    if processes:
        devices.join(*processes)
    return devices.Devices()


def _resume(
    run: Path | None, named: set[str], processes: options.Processes | None = None, scheduler: str | None = None
) -> None:
    """Continues a run of either command."""
    if run is None or "--output" not in named:
        raise UsageError("--resume needs the directory of a run", "name it with -o")
    if others := named - {"--output", "--resume"}:
        raise UsageError(
            "--resume continues with the options of the first run", f"leave out {', '.join(sorted(others))}"
        )
    _join(processes)

    from cfx.model import load_model

    config = finetuning.read_run(run)
    # Killed before it had its reference, a run begins with the model that it was given.
    reference = run / "reference"
    model = load_model(reference) if reference.exists() else values.load(config.model)
    if isinstance(config, finetuning.PairsRun):
        _learn_preferences(run, config, model, _reporter(processes), resume=True)
    else:
        _fine_tune(run, config, model, config.reward, _reporter(processes), scheduler, resume=True)


def _learn_preferences(
    run: Path, config: finetuning.PairsRun, model: Model, reporter: Reporter, resume: bool = False
) -> None:
    from cfx.rl.preferences import learn_preferences

    result = learn_preferences(run, config, model, reporter, resume)
    if not resume:
        reporter.message(f"{result.pairs} pairs: {100 * result.right:.0f} % moved towards the better crystal")
    _tell_policy(run, reporter)


def _fine_tune(
    run: Path,
    config: finetuning.RewardRun,
    model: Model,
    rewards: RewardConfig,
    reporter: Reporter,
    scheduler: str | None,
    resume: bool = False,
) -> None:
    from cfx.io.cluster import connected
    from cfx.runs.cluster import cluster_reward
    from cfx.runs.fine_tuning import fine_tune

    with connected(scheduler) if scheduler else nullcontext() as client:
        reward = cluster_reward(client, rewards) if client else None
        result, reward = fine_tune(run, config, model, rewards, reporter, resume, reward)
    if result.ended:
        reporter.warning(f"ended at step {result.step}: {result.ended}")
    if result.first is not None:
        unit = f" {reward.unit}" if reward.unit else ""
        reporter.message(f"mean reward {result.first:.3f}{unit} in the first step, {result.last:.3f} in the last")
    reporter.message(f"{counted(result.best, 'crystal')} of highest reward: {run}/best.cif")
    sample = config.sample
    _tell_policy(run, reporter, "data:model" if sample.weights else values.space_group_text(sample.space_groups))


def _tell_policy(run: Path, reporter: Reporter, groups: str = "data:model") -> None:
    reporter.message(f"sample from the policy with: cfx sample --model {run}/final --sg {groups} -n 10")
