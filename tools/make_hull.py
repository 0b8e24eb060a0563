"""Makes the bundled hull `chgnet-mp`: CHGNet energies of Materials Project crystals, the lowest of each composition.

    python tools/make_hull.py mp20_subset_train.csv.gz mpts52_subset.csv.gz --elements MP-PBE-Element-Refs.json.gz

Minutes on two cores. `--check mp20_subset_val.csv.gz --list mp_near_hull.csv.gz` prints the figures of its card, from
the hull as it was written: which phases of the list it lacks, and its E_hull against the published one of crystals that
it was not made from.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

RESOURCES = Path(__file__).resolve().parents[1] / "src" / "cfx" / "resources"
TARGET = RESOURCES / "hulls" / "chgnet-mp" / "chgnet-mp.hull.npz"

YTTERBIUM = 5.4862
"""Lattice parameter of face-centred cubic ytterbium, angstrom, which the list of elements lacks."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("crystals", type=Path, nargs="*")
    arguments.add_argument("--elements", type=Path, help="element -> its structures, as JSON")
    arguments.add_argument("--check", type=Path, help="crystals with a column e_above_hull")
    arguments.add_argument("--list", type=Path, help="phases that a hull should have: a column formula")
    arguments.add_argument("--hull", type=Path, default=TARGET)
    options = arguments.parse_args()
    if options.crystals:
        make(options.crystals, options.elements, options.hull)
    figures = {}
    if options.list:
        figures |= count_missing(options.hull, options.list)
    if options.check:
        figures |= compare(options.hull, options.check, options.list)
    print(json.dumps(figures, indent=1))


def make(crystals: Sequence[Path], elements: Path, target: Path) -> None:
    """Writes the hull."""
    from cfx.cli.console import ConsoleReporter
    from cfx.runs.hull import build

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        # Named like its source, for the hull says what it was made from.
        terminals = Path(directory) / elements.name.replace(".json.gz", ".jsonl")
        content = json.loads(gzip.decompress(elements.read_bytes()))
        with open(terminals, "w") as file:
            for symbol, found in content.items():
                for number, structure in enumerate(found["structure"]):
                    file.write(json.dumps({"id": f"{symbol}-{number}", "structure": structure}) + "\n")
            if "Yb" not in content:
                file.write(json.dumps({"id": "Yb-fcc", "structure": ytterbium().as_dict()}) + "\n")
        names = [str(path) for path in (*crystals, terminals)]
        hull = build(names, "chgnet", target, "chgnet-mp", "cpu", -1, ConsoleReporter())
    print(hull)


def ytterbium():
    """The crystal of the element, as a pymatgen Structure."""
    from pymatgen.core import Lattice, Structure

    lattice = Lattice.cubic(YTTERBIUM)
    return Structure.from_spacegroup("Fm-3m", lattice, ["Yb"], [[0, 0, 0]]).get_primitive_structure()


def count_missing(hull: Path, listed: Path) -> dict:
    """How many phases of a list the hull lacks, by number of elements and in all."""
    from collections import Counter

    from pymatgen.core import Composition

    from cfx.evaluation.hull import missing_phases
    from cfx.evaluation.hull_files import read_hull
    from cfx.runs.hull import read_formulas

    formulas = read_formulas(listed)
    phases = {Composition(formula).reduced_formula for formula in formulas}
    missing = missing_phases(read_hull(hull), formulas)
    kinds = [Counter(len(Composition(formula)) for formula in some) for some in (phases, missing)]
    by_size = {size: f"{kinds[1][size]} of {kinds[0][size]}" for size in sorted(kinds[0])}
    return {"list": len(phases), "missing": len(missing), "missing by number of elements": by_size}


def compare(hull: Path, crystals: Path, listed: Path | None) -> dict:
    """E_hull of CHGNet on the hull against a published column, eV/atom."""
    import numpy as np
    import pandas as pd
    from pymatgen.core import Composition, Structure

    from cfx.evaluation.hull import missing_phases
    from cfx.evaluation.hull_files import read_hull
    from cfx.predictors.load import load_potential
    from cfx.runs.hull import read_formulas

    table, phases = pd.read_csv(crystals), read_hull(hull)
    structures = [Structure.from_str(cif, fmt="cif") for cif in table.cif]
    energies = load_potential("chgnet").evaluate(structures, forces=False).energy
    # A crystal that is on the hull is 0 away from it, however far it is below the other phases.
    found = np.maximum(phases.evaluate(structures, energies, "mp2020").e_above_hull, 0)
    error = found - table.e_above_hull.to_numpy()
    figures = {"all": _figures(error)}
    if listed is not None:
        lacking = missing_phases(phases, read_formulas(listed))
        systems = [frozenset(map(str, Composition(formula).elements)) for formula in lacking]
        covered = np.array([_covered(structure, systems) for structure in structures])
        figures["no listed phase of its elements is missing"] = _figures(error[covered])
    return figures


def _figures(error) -> dict:
    import numpy as np

    error = error[np.isfinite(error)]
    spread = error.std(ddof=1) / np.sqrt(len(error))
    return {
        "crystals": len(error),
        "mean absolute error": round(float(np.abs(error).mean()), 4),
        "median absolute error": round(float(np.median(np.abs(error))), 4),
        "bias": round(float(error.mean()), 4),
        "standard error of the bias": round(float(spread), 4),
    }


def _covered(structure, missing: list[frozenset[str]]) -> bool:
    """Whether no missing phase is made of a crystal's elements."""
    own = frozenset(map(str, structure.composition.elements))
    return not any(system <= own for system in missing)


if __name__ == "__main__":
    main()
