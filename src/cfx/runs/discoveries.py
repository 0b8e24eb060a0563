"""What a discovery found: a list of crystals with all numbers, and its directory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfx.config import DiscoverRun
from cfx.core import Structure
from cfx.errors import OutputError, UsageError
from cfx.evaluation.setup import EvaluationSetup
from cfx.io.files import check_directory, csv_text, replace_atomically, write_texts
from cfx.report import render_shortlist
from cfx.runs import funnel
from cfx.runs.evaluate import as_shown
from cfx.runs.relax import crystal_block
from cfx.runs.shortlist import formula_in_name

if TYPE_CHECKING:
    import pandas as pd

Record = dict[str, Any]
"""What is known of a crystal, under the names of `cfx eval`."""

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
        write_texts(directory, texts)

    def _page(self, table: str) -> str:
        """The page of a shortlist, with the funnel."""
        crystals = [
            {"rank": row["rank"], "cif_file": row["cif_file"], "cif": cif, **as_shown(row, structure)}
            for row, structure, cif in zip(self.rows, self.structures, self.cifs, strict=True)
        ]
        file = {
            "name": "discovery",
            "crystals": len(self.records),
            "settings": self.settings,
            "warnings": self.warnings,
            "funnel": self.funnel,
        }
        title = f"Discovery: {self.settings['drawn']}"
        return render_shortlist(file, self.rows, crystals, self.in_words(), table, version("cfx-crystal"), title)


def listed(
    run: DiscoverRun,
    records: Sequence[Record],
    structures: Sequence[Structure | None],
    setup: EvaluationSetup,
    warnings: Sequence[str],
    costs: Mapping[str, Any],
) -> Discovery:
    """The first crystals of those that arrived, by the column that is asked for."""
    keep = run.keep
    for record in records:
        if not record["left_out"] and record.get(keep.column) is None:
            record["left_out"] = funnel.WITH_COLUMN.lost
    left = [row for row, record in enumerate(records) if not record["left_out"]]
    left.sort(key=lambda row: -records[row][keep.column] if keep.descending else records[row][keep.column])
    for row in left[keep.top :]:
        records[row]["left_out"] = funnel.LISTED.lost
    best = left[: keep.top]
    names = [*COLUMNS, *dict.fromkeys(name for record in records for name in record if name not in COLUMNS)]
    whole = [{name: record.get(name) for name in names} for record in records]
    chosen = [structure for row in best if (structure := structures[row]) is not None]
    rows = [
        {"rank": rank, "cif_file": f"{rank:0{len(str(len(best)))}}_{formula_in_name(one)}.cif", **whole[row]}
        for rank, (row, one) in enumerate(zip(best, chosen, strict=True), start=1)
    ]
    name = setup.potential.name if setup.potential else None
    cifs = [
        crystal_block(
            {**row, "name": row["cif_file"][:-4], "potential": name, "energy": row["energy_per_atom"] * len(one)}, one
        )
        for row, one in zip(rows, chosen, strict=True)
    ]
    counted = funnel.count(records, funnel.stages(run))
    return Discovery(rows, chosen, counted, whole, _settings(run, setup), list(warnings), **costs, cifs=cifs)


def _settings(run: DiscoverRun, setup: EvaluationSetup) -> dict[str, Any]:
    """What a reader of the numbers has to know, by name."""
    sample, keep = run.sample, run.keep
    limit = f"the {keep.relax} lowest above the hull as drawn"
    return {
        "drawn": f"{sample.n} crystals, seed {sample.seed}",
        **setup.settings(),
        "chosen for relaxation": limit if keep.budget is None else f"{limit}, within {keep.budget}",
        "sorted by": keep.sort,
    }


def check_discovery(directory: Path) -> None:
    """Makes sure before the work that a directory can be written without loss of anything but an earlier discovery.

    Raises:
        UsageError: if it has no name.
        OutputError: if it holds something else.
    """
    if directory.name in ("", ".."):
        raise UsageError(f"{directory} cannot hold a discovery", "name a directory that is not there")
    if directory.exists() and not directory.is_dir():
        raise OutputError(f"{directory} is a file, but a discovery is a directory", "choose another name")
    if directory.is_dir() and not all(OWN_FILES.fullmatch(entry.name) for entry in directory.iterdir()):
        raise OutputError(
            f"{directory} contains files that are not of a discovery, and is not overwritten", "choose another name"
        )
    check_directory(directory)
