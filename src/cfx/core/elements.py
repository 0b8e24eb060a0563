"""Chemical symbols by atomic number."""

_TEXT = """
X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr
Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb
Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf
Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""

SYMBOLS = _TEXT.split()
"""SYMBOLS[z] for z in 0..118; index 0, the pad, reads X."""


def formula(counts: dict[int, int]) -> str:
    """Formula of atomic number -> count, in order of atomic number, ones left out."""
    return "".join(SYMBOLS[z] + (str(n) if n > 1 else "") for z, n in sorted(counts.items()))
