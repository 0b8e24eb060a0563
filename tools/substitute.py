"""Binary compounds of f elements that nobody published a structure of, in the structure of a neighbour's compound.

    python tools/substitute.py mp20_subset_train.csv.gz mp_extra.csv.gz --energies energies.jsonl -o substituted.jsonl

Lanthanides (with yttrium) and actinides form series of compounds with the same structure, of which lists have gaps: a
hull that lacks NdF3 holds every other fluoride of neodymium for stable. For each binary composition that some elements
of a series have and another lacks, the lowest phase of the nearest two in the series is taken over. Energies of any
structures are above the true hull or on it, so these phases make a hull more complete, never too low.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hull_energies import read
from make_hull import Energy, read_energies

from cfx.evaluation.phases import Reduced

SERIES = {"lanthanides": [39, *range(57, 72)], "actinides": list(range(89, 95))}
"""Atomic numbers; yttrium, whose size is holmium's, stands beside it (see `place`)."""

NEIGHBOURS = 2


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("crystals", type=Path, nargs="+")
    arguments.add_argument("--energies", type=Path, nargs="+", required=True, help="of these crystals")
    arguments.add_argument("-o", "--output", type=Path, required=True)
    options = arguments.parse_args()
    lowest: dict[Reduced, Energy] = {}
    for row in read_energies(options.energies):
        if row.composition not in lowest or row.energy < lowest[row.composition].energy:
            lowest[row.composition] = row
    wanted: dict[str, list[tuple[int, int]]] = {}
    for source, old, new in substitutions(lowest):
        wanted.setdefault(source, []).append((old, new))
    with open(options.output, "w") as file:
        for path in options.crystals:
            for name, structure, _ in read(path):
                for old, new in wanted.pop(name, []) if structure else []:
                    file.write(json.dumps(substituted(name, structure, old, new)) + "\n")


def substitutions(lowest: dict[Reduced, Energy]) -> list[tuple[str, int, int]]:
    """(crystal, element, what it is replaced by) for each composition that is missing."""
    found = []
    for series in SERIES.values():
        families: dict[tuple, dict[int, str]] = {}
        for composition, row in lowest.items():
            own = [z for z, _ in composition if z in series]
            if len(composition) == 2 and len(own) == 1:
                [(z, n)] = [pair for pair in composition if pair[0] in series]
                [other] = [pair for pair in composition if pair[0] not in series]
                families.setdefault((n, other), {})[z] = row.id
        for members in families.values():
            for new in series:
                if new not in members:
                    nearest = sorted(members, key=lambda z: abs(place(z) - place(new)))
                    found += [(members[old], old, new) for old in nearest[:NEIGHBOURS]]
    return found


def place(z: int) -> float:
    """Place in the order of sizes."""
    return 67.5 if z == 39 else z


def substituted(name: str, structure, old: int, new: int) -> dict:
    from cfx.core.elements import SYMBOLS

    crystal = structure.copy()
    crystal.replace_species({SYMBOLS[old]: SYMBOLS[new]})
    return {"id": f"{name} {SYMBOLS[old]}->{SYMBOLS[new]}", "structure": crystal.as_dict()}


if __name__ == "__main__":
    main()
