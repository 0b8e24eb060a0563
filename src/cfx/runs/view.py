"""Crystals of a file as a page to look at."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfx.io.cache import replace_atomically
from cfx.io.crystals import load_crystals
from cfx.metrics.symmetry import find_space_groups
from cfx.report import render_viewer
from cfx.reporter import Reporter
from cfx.runs.fetch import data_path

if TYPE_CHECKING:
    from pymatgen.core import Structure


def as_drawn(structure: Structure) -> dict[str, Any]:
    """The cell (angstrom, a row per vector) and its atoms, as a page has them."""
    return {
        "cell": structure.lattice.matrix.round(5).tolist(),
        "species": [site.specie.symbol for site in structure],
        "frac_coords": structure.frac_coords.round(5).tolist(),
    }


def write_viewer(name: str, output: Path, first: int, reporter: Reporter) -> tuple[int, int]:
    """Writes a page of the first crystals of a file, in order; how many are shown, and how many the file has.

    Args:
        name: of a file, directory or zip, or of a data set.
        output: where the page goes.
        first: how many crystals, at most.
        reporter: receives progress.

    Raises:
        DataError: if none can be read.
        OutputError: if the page cannot be written.
    """
    path = data_path(name, reporter)
    with warnings.catch_warnings(action="ignore"), reporter.progress(f"reading {path.name}", None) as progress:
        crystals = load_crystals(path, on_progress=progress.update)
        shown = [one for one in crystals if one.structure is not None][:first]
        groups = find_space_groups([one.structure for one in shown])
        gallery = [
            {
                "name": one.name,
                "formula": one.structure.composition.reduced_formula,
                "space_group": group.found,
                **as_drawn(one.structure),
            }
            for one, group in zip(shown, groups, strict=True)
        ]
    page = render_viewer(gallery, path.name)
    replace_atomically(output, lambda partial: partial.write_text(page, encoding="utf-8"))
    if unread := sum(one.structure is None for one in crystals):
        reporter.warning(f"{unread} of {len(crystals)} crystals cannot be read: cfx data {name} says why")
    return len(shown), len(crystals)
