"""What finding duplicates costs, against StructureMatcher on every pair.

    python benchmarks/duplicates.py [DATA] [--bases 150]

DATA is anything `cfx train` reads; without it the crystals of the tests are taken. Each of `bases` crystals is there
twice: as it is, and in turn as a supercell, rotated in another setting, with another origin and order of atoms, or
strained by 2 % with displaced atoms; all are shuffled. Prints JSON:

- processor seconds, on one core, of `find_duplicates`; of StructureMatcher.fit on all pairs; on pairs of a crystal with
  a kept one until it matches; on such pairs of one composition only; how many times faster `find_duplicates` is.
- equal: whether all agree on which crystals are unique; unique: how many are.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import warnings
from pathlib import Path

import numpy as np
from record import add_json, keep

from cfx.evaluation.matching import find_duplicates, same_crystal

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "v042_dev_cifs.json"


def load(data: Path | None, count: int) -> list:
    """The first `count` ordered crystals of the data, or of the tests' own."""
    from pymatgen.core import Structure

    from cfx.data.read import parse_structure, read_records

    if data is None:
        texts = [record["cif"] for record in json.loads(GOLDEN.read_text())]
        return [Structure.from_str(text, fmt="cif") for text in texts[:count]]
    parsed = map(parse_structure, read_records(data))
    return [structure for structure, _ in zip((one for one in parsed if one.is_ordered), range(count), strict=False)]


def disguises(structure, rng: np.random.Generator) -> list:
    """Four structures of one crystal, see above."""
    from pymatgen.core import Lattice, Structure

    def build(matrix, coords, order=slice(None)):
        species = np.array([site.specie.symbol for site in structure])
        return Structure(Lattice(matrix), list(species[order]), coords[order])

    matrix, coords = structure.lattice.matrix, structure.frac_coords
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    setting = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 1]])
    supercell = structure.copy()
    supercell.make_supercell([2, 1, 1])
    strained = build(matrix @ (np.eye(3) + np.diag(rng.uniform(-0.02, 0.02, 3))), coords)
    strained.perturb(0.02, seed=int(rng.integers(1 << 30)))
    return [
        supercell,
        build(setting @ matrix @ rotation, coords @ np.linalg.inv(setting)),
        build(matrix, coords + rng.random(3), rng.permutation(len(coords))),
        strained,
    ]


def all_pairs(structures: list) -> list[bool]:
    """Which crystals match no kept one, from the answers of StructureMatcher on all pairs."""
    rows = range(len(structures))
    match = [[same_crystal(structures[i], structures[row]) for i in range(row)] for row in rows]
    kept: list[int] = []
    for row in rows:
        if not any(match[row][i] for i in kept):
            kept.append(row)
    return [row in set(kept) for row in rows]


def pairs_with_kept(structures: list, within_composition: bool) -> list[bool]:
    """The same, where a crystal is only compared with kept ones until it matches."""
    formulas = [structure.composition.reduced_formula for structure in structures]
    kept: list[int] = []
    for row, structure in enumerate(structures):
        others = (i for i in kept if not within_composition or formulas[i] == formulas[row])
        if not any(same_crystal(structures[i], structure) for i in others):
            kept.append(row)
    return [row in set(kept) for row in range(len(structures))]


def timed(function, *arguments) -> tuple[list[bool], float]:
    start = time.process_time()
    result = function(*arguments)
    return result, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--bases", type=int, default=150)
    add_json(parser)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    rng = np.random.default_rng(0)
    bases = load(arguments.data, arguments.bases)
    structures = bases + [disguises(base, rng)[i % 4] for i, base in enumerate(bases)]
    random.Random(0).shuffle(structures)
    find_duplicates([structures[0]] * 2)  # imports
    ours, seconds = timed(lambda: [record.unique for record in find_duplicates(structures, n_jobs=1)])
    answers = {
        "all_pairs": timed(all_pairs, structures),
        "pairs_with_kept": timed(pairs_with_kept, structures, False),
        "same_composition": timed(pairs_with_kept, structures, True),
    }
    report = {
        "crystals": len(structures),
        "unique": sum(ours),
        "equal": all(answer == ours for answer, _ in answers.values()),
        "seconds": {"find_duplicates": seconds, **{name: time for name, (_, time) in answers.items()}},
        "times_faster_than": {name: time / seconds for name, (_, time) in answers.items()},
    }
    keep(report, arguments)


if __name__ == "__main__":
    main()
