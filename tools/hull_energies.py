"""Energies of many crystals by a potential, a line of JSON each: what the bundled hulls are made from.

    python tools/hull_energies.py mp20_subset_train.csv.gz mp_extra.csv.gz -o energies.jsonl
    python tools/hull_energies.py substituted.jsonl --relax volume -o substituted_energies.jsonl

Hours on two cores. Stopped, it goes on where it was when it is started again. Crystals are reduced to a primitive cell
first; raw energies get the Materials Project's corrections. With `--relax volume` each crystal is compressed and
expanded to the volume of the lowest energy with its shape and fractional coordinates kept; with `--relax all`
everything relaxes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from cfx.predictors.base import Potential

CHUNK = 256
"""Crystals between two commits."""

STEP = 0.01
"""Relative change of the lattice parameters at which the volume curve is sampled first."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("crystals", type=Path, nargs="+", help="files of crystals; .json.gz: element -> structures")
    arguments.add_argument("-o", "--output", type=Path, required=True)
    arguments.add_argument("--relax", choices=["volume", "all"], help="the crystals first")
    arguments.add_argument("--only", type=Path, help="names of the crystals that are wanted, a line each")
    arguments.add_argument("--potential", default="chgnet")
    options = arguments.parse_args()
    from cfx.predictors.load import load_potential

    potential = load_potential(options.potential)
    wanted = None if options.only is None else set(options.only.read_text().split("\n"))
    rows = options.output.read_text().splitlines(keepends=True) if options.output.exists() else []
    done = len(rows) // CHUNK  # chunks; what was written of another one is made again
    with open(options.output, "w") as file:
        file.writelines(rows[: done * CHUNK])
        for number, chunk in enumerate(chunks(options.crystals, wanted)):
            if number >= done:
                file.writelines(json.dumps(row) + "\n" for row in evaluate(potential, chunk, options.relax))
                file.flush()
                print(f"{(number + 1) * CHUNK} {chunk[-1][0]}", flush=True)


def chunks(paths: Sequence[Path], wanted: set[str] | None) -> Iterator[list[tuple[str, str, Structure | None, str]]]:
    """(source, name, structure, reason) of CHUNK crystals at a time."""
    chunk = []
    for path in paths:
        for name, structure, reason in read(path):
            if wanted is None or name in wanted:
                chunk.append((path.name, name, structure, reason))
            if len(chunk) == CHUNK:
                yield chunk
                chunk = []
    if chunk:
        yield chunk


def read(path: Path) -> Iterator[tuple[str, Structure | None, str]]:
    """Name, structure and, without one, a reason, of each crystal of a file."""
    import gzip

    from pymatgen.core import Structure

    from cfx.data.structures import iterate_crystals

    if path.name.endswith(".json.gz"):
        for symbol, found in json.loads(gzip.decompress(path.read_bytes())).items():
            for number, structure in enumerate(found["structure"]):
                yield f"{symbol}-{number}", Structure.from_dict(structure), ""
    else:
        for one in iterate_crystals(path, 1):
            yield one.name, one.structure, one.reason


def evaluate(potential: Potential, chunk: list, relaxation: str | None) -> list[dict[str, Any]]:
    """A row for each crystal: where it comes from, its composition and energy (eV/atom), or a reason."""
    structures = [one[2] and primitive(one[2]) for one in chunk]
    scale: Sequence[float | None] = [None] * len(chunk)
    if relaxation == "volume":
        energies, reasons, scale = best_volume(potential, structures)
    elif relaxation == "all":
        from cfx.predictors.relax import relax

        relaxed = relax(potential, structures)
        energies, reasons = [one.energy for one in relaxed], [one.reason for one in relaxed]
    else:
        batch = potential.evaluate(structures, forces=False)
        energies, reasons = batch.energy.tolist(), batch.reasons
    if potential.scale != "mp2020":
        energies = [correct_raw(one, energy) for one, energy in zip(structures, energies, strict=True)]
    rows = []
    for (source, name, _, why), structure, energy, reason, s in zip(
        chunk, structures, energies, reasons, scale, strict=True
    ):
        row: dict[str, Any] = {"source": source, "id": name}
        if structure is None or not math.isfinite(energy):
            rows.append(row | {"reason": why or reason or "no energy"})
            continue
        row |= {"formula": structure.composition.reduced_formula, "atoms": len(structure)}
        row |= {"volume": structure.volume / len(structure), "energy": energy / len(structure)}
        rows.append(row if s is None else row | {"scale": s})
    return rows


def correct_raw(structure: Structure | None, energy: float) -> float:
    """A raw energy (eV) on the scale mp2020; NaN where there is none, or the corrections do not cover the crystal."""
    from cfx.evaluation.corrections import UNCORRECTABLE, correct

    try:
        return correct(structure, energy) if structure is not None and math.isfinite(energy) else math.nan
    except UNCORRECTABLE:
        return math.nan


def primitive(structure: Structure) -> Structure:
    """The crystal in a primitive cell, if that is smaller; coordinates are not idealized."""
    import spglib
    from pymatgen.core import Structure as Crystal

    if not structure.is_ordered:
        return structure
    cell = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
    found = spglib.find_primitive(cell, symprec=1e-3)
    if found is None or len(found[2]) >= len(structure):
        return structure
    return Crystal(found[0], found[2], found[1])


def best_volume(
    potential: Potential, structures: Sequence[Structure | None]
) -> tuple[list[float], list[str], list[float | None]]:
    """Lowest energy (eV) along a uniform scaling, a reason without one, and the relative change of the lattice.

    Parabolas through three points of the curve; its own minimum is evaluated, and the lowest of all points counts.
    """
    import numpy as np

    def at(scales: Sequence[float | None]) -> Any:
        return potential.evaluate(
            [one if one is None or s is None else scaled(one, s) for one, s in zip(structures, scales, strict=True)],
            forces=False,
        )

    start = at([None] * len(structures))
    low, high = at([-STEP] * len(structures)).energy, at([STEP] * len(structures)).energy
    curvature, slope = low + high - 2 * start.energy, (high - low) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = np.where(curvature > 0, -slope / curvature, -3 * np.sign(slope))
    shift = np.nan_to_num(np.clip(shift, -5, 5)) * STEP
    end = at(shift.tolist()).energy
    points = np.stack([start.energy, low, high, end])
    scales = np.stack([0 * shift, 0 * shift - STEP, 0 * shift + STEP, shift])
    best = np.nanargmin(np.where(np.isfinite(points), points, np.inf), 0)
    columns = np.arange(len(structures))
    return points[best, columns].tolist(), start.reasons, scales[best, columns].round(5).tolist()


def scaled(structure: Structure, change: float) -> Structure:
    """The crystal with lattice parameters changed by a fraction."""
    copy = structure.copy()
    copy.scale_lattice(structure.volume * (1 + change) ** 3)
    return copy


if __name__ == "__main__":
    main()
