"""Makes docs/notebooks/perovskites.extxyz: 300 cubic perovskites that cfx drew.

python tools/make_perovskites.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pymatgen.core import Structure

import cfx
from cfx.config.texts import words
from cfx.io.formats import extxyz_frame

OUTPUT = Path(__file__).parent.parent / "docs" / "notebooks" / "perovskites.extxyz"
NUMBER = 300
CATIONS = words("Na,K,Rb,Cs,Mg,Ca,Sr,Ba,Mn,Zn,Cd,Pb,La,Nd,Gd,Y,Ti,Zr,Hf,Sn,Nb,Ta,Al,Ga,In,V,Cr,Fe,Co,Ni,Ge")
ANIONS = words("O,F,Cl,Br,I")


def main() -> None:
    """Draws A on 1a, B on 1b, X on 3c, and keeps valid ones, each once, whose charges balance."""
    template = cfx.Template(letters=("a", "b", "c"), species=(CATIONS, CATIONS, ANIONS))
    drawn = cfx.load_model("mini").sample(221, n=800, seed=0, template=template, progress=True)
    table = cfx.evaluate(drawn, progress=True).table
    kept = table[table["valid"] & table["unique"] & (table["class"] == "charge-neutral")].index[:NUMBER]
    structures = drawn.to_structures()
    cells = [rounded(structures[row]) for row in kept]
    OUTPUT.write_text("".join(extxyz_frame(cell, {"name": cell.composition.reduced_formula}) for cell in cells))
    print(f"{len(kept)} crystals of {len(table)}: {OUTPUT}")


def rounded(structure: Structure) -> Structure:
    """A structure whose lattice has six decimals, which make a short file."""
    return Structure(np.round(structure.lattice.matrix, 6) + 0.0, structure.species, structure.frac_coords)


if __name__ == "__main__":
    main()
