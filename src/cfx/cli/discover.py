"""cfx discover: a family of crystals in, a list of the best out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cfx.cli import options, values
from cfx.cli.console import REPORTER, print_json, print_table
from cfx.cli.options import Fields, Given
from cfx.config import DiscoverConfig, DiscoverRun, EvalConfig, SampleConfig
from cfx.config.discovery import names_of
from cfx.errors import UsageError

if TYPE_CHECKING:
    from cfx.runs.discovery.state import Record

DRAWN = [name for name in names_of(SampleConfig) if name not in ("weights", "template")]
JUDGED = [name for name in names_of(EvalConfig) if name != "workers"]


def discover(
    *,
    output: Path = options.output("A directory: discovery.csv, .json and .html, all.csv, and relaxed CIFs.", ...),
    space_group: str | None = options.space_groups(" Not needed with --formula: likely ones are drawn then."),
    model: str = options.model(),
    request: Annotated[Given, Fields(SampleConfig, *DRAWN)],
    arrangement: Annotated[Given, Fields(values.Arrangement)],
    judging: Annotated[Given, Fields(EvalConfig, *JUDGED, shown={"potential": "chgnet"})],
    keep: Annotated[Given, Fields(DiscoverConfig)],
    workers: int = options.WORKERS,
    as_json: bool = options.JSON,
    force: bool = options.FORCE,
    resume: bool = options.RESUME,
) -> None:
    """Draw crystals, and find the best of them.

    Crystals are drawn, and sifted: valid ones, each once, new ones if --reference names known crystals. The energy of
    each is computed once, and only the lowest above the hull are relaxed. What is left is judged, and listed.

    Examples:
      cfx discover --sg 221 -n 500 -o cubic
      cfx discover --formula Li3PS4 -n 200 --relax 40 -o electrolytes
      cfx discover --sg 225 --require Li -n 1000 --reference mp-20 --sort density --inputs vasp -o light
    """
    template, own_group = values.template(arrangement)
    groups = values.first_space_groups(space_group, own_group)
    if groups is None and not request.get("formula"):
        raise UsageError("--sg is required", "for example --sg 194; with --formula it can be left to the model")
    settings = {**request, **judging, **keep, "template": template, "workers": workers or -1}
    # What is wrong with numbers and combinations is found before anything slow starts.
    run = DiscoverRun.of(groups, **settings)
    values.start_jax()

    from cfx.runs.discover import discover_into

    loaded = values.load(model)
    if space_group is not None:
        drawn, weights = values.drawn_space_groups(space_group, loaded)
        run = DiscoverRun.of(drawn, **settings, weights=weights)
    found = discover_into(output, loaded, run, REPORTER, force, resume)
    if as_json:
        print_json(found.as_json())
    else:
        print_table([_row(row, run.keep.column) for row in found.rows])


def _row(row: Record, column: str) -> dict[str, Any]:
    """What the table shows of a crystal."""
    shown = {
        "rank": row["rank"],
        "formula": row["formula"],
        "space group": row["space_group_relaxed"] or "none",
        "E_hull (eV/atom)": f"{round(row['e_above_hull'], 3) + 0.0:.3f}",
        "as drawn": f"{row['e_above_hull_unrelaxed']:.3f}",
        "verdict": row["verdict"],
        "decomposes into": row["decomposition"] or "",
    }
    return shown if column in ("e_above_hull", "e_above_hull_unrelaxed") else {**shown, column: f"{row[column]:.4g}"}
