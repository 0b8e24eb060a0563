"""cfx.relax: crystals at their nearest minima."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cfx.api.results import Judged, frame
from cfx.config import RelaxConfig
from cfx.data.given import Crystals, given_crystals
from cfx.io.files import check_file, replace_atomically
from cfx.predictors.load import load_potential
from cfx.predictors.relax import Relaxed
from cfx.predictors.relax import relax as relax_structures
from cfx.progress import reporting
from cfx.reporter import Interrupted, StopRequest, counted
from cfx.runs.relax import SUFFIXES, render, row_of

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, repr=False)
class Relaxation(Judged):
    """Relaxed crystals; `structures` are the relaxed cells, None where there is no energy.

    The table has, for each crystal, name, formula, energy (eV, of the cell), energy_per_atom, converged, steps, fmax
    (eV/angstrom), rmsd to the start (angstrom), space_group, reason and cif.

    Attributes:
        potential: name of the potential.
    """

    potential: str

    def headline(self) -> str:
        """See `Judged`."""
        failed = sum(one is None for one in self.structures)
        without = f", {failed} without an energy" if failed else ""
        return f"{counted(len(self), 'crystal')} by {self.potential}, {sum(self.table['converged'])} converged{without}"

    def write(self, path: str | Path) -> Path:
        """Writes the crystals as `cfx relax -o` does: .jsonl, .extxyz or .cif. A file that is there is replaced.

        Raises:
            UsageError: for another suffix.
            OutputError: if it cannot be written.
        """
        path = Path(path)
        check_file(path, SUFFIXES, force=True)
        rows = self.table.astype(object).where(self.table.notna(), None).to_dict("records")
        with warnings.catch_warnings(action="ignore"):
            text = render(path.suffix, rows, self.potential)
        replace_atomically(path, lambda fresh: fresh.write_text(text, encoding="utf-8"))
        return path


def relax(
    crystals: Crystals,
    potential: str = "chgnet",
    *,
    fmax: float = 0.05,
    steps: int = 500,
    fix_symmetry: bool = False,
    device: str = "cpu",
    progress: bool | None = None,
) -> Relaxation:
    """Relaxes crystals, positions and cell, many at once.

    Args:
        crystals: pymatgen Structures, ASE Atoms, a `CrystalBatch`, a file or a name, or several of these.
        potential: interatomic potential: chgnet, orb:NAME, matgl:NAME, ase:MODULE:FACTORY.
        fmax: largest force at which a relaxation has converged, eV/angstrom.
        steps: at most.
        fix_symmetry: whether the initial space group is kept.
        device: where the potential runs: cpu or cuda.
        progress: whether bars are shown; by default in notebooks.

    Raises:
        UsageError: for values that cannot be meant, and what are no crystals.
        DataError: if nothing can be read.
        Interrupted: after a signal.
    """
    RelaxConfig(source="given", potential=potential, fmax=fmax, steps=steps, fix_symmetry=fix_symmetry)
    with reporting(progress) as told:
        model = load_potential(potential, device)
        loaded = given_crystals(crystals, told)
        with (
            StopRequest() as stop,
            warnings.catch_warnings(action="ignore"),
            told.progress(f"relaxing with {model.name}", len(loaded)) as bar,
        ):
            done = 0

            def count(number: int, result: Relaxed) -> None:
                nonlocal done
                done += 1
                bar.update(done)

            structures = [one.structure for one in loaded]
            results = relax_structures(model, structures, fmax, steps, fix_symmetry, count, lambda: bool(stop))
            if stop.signum is not None:
                raise Interrupted(stop.signum, f"stopped after {done} of {len(loaded)} crystals")
            rows = [row_of(one, result) for one, result in zip(loaded, results, strict=True)]
    found = [one.structure if row["cif"] else None for one, row in zip(results, rows, strict=True)]
    return Relaxation(frame(rows), found, model.name)
