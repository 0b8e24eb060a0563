"""cfx eval: what crystals are worth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cfx.cli.options import DATA_HELP
from cfx.config import EvalConfig

WORDS = {
    "avg_structure_validity": "valid structure",
    "avg_comp_validity": "valid composition",
    "avg_structure_comp_validity": "both valid",
    "frac_space_group_as_asked": "space group as asked",
    "frac_unique_structures": "unique",
    "frac_novel_structures": "novel",
    "frac_novel_unique_structures": "novel and unique",
    "frac_stable_structures": "stable",
    "frac_novel_unique_stable_structures": "stable, unique, novel (S.U.N.)",
    "frac_on_hull_structures": "on the hull",
    "frac_novel_unique_on_hull_structures": "on the hull, unique, novel",
    "avg_energy_above_hull_per_atom": "energy above hull",
    "avg_rmsd_from_relaxation": "RMSD to relaxed",
    "wdist_density": "distance of densities",
    "wdist_num_elements": "distance of numbers of elements",
}
"""Metrics as a person reads them, in this order."""

NEEDS = {
    "frac_novel_structures": ("reference",),
    "frac_novel_unique_structures": ("reference",),
    "frac_stable_structures": ("potential", "hull"),
    "frac_novel_unique_stable_structures": ("reference", "potential", "hull"),
    "frac_on_hull_structures": ("potential", "hull"),
    "frac_novel_unique_on_hull_structures": ("reference", "potential", "hull"),
    "avg_energy_above_hull_per_atom": ("potential", "hull"),
    "avg_rmsd_from_relaxation": ("potential", "relax"),
    "wdist_density": ("reference",),
    "wdist_num_elements": ("reference",),
}
"""Options without which a metric is not evaluated."""

FEW_REASONS = 8


def command(
    files: Annotated[list[str], typer.Argument(help=f"Crystals: {DATA_HELP} Several are compared.")],
    reference: Annotated[
        str | None, typer.Option(help="Known crystals that novelty is judged against: a file, or a name.")
    ] = None,
    potential: Annotated[
        str | None, typer.Option(help="Computes energies: chgnet, orb:NAME, matgl:NAME, ase:MODULE:FACTORY.")
    ] = None,
    hull: Annotated[
        str | None,
        typer.Option(
            help="Phases that stability is judged against: a file, or a name; with chgnet, chgnet-mp. Or: none."
        ),
    ] = None,
    hull_scale: Annotated[
        str | None, typer.Option("--hull-scale", help="Of a hull that does not say it: raw or mp2020.")
    ] = None,
    relax: Annotated[bool, typer.Option("--relax", help="Judge the crystals as relaxed by the potential.")] = False,
    fmax: Annotated[float, typer.Option(help="Largest force of a relaxed crystal, eV/angstrom.")] = 0.05,
    steps: Annotated[int, typer.Option(help="Of a relaxation, at most.")] = 500,
    device: Annotated[str, typer.Option(help="Of the potential: cpu or cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Processes; 0 for one a core.")] = 0,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler, to use its cluster.")] = None,
    records: Annotated[
        Path | None, typer.Option("-o", "--output", help="A .csv or .parquet file: all numbers of every crystal.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="A page to look at, in one .html file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a table.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the outputs.")] = False,
) -> None:
    """Evaluate crystals: validity, uniqueness, novelty, stability, S.U.N.

    Rates are of all crystals of a file, unreadable ones included, with Wilson intervals of 95 %. Novelty needs a
    reference, energies a potential, stability a hull as well; what is not asked for is not evaluated.
    """
    from cfx.cli.console import ConsoleReporter

    config = EvalConfig(reference, potential, hull, hull_scale, relax, fmax, steps, device, workers or -1)
    _check(records, html, force)
    reporter = ConsoleReporter()

    from cfx.runs.evaluate import as_result, evaluate
    from cfx.runs.judges import check_inputs, load_judges

    check_inputs(files, reporter)
    with _cluster(scheduler):
        judges = load_judges(config, reporter)
        result = as_result([evaluate(name, judges, reporter) for name in files])
    _write(result, records, html, reporter)
    if as_json:
        import json

        print(json.dumps(result, indent=1))
    else:
        _print(result["files"], config)


def _check(records: Path | None, html: Path | None, force: bool) -> None:
    """Finds out before the work whether the outputs can be written."""
    from importlib.util import find_spec

    from cfx.errors import DependencyError
    from cfx.io.targets import check_file

    check_file(records, (".csv", ".parquet"), force)
    check_file(html, (".html",), force)
    if records is not None and records.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise DependencyError("writing Parquet needs pyarrow", "pip install 'cfx-crystal[parquet]'")


@contextmanager
def _cluster(address: str | None):
    """Lets joblib use the cluster of a Dask scheduler."""
    if address is None:
        yield
        return
    import joblib

    from cfx.errors import DependencyError, NetworkError

    try:
        from dask.distributed import Client
    except ImportError as error:
        raise DependencyError("--scheduler needs Dask", "pip install 'cfx-crystal[dask]'") from error
    try:
        client = Client(address, timeout="10s")
    except (OSError, ValueError) as error:
        raise NetworkError(f"no Dask scheduler answers at {address}", "start one with: dask scheduler") from error
    with client, joblib.parallel_config(backend="dask"):
        yield


def _write(result: dict[str, Any], records: Path | None, html: Path | None, reporter) -> None:
    from cfx.io.cache import replace_atomically

    if records is not None:
        from cfx.io.tables import write_table

        write_table(records, [{"file": file["name"], **row} for file in result["files"] for row in file["records"]])
        reporter.message(f"written: {records}")
    if html is not None:
        from cfx.report.page import render_report

        replace_atomically(html, lambda path: path.write_text(render_report(result), encoding="utf-8"))
        reporter.message(f"written: {html}")


def _print(files: Sequence[dict[str, Any]], config: EvalConfig) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    table = Table("", *(escape(file["name"]) for file in files), box=None, pad_edge=False)
    table.add_row("crystals", *(f"{file['crystals']:,}" for file in files))
    for metric, words in WORDS.items():
        values = [file["summary"].get(metric) for file in files]
        if any(values):
            table.add_row(words, *map(_value, values))
    console.print(table)
    console.print()
    for line in _not_evaluated(files, config):
        console.print(escape(line))
    for name, setting in files[0]["settings"].items():
        console.print(escape(f"{name}: {setting}"))
    for file in files:
        for line in _reasons(file):
            console.print(f"[yellow]{escape(line)}[/]")


def _not_evaluated(files: Sequence[dict[str, Any]], config: EvalConfig) -> Iterator[str]:
    """What no file has, by the options that would give it."""
    missing: dict[str, list[str]] = defaultdict(list)
    for metric, words in WORDS.items():
        if not any(file["summary"].get(metric) for file in files):
            lacking = [f"--{option}" for option in NEEDS.get(metric, ()) if not getattr(config, option)]
            missing[" without " * bool(lacking) + ", ".join(lacking)].append(words)
    for options, metrics in missing.items():
        yield f"not evaluated{options}: {'; '.join(metrics)}"


def _reasons(file: dict[str, Any]) -> Iterator[str]:
    """The most frequent reasons of a file, and how many others there are."""
    for reason in file["reasons"][:FEW_REASONS]:
        yield f"{file['name']}: {reason['count']} x {reason['reason']} (as {reason['example']})"
    if (others := len(file["reasons"]) - FEW_REASONS) > 0:
        yield f"{file['name']}: and {others} other reasons; -o and --json have them all"


def _value(value: dict[str, Any] | None) -> str:
    """A rate in per cent with its interval and counts, or a number with its unit."""
    if value is None:
        return "not evaluated"
    if "count" in value:
        low, high = 100 * value["low"], 100 * value["high"]
        return f"{100 * value['value']:.1f} %  ({low:.1f}-{high:.1f}, {value['count']} of {value['of']})"
    error = f" ± {value['error']:.3f}" if value.get("error") is not None else ""
    return f"{value['value']:.3f}{error} {value['unit']}  (of {value['of']})"
