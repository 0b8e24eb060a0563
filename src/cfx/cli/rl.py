"""cfx rl: a model, and what its crystals should be good at, in; a better model out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from cfx.cli import options
from cfx.cli.options import given, unset
from cfx.config import DPOConfig, RewardConfig, SampleConfig, Shape
from cfx.config.finetuning import PRESETS
from cfx.errors import UsageError

DEFAULTS, PAIRS, REWARDS = PRESETS["mini"], DPOConfig(), RewardConfig()

ALGORITHMS = ("ppo", "grpo", "dpo")

ONLY_DPO = {"--pairs", "--epochs", "--beta"}
"""Options that go with dpo alone."""

DPO = ONLY_DPO | {
    "--output",
    "--model",
    "--algorithm",
    "--batch-size",
    "--lr",
    "--clip-norm",
    "--seed",
    "--checkpoint-every",
}
"""All options that go with dpo."""


def command(
    context: typer.Context,
    reward: Annotated[
        str | None,
        unset("ehull, fom, gap, dielectric, property:MODEL, force, energy, MODULE:CLASS; sums: ehull:1,fom:0.2."),
    ] = None,
    steps: Annotated[int | None, unset("Rollouts, each followed by updates.", DEFAULTS.steps)] = None,
    run: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Directory of the run; by default rl- and the reward, as rl-ehull."),
    ] = None,
    model: Annotated[str, typer.Option(help=f"Model that the policy starts from. {options.MODEL_HELP}")] = "auto",
    algorithm: Annotated[
        str, typer.Option(help="ppo, grpo (advantages within groups), or dpo (learns from --pairs, not from a reward).")
    ] = "ppo",
    preset: Annotated[
        str, typer.Option(help=f"{', '.join(PRESETS)} (the paper's: 200 steps of 1000 crystals).")
    ] = "mini",
    space_group: Annotated[
        str | None,
        unset(
            "Space groups to draw, as in cfx sample; data:model is what the model was trained on.", "data:model", "--sg"
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        unset(f"Crystals in a rollout; with dpo, pairs in an update ({PAIRS.batch_size}).", DEFAULTS.batch_size),
    ] = None,
    inner_epochs: Annotated[int | None, unset("Passes over a rollout.", DEFAULTS.inner_epochs)] = None,
    minibatches: Annotated[int | None, unset("Updates in a pass.", DEFAULTS.minibatches)] = None,
    group_size: Annotated[int | None, unset("Crystals in a group of grpo.", DEFAULTS.group_size)] = None,
    lr: Annotated[
        float | None, unset(f"Learning rate of Adam; with dpo {PAIRS.learning_rate:g}.", DEFAULTS.learning_rate)
    ] = None,
    kl_coef: Annotated[
        float | None, unset("tau, weight of the KL term, in units of the reward; by default the reward's own.")
    ] = None,
    clip_range: Annotated[float | None, unset("Epsilon of the clipped objective.", DEFAULTS.clip_range)] = None,
    clip_norm: Annotated[float | None, unset("Largest global norm of the gradient.", DEFAULTS.clip_norm)] = None,
    baseline: Annotated[
        str | None,
        unset(
            "What rewards are compared with: ema (moving average), group (one for each space group), or batch (mean of "
            "the rollout).",
            DEFAULTS.baseline,
        ),
    ] = None,
    likelihood: Annotated[
        str | None, unset("policy (exactly that of the draws) or published.", DEFAULTS.likelihood)
    ] = None,
    target_kl: Annotated[
        float | None,
        unset("KL (nats) from the rollout's policy that ends the passes over it; 0: none.", DEFAULTS.target_kl),
    ] = None,
    max_kl: Annotated[
        float | None, unset("KL (nats) from the reference that ends the run; 0: none.", DEFAULTS.max_kl)
    ] = None,
    max_failures: Annotated[
        float | None, unset("Share of crystals without reward at which a run stops.", DEFAULTS.max_failures)
    ] = None,
    seed: Annotated[int | None, unset("Of all draws.", DEFAULTS.seed)] = None,
    keep: Annotated[int | None, unset("Crystals of highest reward in best.cif.", DEFAULTS.keep)] = None,
    checkpoint_every: Annotated[int | None, unset("Steps between checkpoints.", DEFAULTS.checkpoint_steps)] = None,
    potential: Annotated[
        str, typer.Option(help=f"Interatomic potential of ehull, energy and force: {options.POTENTIAL_HELP}")
    ] = REWARDS.potential,
    hull: Annotated[
        str, typer.Option(help="Phases that ehull is measured from: a file or a name (cfx fetch --list).")
    ] = REWARDS.hull,
    hull_scale: options.HullScale = None,
    e_hull_limit: Annotated[
        float, typer.Option(help="E_hull above this counts as this, eV/atom; the paper has 10.")
    ] = REWARDS.e_hull_limit,
    e_hull_floor: Annotated[
        float, typer.Option(help="E_hull below this counts as a failure, eV/atom: there the hull has gaps.")
    ] = REWARDS.e_hull_floor,
    gap_model: Annotated[
        str, typer.Option(help=f"Predicts band gaps, for gap and fom: {options.PROPERTY_MODEL_HELP}")
    ] = REWARDS.gap_model,
    dielectric_model: Annotated[
        str,
        typer.Option(help=f"Predicts dielectric constants, for dielectric and fom: {options.PROPERTY_MODEL_HELP}"),
    ] = REWARDS.dielectric_model,
    property_name: Annotated[
        str, typer.Option(help="What the model of property:MODEL predicts.")
    ] = REWARDS.property_name,
    target: Annotated[
        float | None, unset("Value that a property is to have; by default the larger, the better.")
    ] = None,
    distance: Annotated[str, typer.Option(help="Distance from --target: square or absolute.")] = REWARDS.distance,
    clip_reward: Annotated[str | None, unset("LOWEST,HIGHEST that each reward is clipped to.")] = None,
    log1p: Annotated[bool, typer.Option("--log1p", help="Take log(1 + reward).")] = False,
    threshold: Annotated[float | None, unset("Make each reward 1 from this value on, and 0 below.")] = None,
    reference: Annotated[
        str | None, unset("Known crystals, a file or a name: for the novelty in the log and its bonus.")
    ] = None,
    novelty_bonus: Annotated[
        float, typer.Option(help="Added to the reward of crystals not in --reference.")
    ] = REWARDS.novelty_bonus,
    duplicate_penalty: Annotated[
        float | None,
        unset("Taken off the reward of repeats in a rollout; by default they count as failures."),
    ] = None,
    composition_penalty: Annotated[
        float, typer.Option(help="Taken off the reward of repeated compositions.")
    ] = REWARDS.composition_penalty,
    device: options.Device = REWARDS.device,
    temperature: options.Temperature = 1.0,
    elements: options.Elements = None,
    exclude: options.Exclude = None,
    no_radioactive: options.NoRadioactive = False,
    bias: options.Bias = None,
    max_atoms: options.MaxAtoms = None,
    max_sites: options.MaxSites = None,
    wyckoff: options.Wyckoff = None,
    sites: options.Sites = None,
    prototype: options.Prototype = None,
    redraw: options.Redraw = None,
    pairs: Annotated[
        Path | None, unset("With dpo: a .jsonl or .csv of pairs of crystals, with columns chosen and rejected.")
    ] = None,
    epochs: Annotated[int | None, unset("With dpo: passes over the pairs.", PAIRS.epochs)] = None,
    beta: Annotated[float | None, unset("With dpo: weight of the reference.", PAIRS.beta)] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted run in -o, with its own options.")
    ] = False,
) -> None:
    """Fine-tune a model by reinforcement learning.

    Each step draws crystals from the model (the policy), rewards them, and updates it. The run keeps the policy
    (RUN/final), the crystals of highest reward (best.cif), all crystals with the parts of their rewards
    (crystals.jsonl), and metrics.jsonl: see cfx plot RUN. The model it started from stays the reference of the KL term.
    What failed counts as the worst, and so do repeats within a rollout.
    """
    from cfx.cli.console import ConsoleReporter
    from cfx.cli.start import start_jax

    reporter = ConsoleReporter()
    named = options.named(context)
    if resume:
        if run is None:
            raise UsageError("which run is to be continued?", "name its directory with -o")
        if others := named - {"--output", "--resume"}:
            raise UsageError(
                "--resume goes on with the options of the first run", f"leave out {', '.join(sorted(others))}"
            )
        start_jax(reporter)
        _resume(run, reporter)
        return
    if algorithm not in ALGORITHMS:
        raise UsageError(f"algorithm must be one of {', '.join(ALGORITHMS)}, not {algorithm!r}")
    _refuse(named - DPO if algorithm == "dpo" else named & ONLY_DPO)
    common = {
        "batch_size": batch_size,
        "learning_rate": lr,
        "clip_norm": clip_norm,
        "seed": seed,
        "checkpoint_steps": checkpoint_every,
    }
    if algorithm == "dpo":
        dpo = DPOConfig(**given(common | {"epochs": epochs, "beta": beta}))
        start_jax(reporter)
        _pairs(run or Path("rl-dpo"), model, pairs, dpo, reporter)
        return
    if reward is None:
        raise UsageError("what is to be rewarded?", "for example: cfx rl --reward ehull --steps 100")
    if preset not in PRESETS:
        raise UsageError(f"there is no preset {preset!r}", f"choose one of: {', '.join(PRESETS)}")
    own = {
        "steps": steps,
        "inner_epochs": inner_epochs,
        "minibatches": minibatches,
        "group_size": group_size,
        "kl_coef": kl_coef,
        "clip_range": clip_range,
        "baseline": baseline,
        "likelihood": likelihood,
        "target_kl": target_kl,
        "max_kl": max_kl,
        "max_failures": max_failures,
        "keep": keep,
    }
    rl = dataclasses.replace(PRESETS[preset], algorithm=algorithm, **given(common | own))
    rewards = RewardConfig(
        reward=reward,
        shape=Shape(clip=_limits(clip_reward), log1p=log1p, threshold=threshold),
        potential=potential,
        hull=hull,
        hull_scale=hull_scale,
        e_hull_limit=e_hull_limit,
        e_hull_floor=e_hull_floor,
        gap_model=gap_model,
        dielectric_model=dielectric_model,
        property_name=property_name,
        target=target,
        distance=distance,
        novelty_bonus=novelty_bonus,
        duplicate_penalty=duplicate_penalty,
        composition_penalty=composition_penalty,
        reference=reference,
        device=device,
    )
    template, own_group = options.template(wyckoff, sites, prototype, redraw)
    if space_group and own_group:
        raise UsageError("--from brings its own space group", "leave --sg out")
    groups = space_group or (str(own_group) if own_group else "data:model")
    options.check_space_groups(groups)
    wishes = options.wishes(elements, exclude, no_radioactive, bias, max_atoms, max_sites)
    wishes |= {"temperature": temperature, "template": template}
    start_jax(reporter)
    _rewarded(run or Path(f"rl-{_slug(reward)}"), model, groups, wishes, rewards, rl, reporter)


def _refuse(names: set[str]) -> None:
    """Refuses options of the other algorithms."""
    if names:
        raise UsageError(
            f"{', '.join(sorted(names))} {'does' if len(names) == 1 else 'do'} not go with this algorithm",
            "dpo learns from --pairs, ppo and grpo from a --reward",
        )


def _limits(text: str | None) -> tuple[float, float] | tuple[()]:
    """LOWEST,HIGHEST as numbers."""
    if text is None:
        return ()
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise UsageError(f"{text!r} are no two numbers", "write --clip-reward=-1,1") from None
    return low, high


def _slug(text: str) -> str:
    """A reward as the name of a directory."""
    return "".join(letter if letter.isalnum() else "-" for letter in text).strip("-")


def _rewarded(run: Path, name: str, space_group: str, wishes: dict[str, Any], rewards, rl, reporter) -> None:
    from cfx.cli.start import load, space_groups
    from cfx.config.finetuning import RewardRun
    from cfx.rl.reinforce import fine_tune
    from cfx.training.run_directory import RunDirectory

    RunDirectory(run).check_free()
    model = load(name, reporter)
    groups, weights = space_groups(space_group, model, reporter)
    sample = SampleConfig(space_groups=groups, weights=weights, **wishes)
    config = RewardRun(model=name, sample=sample, reward=rewards, rl=rl).with_whole_paths()
    reward, diversity = _judges(rewards, reporter)
    result = fine_tune(run, config, model, reward, diversity, reporter)
    _tell(result, run, sample, reward, reporter)


def _judges(rewards: RewardConfig, reporter) -> tuple[Any, Any]:
    """The reward and what is added to it, ready to evaluate."""
    from cfx.evaluation.setup import open_hull, read_reference
    from cfx.rl.named_rewards import load_reward
    from cfx.rl.rewards import Diversity

    reward = load_reward(rewards, lambda potential: open_hull(rewards.hull, rewards.hull_scale, potential, reporter))
    reporter.message(f"reward {reward.name}: {reward.about}")
    known = read_reference(rewards.reference, -1, reporter) if rewards.reference else None
    return reward, Diversity(rewards.novelty_bonus, rewards.duplicate_penalty, rewards.composition_penalty, known)


def _resume(run: Path, reporter) -> None:
    from cfx.cli.start import load
    from cfx.config.finetuning import PairsRun, read_run
    from cfx.model import load_model

    config = read_run(run)
    # Killed before it had its reference, a run begins with the model that it was given.
    model = load_model(run / "reference") if (run / "reference").exists() else load(config.model, reporter)
    if isinstance(config, PairsRun):
        from cfx.rl.preferences import learn_preferences

        learn_preferences(run, config, model, reporter, resume=True)
        _tell_policy(run, reporter)
        return
    from cfx.rl.reinforce import fine_tune

    reward, diversity = _judges(config.reward, reporter)
    result = fine_tune(run, config, model, reward, diversity, reporter, resume=True)
    _tell(result, run, config.sample, reward, reporter)


def _pairs(run: Path, name: str, pairs: Path | None, dpo: DPOConfig, reporter) -> None:
    from cfx.cli.start import load
    from cfx.config.finetuning import PairsRun
    from cfx.rl.preferences import learn_preferences
    from cfx.training.run_directory import RunDirectory

    if pairs is None:
        raise UsageError("dpo learns from pairs of crystals", "name a file with --pairs")
    RunDirectory(run).check_free()
    result = learn_preferences(
        run, PairsRun(model=name, pairs=str(pairs), dpo=dpo).with_whole_paths(), load(name, reporter), reporter
    )
    reporter.message(f"{result.pairs} pairs: {100 * result.right:.0f} % moved towards the better crystal")
    _tell_policy(run, reporter)


def _tell(result, run: Path, sample: SampleConfig, reward, reporter) -> None:
    """Says at the end what became of the reward."""
    if result.ended:
        reporter.warning(f"ended at step {result.step}: {result.ended}")
    if result.first is not None:
        unit = f" {reward.unit}" if reward.unit else ""
        reporter.message(f"mean reward {result.first:.3f}{unit} in the first step, {result.last:.3f} in the last")
    reporter.message(f"{result.best} crystals of highest reward: {run}/best.cif")
    _tell_policy(run, reporter, "data:model" if sample.weights else options.space_group_text(sample.space_groups))


def _tell_policy(run: Path, reporter, groups: str = "data:model") -> None:
    reporter.message(f"sample from the policy with: cfx sample --model {run}/final --sg {groups} -n 10")
