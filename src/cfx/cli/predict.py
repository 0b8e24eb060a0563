"""cfx predict: formulas in, their likely structures out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cfx.cli import options, values
from cfx.cli.console import REPORTER, print_json, print_table
from cfx.cli.options import Fields, Given
from cfx.config import PredictConfig
from cfx.config.texts import formula
from cfx.errors import DataError, UsageError

if TYPE_CHECKING:
    from cfx.runs.predictions import Prediction


def predict(
    formulas: Annotated[
        list[str] | None, typer.Argument(help="Formulas, as SrTiO3, or files of them, one on a line.")
    ] = None,
    *,
    system: Annotated[
        str | None, typer.Option(help="A chemical system, Li-La-Zr-O: formulas that the model draws most often.")
    ] = None,
    most: Annotated[int, typer.Option("--formulas", help="Formulas of a system, at most.", min=1)] = 5,
    output: Path | None = options.output("A directory: predictions.csv, .json and .html, and a CIF of each."),
    model: str = options.model(),
    space_group: Annotated[
        str | None,
        typer.Option(
            "--sg", "--space-group", help="Only these space groups: 221 or Pm-3m; 2,14,62 or 1-230; those of data:FILE."
        ),
    ] = None,
    settings: Annotated[Given, Fields(PredictConfig, without=("space_groups",))],
    as_json: bool = options.JSON,
    force: bool = options.FORCE,
    resume: bool = options.RESUME,
) -> None:
    """Predict the structures of formulas, ranked by energy.

    Structures are drawn from the model, relaxed by the potential as far as the budget goes, with the symmetry that they
    were drawn with and then without, and listed with their energies above the hull.

    Examples:
      cfx predict SrTiO3
      cfx predict TiO2 MgAl2O4 --budget 10min -o oxides
      cfx predict --system Li-La-Zr-O --formulas 3 -o conductors
    """
    if (not formulas) == (system is None):
        raise UsageError("give either formulas or --system", "for example: cfx predict SrTiO3")
    asked = [formula(text) for one in formulas or () for text in _read(one)]
    elements = system.split("-") if system else []
    # What is wrong with numbers and combinations is found before anything slow starts.
    PredictConfig(**settings)
    if resume and output is None:
        raise UsageError("--resume continues what is in -o", "name the directory with -o DIR")
    if space_group is not None:
        values.check_space_groups(space_group)
    values.start_jax()

    from cfx.runs.predict import name_of, predict_into
    from cfx.runs.predict import predict as run
    from cfx.runs.systems import formulas_of_system

    loaded = values.load(model)
    groups = () if space_group is None else values.drawn_space_groups(space_group, loaded)[0]
    config = PredictConfig(space_groups=groups, **settings)
    if elements:
        asked = formulas_of_system(loaded, elements, most, groups, config.seed, REPORTER)
        REPORTER.message(f"formulas of {system}: {', '.join(map(name_of, asked))}")
    if output is None:
        found = run(loaded, asked, config, REPORTER)
    else:
        found = predict_into(output, loaded, asked, config, REPORTER, force, resume)
    if as_json:
        print_json([one.as_json() for one in found])
    else:
        print_table([_row(one) for one in found])


def _read(text: str) -> list[str]:
    """The formulas of a file, one on a line, what follows # left out; of a text that is no file, itself."""
    path = Path(text)
    if not path.is_file():
        return [text]
    try:
        lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}", "name a text file of formulas, one on a line") from error
    if not any(lines):
        raise DataError(f"{path} has no formulas", "write one on each line")
    return list(filter(None, lines))


def _row(one: Prediction) -> dict[str, str | int]:
    """What the table shows of a structure."""
    return {
        "formula": one.formula,
        "rank": one.rank,
        "space group": f"{one.symbol} ({one.space_group})" if one.space_group else "none",
        "E_hull (eV/atom)": "" if one.e_above_hull is None else f"{round(one.e_above_hull, 3) + 0.0:.3f}",
        "verdict": one.verdict or "",
        "energy (eV/atom)": f"{one.energy_per_atom:.4f}",
        "probability": f"{100 * one.probability:.0f} %",
        "sites": one.num_sites,
        "atoms": one.num_atoms,
        "draws": ", ".join(f"{count} {origin}" for origin, count in one.draws.items()),
    }
