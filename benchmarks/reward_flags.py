"""What the bundled models say they do not know, and what the public program leaves uncorrected, as JSON.

    python benchmarks/reward_flags.py CRYSTALS DIELECTRIC [--json FILE]

CRYSTALS is a table with a column cif, such as the validation part of MP-20. `outside` is the share of them that are
unlike a model's training data; `corrections` compares the energy corrections of MP2020 with those of the public program
of CrystalFormer-RL, eV/atom. DIELECTRIC is the table of Petousis et al. (doi:10.1038/sdata.2016.134), with dielectric
tensors and the cell in a column meta: how large the contribution of ions is in crystals that are flagged as soft polar.
"""

from __future__ import annotations

import argparse
import ast
import json
import warnings
from pathlib import Path

import numpy as np
import pandas
from pymatgen.core import Lattice, Structure
from record import add_json, keep

from cfx.evaluation.corrections import UNCORRECTABLE, correct
from cfx.predictors.bundled import SOFT_POLAR, evaluate_all, is_soft_polar
from cfx.predictors.load import load_property

LARGE = 30
"""A contribution of ions to the dielectric constant that is unusual."""

TEXTBOOK = {
    "rutile": ("P4_2/mnm", Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]),
    "SrTiO3": ("Pm-3m", Lattice.cubic(3.945), ["Sr", "Ti", "O"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]),
    "PbTe": ("Fm-3m", Lattice.cubic(6.462), ["Pb", "Te"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
}
"""Soft polar crystals, whose measured constants at room temperature are about 115, 300 and 200 or more."""


def outside(structures: list[Structure]) -> dict[str, float]:
    """Shares of crystals that are unlike what the bundled models were trained on."""
    gap, dielectric = evaluate_all(
        [load_property("band_gap", "bundled"), load_property("dielectric", "bundled")], structures
    )
    wide = gap.value > 0.5
    return {
        "crystals": len(structures),
        "gap": float(gap.outside.mean()),
        "dielectric": float(dielectric.outside.mean()),
        "with_a_gap_above_0.5_ev": int(wide.sum()),
        "dielectric_with_such_a_gap": float(dielectric.outside[wide].mean()),
        "soft_polar": float(np.nanmean(dielectric.parts[SOFT_POLAR])),
    }


def corrections(structures: list[Structure]) -> dict[str, float]:
    """How far the public program's energies are from corrected ones, eV/atom."""
    differences = []
    for structure in structures:
        try:
            difference = correct(structure, 0.0, "published") - correct(structure, 0.0)
        except UNCORRECTABLE:
            continue
        differences.append(difference / len(structure))
    off = np.array(differences)
    return {
        "crystals": len(off),
        "different": int((np.abs(off) > 1e-6).sum()),
        "largest": float(off.max()),
        "mean_of_different": float(off[np.abs(off) > 1e-6].mean()),
    }


def ions(path: Path) -> dict[str, float]:
    """What flags of soft polar crystals are worth."""
    table = pandas.read_csv(path, comment="#")
    cells = [Structure.from_str(ast.literal_eval(meta)["poscar"], fmt="poscar") for meta in table["meta"]]
    soft = np.array([is_soft_polar(np.array(cell.atomic_numbers)) for cell in cells])
    total, electronic = (
        np.array([np.trace(json.loads(text)) / 3 for text in table[column]]) for column in ("e_total", "e_electronic")
    )
    large = total - electronic > LARGE
    return {
        "crystals": len(cells),
        "flagged": int(soft.sum()),
        "large": int(large.sum()),
        "large_and_flagged": int((large & soft).sum()),
        "median_of_flagged": float(np.median((total - electronic)[soft])),
        "median_of_others": float(np.median((total - electronic)[~soft])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crystals", type=Path)
    parser.add_argument("dielectric", type=Path)
    add_json(parser)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    structures = [Structure.from_str(cif, fmt="cif") for cif in pandas.read_csv(options.crystals)["cif"]]
    textbook = [Structure.from_spacegroup(*facts).get_primitive_structure() for facts in TEXTBOOK.values()]
    predicted = load_property("dielectric", "bundled").evaluate(textbook).value
    figures = {
        "outside": outside(structures),
        "corrections": corrections(structures),
        "contributions_of_ions": ions(options.dielectric),
        "predicted": dict(zip(TEXTBOOK, predicted.tolist(), strict=True)),
    }
    options.crystals, options.dielectric = options.crystals.name, options.dielectric.name
    keep(figures, options)


if __name__ == "__main__":
    main()
