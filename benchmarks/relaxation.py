"""Crystals relaxed in a second: many at once by cfx, beside a loop over ASE's optimiser, as JSON.

    OMP_NUM_THREADS=1 python benchmarks/relaxation.py [--crystals 48]

Draws of a model, cells of at most 20 atoms that CHGNet can evaluate, are relaxed by CHGNet from the same start to the
same largest force within the same number of steps: by `cfx.predictors.relax` sixty-four at once, and one at a time; and
by a loop over ASE's FIRE with a FrechetCellFilter and the calculator that comes with CHGNet. Every way is warmed up
with two crystals. Final energies tell whether all did the same work.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from record import add_json, keep

from cfx.config import SampleConfig
from cfx.core import Structure
from cfx.model import load_model
from cfx.predictors.load import load_potential
from cfx.predictors.relax import relax
from cfx.rl.rollout import primitive_cells
from cfx.runs.sample import drawn_space_groups

MOST_ATOMS = 20

Results = list[tuple[float, int, bool]]
"""Of each crystal its energy (eV/atom), steps, and whether it converged."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--crystals", type=int, default=48)
    parser.add_argument("--fmax", type=float, default=0.05, help="eV/angstrom")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    add_json(parser)
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")

    potential = load_potential("chgnet")
    crystals = draw(asked.model, asked.crystals, asked.seed, potential)
    ways: dict[str, Callable[[list[Structure]], Results]] = {
        "cfx, 64 at once": lambda some: by_cfx(potential, some, asked.fmax, asked.steps, 64),
        "cfx, one at a time": lambda some: by_cfx(potential, some, asked.fmax, asked.steps, 1),
        "ASE, one after the other": by_ase(asked.fmax, asked.steps),
    }
    found, figures = {}, {}
    for name, way in ways.items():
        way(crystals[:2])
        start = time.perf_counter()
        found[name] = way(crystals)
        figures[name] = told(found[name], time.perf_counter() - start)
    reference = np.array([one[0] for one in found["ASE, one after the other"]])
    for name, results in found.items():
        away = np.abs(np.array([one[0] for one in results]) - reference)
        figures[name]["energies within 1 meV/atom of ASE's"] = float(np.mean(away < 1e-3))
        figures[name]["median difference from ASE (eV/atom)"] = float(np.median(away))
    atoms = [len(one) for one in crystals]
    keep({"crystals": len(crystals), "mean atoms": float(np.mean(atoms)), "ways": figures}, asked)


def draw(name: str, number: int, seed: int, potential: Any) -> list[Structure]:
    """Crystals of a model that the potential can evaluate."""
    from cfx.reporter import Mute

    model = load_model(name)
    groups, weights = drawn_space_groups("data:model", model, Mute())
    sample = SampleConfig(space_groups=groups, weights=weights, n=4 * number, seed=seed)
    cells = [one for draws in model.draws(sample) for one in primitive_cells(draws.crystals)]
    small = [one for one in cells if one is not None and len(one) <= MOST_ATOMS]
    suitable = [one for one, ok in zip(small, potential.evaluate(small).ok, strict=True) if ok]
    return suitable[:number]


def by_cfx(potential: Any, crystals: list[Structure], fmax: float, steps: int, at_once: int) -> Results:
    """By cfx."""
    found = relax(potential, crystals, fmax, steps, at_once=at_once)
    return [(one.energy / len(crystal), one.steps, one.converged) for one, crystal in zip(found, crystals, strict=True)]


def by_ase(fmax: float, steps: int) -> Callable[[list[Structure]], Results]:
    """By ASE, with one calculator for all."""
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE
    from chgnet.model.dynamics import CHGNetCalculator
    from pymatgen.io.ase import AseAtomsAdaptor

    calculator = CHGNetCalculator(use_device="cpu")

    def run(crystals: list[Structure]) -> Results:
        results = []
        for crystal in crystals:
            atoms = AseAtomsAdaptor.get_atoms(crystal)
            atoms.calc = calculator
            optimizer = FIRE(FrechetCellFilter(atoms), logfile=None)
            try:
                converged = optimizer.run(fmax=fmax, steps=steps)
                results.append((float(atoms.get_potential_energy()) / len(atoms), optimizer.nsteps, bool(converged)))
            except Exception:  # an atom without neighbours, on the way
                results.append((np.nan, optimizer.nsteps, False))
        return results

    return run


def told(results: Results, seconds: float) -> dict[str, float]:
    """Figures of a way."""
    steps = sum(one[1] for one in results)
    return {
        "seconds": round(seconds, 2),
        "crystals a second": round(len(results) / seconds, 3),
        "steps": steps,
        "steps a second": round(steps / seconds, 1),
        "converged": sum(one[2] for one in results) / len(results),
    }


if __name__ == "__main__":
    main()
