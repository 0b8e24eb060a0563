"""How a crystal is written: CIF, extended XYZ, JSON lines, CSV, POSCAR, and zips of CIF files."""

import dataclasses
import functools
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfx.core.crystal import CrystalBatch
from cfx.core.elements import SYMBOLS, formula
from cfx.core.likelihood import PARTS
from cfx.core.symmetry import LETTERS, operation_text, symmetry_table
from cfx.io.journal import complete

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
        return f"{formula(self.crystals.composition(0))}_{self.index}"


def render_cif(record: OutputRecord) -> str:
    """A CIF block."""
    return cif_block(record.name, record.crystals, record.remarks)


def render_extxyz(record: OutputRecord) -> str:
    """A frame of extended XYZ: all atoms of the conventional cell. Its space group is the one found, where known."""
    remarks, asked = dict(record.remarks), int(record.crystals.space_group[0])
    groups = {"space_group": remarks.pop("space_group_found", asked), "space_group_asked": asked}
    return extxyz_frame(record.crystals.to_structures()[0], {"name": record.name, **groups, **remarks})


def extxyz_frame(structure: "Structure", remarks: dict[str, Any]) -> str:
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
    """A POSCAR of the conventional cell, as a line of JSON."""
    from pymatgen.io.vasp import Poscar

    structure = record.crystals.to_structures()[0].get_sorted_structure()
    return json.dumps(Poscar(structure, comment=record.name).get_str()) + "\n"


def write_directory(lines: Path, path: Path) -> None:
    """A file of POSCARs, each a line of JSON, as a directory of files gen_0.vasp, gen_1.vasp, ..."""

    def write(fresh: Path) -> None:
        fresh.mkdir(exist_ok=True)
        with open(lines, encoding="utf-8") as file:
            for i, line in enumerate(file):
                (fresh / f"gen_{i}.vasp").write_text(json.loads(line))

    complete(path, write)


def write_zip(blocks: Path, path: Path) -> None:
    """A file of CIF blocks as a zip of files gen_0.cif, gen_1.cif, ..., without the time of day."""

    def write(fresh: Path) -> None:
        with open(blocks, encoding="utf-8") as lines, zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as archive:
            for i, block in enumerate(cif_blocks(lines)):
                member = zipfile.ZipInfo(f"gen_{i}.cif")  # of 1980
                member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, 0o600 << 16
                archive.writestr(member, block)

    complete(path, write)


@dataclasses.dataclass(frozen=True)
class Format:
    """How crystals of a suffix are written.

    Attributes:
        render: the text of one.
        start: how one line of each begins, and no other line.
        header: the text before the first.
        any_cell: lattices that close no cell can be written too.
        complete: makes the final file of the partial one.
    """

    render: Callable[[OutputRecord], str]
    start: bytes
    header: str = ""
    any_cell: bool = True
    complete: Callable[[Path, Path], None] = os.replace


FORMATS = {
    ".cif": Format(render_cif, b"data_"),
    ".zip": Format(render_cif, b"data_", complete=write_zip),
    ".extxyz": Format(render_extxyz, b"Lattice=", any_cell=False),
    ".jsonl": Format(render_jsonl, b"{"),
    ".csv": Format(render_csv, b'"', header=CSV_HEADER),
    "": Format(render_poscar, b'"', any_cell=False, complete=write_directory),
}
"""Output formats by suffix; a name without a suffix is a directory of POSCAR files."""


CELL = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
SITE = "label type_symbol symmetry_multiplicity Wyckoff_symbol fract_x fract_y fract_z occupancy"


def cif_block(name: str, crystals: CrystalBatch, remarks: Mapping[str, str | int | float]) -> str:
    """The CIF block of a batch of one crystal, called `name`; remarks are written as `_cfx_KEY value`."""
    group, letters, species = int(crystals.space_group[0]), crystals.wyckoff[0], crystals.species[0]
    multiplicity = symmetry_table().multiplicity[group - 1, letters]
    counts = {SYMBOLS[number]: count for number, count in crystals.composition(0).items()}
    lines = [f"data_{name}"]
    lines += [f"_cfx_{key} {_value(value)}" for key, value in remarks.items()]
    lines += ["_chemical_formula_sum '" + " ".join(f"{symbol}{n}" for symbol, n in sorted(counts.items())) + "'"]
    lines += [f"_cell_{key} {float(value):.8f}" for key, value in zip(CELL, crystals.lattice[0], strict=True)]
    lines += [_symmetry_text(group), "loop_", *(f"_atom_site_{key}" for key in SITE.split())]
    for i in range(int(crystals.num_sites[0])):
        symbol = SYMBOLS[species[i]]
        x, y, z = _exact(group, int(letters[i]), crystals.frac_coords[0, i])
        lines += [f"{symbol}{i + 1} {symbol} {multiplicity[i]} {LETTERS[letters[i]]} {x:.10f} {y:.10f} {z:.10f} 1"]
    return "\n".join(lines) + "\n\n"


def _value(value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"'{value}'" if isinstance(value, str) and (" " in value or not value) else str(value)


@functools.cache
def _symmetry_text(group: int) -> str:
    rotations, translations = symmetry_table().general_operations(group)
    operations = [operation_text(r, t) for r, t in zip(rotations, translations, strict=True)]
    lines = [f"_space_group_IT_number {group}", f"_space_group_name_H-M_alt '{symmetry_table().symbol[group - 1]}'"]
    lines += ["loop_", "_space_group_symop_id", "_space_group_symop_operation_xyz"]
    return "\n".join(lines + [f"{i} '{operation}'" for i, operation in enumerate(operations, start=1)])


def _exact(group: int, letter: int, point: np.ndarray) -> np.ndarray:
    """The point on its Wyckoff position in float64: 1/3 rather than the nearest float32."""
    # The position's first operation maps a point of the position to itself: its fixed coordinates become exact.
    rotations, translations = symmetry_table().operations(group, letter)
    exact = rotations[0] @ point.astype(float) + translations[0]
    exact = np.round(exact - np.floor(exact), 10)
    return np.where(exact >= 1, 0.0, exact)


def cif_blocks(lines: Iterable[str]) -> Iterator[str]:
    """The blocks of a file that begins with one."""
    block: list[str] = []
    for line in lines:
        if block and line.startswith("data_"):
            yield "".join(block)
            block = []
        block.append(line)
    if block:
        yield "".join(block)
