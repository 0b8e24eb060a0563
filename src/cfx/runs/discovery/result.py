"""What a discovery found: a list of crystals with all numbers, and its directory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfx.core import Structure
from cfx.errors import OutputError
from cfx.io.dft_inputs import INPUTS
from cfx.io.files import check_directory, check_own_files, csv_text, replace_atomically, write_texts
from cfx.predictors.base import label
from cfx.report import render_shortlist
from cfx.runs.discovery import funnel
from cfx.runs.discovery.state import Discovering, Record
from cfx.runs.evaluate import as_shown
from cfx.runs.relax import crystal_block
from cfx.runs.shortlist import formula_in_name

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    *("name", "formula", "num_atoms", "num_elements", "density", "hhi_production", "hhi_reserve", "class"),
    *("space_group_asked", "space_group", "space_group_relaxed", "log_prob", "log_prob_per_site"),
    *("energy_per_atom_unrelaxed", "e_above_hull_unrelaxed", "energy_per_atom", "e_above_hull", "verdict"),
    *("decomposition", "converged", "steps", "rmsd_to_relaxed", "duplicate_of", "matched", "left_out"),
)
"""Columns of the tables, in order; others follow."""

TABLE, ALL, JSON, PAGE = "discovery.csv", "all.csv", "discovery.json", "discovery.html"

OWN_FILES = re.compile(r"discovery\.(csv|json|html)|all\.csv|\d+_.+\.cif|vasp|qe")
"""Names of the files and directories of a discovery."""


@dataclass(frozen=True)
class Discovery:
    """Crystals that were discovered, the best first.

    Attributes:
        rows: of each crystal in the list: rank, cif_file, and all numbers.
        structures: of each, pymatgen Structure, relaxed, as a primitive cell or a small one.
        funnel: how many crystals were left after each stage, and why others were lost.
        records: of every crystal that was drawn, all numbers, and what it was `left_out` for.
        settings: what a reader of the numbers has to know.
        warnings: what was said on the way.
        evaluations: of one structure each, that energies and relaxations took.
        seconds: that they took.
        cifs: of each crystal in the list, the conventional cell.
        properties: what the predicted ones are called, with units, by name.
    """

    rows: list[Record]
    structures: list[Structure] = field(repr=False)
    funnel: list[dict[str, Any]] = field(repr=False)
    records: list[Record] = field(repr=False)
    settings: dict[str, Any] = field(repr=False)
    warnings: list[str] = field(repr=False)
    evaluations: int
    seconds: float
    cifs: list[str] = field(repr=False)
    properties: dict[str, str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[Record, Structure]]:
        """Each crystal of the list with its numbers."""
        return zip(self.rows, self.structures, strict=True)

    def __repr__(self) -> str:
        return f"Discovery({self.in_words()})"

    @property
    def table(self) -> pd.DataFrame:
        """The rows as a table."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def in_words(self) -> str:
        """What was found, in a line."""
        return f"{len(self)} of {len(self.records)} crystals, after {self.evaluations:,} evaluations"

    def as_json(self) -> dict[str, Any]:
        """What was found, ready for JSON."""
        crystals = [{**row, "cif": cif} for row, cif in zip(self.rows, self.cifs, strict=True)]
        told = {"settings": self.settings, "warnings": self.warnings, "funnel": self.funnel}
        costs = {"evaluations": self.evaluations, "seconds": round(self.seconds, 1)}
        return {"version": version("cfx-crystal"), **told, **costs, "crystals": crystals}

    def write(self, directory: str | Path, inputs: Sequence[str] = (), force: bool = False) -> None:
        """Writes discovery.csv, .json and .html, all.csv, and a CIF of each crystal.

        Args:
            directory: is made.
            inputs: "vasp", "qe", or both: directories with inputs for calculations of each crystal.
            force: overwrite a discovery that is there.

        Raises:
            OutputError: if it is there and `force` is False, or cannot be written.
        """
        path = Path(directory)
        if path.exists() and not force:
            raise OutputError(f"{path} exists", "choose another name, or overwrite a discovery with `force`")
        check_discovery(path)
        replace_atomically(path, lambda fresh: self.write_files(fresh, inputs))

    def write_files(self, directory: Path, inputs: Sequence[str] = ()) -> None:
        """Makes a directory; see `write`."""
        texts = {row["cif_file"]: cif for row, cif in zip(self.rows, self.cifs, strict=True)}
        texts[TABLE], texts[ALL] = csv_text(self.rows), csv_text(self.records)
        texts[JSON] = json.dumps(self.as_json(), indent=1) + "\n"
        texts[PAGE] = self._page(texts[TABLE])
        for program in inputs:
            for row, structure in zip(self.rows, self.structures, strict=True):
                place = f"{program}/{row['cif_file'].removesuffix('.cif')}"
                texts |= {f"{place}/{name}": text for name, text in INPUTS[program](structure).items()}
        write_texts(directory, texts)

    def _page(self, table: str) -> str:
        """The page of a shortlist, with the funnel."""
        crystals = [
            {**row, "cif": cif, **as_shown(row, structure)}
            for row, structure, cif in zip(self.rows, self.structures, self.cifs, strict=True)
        ]
        file = {
            "name": "discovery",
            "crystals": len(self.records),
            "settings": self.settings,
            "warnings": self.warnings,
            "funnel": self.funnel,
            "column": self.settings["sorted by"].removeprefix("-"),
            "properties": self.properties,
        }
        title = f"Discovery: {self.settings['drawn']}"
        return render_shortlist(file, crystals, self.in_words(), table, version("cfx-crystal"), title)


def listed(state: Discovering) -> Discovery:
    """The first of the crystals that arrived, by the column that is asked for, which all of them have."""
    keep, records = state.run.keep, state.records
    order = state.ranked(keep.column, keep.descending)
    state.lose(order[keep.top :], funnel.LISTED)
    best = order[: keep.top]
    names = [*COLUMNS, *dict.fromkeys(name for record in records for name in record if name not in COLUMNS)]
    whole = [{name: record.get(name) for name in names} for record in records]
    chosen = [one for row in best if (one := state.structures[row]) is not None]
    rows = [
        {"rank": rank, "cif_file": f"{rank:0{len(str(len(best)))}}_{formula_in_name(one)}.cif", **whole[row]}
        for rank, (row, one) in enumerate(zip(best, chosen, strict=True), start=1)
    ]
    return Discovery(
        rows,
        chosen,
        funnel.count(records, funnel.stages(state.run)),
        whole,
        _settings(state),
        state.reporter.warnings,
        state.budget.spent,
        state.budget.took,
        [_cif(row, one, state.potential.name) for row, one in zip(rows, chosen, strict=True)],
        {name: label(model) for name, model in state.properties.items()},
    )


def _cif(row: Record, structure: Structure, potential: str) -> str:
    remarks = {"name": row["cif_file"].removesuffix(".cif"), "potential": potential}
    return crystal_block({**row, **remarks, "energy": row["energy_per_atom"] * len(structure)}, structure)


def _settings(state: Discovering) -> dict[str, Any]:
    """What a reader of the numbers has to know, by name."""
    sample, keep = state.run.sample, state.run.keep
    groups = sample.space_groups
    family = f"space group {groups[0]}" if len(groups) == 1 else f"{len(groups)} space groups"
    limit = f"the {keep.relax} lowest above the hull as drawn"
    models = ", ".join(f"{name} by {model.name}" for name, model in state.properties.items())
    return {
        "drawn": f"{sample.n} crystals of {family} by {state.model.name}, seed {sample.seed}",
        **state.setup.settings(),
        "chosen for relaxation": limit if keep.budget is None else f"{limit}, within {keep.budget}",
        **({"properties": models} if models else {}),
        "sorted by": keep.sort,
    }


def check_discovery(directory: Path) -> None:
    """Makes sure before the work that a directory can be written without loss of anything but an earlier discovery.

    Raises:
        UsageError: if it has no name.
        OutputError: if it holds something else.
    """
    check_own_files(directory, OWN_FILES, "hold a discovery", "a discovery is", "of a discovery")
    check_directory(directory)
