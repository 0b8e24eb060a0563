"""cfx sample: crystals on request."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from cfx.cli import options
from cfx.errors import UsageError


def command(
    space_group: options.SpaceGroups = None,
    n: Annotated[int, typer.Option("-n", "--n", help="Crystals wanted.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="A .cif, .zip, .extxyz, .jsonl, .csv, or a directory for POSCARs."),
    ] = None,
    model: options.Model = "auto",
    seed: options.Seed = 0,
    temperature: options.Temperature = 1.0,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Nucleus sampling: probability kept in every categorical draw.")
    ] = 1.0,
    elements: options.Elements = None,
    require: Annotated[
        str | None, typer.Option(help="Elements that every crystal contains: Li; --bias raises the yield.")
    ] = None,
    exclude: options.Exclude = None,
    no_radioactive: options.NoRadioactive = False,
    formula: Annotated[
        str | None,
        typer.Option(help="Exact reduced composition: SrTiO3. At most 20 atoms a primitive cell, or --max-atoms."),
    ] = None,
    bias: options.Bias = None,
    max_atoms: options.MaxAtoms = None,
    max_sites: options.MaxSites = None,
    wyckoff: options.Wyckoff = None,
    sites: options.Sites = None,
    prototype: options.Prototype = None,
    redraw: options.Redraw = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Reject what is not allowed instead of masking it: exactly the model's conditional distribution.",
        ),
    ] = False,
    refine: Annotated[
        int, typer.Option(help="Steps of Markov-chain Monte Carlo on species and coordinates after the draw.")
    ] = 0,
    unique: Annotated[bool, typer.Option("--unique", help="No crystal twice, by pymatgen's StructureMatcher.")] = False,
    min_distance: Annotated[float, typer.Option(help="Smallest distance between atoms, angstrom.")] = 0.0,
    keep_invalid: Annotated[
        bool, typer.Option("--keep-invalid", help="Keep crystals with an unphysical lattice, too.")
    ] = False,
    max_attempts: Annotated[int, typer.Option(help="Attempts at one crystal before giving up.")] = 10_000,
    shard: Annotated[
        str | None, typer.Option(help="Only a part of the request: 3/16 (--unique holds within a part).")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Crystals drawn at once, 64 or more; chosen by device and request if not given.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run; give the same options as then.")
    ] = False,
) -> None:
    """Draw crystals from a model.

    What is drawn follows from model, request and seed: batch size, number of devices and interruptions change nothing.
    Draws that do not count, as lattices that close no cell, are drawn again and counted by reason.
    """
    from cfx.cli.console import ConsoleReporter
    from cfx.cli.start import load, space_groups, start_jax
    from cfx.config import SampleConfig

    template, own_group = options.template(wyckoff, sites, prototype, redraw)
    if (space_group is None) == (own_group is None):
        raise UsageError(
            "give a space group with --sg" if own_group is None else "--from brings its own space group",
            "for example --sg 194" if own_group is None else "leave out --sg",
        )
    reporter = ConsoleReporter()

    request = functools.partial(
        SampleConfig,
        n=n,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        batch_size=batch_size,
        shard=options.shard(shard),
        require=options.words(require),
        formula=options.formula(formula),
        template=template,
        exact=exact,
        refine=refine,
        unique=unique,
        min_distance=min_distance,
        keep_invalid=keep_invalid,
        max_attempts=max_attempts,
        **options.wishes(elements, exclude, no_radioactive, bias, max_atoms, max_sites),
    )
    # What is wrong with numbers and combinations is found before anything slow starts.
    request(space_groups=(own_group or 1,))
    if space_group is not None:
        options.check_space_groups(space_group)

    from cfx.io.files import sole_writer
    from cfx.io.outputs import check_output

    with sole_writer(output):
        check_output(output, force, keep_invalid, resume)
    start_jax(reporter)

    from cfx.runs.sample import sample

    loaded = load(model, reporter)
    groups, weights = ((own_group,), ()) if space_group is None else space_groups(space_group, loaded, reporter)
    result = sample(loaded, request(space_groups=groups, weights=weights), output, reporter, force, resume)
    for line in summary(result, loaded.name, seed, output):
        reporter.message(line)


def summary(result, model: str, seed: int, output: Path | None) -> list[str]:
    """What a run says at its end."""
    asked = list(result.asked)
    where = f"space group {asked[0]}" if len(asked) == 1 else f"{len(asked)} space groups"
    reasons = ", ".join(f"{count} {reason}" for reason, count in result.rejected.most_common()) or "none rejected"
    earlier = f" ({result.resumed} of them earlier)" if result.resumed else ""
    lines = [
        f"{result.num_crystals} crystals{earlier} of {where} from {result.num_drawn} draws ({reasons}) "
        f"by model {model}, seed {seed}, in {result.seconds:.1f} s" + (f": {output}" if output else "")
    ]
    if result.rejected:
        lines.append(f"yield: {100 * result.num_crystals / result.num_drawn:.1f} % of the draws count")
    if result.accepted_moves is not None:
        lines.append(f"refinement: {100 * result.accepted_moves:.1f} % of the moves accepted")
    if result.found:
        shown = ", ".join(f"{count} in {group or 'no group'}" for group, count in result.found.most_common(5))
        more = ", ..." if len(result.found) > 5 else ""
        lines.append(f"a symmetry search finds {result.as_asked} of them in the space group asked for; {shown}{more}")
    return lines
