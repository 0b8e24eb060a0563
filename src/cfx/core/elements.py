"""Chemical symbols by atomic number, formulas, and families of elements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

K = TypeVar("K")

_TEXT = """
X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr
Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb
Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf
Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""

SYMBOLS = _TEXT.split()
"""SYMBOLS[z] for z in 0..118; index 0, the pad, reads X."""


def lowest_terms(counts: Mapping[K, int]) -> dict[K, int]:
    """Numbers of atoms of a formula, divided by their greatest common divisor."""
    divisor = math.gcd(*counts.values())
    return {kind: count // divisor for kind, count in counts.items()}


def formula(counts: Mapping[int, int]) -> str:
    """Formula of atomic number -> count, in order of atomic number, ones left out."""
    return "".join(SYMBOLS[z] + (str(n) if n > 1 else "") for z, n in sorted(counts.items()))


NOBLE_GASES = (2, 10, 18, 36, 54, 86, 118)
"""The last element of each period."""

LANTHANIDES, ACTINIDES = range(57, 72), range(89, 104)


def group_number(number: int) -> int:
    """Group 1 to 18 of the periodic table; 0 for lanthanides and actinides, which are blocks of their own."""
    if number in LANTHANIDES or number in ACTINIDES:
        return 0
    last = next(last for last in NOBLE_GASES if number <= last)
    before = max((noble for noble in NOBLE_GASES if noble < number), default=0)
    from_left, from_right = number - before, last - number
    return from_left if from_left <= 2 and from_right else 18 - from_right


def _group(group: int) -> tuple[int, ...]:
    return tuple(z for z in range(2, len(SYMBOLS)) if group_number(z) == group)  # without hydrogen


FAMILIES = {
    "alkali metals": _group(1),
    "alkaline earths": _group(2),
    "3d metals": tuple(range(21, 31)),
    "coinage metals": (29, 47, 79),
    "chalcogens": _group(16),
    "halogens": _group(17),
    "noble gases": _group(18),
    "lanthanides": tuple(LANTHANIDES),
    "actinides": tuple(ACTINIDES),
}
"""Atomic numbers by what chemists call them; an element can be of two families."""
