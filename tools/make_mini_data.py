r"""Writes the training data of the bundled model: MP-20 and the small cells of MPTS-52.

    python tools/make_mini_data.py mp20_subset_train.csv.gz mpts52_subset.csv.gz \
        --held-out mp20_subset_val.csv.gz -o mini_train.csv

Of MPTS-52 it takes what MP-20's own rules allow (at most 20 atoms in the primitive cell, near the hull) and what no
part of MP-20 holds: no entry of the same Materials Project id, and none that matches a held-out crystal of the same
reduced composition. With --balanced only crystals whose composition SMACT finds valid: what the last epochs see.
"""

from __future__ import annotations

import argparse
from pathlib import Path

MAX_ATOMS = 20
MAX_E_HULL = 0.1  # eV/atom; MP-20 stops at 0.08, of an older hull


def main() -> None:
    import pandas as pd

    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("mp20", type=Path)
    arguments.add_argument("mpts52", type=Path)
    arguments.add_argument("--held-out", type=Path, required=True)
    arguments.add_argument("--balanced", action="store_true", help="only crystals of valid composition")
    arguments.add_argument("-o", "--output", type=Path, required=True)
    options = arguments.parse_args()

    mp20, held_out = pd.read_csv(options.mp20), pd.read_csv(options.held_out)
    more = pd.read_csv(options.mpts52)
    more = more[more.energy_above_hull <= MAX_E_HULL]
    more = more[~more.material_id.isin(set(mp20.material_id) | set(held_out.material_id))]
    small = unlike(more, held_out)
    table = pd.concat([mp20[["material_id", "cif"]], small[["material_id", "cif"]]])
    print(f"{len(mp20):,} crystals of MP-20, {len(small):,} of MPTS-52")
    if options.balanced:
        table = balanced(table)
        print(f"{len(table):,} of valid composition")
    table.to_csv(options.output, index=False)


def balanced(table):
    """The rows whose composition is valid."""
    from pymatgen.core import Structure

    from cfx.evaluation.validity import composition_validity

    records = composition_validity([Structure.from_str(cif, fmt="cif") for cif in table.cif])
    return table[[record.valid for record in records]]


def unlike(table, held_out):
    """The rows of `table` of at most MAX_ATOMS atoms that match no crystal of `held_out`."""
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

    matcher, known = StructureMatcher(), {}
    for cif in held_out.cif:
        structure = Structure.from_str(cif, fmt="cif")
        known.setdefault(structure.composition.reduced_formula, []).append(structure)

    def keep(cif: str) -> bool:
        structure = Structure.from_str(cif, fmt="cif")
        if len(structure.get_primitive_structure()) > MAX_ATOMS:
            return False
        return not any(matcher.fit(structure, other) for other in known.get(structure.composition.reduced_formula, []))

    return table[table.cif.map(keep)]


if __name__ == "__main__":
    main()
