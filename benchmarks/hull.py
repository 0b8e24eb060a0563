"""How fast crystals get their distance to a hull, against the public way, as JSON.

    python benchmarks/hull.py [--entries FILE [--scale mp2020]] [--crystals 2000] [--public 40] [--phases 40000]

The public way scans all entries for those of a crystal's chemical system and builds pymatgen's PhaseDiagram of them,
for every crystal anew. Both start from pymatgen Structures with energies and from entries in memory; both take the same
crystals, the public way the first few of them. Without a file the hull is synthetic: all elements and random compounds
of two to five. Crystals have two to five elements, most chemical systems once. The time of the public way is the median
of its crystals; that of cfx is the mean of all, with caches that are empty at the start; `largest_difference_ev` is
between the two. `correction_ms` is what a crystal costs more where a raw energy has to be corrected.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition, Lattice, Structure
from record import add_json, keep

from cfx.core.elements import SYMBOLS
from cfx.evaluation.corrections import correct
from cfx.evaluation.hull import Hull, HullInfo
from cfx.evaluation.hull_files import read_hull, write_hull
from cfx.evaluation.phases import Phases, reduce_counts

ELEMENTS = [z for z in range(1, 84) if z not in (2, 10, 18, 36, 43, 54, 61)]


def random_compositions(n: int, rng: np.random.Generator) -> list:
    """Reduced compositions of 2 to 5 elements, most of them ternary; they share elements as real compounds do."""
    weights = 1 / np.arange(1, len(ELEMENTS) + 1) ** 0.3
    found = []
    for size in rng.choice([2, 3, 4, 5], n, p=[0.2, 0.5, 0.25, 0.05]):
        numbers = rng.choice(ELEMENTS, size, replace=False, p=weights / weights.sum())
        found.append(reduce_counts(dict(zip(numbers.tolist(), rng.integers(1, 7, size).tolist(), strict=True))))
    return found


def synthetic_hull(n: int, rng: np.random.Generator) -> Hull:
    """n compounds and the elements."""
    compositions = [((z, 1),) for z in ELEMENTS] + random_compositions(n, rng)
    reference = rng.uniform(-10, -1, len(SYMBOLS))
    energies = []
    for composition in compositions:
        counts = np.array([count for _, count in composition])
        x = counts / counts.sum()
        gain = (1 - (x**2).sum()) * rng.uniform(0.3, 1.0)
        energies.append(float(x @ reference[[z for z, _ in composition]] - gain))
    phases = Phases.lowest(compositions, energies, [f"id-{i}" for i in range(len(compositions))])
    return Hull(phases, HullInfo("synthetic", "mp2020"))


def crystals(hull: Hull, n: int, rng: np.random.Generator) -> tuple[list[Structure], list[float]]:
    """Structures of the elements of random compounds of the hull, in other proportions, and energies."""
    compounds = np.flatnonzero((hull.phases.sizes > 1) & (hull.phases.sizes < 6))
    structures, energies = [], []
    for row in rng.choice(compounds, n):
        numbers = [z for z, _ in hull.phases.composition(int(row))]
        species = [z for z in numbers for _ in range(int(rng.integers(1, 5)))]
        edge = 2.5 * len(species) ** (1 / 3)
        structures.append(Structure(Lattice.cubic(edge), species, rng.random((len(species), 3))))
        energies.append(len(species) * float(hull.phases.energies[row]))
    return structures, energies


def public_way(entries: list[PDEntry], structure: Structure, energy: float) -> float:
    """Distance by scanning all entries and building a phase diagram."""
    elements = set(structure.composition.elements)
    diagram = PhaseDiagram([entry for entry in entries if set(entry.composition.elements) <= elements])
    return diagram.get_e_above_hull(PDEntry(structure.composition, energy), allow_negative=True, check_stable=False)


def to_entries(hull: Hull) -> list[PDEntry]:
    """The phases as pymatgen's entries."""
    entries = []
    for row in range(len(hull.phases)):
        composition = Composition({SYMBOLS[z]: n for z, n in hull.phases.composition(row)})
        entries.append(PDEntry(composition, composition.num_atoms * hull.phases.energies[row]))
    return entries


def table_figures(hull: Hull) -> dict[str, float]:
    """Size and times of the compact table."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "benchmark.hull.npz"
        start = time.perf_counter()
        write_hull(path, hull)
        written = time.perf_counter()
        read_hull(path)
        end = time.perf_counter()
        size = path.stat().st_size
    return {"megabytes": size / 1e6, "write_s": written - start, "read_s": end - written}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=Path)
    parser.add_argument("--scale")
    parser.add_argument("--crystals", type=int, default=2000)
    parser.add_argument("--public", type=int, default=40)
    parser.add_argument("--phases", type=int, default=40_000)
    add_json(parser)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    hull = read_hull(options.entries, options.scale) if options.entries else synthetic_hull(options.phases, rng)
    structures, energies = crystals(hull, options.crystals, rng)

    start = time.perf_counter()
    batch = hull.evaluate(structures, energies, hull.scale)
    seconds = (time.perf_counter() - start) / len(structures)
    entries = to_entries(hull)
    times, differences = [], []
    for structure, energy, distance in zip(structures[: options.public], energies, batch.e_above_hull, strict=False):
        start = time.perf_counter()
        differences.append(abs(public_way(entries, structure, energy) - distance))
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    for structure in structures[:200]:
        correct(structure, 0.0)
    correction = (time.perf_counter() - start) / len(structures[:200])
    figures = {
        "hull": str(hull),
        "crystals": len(structures),
        "not_ok": int((~batch.ok).sum()),
        "crystals_per_second": 1 / seconds,
        "public_crystals_per_second": 1 / statistics.median(times),
        "ratio": statistics.median(times) / seconds,
        "largest_difference_ev": max(differences),
        "correction_ms": 1e3 * correction,
        "table": table_figures(hull),
    }
    keep(figures, options)


if __name__ == "__main__":
    main()
