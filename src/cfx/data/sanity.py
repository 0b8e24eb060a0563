"""Whether a structure can be judged at all, and how close its atoms come."""

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
"""Smallest volume of a cell, cubic angstrom (CDVAE, arXiv:2110.06197)."""

MIN_DISTANCE = 0.5
"""Distance that two atoms keep in a valid structure, angstrom (CDVAE). The shortest bond there is, H-H, has 0.74."""


def why_malformed(structure: Structure | None) -> str:
    """Why a structure cannot be judged; "" if it can.

    This is the least that any comparison or search needs. What a potential or property model needs is stricter, see
    `cfx.predictors.batching.why_unsuitable`.

    Args:
        structure: None for a row that could not be read.
    """
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


def closest_approach(structure: Structure) -> float:
    """Smallest distance between two atoms of a structure, images of one atom included, in angstrom."""
    distances = structure.distance_matrix
    others = distances[np.triu_indices(len(distances), k=1)]
    steps = np.array([step for step in itertools.product(range(-2, 3), repeat=3) if any(step)])
    vectors = steps @ structure.lattice.get_lll_reduced_lattice().matrix
    return float(min([np.linalg.norm(vectors, axis=1).min(), *others]))
