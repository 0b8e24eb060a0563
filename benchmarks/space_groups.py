"""Are crystals found again in the space group they were asked for?

    python benchmarks/space_groups.py --model mini --n 1000 194 225 62

Samples with `cfx sample`, parses every CIF block with pymatgen, and searches it with spglib. Prints JSON: for each
space group the share of blocks found in it, in a group whose operations contain it (a crystal more symmetric than
asked), in another, or undetectable.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import spglib
from pymatgen.io.cif import CifParser
from record import add_json, keep

from cfx.core.symmetry import symmetry_table


def classify(structure, group: int, symprec: float) -> str:
    """as_asked, more_symmetric, other or undetectable."""
    cell = (structure.lattice.matrix, structure.frac_coords, [site.specie.Z for site in structure])
    dataset = spglib.get_symmetry_dataset(cell, symprec=symprec)
    if dataset is None:
        return "undetectable"
    if dataset.number == group:
        return "as_asked"
    return "more_symmetric" if contains_operations(dataset, group) else "other"


def contains_operations(dataset, group: int, tolerance: float = 1e-3) -> bool:
    """Whether every operation of the requested group, in the cell as written, is one that the search found."""
    for rotation, translation in zip(*symmetry_table().general_operations(group), strict=True):
        same = (dataset.rotations == np.rint(rotation).astype(int)).all((1, 2))
        shift = dataset.translations[same] - translation
        if not (np.abs(shift - np.rint(shift)) < tolerance).all(1).any():
            return False
    return True


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("groups", nargs="+", type=int)
    arguments.add_argument("--model", default="mini")
    arguments.add_argument("--n", type=int, default=1000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--symprec", type=float, default=0.01)
    add_json(arguments)
    options = arguments.parse_args()
    warnings.simplefilter("ignore")
    report = {"model": options.model, "n": options.n, "seed": options.seed, "symprec": options.symprec}
    with tempfile.TemporaryDirectory() as directory:
        for group in options.groups:
            path = Path(directory) / f"{group}.cif"
            command = ["cfx", "sample", "--sg", group, "--n", options.n, "--seed", options.seed]
            command += ["--model", options.model, "-o", path]
            subprocess.run([str(word) for word in command], check=True, stderr=sys.stderr)
            blocks = ["data_" + text for text in path.read_text().split("data_")[1:]]
            parsed = [structure for block in blocks if (structure := parse(block)) is not None]
            shares = Counter(classify(structure, group, options.symprec) for structure in parsed)
            report[str(group)] = {
                "blocks": len(blocks),
                "parsed": len(parsed),
                **{name: count / len(parsed) for name, count in sorted(shares.items())},
            }
    keep(report, options)


def parse(block: str):
    """The conventional cell of a block, or None."""
    try:
        return CifParser.from_str(block).parse_structures(primitive=False)[0]
    except ValueError as error:
        print(f"does not parse: {error}\n{block[:200]}", file=sys.stderr)
        return None


if __name__ == "__main__":
    main()
