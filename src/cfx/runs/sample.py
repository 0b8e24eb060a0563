"""Sampling a space group into a file, batch by batch."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cfx.config import SampleConfig
from cfx.core.crystal import CrystalBatch
from cfx.core.elements import formula
from cfx.core.lattice import cell_vectors
from cfx.io.encode import find_space_group
from cfx.io.writers import check_target, cif_block, growing_file
from cfx.model import Draws, Model
from cfx.runs.reporter import Reporter
from cfx.runs.signals import Interrupted, StopRequest


@dataclass
class SampleResult:
    """What a request gave.

    Attributes:
        num_crystals: written.
        num_drawn: draws it took.
        num_unphysical: draws whose lattice was no lattice.
        found: space group that a symmetry search finds in a crystal (None: nothing) -> number of crystals.
        seconds: wall time of drawing and writing.
    """

    num_crystals: int = 0
    num_drawn: int = 0
    num_unphysical: int = 0
    found: Counter = field(default_factory=Counter)
    seconds: float = 0.0


def sample(
    model: Model, request: SampleConfig, output: Path | None, reporter: Reporter, force: bool = False
) -> SampleResult:
    """Draws crystals and writes each batch as soon as it is there.

    Args:
        model: to draw from.
        request: space group, number, seed and the rest.
        output: a .cif file, or None for stdout.
        reporter: receives progress.
        force: overwrite `output`.

    Raises:
        OutputError: if `output` cannot be written.
        Interrupted: after a signal; the crystals so far are in OUTPUT.partial.
    """
    check_target(output, force)
    if model.trained_on(request.space_group) == 0:
        reporter.warning(f"model {model.name} never saw space group {request.space_group} in training")
    result, start = SampleResult(), time.perf_counter()
    with (
        StopRequest() as stop,
        growing_file(output) as file,
        reporter.progress(f"space group {request.space_group}", request.n) as progress,
    ):
        for draws in model.draws(request):
            found = [find_space_group(conventional_cell(draws.crystals, row)) for row in range(len(draws.crystals))]
            for row, group in enumerate(found):
                file.write(_block(model, request, draws, row, result.num_crystals + row, group))
            file.flush()
            result.found.update(found)
            result.num_crystals += len(found)
            result.num_drawn, result.num_unphysical = draws.num_drawn, draws.num_unphysical
            result.seconds = time.perf_counter() - start
            progress.update(result.num_crystals, f"{result.num_crystals / result.seconds:.0f} crystals/s")
            if stop and result.num_crystals < request.n:
                kept = f"; they are in {output}.partial" if output else ""
                raise Interrupted(stop.signum, f"stopped after {result.num_crystals} crystals{kept}")
    return result


def _block(model: Model, request: SampleConfig, draws: Draws, row: int, index: int, found: int | None) -> str:
    crystals = draws.crystals
    counts = crystals.composition(row)
    divisor = np.gcd.reduce(list(counts.values()))
    reduced = formula({z: n // divisor for z, n in counts.items()})
    parts = {f"log_prob_{name}": float(value[row]) for name, value in draws.log_prob.parts().items()}
    remarks = {
        "model": model.name,
        "seed": request.seed,
        "draw": int(draws.numbers[row]),
        "temperature": request.temperature,
        "top_p": request.top_p,
        "log_prob": float(draws.log_prob.total[row]),
        **parts,
        "space_group_found": "none" if found is None else found,
    }
    return cif_block(f"{reduced}_{index}", crystals, row, remarks)


def conventional_cell(crystals: CrystalBatch, row: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Row vectors (angstrom), coordinates [n, 3] and atomic numbers [n] of all atoms of one crystal."""
    coords, site = crystals.atoms(row)
    vectors = cell_vectors(np.asarray(crystals.lattice[row : row + 1], float))[0]
    return vectors, coords, crystals.species[row][site].tolist()
