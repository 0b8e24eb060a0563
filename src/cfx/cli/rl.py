"""cfx rl: a model, and what its crystals should be good at, in; a better model out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from cfx.cli import options
from cfx.config import DPOConfig, RewardConfig, SampleConfig, Shape
from cfx.config.finetuning import PRESETS
from cfx.errors import UsageError

DEFAULTS, PAIRS, REWARDS = PRESETS["mini"], DPOConfig(), RewardConfig()


def _option(text: str, field: str | None = None, config: Any = DEFAULTS) -> Any:
    """An option that is None unless it is given; its help names the default."""
    default = "" if field is None else f" [{getattr(config, field)}]"
    return typer.Option(help=text + default, show_default=False)


def command(
    reward: Annotated[
        str | None,
        _option("ehull, fom, gap, dielectric, property:MODEL, force, energy, MODULE:CLASS; sums: ehull:1,fom:0.2."),
    ] = None,
    steps: Annotated[int | None, _option("Rollouts.", "steps")] = None,
    run: Annotated[
        Path | None, typer.Option("-o", "--output", help="Directory of the run; else named after it.")
    ] = None,
    model: Annotated[str | None, _option(f"Where the policy starts. {options.MODEL_HELP} [auto]")] = None,
    algorithm: Annotated[str, typer.Option(help="ppo, grpo (advantages by group), or dpo (from --pairs).")] = "ppo",
    preset: Annotated[
        str, typer.Option(help=f"{', '.join(PRESETS)} (the paper's: 200 steps of 1000 crystals).")
    ] = "mini",
    space_group: Annotated[
        str | None, typer.Option("--sg", help="As in cfx sample. [data:model, what the model was trained on]")
    ] = None,
    batch_size: Annotated[int | None, _option("Crystals in a rollout; with dpo, pairs.", "batch_size")] = None,
    inner_epochs: Annotated[int | None, _option("Passes over a rollout.", "inner_epochs")] = None,
    minibatches: Annotated[int | None, _option("Updates in a pass.", "minibatches")] = None,
    group_size: Annotated[int | None, _option("Crystals in a group of grpo.", "group_size")] = None,
    lr: Annotated[float | None, _option("Learning rate of Adam; of dpo 0.0001.", "learning_rate")] = None,
    kl_coef: Annotated[float | None, _option("tau, in units of the reward; by default the reward's own.")] = None,
    clip_range: Annotated[float | None, _option("Epsilon of the clipped objective.", "clip_range")] = None,
    clip_norm: Annotated[float | None, _option("Largest global norm of the gradient.", "clip_norm")] = None,
    baseline: Annotated[str | None, _option("ema, group (an average by space group), or batch.", "baseline")] = None,
    likelihood: Annotated[str | None, _option("policy, exact, or published.", "likelihood")] = None,
    target_kl: Annotated[
        float | None, _option("KL (nats) from the rollout's policy that ends its passes [none].")
    ] = None,
    max_kl: Annotated[float | None, _option("KL (nats) from the reference that ends the run [none].")] = None,
    max_failures: Annotated[
        float | None, _option("Share of crystals without reward at which a run stops.", "max_failures")
    ] = None,
    seed: Annotated[int | None, _option("Of all draws.", "seed")] = None,
    keep: Annotated[int | None, _option("Crystals of highest reward in best.cif.", "keep")] = None,
    checkpoint_every: Annotated[int | None, _option("Steps between checkpoints.", "checkpoint_steps")] = None,
    potential: Annotated[
        str, typer.Option(help="Of ehull, energy, force: chgnet, orb:NAME, matgl:NAME, ase:MODULE:FACTORY.")
    ] = REWARDS.potential,
    hull: Annotated[str, typer.Option(help="Of ehull: a file or a name (cfx fetch --list).")] = REWARDS.hull,
    hull_scale: Annotated[str | None, _option("raw or mp2020, where the hull does not say.")] = None,
    e_hull_limit: Annotated[
        float, typer.Option(help="Up to which E_hull counts, eV/atom; the paper has 10.")
    ] = REWARDS.e_hull_limit,
    e_hull_floor: Annotated[
        float, typer.Option(help="Below which E_hull is not believed, eV/atom: there the hull has gaps.")
    ] = REWARDS.e_hull_floor,
    gap_model: Annotated[str, typer.Option(help="bundled, matgl:NAME or matgl:/directory.")] = REWARDS.gap_model,
    dielectric_model: Annotated[str, typer.Option(help="Likewise.")] = REWARDS.dielectric_model,
    property_name: Annotated[str, typer.Option(help="What the model of property:MODEL predicts.")] = "property",
    target: Annotated[float | None, _option("Value that a property is to have; else the more, the better.")] = None,
    distance: Annotated[str, typer.Option(help="From the target: square or absolute.")] = "square",
    clip_reward: Annotated[str | None, _option("LOWEST,HIGHEST of each reward.")] = None,
    log1p: Annotated[bool, typer.Option("--log1p", help="Take log(1 + reward).")] = False,
    threshold: Annotated[float | None, _option("Reward 1 from here on, 0 below.")] = None,
    reference: Annotated[str | None, _option("Known crystals, for the novelty in the log and its bonus.")] = None,
    novelty_bonus: Annotated[float, typer.Option(help="Added for crystals not in --reference.")] = 0.0,
    duplicate_penalty: Annotated[
        float | None, _option("Taken off for repeats in a rollout. [they count as failures]")
    ] = None,
    composition_penalty: Annotated[float, typer.Option(help="Taken off for repeated compositions.")] = 0.0,
    device: Annotated[str, typer.Option(help="Of potential and property models: cpu or cuda.")] = "cpu",
    temperature: Annotated[float, typer.Option(help="Of the draws.")] = 1.0,
    elements: Annotated[str | None, _option("Elements allowed: La,Ni,O.")] = None,
    exclude: Annotated[str | None, _option("Elements that none contains.")] = None,
    no_radioactive: Annotated[
        bool, typer.Option("--no-radioactive", help="No element without a stable isotope.")
    ] = False,
    bias: Annotated[str | None, _option("Nats added to the logits of elements: Fe:2.0,S:1.5.")] = None,
    max_atoms: Annotated[int | None, _option("Most atoms in the conventional cell.")] = None,
    max_sites: Annotated[int | None, _option("Most symmetry-inequivalent sites.")] = None,
    wyckoff: Annotated[str | None, _option("The letters of all sites: a,b,c.")] = None,
    sites: Annotated[Path | None, _option("JSON with `atom_mask` and `constraints`, as in cfx sample.")] = None,
    prototype: Annotated[
        Path | None, typer.Option("--from", help="A structure whose group and sites are kept, and species redrawn.")
    ] = None,
    redraw: Annotated[str | None, _option("With --from, draw these again too: coords,lattice.")] = None,
    pairs: Annotated[Path | None, _option("Of dpo: a .jsonl or .csv with columns chosen and rejected.")] = None,
    epochs: Annotated[int | None, _option("Of dpo: passes over the pairs.", "epochs", PAIRS)] = None,
    beta: Annotated[float | None, _option("Of dpo: weight of the reference.", "beta", PAIRS)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run; all else as then.")] = False,
) -> None:
    """Fine-tune a model by reinforcement: draw crystals, reward them, learn.

    The run keeps the policy (RUN/final), the crystals of highest reward (best.cif), all crystals with the parts of
    their rewards (crystals.jsonl), and metrics.jsonl: see cfx plot RUN. The model it started from stays the reference
    of the KL term. What failed counts as the worst, and so do repeats within a rollout.
    """
    from cfx.cli.console import ConsoleReporter
    from cfx.cli.start import start_jax

    reporter = ConsoleReporter()
    if resume:
        if run is None:
            raise UsageError("which run is to be continued?", "name its directory with -o")
        start_jax(reporter)
        _resume(run, reporter)
        return
    common = {"batch_size": batch_size, "learning_rate": lr, "clip_norm": clip_norm, "seed": seed}
    common["checkpoint_steps"] = checkpoint_every
    if algorithm == "dpo":
        _refuse({"--reward": reward, "--steps": steps, "--kl-coef": kl_coef})
        dpo = DPOConfig(**_given(common | {"epochs": epochs, "beta": beta}))
        start_jax(reporter)
        _pairs(run or Path("rl-dpo"), model or "auto", pairs, dpo, reporter)
        return
    _refuse({"--pairs": pairs, "--epochs": epochs, "--beta": beta})
    if reward is None:
        raise UsageError("what is to be rewarded?", "for example: cfx rl --reward ehull --steps 100")
    if preset not in PRESETS:
        raise UsageError(f"there is no preset {preset!r}", f"choose one of: {', '.join(PRESETS)}")
    rl = dataclasses.replace(
        PRESETS[preset],
        algorithm=algorithm,
        **_given(
            common
            | {"steps": steps, "inner_epochs": inner_epochs, "minibatches": minibatches, "group_size": group_size}
            | {"kl_coef": kl_coef, "clip_range": clip_range, "baseline": baseline, "likelihood": likelihood}
            | {"target_kl": target_kl, "max_kl": max_kl, "max_failures": max_failures, "keep": keep}
        ),
    )
    rewards = RewardConfig(
        reward=reward,
        shape=Shape(_limits(clip_reward), log1p, threshold),
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
    wishes = {
        "temperature": temperature,
        "elements": options.words(elements),
        "exclude": options.words(exclude),
        "radioactive": not no_radioactive,
        "bias": options.bias(bias),
        "max_atoms": max_atoms,
        "max_sites": max_sites,
        "template": template,
    }
    start_jax(reporter)
    _rewarded(run or Path(f"rl-{_slug(reward)}"), model or "auto", groups, wishes, rewards, rl, reporter)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _refuse(given: dict[str, Any]) -> None:
    """Refuses options of the other algorithms."""
    if names := [name for name, value in given.items() if value is not None]:
        raise UsageError(f"{', '.join(names)} does not go with this algorithm", "dpo learns from --pairs, others draw")


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
    from cfx.runs.rl import fine_tune
    from cfx.runs.rundir import RunDirectory

    RunDirectory(run).check_free()
    model = load(name, reporter)
    groups, weights = space_groups(space_group, model, reporter)
    sample = SampleConfig(groups, weights=weights, **wishes)
    config = RewardRun(name, sample, rewards, rl).with_whole_paths()
    reward, diversity = _judges(rewards, reporter)
    result = fine_tune(run, config, model, reward, diversity, reporter)
    _tell(result, run, sample, reward, reporter)


def _judges(rewards: RewardConfig, reporter) -> tuple[Any, Any]:
    """The reward and what is added to it, ready to evaluate."""
    from cfx.rewards.compose import Diversity
    from cfx.rewards.load import load_reward
    from cfx.runs.judges import open_hull, read_reference

    reward = load_reward(rewards, lambda potential: open_hull(rewards.hull, rewards.hull_scale, potential, reporter))
    reporter.message(f"reward {reward.name}: {reward.about}")
    known = read_reference(rewards.reference, -1, reporter) if rewards.reference else None
    return reward, Diversity(rewards.novelty_bonus, rewards.duplicate_penalty, rewards.composition_penalty, known)


def _resume(run: Path, reporter) -> None:
    from cfx.config.finetuning import PairsRun, read_run
    from cfx.model import load_model

    config = read_run(run)
    model = load_model(run / "reference")
    if isinstance(config, PairsRun):
        from cfx.runs.dpo import learn_preferences

        learn_preferences(run, config, model, reporter, resume=True)
        _tell_policy(run, reporter)
        return
    from cfx.runs.rl import fine_tune

    reward, diversity = _judges(config.reward, reporter)
    result = fine_tune(run, config, model, reward, diversity, reporter, resume=True)
    _tell(result, run, config.sample, reward, reporter)


def _pairs(run: Path, name: str, pairs: Path | None, dpo: DPOConfig, reporter) -> None:
    from cfx.cli.start import load
    from cfx.config.finetuning import PairsRun
    from cfx.runs.dpo import learn_preferences
    from cfx.runs.rundir import RunDirectory

    if pairs is None:
        raise UsageError("dpo learns from pairs of crystals", "name a file with --pairs")
    RunDirectory(run).check_free()
    result = learn_preferences(run, PairsRun(name, str(pairs), dpo).with_whole_paths(), load(name, reporter), reporter)
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
