"""How close atoms come to each other."""

from __future__ import annotations

import numpy as np


def closest_approach(structure) -> float:
    """Smallest distance between two atoms of a pymatgen Structure, images of one atom included, in angstrom."""
    distances = structure.distance_matrix
    others = distances[np.triu_indices(len(distances), k=1)]
    shortest_vector = min(structure.lattice.get_lll_reduced_lattice().abc)
    return float(min([shortest_vector, *others]))
