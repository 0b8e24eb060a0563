"""cfx.hull and cfx.build_hull: the known phases that stability is judged against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cfx.api.results import frame
from cfx.data.given import Crystals, given_file
from cfx.evaluation.hull import Hull, missing_phases
from cfx.evaluation.hull_files import read_hull
from cfx.fetch.names import hull_path
from cfx.io.files import check_file
from cfx.progress import reporting
from cfx.runs.hull import build, list_phases, parse_system

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, repr=False)
class HullTable:
    """A table of known phases.

    Attributes:
        source: its file or name, which `cfx.evaluate(hull=...)` takes.
        hull: the phases, and distances to their convex hull.
    """

    source: str
    hull: Hull = field(repr=False)

    def __len__(self) -> int:
        return len(self.hull.phases)

    def __repr__(self) -> str:
        return f"HullTable({self.hull})"

    def phases(self, system: str) -> DataFrame:
        """The phases of a chemical system, as "Cs-Zn-F", those of fewest elements first.

        Returns:
            pandas DataFrame: formula, energy_per_atom, formation_energy_per_atom and e_above_hull (eV/atom), id, and
            the origin of the energy.

        Raises:
            UsageError: if the system does not consist of elements.
        """
        return frame(list_phases(self.hull, parse_system(system)))

    def missing(self, formulas: Sequence[str]) -> list[str]:
        """Which compositions the table lacks."""
        return missing_phases(self.hull, formulas)


def hull(name: str | Path = "chgnet-mp", *, scale: str | None = None, progress: bool | None = None) -> HullTable:
    """Reads a table of known phases.

    Args:
        name: a file (.npz, .json, .json.bz2), or a name of the catalog.
        scale: of its energies, raw or mp2020, where the file does not say.
        progress: whether bars are shown; by default in notebooks.

    Raises:
        DataError: if it cannot be read.
    """
    with reporting(progress) as told, told.progress(f"reading {name}", None) as bar:
        return HullTable(str(name), read_hull(hull_path(str(name), told), scale, bar.update))


def build_hull(
    crystals: Crystals,
    path: str | Path,
    *,
    potential: str = "chgnet",
    name: str | None = None,
    fill_from: str | Path | None = None,
    systems_of: Crystals | None = None,
    device: str = "cpu",
    progress: bool | None = None,
) -> HullTable:
    """Builds a table of phases: the lowest energy of each composition, of the crystals as they are.

    Args:
        crystals: pymatgen Structures, ASE Atoms, a `CrystalBatch`, a file or a name, or several of these.
        path: of the table, a .npz file. One that is there is replaced.
        potential: interatomic potential: chgnet, orb:NAME, matgl:NAME, ase:MODULE:FACTORY.
        name: of the hull in reports; by default the file's.
        fill_from: hull of another potential, whose other phases are added, shifted by offsets measured where both know.
        systems_of: crystals to be judged: only phases of their chemical systems are kept.
        device: where the potential runs: cpu or cuda.
        progress: whether bars are shown; by default in notebooks.

    Raises:
        UsageError: for what are no crystals, another suffix, or energies of another scale.
        DataError: if no crystal has an energy.
        Interrupted: after a signal; nothing is written.
    """
    path = Path(path)
    check_file(path, (".npz",), force=True)
    title = name or path.name.removesuffix(".npz").removesuffix(".hull")
    with reporting(progress) as told:
        systems = None if systems_of is None else given_file(systems_of, told)
        other = None if fill_from is None else str(fill_from)
        built = build([given_file(crystals, told)], potential, path, title, device, -1, told, other, systems)
    return HullTable(str(path), built)
