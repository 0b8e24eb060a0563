"""How close atoms come to each other."""

from __future__ import annotations

import itertools

import numpy as np


def closest_approach(structure) -> float:
    """Smallest distance between two atoms of a pymatgen Structure, images of one atom included, in angstrom."""
    distances = structure.distance_matrix
    others = distances[np.triu_indices(len(distances), k=1)]
    steps = np.array([step for step in itertools.product(range(-2, 3), repeat=3) if any(step)])
    vectors = steps @ structure.lattice.get_lll_reduced_lattice().matrix
    return float(min([np.linalg.norm(vectors, axis=1).min(), *others]))
