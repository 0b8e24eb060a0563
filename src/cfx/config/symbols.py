"""Symbols of elements and of space groups, what is meant by other ways to write them, and classes of compositions."""

import difflib

from cfx.errors import UsageError

_ELEMENTS = """
X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr
Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb
Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf
Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""

SYMBOLS = list[str](_ELEMENTS.split())
"""SYMBOLS[z] for z in 0..118; index 0, the pad, reads X."""

CLASSES = ("element", "intermetallic", "charge-neutral", "other")
"""What a composition is: of one element; of several, no non-metal among them; another whose charges balance; the rest.
"""

_SPACE_GROUPS = """
P1 P-1 P2 P2_1 C2 Pm Pc Cm Cc P2/m P2_1/m C2/m P2/c P2_1/c C2/c P222 P222_1 P2_12_12 P2_12_12_1 C222_1 C222 F222 I222
I2_12_12_1 Pmm2 Pmc2_1 Pcc2 Pma2 Pca2_1 Pnc2 Pmn2_1 Pba2 Pna2_1 Pnn2 Cmm2 Cmc2_1 Ccc2 Amm2 Aem2 Ama2 Aea2 Fmm2 Fdd2
Imm2 Iba2 Ima2 Pmmm Pnnn Pccm Pban Pmma Pnna Pmna Pcca Pbam Pccn Pbcm Pnnm Pmmn Pbcn Pbca Pnma Cmcm Cmce Cmmm Cccm Cmme
Ccce Fmmm Fddd Immm Ibam Ibca Imma P4 P4_1 P4_2 P4_3 I4 I4_1 P-4 I-4 P4/m P4_2/m P4/n P4_2/n I4/m I4_1/a P422 P42_12
P4_122 P4_12_12 P4_222 P4_22_12 P4_322 P4_32_12 I422 I4_122 P4mm P4bm P4_2cm P4_2nm P4cc P4nc P4_2mc P4_2bc I4mm I4cm
I4_1md I4_1cd P-42m P-42c P-42_1m P-42_1c P-4m2 P-4c2 P-4b2 P-4n2 I-4m2 I-4c2 I-42m I-42d P4/mmm P4/mcc P4/nbm P4/nnc
P4/mbm P4/mnc P4/nmm P4/ncc P4_2/mmc P4_2/mcm P4_2/nbc P4_2/nnm P4_2/mbc P4_2/mnm P4_2/nmc P4_2/ncm I4/mmm I4/mcm
I4_1/amd I4_1/acd P3 P3_1 P3_2 R3 P-3 R-3 P312 P321 P3_112 P3_121 P3_212 P3_221 R32 P3m1 P31m P3c1 P31c R3m R3c P-31m
P-31c P-3m1 P-3c1 R-3m R-3c P6 P6_1 P6_5 P6_2 P6_4 P6_3 P-6 P6/m P6_3/m P622 P6_122 P6_522 P6_222 P6_422 P6_322 P6mm
P6cc P6_3cm P6_3mc P-6m2 P-6c2 P-62m P-62c P6/mmm P6/mcc P6_3/mcm P6_3/mmc P23 F23 I23 P2_13 I2_13 Pm-3 Pn-3 Fm-3 Fd-3
Im-3 Pa-3 Ia-3 P432 P4_232 F432 F4_132 I432 P4_332 P4_132 I4_132 P-43m F-43m I-43m P-43n F-43c I-43d Pm-3m Pn-3n Pm-3n
Pn-3m Fm-3m Fm-3c Fd-3m Fd-3c Im-3m Ia-3d
"""

SPACE_GROUPS = dict(enumerate(_SPACE_GROUPS.split(), start=1))
ALL_SPACE_GROUPS = tuple(SPACE_GROUPS)
"""Short Hermann-Mauguin symbols of the standard settings, by number (International Tables A, 2016)."""

FORMER_SYMBOLS = {"Abm2": 39, "Aba2": 41, "Cmca": 64, "Cmma": 67, "Ccca": 68}
"""What five space groups were called before the glide plane e had its letter."""

OTHER_SETTINGS = {
    **{"P2_1/n": 14, "P2_1/a": 14, "I2/m": 12, "I2/a": 15, "I2/c": 15},
    **dict.fromkeys(("Pbnm", "Pnam", "Pmnb", "Pmcn", "Pcmn"), 62),
}
"""Symbols of the literature for cells with other axes than those of the standard setting."""


def _plain(symbol: str) -> str:
    """What is the same however a symbol is capitalised, spaced and underscored: p63/mmc."""
    return symbol.replace(" ", "").replace("_", "").casefold()


_NUMBERS = {_plain(symbol): number for number, symbol in SPACE_GROUPS.items()} | {
    _plain(symbol): number for symbol, number in FORMER_SYMBOLS.items()
}


def space_group_number(symbol: str) -> int:
    """The number of a short Hermann-Mauguin symbol: P6_3/mmc, P63/mmc or p63/mmc.

    Raises:
        UsageError: if no space group is called so in its standard setting.
    """
    wanted = _plain(symbol)
    if wanted in _NUMBERS:
        return _NUMBERS[wanted]
    message = f"{symbol} is not a space group"
    other = {_plain(setting): number for setting, number in OTHER_SETTINGS.items()}.get(wanted)
    if other is not None:
        raise UsageError(
            f"{message} in its standard setting", f"its standard setting is {SPACE_GROUPS[other]}, number {other}"
        )
    if near := _near(wanted):
        raise UsageError(f"{message}: did you mean {' or '.join(near)}?")
    raise UsageError(message, "write 194, or P6_3/mmc, or 2,14,62, or 1-230, or uniform, or data:DATA_SET")


def _near(wanted: str) -> list[str]:
    """Symbols that may be meant: but for the bars, as in Pm3m, or those most like it."""
    but_for_bars = [number for plain, number in _NUMBERS.items() if plain.replace("-", "") == wanted.replace("-", "")]
    alike = [_NUMBERS[plain] for plain in difflib.get_close_matches(wanted, _NUMBERS, n=3, cutoff=0.7)]
    return [SPACE_GROUPS[number] for number in dict.fromkeys(but_for_bars or alike)]
