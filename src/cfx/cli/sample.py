"""cfx sample and cfx score: crystals on request, and how likely given ones are."""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cfx.cli import options, values
from cfx.cli.console import REPORTER, print_json, print_table
from cfx.cli.options import Fields, Given
from cfx.config import SampleConfig
from cfx.config.symbols import ALL_SPACE_GROUPS
from cfx.errors import UsageError
from cfx.io.files import claimed, csv_text, sole_writer, write_table

MOST_GROUPS = 15
"""Space groups that a terminal shows."""


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


def score(
    data: options.Crystals,
    output: Path | None = options.output("A .csv file; stdout without it.", stdout=True),
    model: str = options.model(),
    symprec: float = options.SYMPREC,
    workers: int = options.WORKERS,
    summary: Annotated[
        bool,
        typer.Option("--summary", help="Mean negative log-likelihoods of the data instead of a row for each crystal."),
    ] = False,
    as_json: bool = options.JSON,
    force: bool = options.FORCE,
) -> None:
    """Compute the log-probabilities of crystals under a model.

    They are in nats: in total, and by part (Wyckoff letters, species, coordinates, lattice). A terminal
    gets a table; a file or a pipe gets CSV. Rows that are not crystals for the model are skipped and named.

    With --summary: mean negative log-likelihood (nll, nats per crystal, as the loss of cfx train) with the standard
    error of the total, of all crystals, by number of sites, by crystal system and by space group.

    Examples:
      cfx score crystals.cif
      cfx score data.csv --model run/best -o scores.csv
      cfx score mp-20:val --model mp20 --summary
    """
    with claimed(output, (".csv",), force):
        values.start_jax()

        from cfx.runs import sample as runs

        loaded = values.load(model)
        scores = runs.score(loaded, Path(data), REPORTER, symprec, workers or os.cpu_count() or 1)
        rows = scores.summary() if summary else scores.rows()
        _write(rows, output, as_json, _print_summary if summary else _print_rows)
    total = scores.log_prob.total
    mean = f"nll {-total.mean():.3f}" if summary else f"{total.mean():.3f}"
    REPORTER.message(f"{len(total)} crystals, {mean} nats each on average by model {loaded.name}")


def _write(rows: list[dict], output: Path | None, as_json: bool, print_rows: Callable[[list[dict]], None]) -> None:
    """To a file as CSV; to stdout as JSON if asked, or else, unless there is a file, as a table or CSV."""
    if output is not None:
        write_table(output, rows, decimals=4)
    if as_json:
        print_json(rows)
    elif output is None and sys.stdout.isatty():
        print_rows(rows)
    elif output is None:
        sys.stdout.write(csv_text(rows, decimals=4))


def _print_rows(rows: list[dict]) -> None:
    print_table(rows, decimals=4)


def _print_summary(records: list[dict]) -> None:
    """A table for each grouping; of the space groups only the most frequent."""
    print("negative log-likelihood (nll), nats per crystal, ± its standard error, and its parts")
    for grouping in dict.fromkeys(record["grouping"] for record in records):
        shown = chosen = [record for record in records if record["grouping"] == grouping]
        if grouping == "space_group":
            frequent = sorted(chosen, key=lambda record: -record["crystals"])[:MOST_GROUPS]
            shown = [record for record in chosen if record in frequent]
        print_table([_summary_row(record) for record in shown])
        if len(shown) < len(chosen):
            print(f"the {len(shown)} most frequent of {len(chosen)} space groups; --json or -o FILE.csv has all")


def _summary_row(record: dict) -> dict:
    from cfx.core.likelihood import PARTS

    error = "" if record["nll_error"] is None else f"±{record['nll_error']:.2f}"
    return {
        record["grouping"].replace("_", " ").removeprefix("crystal "): record["value"],
        "crystals": record["crystals"],
        "nll": f"{record['nll']:.2f}{error}",
        **{part: f"{record[f'nll_{part}']:.2f}" for part in PARTS},
    }
