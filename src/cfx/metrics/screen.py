"""What no metric can judge: rows without a structure, and structures that are no crystals."""

from __future__ import annotations

import numpy as np

from cfx.core.elements import SYMBOLS

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
