"""Makes src/cfx/resources/symmetry.npz, the table of Wyckoff positions, from pyxtal's list.

    python tools/make_symmetry_table.py

Positions are stored letter by letter (a first), each with all its operations as they act on (x, y, z):
coordinates of orbit point k = rotation[k] @ (x, y, z) + translation[k] / 24.
Setting: International Tables A standard: origin choice 2, hexagonal axes, unique axis b.
"""

from __future__ import annotations

import ast
import csv
import os
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np

OUTPUT = Path(__file__).resolve().parents[1] / "src" / "cfx" / "resources" / "symmetry.npz"
DENOMINATOR = 24


def parse_operation(text: str) -> tuple[list[list[int]], list[int]]:
    """'-x+y, 2x, z+1/2' as a 3x3 integer matrix and a translation in units of 1/24."""
    rotation, translation = [], []
    for term in text.replace(" ", "").split(","):
        row, shift, token, sign = [0, 0, 0], Fraction(0), "", 1
        for character in term + "+":
            if character in "+-":
                if token and token[-1] in "xyz":
                    row["xyz".index(token[-1])] += sign * int(token[:-1] or 1)
                elif token:
                    shift += sign * Fraction(token)
                token, sign = "", 1 if character == "+" else -1
            else:
                token += character
        units = (shift % 1) * DENOMINATOR
        assert units.denominator == 1, f"{text}: translation is not a multiple of 1/{DENOMINATOR}"
        rotation.append(row)
        translation.append(int(units))
    return rotation, translation


def main() -> None:
    import pyxtal
    import spglib
    from pyxtal.symmetry import Group

    csv.field_size_limit(sys.maxsize)
    with open(os.path.join(os.path.dirname(pyxtal.__file__), "database", "wyckoff_list.csv")) as file:
        rows = list(csv.reader(file))[2:]
    assert len(rows) == 230

    rotations, translations, multiplicity = [], [], np.zeros((230, 28), np.int16)
    hall_numbers, symbols = [], []
    for number, (_, cell) in enumerate(rows, start=1):
        # The list puts the general position first; letters count from the most special one.
        for letter, position in enumerate(reversed(ast.literal_eval(cell)), start=1):
            multiplicity[number - 1, letter] = len(position)
            for operation in position:
                rotation, translation = parse_operation(operation)
                rotations.append(rotation)
                translations.append(translation)
        hall = Group(number).hall_number
        hall_numbers.append(hall)
        # Two settings share a short symbol: programs that read a CIF by its symbol alone need the suffix.
        entry = spglib.get_spacegroup_type(hall)
        suffix = {"2": ":2", "H": ":H"}.get(entry.choice, "")
        symbols.append(entry.international.split(" = ")[-1].replace("_", "") + suffix)

    np.savez_compressed(
        OUTPUT,
        multiplicity=multiplicity,
        rotation=np.array(rotations, np.int8),
        translation=np.array(translations, np.int8),
        hall_number=np.array(hall_numbers, np.int16),
        symbol=np.array(symbols),
    )
    print(f"{OUTPUT}: {(multiplicity > 0).sum()} positions, {len(rotations)} operations, {OUTPUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
