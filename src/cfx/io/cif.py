"""CIF blocks: a crystal with its real space group and the asymmetric unit; a file taken apart."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from cfx.core.elements import SYMBOLS
from cfx.core.symmetry import LETTERS, operation_text, symmetry_table

if TYPE_CHECKING:
    from cfx.core.crystal import CrystalBatch


def cif_block(name: str, crystals: CrystalBatch, row: int, remarks: dict[str, str | int | float]) -> str:
    """The CIF block of one crystal.

    Args:
        name: of the data block.
        crystals: a batch.
        row: the crystal in it.
        remarks: written as `_cfx_KEY value`.
    """
    group = int(crystals.space_group[row])
    sites = range(int((crystals.wyckoff[row] > 0).sum()))
    letters, species = crystals.wyckoff[row], crystals.species[row]
    multiplicity = symmetry_table().multiplicity[group - 1, letters]
    counts = {SYMBOLS[number]: count for number, count in crystals.composition(row).items()}
    cell = zip(
        ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"),
        crystals.lattice[row],
        strict=True,
    )
    lines = [f"data_{name}"]
    lines += [f"_cfx_{key} {_value(value)}" for key, value in remarks.items()]
    lines += ["_chemical_formula_sum '" + " ".join(f"{symbol}{n}" for symbol, n in sorted(counts.items())) + "'"]
    lines += [f"_cell_{key} {float(value):.8f}" for key, value in cell]
    lines += [_symmetry_text(group)]
    lines += ["loop_"]
    lines += [
        f"_atom_site_{key}"
        for key in (
            "label",
            "type_symbol",
            "symmetry_multiplicity",
            "Wyckoff_symbol",
            "fract_x",
            "fract_y",
            "fract_z",
            "occupancy",
        )
    ]
    for i in sites:
        symbol = SYMBOLS[species[i]]
        x, y, z = _exact(group, int(letters[i]), crystals.frac_coords[row, i])
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
    lines = [
        f"_space_group_IT_number {group}",
        f"_space_group_name_H-M_alt '{symmetry_table().symbol[group - 1]}'",
    ]
    lines += ["loop_", "_space_group_symop_id", "_space_group_symop_operation_xyz"]
    return "\n".join(lines + [f"{i} '{operation}'" for i, operation in enumerate(operations, start=1)])


def _exact(group: int, letter: int, point: np.ndarray) -> np.ndarray:
    """The point on its Wyckoff position in float64: 1/3 rather than the nearest float32."""
    rotations, translations = symmetry_table().operations(group, letter)
    exact = rotations[0] @ point.astype(float) + translations[0]
    exact = np.round(exact - np.floor(exact), 10)
    return np.where(exact >= 1, 0.0, exact)


def cif_blocks(lines: Iterable[str]) -> Iterator[str]:
    """The data blocks of a CIF; what stands before the first is left out."""
    block: list[str] = []
    for line in lines:
        if line.startswith("data_"):
            if block:
                yield "".join(block)
            block = [line]
        elif block:
            block.append(line)
    if block:
        yield "".join(block)
