"""Whether a structure is a crystal that can be judged at all, and how close its atoms come."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from cfx.core.elements import SYMBOLS

if TYPE_CHECKING:
    from pymatgen.core import Structure

UNREAD = "could not be read"
"""Why a row without a structure fails."""

MIN_VOLUME = 0.1
"""Volume of a cell (cubic angstrom) from which on it is one."""


def what_is_wrong(structure) -> str:
    """Why a pymatgen Structure, or None for a row that could not be read, cannot be judged; "" if it can."""
    if structure is None:
        return UNREAD
    if not len(structure):
        return "no atoms"
    if not (np.isfinite(structure.lattice.matrix).all() and np.isfinite(structure.frac_coords).all()):
        return "a lattice or coordinates that are not finite"
    if not structure.volume > MIN_VOLUME:
        return f"a cell of at most {MIN_VOLUME} cubic angstrom"
    if not all(0 < getattr(kind, "Z", 0) < len(SYMBOLS) for site in structure for kind in site.species):
        return "a species that is no element"
    return ""


def closest_approach(structure) -> float:
    """Smallest distance between two atoms of a pymatgen Structure, images of one atom included, in angstrom."""
    distances = structure.distance_matrix
    others = distances[np.triu_indices(len(distances), k=1)]
    steps = np.array([step for step in itertools.product(range(-2, 3), repeat=3) if any(step)])
    vectors = steps @ structure.lattice.get_lll_reduced_lattice().matrix
    return float(min([np.linalg.norm(vectors, axis=1).min(), *others]))


SHORTEST_DISTANCE = 0.5
"""Between two atoms, angstrom; the bound of the usual structure validity. The shortest bond there is, H-H, has 0.74."""

SMALLEST_VOLUME = 2.0
"""Per atom, angstrom^3. Diamond has 5.7; the densest hydrides of high pressure in OQMD have 4.4."""

LARGEST_VOLUME = 200.0
"""Per atom, angstrom^3. Metallic caesium has 118. Beyond, atoms see no neighbours, and cells become as long as one
likes."""

MOST_ATOMS = 1000
"""In a cell. Beyond, the table of distances alone is large."""

ORDINARY_VOLUME = 20.0
"""Per atom, angstrom^3: that of the crystals whose atoms count once in `memory_load`."""

LARGEST_LOAD = 1500.0
"""Of one crystal. CHGNet, the hungriest model, takes 6 MB for the forces of an atom that counts once (17 MB for each of
copper's, 76 MB for each of diamond's, measured), so this is 9 GB."""


def unfit(structure: Structure | None, elements: frozenset[int] | None) -> str:
    """Why a crystal is not shown to a model, or "".

    Args:
        structure: None is a crystal that could not be read.
        elements: atomic numbers that the model knows; None if it does not tell.
    """
    if structure is None:
        return "no structure"
    return _bad_content(structure, elements) or _bad_geometry(structure)


def memory_load(structure: Structure) -> float:
    """How much a crystal asks of the memory: its atoms, counted more in dense crystals.

    Neighbours grow with the density, angles between bonds with its square.
    """
    dense = ORDINARY_VOLUME * len(structure) / structure.volume
    return len(structure) * max(dense, dense**2)


def _bad_content(structure: Structure, elements: frozenset[int] | None) -> str:
    if not len(structure):
        return "no atoms"
    if len(structure) > MOST_ATOMS:
        return f"{len(structure)} atoms in the cell, more than {MOST_ATOMS}"
    if not structure.is_ordered:
        return "sites with partial or mixed occupancy"
    symbols = {getattr(site.specie, "element", site.specie).symbol for site in structure}
    if strange := sorted(symbols - set(SYMBOLS[1:])):
        return f"{strange[0]} is no element"
    if elements is not None and (unknown := sorted(symbols - {SYMBOLS[z] for z in elements})):
        return f"the model does not know {unknown[0]}"
    return ""


def _bad_geometry(structure: Structure) -> str:
    if not np.isfinite(structure.lattice.matrix).all() or not np.isfinite(structure.frac_coords).all():
        return "a lattice or coordinates that are not finite"
    volume = structure.volume / len(structure)
    if volume < SMALLEST_VOLUME:
        return f"{volume:.2g} cubic angstrom per atom, less than {SMALLEST_VOLUME:g}"
    if volume > LARGEST_VOLUME:
        return f"{volume:.4g} cubic angstrom per atom, more than {LARGEST_VOLUME:g}"
    if memory_load(structure) > LARGEST_LOAD:
        return f"{len(structure)} atoms so dense are too many for the memory"
    distance = closest_approach(structure)
    if not distance > SHORTEST_DISTANCE:
        return f"atoms {distance:.2f} angstrom apart"
    return ""
