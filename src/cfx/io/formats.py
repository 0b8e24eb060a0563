"""How a crystal is written: CIF, extended XYZ, JSON lines, CSV, POSCAR, and zips of CIF files."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfx.core.crystal import CrystalBatch
from cfx.core.elements import SYMBOLS, formula, lowest_terms
from cfx.core.likelihood import PARTS
from cfx.core.symmetry import LETTERS
from cfx.io.cif import cif_block, cif_blocks
from cfx.io.files import replace_atomically

if TYPE_CHECKING:
    from pymatgen.core import Structure


@dataclasses.dataclass(frozen=True)
class OutputRecord:
    """A crystal on its way out.

    Attributes:
        index: its place in the file, from 0.
        crystals: a batch of one (numpy).
        remarks: what else is known of it; log-probabilities in nats.
    """

    index: int
    crystals: CrystalBatch
    remarks: dict[str, str | int | float]

    @property
    def name(self) -> str:
        """Reduced formula and index."""
        return formula(lowest_terms(self.crystals.composition(0))) + f"_{self.index}"


def render_cif(record: OutputRecord) -> str:
    """A CIF block."""
    return cif_block(record.name, record.crystals, 0, record.remarks)


def render_extxyz(record: OutputRecord) -> str:
    """A frame of extended XYZ: all atoms of the conventional cell."""
    remarks = {"name": record.name, "space_group": int(record.crystals.space_group[0]), **record.remarks}
    return extxyz_frame(record.crystals.to_structures()[0], remarks)


def extxyz_frame(structure: Structure, remarks: dict[str, Any]) -> str:
    """A pymatgen Structure as a frame of extended XYZ."""
    import ase.io

    atoms = structure.to_ase_atoms(msonable=False)
    atoms.info = remarks
    for extra in [key for key in atoms.arrays if key not in ("numbers", "positions")]:
        del atoms.arrays[extra]
    text = io.StringIO()
    ase.io.write(text, atoms, format="extxyz")
    return text.getvalue()


def render_jsonl(record: OutputRecord) -> str:
    """A line of JSON: the asymmetric unit, what else is known, and the CIF block."""
    crystals, num = record.crystals, int(record.crystals.num_sites[0])
    line = {
        "name": record.name,
        "space_group": int(crystals.space_group[0]),
        "lattice": [float(f"{value:.8g}") for value in crystals.lattice[0]],
        "wyckoff": [LETTERS[letter] for letter in crystals.wyckoff[0, :num]],
        "species": [SYMBOLS[number] for number in crystals.species[0, :num]],
        "frac_coords": [[float(f"{x:.8g}") for x in point] for point in crystals.frac_coords[0, :num]],
        **record.remarks,
        "cif": render_cif(record),
    }
    return json.dumps(line) + "\n"


CSV_HEADER = "L,X,A,W,M,G,logp_w,logp_a,logp_xyz,logp_l,logp\n"


def render_csv(record: OutputRecord) -> str:
    """A row in the layout of the public CrystalFormer: arrays over all slots, lattice in angstrom and degree."""
    crystals, remarks = record.crystals, record.remarks
    arrays = [crystals.lattice, crystals.frac_coords, crystals.species, crystals.wyckoff, crystals.multiplicity]
    cells = [json.dumps(np.asarray(array[0], float if i < 2 else int).tolist()) for i, array in enumerate(arrays)]
    names = (*(f"log_prob_{part}" for part in PARTS), "log_prob")
    numbers = [str(int(crystals.space_group[0])), *(f"{remarks[name]:.6f}" for name in names)]
    return ",".join([*(f'"{cell}"' for cell in cells), *numbers]) + "\n"


def render_poscar(record: OutputRecord) -> str:
    """A POSCAR of the conventional cell."""
    from pymatgen.io.vasp import Poscar

    return Poscar(record.crystals.to_structures()[0].get_sorted_structure(), comment=record.name).get_str()


def write_zip(blocks: Path, path: Path) -> None:
    """A file of CIF blocks as a zip of files gen_0.cif, gen_1.cif, ..., without the time of day."""

    def write(fresh: Path) -> None:
        with open(blocks, encoding="utf-8") as lines, zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as archive:
            for i, block in enumerate(cif_blocks(lines)):
                member = zipfile.ZipInfo(f"gen_{i}.cif")  # of 1980
                member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, 0o600 << 16
                archive.writestr(member, block)

    replace_atomically(path, write, fresh=blocks.with_name(f"{blocks.name}.new"))


@dataclasses.dataclass(frozen=True)
class Format:
    """How crystals of a suffix are written.

    Attributes:
        render: the text of one.
        start: how one line of each begins, and no other line; None for files of their own.
        header: the text before the first.
        any_cell: lattices that close no cell can be written too.
        complete: makes the final file of the partial one.
    """

    render: Callable[[OutputRecord], str]
    start: bytes | None
    header: str = ""
    any_cell: bool = True
    complete: Callable[[Path, Path], None] = os.replace


FORMATS = {
    ".cif": Format(render_cif, b"data_"),
    ".zip": Format(render_cif, b"data_", complete=write_zip),
    ".extxyz": Format(render_extxyz, b"Lattice=", any_cell=False),
    ".jsonl": Format(render_jsonl, b"{"),
    ".csv": Format(render_csv, b'"', header=CSV_HEADER),
    "": Format(render_poscar, None, any_cell=False),
}
"""By suffix; a name without one is a directory of POSCAR files."""
