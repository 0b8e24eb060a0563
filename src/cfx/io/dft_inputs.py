"""Inputs for calculations of crystals by density functional theory, as files by name."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pymatgen.core import Structure

ECUTWFC, ECUTRHO = 60.0, 480.0
"""Cutoffs of wave functions and density, Ry, that ultrasoft pseudopotentials of the SSSP library ask for at most."""

KSPACING = 0.03
"""Distance of k-points, 1/angstrom, without 2 pi."""


def vasp_inputs(structure: Structure) -> dict[str, str]:
    """INCAR, KPOINTS, POSCAR and POTCAR.spec of a relaxation by the Materials Project's settings (`MPRelaxSet`).

    POTCAR.spec names the pseudopotentials, one on a line; POTCAR itself is made of licensed files.

    Args:
        structure: ordered.
    """
    from pymatgen.io.vasp.sets import MPRelaxSet

    with warnings.catch_warnings(action="ignore"):  # of pseudopotentials that are not here
        files = MPRelaxSet(structure).get_input_set(potcar_spec=True)
    return {name: f"{text}".rstrip() + "\n" for name, text in files.items()}


def qe_inputs(structure: Structure) -> dict[str, str]:
    """pw.in of a relaxation of atoms and cell by Quantum ESPRESSO, spin-polarised where an element may be magnetic.

    Its pseudopotentials are named ELEMENT.upf.

    Args:
        structure: ordered.
    """
    import ase
    import ase.io

    numbers = [site.specie.Z for site in structure]
    atoms = ase.Atoms(numbers=numbers, positions=structure.cart_coords, cell=structure.lattice.matrix, pbc=True)
    magnetic = [float(symbol in MAGNETIC) for symbol in atoms.get_chemical_symbols()]
    atoms.set_initial_magnetic_moments(magnetic)
    settings = {
        "control": {"calculation": "vc-relax", "pseudo_dir": "./pseudo", "outdir": "./out", "forc_conv_thr": 1e-3},
        "system": {"ecutwfc": ECUTWFC, "ecutrho": ECUTRHO, "occupations": "smearing", "smearing": "cold"}
        | {"degauss": 0.01},
        "electrons": {"conv_thr": 1e-9},
    }
    text = io.StringIO()
    pseudopotentials = {symbol: f"{symbol}.upf" for symbol in sorted(set(atoms.get_chemical_symbols()))}
    ase.io.write(
        text, atoms, format="espresso-in", input_data=settings, pseudopotentials=pseudopotentials, kspacing=KSPACING
    )
    return {"pw.in": text.getvalue()}


MAGNETIC = frozenset(
    [
        *("V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Ce", "Pr", "Nd", "Sm", "Eu"),
        *("Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "U", "Np", "Pu"),
    ]
)
"""Elements that begin with a magnetic moment."""

INPUTS: dict[str, Callable[[Structure], dict[str, str]]] = {"vasp": vasp_inputs, "qe": qe_inputs}
"""What writes the inputs of each program."""
