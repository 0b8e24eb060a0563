"""What results in Python have in common: a table, the crystals it tells of, short texts, output for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cfx.core import Structure
from cfx.data.given import to_ase
from cfx.report import viewer_cell
from cfx.reporter import counted

if TYPE_CHECKING:
    from ase import Atoms
    from pandas import DataFrame


@dataclass(frozen=True, repr=False)
class Judged:
    """Crystals, and what was found out about each.

    Attributes:
        table: pandas DataFrame, a row for each crystal in the order in which they were given.
        structures: pymatgen Structures, likewise; None where there is none.
    """

    table: DataFrame
    structures: list[Structure | None] = field(repr=False)

    def __len__(self) -> int:
        return len(self.table)

    def to_structures(self) -> list[Structure]:
        """The crystals that there are, as pymatgen Structures."""
        return [one for one in self.structures if one is not None]

    def to_ase(self) -> list[Atoms]:
        """The crystals that there are, as ASE Atoms."""
        return to_ase(self.to_structures())

    def headline(self) -> str:
        """The result in one line."""
        return counted(len(self), "crystal")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.headline()})"

    def _repr_html_(self) -> str:
        named = [
            (str(name), one) for name, one in zip(self.table["name"], self.structures, strict=True) if one is not None
        ]
        return f"<p>{self.headline()}</p>{table_html(self.table)}" + (viewer_cell(named) if named else "")


ROWS_SHOWN = 5
"""Of a table, above the crystals."""

LEFT_OUT = ("cif", "reason")
"""Columns of long texts, which a notebook does not show."""


def table_html(table: Any) -> str:
    """The first rows of a table as HTML, without the columns in which they say nothing."""
    few = table.head(ROWS_SHOWN).drop(columns=[name for name in LEFT_OUT if name in table]).dropna(axis=1, how="all")
    return few.to_html(index=False, border=0, float_format=lambda value: f"{value:.4g}")


def frame(rows: Sequence[Mapping[str, Any]]) -> DataFrame:
    """Rows as a pandas DataFrame."""
    import pandas

    return pandas.DataFrame(list(rows))
