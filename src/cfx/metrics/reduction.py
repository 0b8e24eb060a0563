"""Structures as StructureMatcher compares them: of elements only, in Niggli-reduced primitive cells."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict

import numpy as np

from cfx.core.elements import SYMBOLS

TOLERANCE = 0.25
"""How far (angstrom, along an axis) pymatgen lets atoms be off a translation of a smaller cell."""

LARGEST = 2_000_000
"""Most differences of positions to look at for a short cut."""


def plain(structure):
    """A Structure of elements, without isotopes, oxidation states and spins."""
    from pymatgen.core import Element, Structure

    kinds = {kind for site in structure for kind in site.species}
    if all(structure.lattice.pbc) and all(isinstance(kind, Element) and kind.symbol in SYMBOLS for kind in kinds):
        return structure
    species = []
    for site in structure:
        amounts: dict[str, float] = defaultdict(float)
        for kind, amount in site.species.items():
            amounts[SYMBOLS[kind.Z]] += amount
        species.append(dict(amounts))
    return Structure(structure.lattice.matrix, species, structure.frac_coords)


def reduced_crystal(structure):
    """The Niggli-reduced primitive cell that StructureMatcher would make of a Structure, of elements only.

    Raises:
        ValueError: if pymatgen cannot reduce the cell.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reduced = plain(structure).get_reduced_structure()
        return reduced if surely_primitive(reduced) else reduced.get_primitive_structure()


def surely_primitive(structure) -> bool:
    """Whether pymatgen's search for a smaller cell is bound to fail, as it does for most crystals.

    It looks for a lattice whose vectors are all among the translations, from one atom of the rarest species to
    another, that take every atom near one of its species. At least one component of one of the vectors is off every
    integer by 1/m, where m divides the number of atoms of every species. If no translation is, none is found.
    """
    groups = defaultdict(list)
    for site in structure:
        groups[site.species_string].append(site.frac_coords)
    points = sorted((np.array(group) for group in groups.values()), key=len)
    most = math.gcd(*map(len, points))
    if most == 1:
        return True
    tolerance = TOLERANCE / np.array(structure.lattice.abc)
    steps = points[0] - points[0][0]
    for group in points:
        if not (_off_integer(steps) + tolerance >= 1 / most).any():
            return True
        if len(group) ** 2 * len(steps) > LARGEST:
            return False
        # Of these translations, those that take every atom of the group near one; rather too many than too few.
        misses = _off_integer((group + steps[:, None])[:, :, None] - group)
        steps = steps[(misses < 2.02 * tolerance).all(-1).any(-1).all(-1)]
    return not (_off_integer(steps) + tolerance >= 1 / most).any()


def _off_integer(values: np.ndarray) -> np.ndarray:
    return np.abs(values - np.rint(values))
