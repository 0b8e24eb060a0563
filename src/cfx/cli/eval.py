"""cfx eval, cfx relax and cfx hull: what crystals are worth, at which minimum, and measured against which phases."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cfx.cli import options, values
from cfx.cli.console import REPORTER, in_flags, print_columns, print_json, print_prose, printable, shown, stdout
from cfx.cli.options import Fields, Given
from cfx.config import EvalConfig, RelaxConfig, ShortlistConfig
from cfx.errors import UsageError
from cfx.io.files import TABLES, check_file, claimed, replace_atomically, write_table
from cfx.reporter import counted

METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "avg_structure_validity": ("valid structure", ()),
    "avg_comp_validity": ("valid composition", ()),
    "avg_comp_validity_without_alloys": ("charges balance", ()),
    "avg_structure_comp_validity": ("both valid", ()),
    "frac_space_group_as_asked": ("space group as asked", ()),
    "frac_unique_structures": ("unique", ()),
    "frac_novel_structures": ("novel", ("reference",)),
    "frac_novel_unique_structures": ("novel and unique", ("reference",)),
    "frac_stable_structures": ("metastable (0.1 eV/atom)", ("potential", "hull")),
    "frac_novel_unique_stable_structures": ("S.U.N. at 0.1 eV/atom", ("reference", "potential", "hull")),
    "frac_on_hull_structures": ("stable (on the hull)", ("potential", "hull")),
    "frac_novel_unique_on_hull_structures": ("S.U.N. at 0 eV/atom", ("reference", "potential", "hull")),
    "frac_below_floor_structures": ("below the floor", ("potential", "hull")),
    "avg_energy_above_hull_per_atom": ("energy above hull", ("potential", "hull")),
    "frac_confirmed_stable_structures": ("metastable by both", ()),
    "frac_confirmed_novel_unique_stable_structures": ("S.U.N. at 0.1 by both", ()),
    "frac_confirmed_on_hull_structures": ("stable by both", ()),
    "frac_confirmed_novel_unique_on_hull_structures": ("S.U.N. at 0 by both", ()),
    "frac_verdicts_differ": ("verdicts differ", ()),
    "avg_e_above_hull_difference": ("mean difference", ()),
    "avg_abs_e_above_hull_difference": ("mean absolute difference", ()),
    "median_abs_e_above_hull_difference": ("median of all", ()),
    "rank_correlation_e_above_hull": ("rank correlation", ()),
    "num_compositions": ("distinct formulas", ()),
    "vendi_compositions": ("Vendi score", ()),
    "avg_hhi_production": ("HHI by production", ()),
    "avg_hhi_reserve": ("HHI by reserves", ()),
    "avg_rmsd_from_relaxation": ("RMSD to relaxed", ("potential", "relax")),
    "avg_energy_above_hull_change_per_atom": ("change by relaxing", ("potential", "hull", "relax")),
    "frac_space_group_changed": ("space group changed", ("potential", "relax")),
    "frac_relaxation_converged": ("relaxation converged", ("potential", "relax")),
    "wdist_density": ("distance of densities", ("reference",)),
    "wdist_num_elements": ("distance of numbers of elements", ("reference",)),
}
"""Metrics in the order in which they are shown: as a person reads them, and the options that they need."""

BY_CLASS = {
    "frac_of_crystals": "share of crystals",
    "frac_stable_structures": "metastable",
    "frac_on_hull_structures": "stable",
    "frac_novel_unique_stable_structures": "S.U.N. at 0.1",
    "frac_novel_unique_on_hull_structures": "S.U.N. at 0",
    "frac_below_floor_structures": "below the floor",
}
"""Metrics of each class of compositions that are shown; --json has all."""

FEW_REASONS = 8
"""Reasons of each file that are shown; -o and --json have all."""

SHOWN = 20
"""Missing formulas of a hull that are shown; --json has all."""


PHASE = {
    "energy": "energy_per_atom",
    "formation energy": "formation_energy_per_atom",
    "above the hull": "e_above_hull",
    "id": "id",
    "origin": "origin",
}
"""What is shown of each phase of a chemical system, by title."""


def evaluate(
    files: Annotated[list[str], typer.Argument(help=f"Crystals: {options.DATA_HELP} Several are compared.")],
    *,
    judging: Annotated[Given, Fields(EvalConfig, without=("workers",))],
    workers: int = options.WORKERS,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler, to read and compare crystals on its cluster.")
    ] = None,
    records: Path | None = options.output("A .csv or .parquet file of all numbers of every crystal."),
    html: Path | None = options.writes("--html", help="A report in one .html file."),
    structures: Path | None = options.writes(
        "--structures", help="A .jsonl, .extxyz or .cif file of the relaxed crystals."
    ),
    shortlist: Path | None = options.writes(
        "--shortlist",
        help="A directory for the best crystals: CIF files, a table, a page. With --top or --sort: shortlist.",
    ),
    best: Annotated[Given, Fields(ShortlistConfig)],
    as_json: bool = options.JSON,
    force: bool = options.FORCE,
) -> None:
    """Evaluate crystals: validity, uniqueness, novelty, stability.

    Rates are of all crystals of a file, unreadable ones included, with Wilson intervals of 95 %. Novelty needs a
    reference, energies a potential, stability a hull as well; S.U.N. (stable, unique
    and novel) needs all three. What is not asked for is not evaluated.

    A shortlist is made of the crystals that are valid, unique and not below the floor.

    Examples:
      cfx eval crystals.cif --reference data.csv --potential chgnet -o records.csv --html report.html
      cfx eval crystals.cif --potential chgnet --relax --top 20 --sort e_above_hull --shortlist best
      cfx eval before.cif after.cif --reference mp-20
    """
    config, selection = EvalConfig(**judging, workers=workers or -1), ShortlistConfig(**best)
    if best and shortlist is None:
        shortlist = Path("shortlist")
    if shortlist is not None:
        selection.check(config)
    values.check_table(records, force)
    check_file(html, (".html",), force)
    if structures is not None and not config.relax:
        raise UsageError("--structures is for relaxed crystals", "add --relax")

    from cfx.evaluation.setup import check_inputs, load_setup
    from cfx.runs import evaluate as runs
    from cfx.runs.relax import SUFFIXES, write_evaluated
    from cfx.runs.shortlist import check_shortlist, claimed_shortlist, write_shortlist

    check_file(structures, SUFFIXES, force)
    check_shortlist(shortlist, files, force)
    check_inputs(files, REPORTER)
    with (
        claimed(records, TABLES, force),
        claimed(html, (".html",), force),
        claimed(structures, SUFFIXES, force),
        claimed_shortlist(shortlist, files, force),
        _cluster(scheduler),
    ):
        setup = load_setup(config, REPORTER)
        evaluated = [runs.evaluate(name, setup, REPORTER) for name in files]
        for one in evaluated:
            one.result["warnings"] = list(map(in_flags, one.result["warnings"]))
        result = runs.as_result([one.result for one in evaluated])
        _write(result, records, html)
        if structures is not None:
            write_evaluated(structures, evaluated, REPORTER)
        if shortlist is not None:
            result["shortlist"] = write_shortlist(shortlist, evaluated[0], selection, result["version"], REPORTER)
    if as_json:
        print_json(result)
    else:
        _print(result["files"], config)


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Lets joblib use the cluster of a Dask scheduler."""
    if address is None:
        yield
        return
    import joblib

    from cfx.io.cluster import connected

    with connected(address), joblib.parallel_config(backend="dask"):
        yield


def _write(result: dict[str, Any], records: Path | None, html: Path | None) -> None:
    if records is not None:
        write_table(records, [{"file": file["name"], **row} for file in result["files"] for row in file["records"]])
        REPORTER.message(f"written: {records}")
    if html is not None:
        from cfx.report import render_report

        replace_atomically(html, lambda path: path.write_text(render_report(result), encoding="utf-8"))
        REPORTER.message(f"written: {html}")


def _print(files: Sequence[dict[str, Any]], config: EvalConfig) -> None:
    found = {words: [file["summary"].get(metric) for file in files] for metric, (words, _) in METRICS.items()}
    rows = {"crystals": [f"{file['crystals']:,}" for file in files]}
    rows |= {words: list(map(_value, metrics)) for words, metrics in found.items() if any(metrics)}
    print_columns([file["name"] for file in files], rows)
    console = stdout()
    console.print()
    for file in files:
        _print_classes(file)
        console.print()
    for line in _not_evaluated(files, config):
        print_prose(line)
    for name, setting in files[0]["settings"].items():
        print_prose(f"{name}: {setting}")
    for file in files:
        for line in _reasons(file):
            print_prose(line, "yellow")


def _print_classes(file: dict[str, Any]) -> None:
    """A row for each class of compositions: its share of all crystals, and rates of its own."""
    metrics = [name for name in BY_CLASS if any(rates[name] for rates in file["classes"].values())]
    cell = "{:.1f} %  ({count} of {of})"
    rows = {
        kind: [cell.format(100 * rates[name]["value"], **rates[name]) if rates[name] else "" for name in metrics]
        for kind, rates in file["classes"].items()
    }
    stdout().print(shown(f"{file['name']}, by class of composition:"))
    print_columns([BY_CLASS[name] for name in metrics], rows)


def _not_evaluated(files: Sequence[dict[str, Any]], config: EvalConfig) -> Iterator[str]:
    """What no file has, by the options that would give it."""
    missing: dict[str, list[str]] = defaultdict(list)
    for metric, (words, needs) in METRICS.items():
        if metric in files[0]["summary"] and not any(file["summary"][metric] for file in files):
            lacking = [f"--{option}" for option in needs if not getattr(config, option)]
            missing[" without " * bool(lacking) + ", ".join(lacking)].append(words)
    for without, metrics in missing.items():
        yield f"not evaluated{without}: {'; '.join(metrics)}"


def _reasons(file: dict[str, Any]) -> Iterator[str]:
    """The most frequent reasons of a file, and how many others there are."""
    for reason in file["reasons"][:FEW_REASONS]:
        yield f"{file['name']}: {reason['count']} x {reason['reason']} (as {reason['example']})"
    if (others := len(file["reasons"]) - FEW_REASONS) > 0:
        yield f"{file['name']}: and {counted(others, 'other reason')}; -o and --json have all"


def _value(value: dict[str, Any] | None) -> str:
    """A rate in per cent with its interval and counts, or a number with its unit."""
    if value is None:
        return "not evaluated"
    if "count" in value:
        low, high = 100 * value["low"], 100 * value["high"]
        return f"{100 * value['value']:.1f} %  ({low:.1f}-{high:.1f}, {value['count']} of {value['of']})"
    digits = 0 if isinstance(value["value"], int) or abs(value["value"]) >= 100 else 3
    error = f" ± {value['error']:,.{digits}f}" if value.get("error") is not None else ""
    number = f"{value['value']:,.{digits}f}"
    unit = f" {value['unit']}" if value["unit"] else ""
    return f"{number}{error}{unit}  (of {value['of']})"


def relax(
    crystals: options.Crystals,
    *,
    potential: str = options.single(RelaxConfig, "potential"),
    output: Path = options.output("A .jsonl, .extxyz or .cif file.", ...),
    settings: Annotated[Given, Fields(RelaxConfig, "fmax", "steps", "fix_symmetry")],
    device: str = options.DEVICE,
    workers: int = options.WORKERS,
    force: bool = options.FORCE,
    resume: bool = options.RESUME,
) -> None:
    """Relax positions and cells, many crystals at once.

    Every result is kept as soon as it is there. JSON lines have all of a crystal: cell, energy, steps, convergence,
    RMSD to the start, and why something failed; the other formats hold the crystals that have an energy.

    Examples:
      cfx relax crystals.cif --potential chgnet -o relaxed.jsonl
      cfx relax crystals.cif --potential chgnet --fix-symmetry --fmax 0.02 -o relaxed.extxyz
      cfx relax crystals.cif --potential chgnet -o relaxed.jsonl --resume
    """
    from cfx.runs.relax import relax_file

    config = RelaxConfig(source=crystals, potential=potential, **settings)
    rows = relax_file(config, output, device, workers or -1, REPORTER, force, resume)
    converged = sum(row["converged"] for row in rows)
    failed = sum(row["energy"] is None for row in rows)
    without = f", {failed} without an energy" if failed else ""
    REPORTER.message(f"{converged} of {len(rows)} crystals converged{without}: {output}")


def build_hull(
    structures: Annotated[list[str], typer.Argument(help=f"Crystals: {options.DATA_HELP}")],
    potential: str = options.single(RelaxConfig, "potential"),
    output: Path = options.output("A .npz file.", ...),
    name: Annotated[str | None, typer.Option(help="Name of the hull in reports; by default the file's.")] = None,
    fill_from: Annotated[
        str | None,
        typer.Option(
            help="Hull of another potential: its other phases are added, shifted by offsets measured where both know.",
            autocompletion=options.COMPLETIONS["hull"],
        ),
    ] = None,
    systems_of: Annotated[
        str | None, typer.Option(help="Crystals to be judged: only phases of their chemical systems are kept.")
    ] = None,
    device: str = options.DEVICE,
    workers: int = options.WORKERS,
    force: bool = options.FORCE,
) -> None:
    """Build a hull: the lowest energy of each composition.

    Energies are those of the crystals as they are, not relaxed. Candidates that are judged by the same potential are
    then on the same footing. Each element must be among the crystals, or come from the hull of --fill-from.

    Examples:
      cfx hull build relaxed.jsonl --potential chgnet -o known.npz
      cfx hull build a.csv b.cif --potential orb:orb-v3-conservative-inf-omat --device cuda -o known.npz
      cfx hull build mp-20 --potential orb --fill-from chgnet-mp --systems-of out.cif -o orb.npz
    """
    title = name or output.name.removesuffix(".npz").removesuffix(".hull")
    with claimed(output, (".npz",), force):
        from cfx.runs.hull import build

        hull = build(structures, potential, output, title, device, workers or -1, REPORTER, fill_from, systems_of)
    REPORTER.message(f"{hull}: {output}")


def show_hull(
    hull: Annotated[
        str,
        typer.Argument(
            help="A file (.npz, .json, .json.bz2), or a name of cfx fetch --list.",
            autocompletion=options.COMPLETIONS["hull"],
        ),
    ],
    hull_scale: str | None = options.single(EvalConfig, "hull_scale", "--hull-scale --scale"),
    reference: Annotated[
        Path | None, typer.Option(help="A .csv with a column `formula`: lists those that the hull lacks.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="A chemical system, as Cs-Zn-F: lists its phases, and what is missing there.")
    ] = None,
    as_json: bool = options.JSON,
) -> None:
    """Show what a hull contains, and which phases of a list it lacks.

    Examples:
      cfx hull show chgnet-mp
      cfx hull show chgnet-mp --system Cs-Zn-F --reference formulas.csv
      cfx hull show known.npz --reference formulas.csv --json
    """
    from cfx.runs.hull import describe

    content = describe(hull, hull_scale, reference, REPORTER, system)
    if as_json:
        print_json(content)
        return
    missing, phases = content.pop("missing", None), content.pop("phases_of_the_system", None)
    for key, value in content.items():
        if isinstance(value, dict):
            value = ", ".join(f"{size}: {count:,}" for size, count in value.items())
        elif isinstance(value, list):
            value = ", ".join(value) or "none"
        if value not in (None, ""):
            print(printable(f"{key.replace('_', ' ')}: {value}"))
    if phases is not None:
        print(f"phases of {content['system']}, energies in eV/atom:" if phases else "no phases of this system")
        print_columns(list(PHASE), {one["formula"]: [_cell(one[key]) for key in PHASE.values()] for one in phases})
    if missing is not None:
        few = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
        print(printable(f"missing: {len(missing)}{': ' * bool(few)}{few}"))


def _cell(value: str | float | None) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
