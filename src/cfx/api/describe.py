"""cfx.describe: what a data set holds, and what of it cannot be used."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cfx.api.results import frame
from cfx.config import SYMPREC
from cfx.data.dataset import read, summarize
from cfx.data.given import Crystals, given_file
from cfx.progress import reporting
from cfx.reporter import counted

if TYPE_CHECKING:
    from pandas import DataFrame, Series


@dataclass(frozen=True, repr=False)
class Description:
    """What a data set holds, as `cfx data` says it.

    Attributes:
        summary: all numbers, as `cfx data --json` prints them.
        failures: pandas DataFrame: row (from 1), name and reason of what could not be read or encoded.
    """

    summary: dict[str, Any]
    failures: DataFrame

    @property
    def space_groups(self) -> Series:
        """pandas Series: crystals by space group."""
        return self._counts("space_groups")

    @property
    def elements(self) -> Series:
        """pandas Series: crystals that hold an element, the most frequent first."""
        return self._counts("elements")

    @property
    def sites(self) -> Series:
        """pandas Series: crystals by number of symmetry-inequivalent sites."""
        return self._counts("sites")

    def _counts(self, name: str) -> Series:
        import pandas

        return pandas.Series(self.summary[name], name="crystals", dtype=int).rename_axis(name)

    def __len__(self) -> int:
        return self.summary["crystals"]

    def headline(self) -> str:
        """The data set in one line."""
        of = f" of {counted(self.summary['rows'], 'row')}" if len(self.failures) else ""
        groups, elements = (len(self.summary[name]) for name in ("space_groups", "elements"))
        return f"{counted(len(self), 'crystal')}{of}, {counted(groups, 'space group')}, {counted(elements, 'element')}"

    def __repr__(self) -> str:
        return f"Description({self.headline()})"


def describe(
    crystals: Crystals, *, n_max: int = 21, symprec: float = SYMPREC, progress: bool | None = None
) -> Description:
    """Describes crystals as a model would learn from them: space groups, sites, elements, failures.

    Args:
        crystals: pymatgen Structures, ASE Atoms, a `CrystalBatch`, a file or a name, or several of these.
        n_max: slots of the model; a crystal has at most one symmetry-inequivalent site fewer.
        symprec: tolerance of the symmetry search, angstrom.
        progress: whether bars are shown; by default in notebooks.

    Raises:
        UsageError: for what are no crystals.
        DataError: if nothing can be read, or no row is a crystal.
        Interrupted: after a signal; the same call goes on where it was.
    """
    with reporting(progress) as told:
        data = read(given_file(crystals, told), n_max, told, symprec, os.cpu_count() or 1)
    rows = [one._asdict() for one in data.failures]
    return Description(summarize(data), frame(rows).reindex(columns=["row", "name", "reason"]))
