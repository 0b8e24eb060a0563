"""cfx sample: crystals on request."""

import functools
from pathlib import Path
from typing import Annotated

from cfx.cli import options, values
from cfx.cli.console import REPORTER
from cfx.cli.options import Fields, Given
from cfx.config import SampleConfig
from cfx.config.symbols import ALL_SPACE_GROUPS
from cfx.errors import UsageError
from cfx.io.files import sole_writer


def sample(
    *,
    space_group: str | None = options.space_groups(" Not needed with --formula: likely ones are drawn then."),
    output: Path | None = options.output(
        "A .cif, .zip, .extxyz, .jsonl, .csv, or a directory for POSCARs; CIF on stdout without it.", stdout=True
    ),
    model: str = options.model(),
    request: Annotated[Given, Fields(SampleConfig, without=("space_groups", "weights", "template"))],
    arrangement: Annotated[Given, Fields(values.Arrangement)],
    force: bool = options.FORCE,
    resume: bool = options.RESUME,
) -> None:
    """Draw crystals from a model.

    What is drawn follows from model, request and seed: batch size, number of devices and interruptions change nothing.
    Rejected draws, such as unphysical lattices, are drawn again and counted by reason.
    With --formula and without --sg, space groups are drawn by the probability that the model gives them for it.

    Examples:
      cfx sample --sg 225 -n 10 -o crystals.cif
      cfx sample --formula SrTiO3 -n 20 -o sto.jsonl
      cfx sample --from perovskite.cif --redraw lattice -n 20 -o like-it.extxyz
    """
    template, own_group = values.template(arrangement)
    asked = functools.partial(SampleConfig, template=template, **request)
    # What is wrong with numbers and combinations is found before anything slow starts.
    first = asked(space_groups=(own_group or 1,))
    by_probability = space_group is None and own_group is None
    if by_probability and not first.formula:
        raise UsageError("--sg is required", "for example --sg 194; with --formula it can be left to the model")
    if space_group is not None and own_group is not None:
        raise UsageError("--from uses the space group of its structure", "leave out --sg")
    if space_group is not None:
        values.check_space_groups(space_group)

    from cfx.io.outputs import check_output

    with sole_writer(output):
        check_output(output, force, first.keep_invalid, resume)
    values.start_jax()

    from cfx.runs import sample as runs

    loaded = values.load(model)
    if space_group is not None:
        groups, weights = values.drawn_space_groups(space_group, loaded)
    else:
        groups, weights = (ALL_SPACE_GROUPS if own_group is None else (own_group,)), ()
    whole = asked(space_groups=groups, weights=weights)
    result = runs.sample(loaded, whole, output, REPORTER, force, resume, by_probability=by_probability)
    for line in _summary(result, loaded.name, first.seed, output):
        REPORTER.message(line)


def _summary(result, model: str, seed: int, output: Path | None) -> list[str]:
    """What a run says at its end."""
    asked = list(result.asked)
    where = f"space group {asked[0]}" if len(asked) == 1 else f"{len(asked)} space groups"
    reasons = ", ".join(f"{count} {reason}" for reason, count in result.rejected.most_common()) or "none rejected"
    earlier = f" ({result.resumed} of them earlier)" if result.resumed else ""
    crystals = "crystal" if result.num_crystals == 1 else "crystals"
    draws = "draw" if result.num_drawn == 1 else "draws"
    lines = [
        f"{result.num_crystals} {crystals}{earlier} of {where} from {result.num_drawn} {draws} ({reasons}) "
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
