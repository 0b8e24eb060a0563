"""Structures encoded a second, on one core, against pyxtal's object model in the same run.

    python benchmarks/encoding.py DATA [--n 300]

DATA is anything `cfx train` reads. Parsing is not counted: both start from pymatgen Structures. Prints JSON, with
the share of structures that both encode to the same space group, letters, species and coordinates.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from pathlib import Path

import numpy as np

from cfx.core.elements import SYMBOLS
from cfx.io.encode import encode_structure
from cfx.io.structures import parse_structure, read_records


def by_pyxtal(structure) -> list[tuple]:
    """(letter, x, y, z, atomic number) of every site, sorted, by pyxtal."""
    from pyxtal import pyxtal

    crystal = pyxtal()
    crystal.from_seed(structure, tol=0.01)
    sites = []
    for site in crystal.atom_sites:
        letter = 27 if site.wp.letter == "A" else ord(site.wp.letter) - 96
        species = site.specie if isinstance(site.specie, int) else SYMBOLS.index(str(site.specie))
        sites.append((letter, *(np.array(site.position) % 1.0), species))
    return [(crystal.group.number,), *sorted(sites)]


def by_cfx(structure) -> list[tuple]:
    """The same by cfx."""
    crystal = encode_structure(structure, max_sites=10_000)
    sites = zip(crystal.wyckoff, *crystal.frac_coords.T, crystal.species, strict=True)
    return [(crystal.space_group,), *sorted(tuple(map(float, site)) for site in sites)]


def timed(encode, structures: list) -> tuple[list, float]:
    """Results, and structures a second; the first structure is encoded once before the clock starts."""
    encode(structures[0])
    start = time.perf_counter()
    results = [encode(structure) for structure in structures]
    return results, len(structures) / (time.perf_counter() - start)


def agree(ours: list[tuple], theirs: list[tuple]) -> bool:
    """Whether two encodings are the same, coordinates to 1e-3 and modulo 1."""
    if [site[0] for site in ours] != [site[0] for site in theirs]:
        return False
    if [site[-1] for site in ours] != [site[-1] for site in theirs]:
        return False
    coords = [np.array([site[1:4] for site in sites[1:]]) for sites in (ours, theirs)]
    difference = coords[0] - coords[1]
    return bool((np.abs(difference - np.rint(difference)) < 1e-3).all())


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--n", type=int, default=300)
    options = arguments.parse_args()
    warnings.simplefilter("ignore")
    records = itertools.islice(read_records(options.data), options.n)
    structures = [parse_structure(record) for record in records]
    ours, our_rate = timed(by_cfx, structures)
    theirs, their_rate = timed(by_pyxtal, structures)
    same = sum(agree(one, other) for one, other in zip(ours, theirs, strict=True))
    report = {
        "structures": len(structures),
        "cfx_per_second": round(our_rate, 1),
        "pyxtal_per_second": round(their_rate, 1),
        "ratio": round(our_rate / their_rate, 2),
        "share_identical": round(same / len(structures), 4),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
