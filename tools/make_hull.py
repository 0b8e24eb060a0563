"""Makes the bundled hull `chgnet-mp` from energies of crystals, which tools/hull_energies.py computes.

    python tools/make_hull.py table energies.jsonl substituted_energies.jsonl --published near.csv.gz mp20.csv.gz
    python tools/make_hull.py table 7net.jsonl --name 7net-mp --version 1 --potential "ase ..." --fill-from chgnet-mp...
    python tools/make_hull.py check mp20_subset_val.csv.gz --energies val.jsonl --published mp_near_hull.csv.gz
    python tools/make_hull.py hide 1000 energies.jsonl --published near.csv.gz mp20.csv.gz --crystals val.jsonl

`table` keeps the lowest energy of each composition; crystals of tools/substitute.py count where nothing else is known.
Phases that are published with a formation energy and without a structure get an energy by composition, on the scale of
the potential: from another crystal of the composition whose energy is known both ways, or from energies of the elements
that are fitted to all crystals whose energy is known both ways. `--fill-from` adds what another potential's hull has
besides, shifted by what that is off by where both know. `check` prints the figures of the hull's card, `hide`
what energies by composition do to energies above the hull.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Composition

from cfx.core.elements import SYMBOLS
from cfx.evaluation.hull import Hull, HullInfo
from cfx.evaluation.hull_files import read_hull, write_hull
from cfx.evaluation.phases import (
    STRUCTURE,
    Phases,
    Reduced,
    count_atoms,
    fill,
    fit_elements,
    fractions_of,
    reduce_counts,
)

RESOURCES = Path(__file__).resolve().parents[1] / "src" / "cfx" / "resources"
TARGET = RESOURCES / "hulls" / "chgnet-mp" / "chgnet-mp.hull.npz"
POTENTIAL = "chgnet 0.4.2 (0.3.0)"
csv.field_size_limit(sys.maxsize)

COMPOSITION, SUBSTITUTION = "composition", "substitution"
"""Origins, beside STRUCTURE: a published formation energy; the structure of a neighbour's compound."""


@dataclass(frozen=True)
class Energy:
    """The energy of a crystal by the potential, eV/atom."""

    id: str
    composition: Reduced
    energy: float
    origin: str


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = arguments.add_subparsers(required=True)
    table = command(commands, "table", make_table)
    table.add_argument("energies", type=Path, nargs="+")
    table.add_argument("--name", default="chgnet-mp")
    table.add_argument("--version", default="2")
    table.add_argument("--potential", default=POTENTIAL, help="its name, as cfx gives it")
    table.add_argument("--fill-from", type=Path, help="a hull of another potential, for what is left")
    checked = command(commands, "check", check)
    checked.add_argument("crystals", type=Path, help="with a column e_above_hull")
    checked.add_argument("--energies", type=Path, required=True, help="of these crystals")
    hidden = command(commands, "hide", hide)
    hidden.add_argument("count", type=int)
    hidden.add_argument("energies", type=Path, nargs="+")
    hidden.add_argument("--crystals", type=Path, required=True, help="energies of crystals to judge")
    for one in (table, hidden, checked):
        one.add_argument("--published", type=Path, nargs="+", required=True, help="formation energies; first the list")
    for one in (table, checked):
        one.add_argument("--hull", type=Path, default=TARGET)
    options = arguments.parse_args()
    options.run(options)


def command(commands: Any, name: str, function: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(name)
    parser.set_defaults(run=function)
    return parser


def make_table(options: argparse.Namespace) -> None:
    """Writes the hull."""
    published = [read_published(path) for path in options.published]
    rows = read_energies(options.energies)
    # What is published about a composition is better than a guess, wherever both are there.
    known = {row.composition for row in rows if row.origin == STRUCTURE} | {one for one, _ in published[0].values()}
    rows = [row for row in rows if row.origin == STRUCTURE or row.composition not in known]
    hull = to_hull(rows + by_composition(rows, *published))
    phases, info = hull.phases, replace(hull.info, name=options.name, version=options.version)
    if options.fill_from is not None:
        other = read_hull(options.fill_from).phases
        filled = fill(phases, other, range(len(other)))
        print(filled.shared, "shared", filled.added, "added", filled.lacking, filled.error, file=sys.stderr)
        phases = filled.phases
    write_hull(options.hull, Hull(phases, replace(info, potential=options.potential)))
    print(read_hull(options.hull), options.hull.stat().st_size, "bytes", file=sys.stderr)


def check(options: argparse.Namespace) -> None:
    """Prints what the hull holds and lacks, and its E_hull of crystals against a published column, as JSON."""
    hull = read_hull(options.hull)
    listed = read_published(options.published[0])
    phases = {composition for composition, _ in listed.values()}
    with gzip.open(options.crystals, "rt") as file:
        published = {row["material_id"]: float(row["e_above_hull"]) for row in csv.DictReader(file)}
    own = [row for row in read_energies([options.energies]) if row.id in published]
    origin = {hull.phases.composition(row): hull.phases.origins[row] for row in range(len(hull.phases))}
    distance = np.array([row.energy - hull.energy_at(dict(row.composition)) for row in own])
    # A crystal that is on the hull is 0 away from it, however far it is below the other phases.
    error = np.maximum(distance, 0) - np.array([published[row.id] for row in own])
    by_own = np.array([origin.get(row.composition) == COMPOSITION for row in own])
    figures = {
        "hull": str(hull),
        "listed compositions": len(phases),
        "missing": len(phases - origin.keys()),
        "origins": {name: hull.phases.origins.count(name) for name in sorted(set(hull.phases.origins))},
        "all": summary(error),
        "held by composition": summary(error[by_own]),
        "others": summary(error[~by_own]),
        "below the hull by more than 0.1": int((distance < -0.1).sum()),
    }
    print(json.dumps(figures, indent=1))


def hide(options: argparse.Namespace) -> None:
    """Prints what changes if known compositions have an energy by composition only, or none at all."""
    rows = read_energies(options.energies)
    published = [read_published(path) for path in options.published]
    whole = by_composition(rows, *published)
    phases = sorted({row.composition for row in rows} & {composition for composition, _ in published[0].values()})
    phases = [composition for composition in phases if len(composition) > 1]
    chosen = np.random.default_rng(0).choice(len(phases), options.count, replace=False)
    taken = {phases[i] for i in chosen}
    left = [row for row in rows if row.composition not in taken]
    hulls = {
        "whole": to_hull(rows + whole),
        "filled": to_hull(left + by_composition(left, *published)),
        "empty": to_hull(left + [row for row in whole if row.composition not in taken]),
    }
    difference = [
        hulls["filled"].phases.energies[row] - hulls["whole"].phases.energies[row]
        for row in range(len(hulls["whole"].phases))
        if hulls["whole"].phases.composition(row) in taken
    ]
    figures: dict[str, Any] = {
        "hidden": len(taken),
        "filled energy less computed energy": summary(np.array(difference)),
    }
    own = read_energies([options.crystals])
    at = {name: np.array([hull.energy_at(dict(row.composition)) for row in own]) for name, hull in hulls.items()}
    touched = np.array([any(set(dict(phase)) <= set(dict(row.composition)) for phase in taken) for row in own])
    for name in ("filled", "empty"):
        figures[f"E_hull on the {name} hull less that on the whole one"] = summary((at["whole"] - at[name])[touched])
    print(json.dumps(figures, indent=1))


def read_energies(paths: Iterable[Path]) -> list[Energy]:
    """All energies of files of tools/hull_energies.py."""
    rows = []
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if "energy" in row:
                origin = SUBSTITUTION if "->" in row["id"] else STRUCTURE
                rows.append(Energy(row["id"], reduced(row["formula"]), row["energy"], origin))
    return rows


def read_published(path: Path) -> dict[str, tuple[Reduced, float]]:
    """Material -> composition and formation energy (eV/atom), where both are there."""
    found = {}
    with gzip.open(path, "rt", newline="") as file:
        for row in csv.DictReader(file):
            formula = row.get("pretty_formula") or row.get("formula")
            if not formula and "cif" in row:
                formula = row["cif"].split("_chemical_formula_sum")[1].split("\n")[0].strip(" '")
            if formula and row["formation_energy_per_atom"]:
                found[row["material_id"]] = (reduced(formula), float(row["formation_energy_per_atom"]))
    return found


def reduced(formula: str) -> Reduced:
    return reduce_counts(count_atoms(Composition(formula)))


def by_composition(rows: Sequence[Energy], *published: dict[str, tuple[Reduced, float]]) -> list[Energy]:
    """Energies of the phases of the first list that have no structure, on the scale of the potential."""
    known = {name: energy for table in published for name, (_, energy) in table.items()}
    lowest: dict[str, Energy] = {}
    for row in rows:
        if row.id not in lowest or row.energy < lowest[row.id].energy:
            lowest[row.id] = row
    both = [row for row in lowest.values() if row.id in known]
    off = np.array([row.energy - known[row.id] for row in both])
    elements = fit_elements([row.composition for row in both], off, own_energies(both))
    polymorphs: dict[Reduced, list[float]] = {}
    for row in both:
        polymorphs.setdefault(row.composition, []).append(row.energy - known[row.id])
    filled = []
    for name, (composition, energy) in published[0].items():
        if name not in lowest:
            # What the potential is off by in one crystal of a composition, it mostly is in another.
            offset = np.median(polymorphs.get(composition, [(fractions_of([composition]) @ elements)[0]]))
            filled.append(Energy(name, composition, energy + float(offset), COMPOSITION))
    return filled


def own_energies(rows: Sequence[Energy]) -> np.ndarray:
    """Lowest energies of the elements, eV/atom by atomic number, 0 for those that have none."""
    own = np.zeros(len(SYMBOLS))
    for row in rows:
        if len(row.composition) == 1:
            z = row.composition[0][0]
            own[z] = min(own[z], row.energy)
    return own


def to_hull(rows: Sequence[Energy]) -> Hull:
    """The hull of the lowest energy of each composition."""
    columns = zip(*((row.composition, row.energy, row.id, row.origin) for row in rows), strict=True)
    phases = Phases.lowest(*columns)
    crystals = len({row.id for row in rows if row.origin != COMPOSITION})
    made = f"{crystals:,} crystals of the Materials Project and WBM; see its card"
    return Hull(phases, HullInfo("chgnet-mp", "mp2020", POTENTIAL, "2", made))


def summary(error: np.ndarray) -> dict[str, float]:
    if len(error) < 2:
        return {"number": len(error)}
    return {
        "number": len(error),
        "mean absolute error": round(float(np.abs(error).mean()), 4),
        "median absolute error": round(float(np.median(np.abs(error))), 4),
        "bias": round(float(error.mean()), 4),
        "standard error of the bias": round(float(error.std(ddof=1) / np.sqrt(len(error))), 4),
        "largest": round(float(np.abs(error).max()), 4),
    }


if __name__ == "__main__":
    main()
