"""Inputs for VASP and Quantum ESPRESSO: what they say is the crystal, and they can be read again."""

from __future__ import annotations

import io

import ase.io
import numpy as np
from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp import Incar, Kpoints, Poscar

from cfx.io.dft_inputs import INPUTS, qe_inputs, vasp_inputs

WUESTITE = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.2), ["Fe", "O"], [[0, 0, 0], [0.5] * 3])
WUESTITE = WUESTITE.get_primitive_structure()


def test_vasp():
    files = vasp_inputs(WUESTITE)
    assert files.keys() == {"INCAR", "KPOINTS", "POSCAR", "POTCAR.spec"}
    assert Poscar.from_str(files["POSCAR"]).structure.matches(WUESTITE)
    incar = Incar.from_str(files["INCAR"])
    assert (incar["ENCUT"], incar["ISIF"], incar["LDAUU"][0], incar["MAGMOM"][0]) == (520, 3, 5.3, 5)
    assert min(Kpoints.from_str(files["KPOINTS"]).kpts[0]) >= 8
    assert files["POTCAR.spec"] == "Fe_pv\nO\n"


def test_quantum_espresso():
    files = qe_inputs(WUESTITE)
    text = files["pw.in"]
    atoms = ase.io.read(io.StringIO(text), format="espresso-in")
    assert atoms.get_chemical_symbols() == ["Fe", "O"]
    assert np.allclose(atoms.cell[:], WUESTITE.lattice.matrix) and np.allclose(atoms.positions, WUESTITE.cart_coords)
    assert "'vc-relax'" in text and "nspin            = 2" in text and "Fe.upf" in text
    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3])
    assert "nspin" not in qe_inputs(salt)["pw.in"]


def test_both_can_be_asked_for():
    from cfx.config.discovery import PROGRAMS

    assert tuple(INPUTS) == PROGRAMS
