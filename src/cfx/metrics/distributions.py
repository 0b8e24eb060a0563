"""How far the distributions of samples are from those of a reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cfx.metrics.screen import what_is_wrong


def density(structure) -> float | None:
    """Density of a pymatgen Structure, g/cm3; None without one, or in a cell that is none."""
    return None if what_is_wrong(structure) else float(structure.density)


def num_elements(structure) -> int | None:
    """Number of chemical elements of a pymatgen Structure; None without one."""
    return None if structure is None else len({kind.symbol for site in structure for kind in site.species})


def distribution_distance(samples: Sequence[float], reference: Sequence[float]) -> float | None:
    """Wasserstein distance between two samples of a quantity, in its unit; None if either is empty."""
    from scipy.stats import wasserstein_distance

    if not len(samples) or not len(reference):
        return None
    return float(wasserstein_distance(np.asarray(samples, float), np.asarray(reference, float)))
