"""cfx.view: any crystals, to be turned under the mouse."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from cfx.core import Structure
from cfx.data.given import Crystals, given_crystals, title_of
from cfx.errors import DataError
from cfx.io.files import replace_atomically
from cfx.report import as_card, render_viewer, viewer_cell
from cfx.reporter import counted


@dataclass(frozen=True, repr=False)
class View:
    """Crystals that a notebook shows, the first ones, and a page shows all of.

    Attributes:
        crystals: names and pymatgen Structures.
        title: of the page.
    """

    crystals: list[tuple[str, Structure]]
    title: str

    def __repr__(self) -> str:
        return f"View({counted(len(self.crystals), 'crystal')})"

    def _repr_html_(self) -> str:
        return viewer_cell(self.crystals, self.title)

    def write(self, path: str | Path) -> Path:
        """Writes the page of `cfx view`: one file that needs no network. A file that is there is replaced.

        Raises:
            OutputError: if it cannot be written.
        """
        with warnings.catch_warnings(action="ignore"):
            page, path = render_viewer([as_card(*one) for one in self.crystals], self.title), Path(path)
        replace_atomically(path, lambda fresh: fresh.write_text(page, encoding="utf-8"))
        return path


def view(crystals: Crystals, n: int = 200) -> View:
    """Shows crystals.

    Args:
        crystals: pymatgen Structures, ASE Atoms, a `CrystalBatch`, predictions, a file or a name, or several of these.
        n: how many, at most.

    Raises:
        UsageError: for what are no crystals.
        DataError: if nothing can be read.
    """
    found = [(one.name, one.structure) for one in given_crystals(crystals) if one.structure is not None]
    if not found:
        raise DataError("none of the crystals has a structure")
    return View(found[:n], title_of(crystals))
