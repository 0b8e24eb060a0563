"""CIF: a file as blocks, and a block as the crystal that it describes, or the reason why there is none.

The reader takes nothing for granted that the file does not say: no operations for a symbol that it does not know, no
element for a name that is none, no crystal that lacks elements of its formula.
"""

import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from cfx.core.elements import SYMBOLS
from cfx.data.encode import DISORDERED
from cfx.data.formats import FARTHEST, LONGEST, MOST_ATOMS, MOST_CHARACTERS, Record, rest_is_unreadable
from cfx.data.formats.cif_symmetry import Operations, operations, why_undecided

if TYPE_CHECKING:
    from pymatgen.core import Structure

SAME_POINT = 1e-4
"""Fractional coordinates of images that differ by so little are one atom's."""

SAME_ATOM = 0.05
"""Distance (angstrom) of images of one site that are one atom too: coordinates have few digits."""

FORMULA_TOLERANCE = 0.02
"""Largest relative deviation of the numbers of atoms from a formula's."""

CELL = [f"_cell_{part}" for part in ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")]
COORDINATES = [f"_atom_site_fract_{axis}" for axis in "xyz"]

READ = ("_cell_", "_atom_site_", "_symmetry_", "_space_group_", "_chemical_formula_")
"""How tags begin whose values must not contradict each other."""

_BLOCK = re.compile(r"\s*\ufeff?\s*data_", re.IGNORECASE)
_SITES = re.compile(r"_atom_site[_.](fract|cartn|label|type_symbol)", re.IGNORECASE)


def cif_records(name: str, lines: Iterable[str]) -> Iterator[Record]:
    """A record of every block that holds atoms."""
    found = (block for block in _blocks(lines) if _SITES.search(block))
    first, second = next(found, None), next(found, None)
    if first is None:
        yield rest_is_unreadable(name, "the file holds no crystals")
    elif second is None:
        yield Record(name, "cif", first)
    else:
        for i, block in enumerate(itertools.chain((first, second), found), start=1):
            yield Record(f"{name}#{i}", "cif", block)


def _blocks(lines: Iterable[str]) -> Iterator[str]:
    """A file cut where a line says data_, in any case, and not within a text between semicolons.

    A text that never ends is none: the lines after its first one are looked at again.
    """
    ahead, lines = list[str](), iter(lines)
    block, size, text_starts = list[str](), 0, None
    while (line := ahead.pop() if ahead else next(lines, None)) is not None or text_starts is not None:
        if line is None or (text_starts is not None and size > MOST_CHARACTERS):
            ahead += reversed(block[text_starts:] + ([line] if line else []))
            del block[text_starts:]
            size, text_starts = sum(map(len, block)), None
            continue
        if line.startswith(";"):
            text_starts = len(block) + 1 if text_starts is None else None
        elif text_starts is None and _BLOCK.match(line):
            yield "".join(block)
            block, size = [], 0
        size += len(line)
        if size > MOST_CHARACTERS and text_starts is None:
            raise ValueError(f"a block of more than {MOST_CHARACTERS:,} characters")
        block.append(line)
    yield "".join(block)


def structure_of_cif(text: str) -> "Structure":
    """The cell of the one crystal in a CIF, symmetry applied; elements without charges."""
    from pymatgen.core import Lattice, Structure

    blocks = [block for block in _blocks(io.StringIO(text, newline=None)) if _SITES.search(block)]
    if len(blocks) != 1:
        raise ValueError(f"{len(blocks)} crystals in one CIF" if blocks else "a CIF without atoms")
    data = _values(blocks[0])
    lattice = Lattice.from_parameters(*_cell(data))
    if not lattice.volume > 1e-6:
        raise ValueError("a cell without volume")
    if any(_number(value) not in (0, None) for value in data.get("_atom_site_attached_hydrogens", ())):
        raise ValueError("hydrogen atoms that are attached to others, without coordinates")
    formula = _formula(data)
    sites = _ordered_sites(data, formula)
    groups = operations(data, lattice.matrix @ lattice.matrix.T)
    if max(len(group.translations) for group in groups) * len(sites) > MOST_ATOMS:
        raise ValueError(f"{len(sites)} sites with too many operations: more than {MOST_ATOMS:,} atoms")
    cells = [[(site, _images(point, group, lattice.matrix, site[1])) for site, point in sites] for group in groups]
    cells = cells if len(cells) == 1 else [cell for cell in cells if _has_said_number(cell, data, formula)]
    if len(cells) != 1:
        raise ValueError(why_undecided(groups))
    [cell] = cells
    if [len(group.translations) for group in groups] == [1] and any((number or 1) > 1 for (_, number), _ in cell):
        raise ValueError("no symmetry operations, and sites that stand for several atoms")
    counts = Counter[str]()
    for (symbol, _), points in cell:
        counts[symbol] += len(points)
    _check_formula(counts, formula, data)
    species = [symbol for (symbol, _), points in cell for _ in points]
    # Sorted as pymatgen sorts the atoms of a CIF, so that equal files keep giving equal bits.
    return Structure(lattice, species, np.concatenate([points for _, points in cell])).get_sorted_structure()


_TOKEN = re.compile(
    r"""^;(?P<text>[\s\S]*?)^;|'(?P<single>[^\n]*?)'(?=\s|$)|"(?P<double>[^\n]*?)"(?=\s|$)|(?P<comment>\#.*)|(?P<bare>\S+)""",
    re.MULTILINE,
)


def _values(block: str) -> dict[str, list[str]]:
    """Values by tag (in lower case) of a block."""
    data: dict[str, list[str]] = {}
    loop: list[str] | None = None
    filled, tag = 0, None
    repeated: dict[str, list[str]] = {}
    for match in _TOKEN.finditer(block.lstrip("\ufeff")):
        kind, value = match.lastgroup, match[match.lastgroup or 0]
        word = value.lower().replace(".", "_") if kind == "bare" and value[0] in "_dDlLsSgG" else ""
        if kind == "comment" or word.startswith(("data_", "save_", "global_")):
            continue
        if word == "loop_":
            loop, filled, tag = [], 0, None
        elif word.startswith("_"):
            if loop is not None and not filled:
                loop.append(word)
            else:
                loop = None
                tag = word
            if word in data:
                repeated[word] = data[word]
            data[word] = []
        elif loop:
            data[loop[filled % len(loop)]].append(value)
            filled += 1
        elif tag is not None:
            data[tag].append(value)
            tag = None
    for word, earlier in repeated.items():
        if word.startswith(READ) and data[word] != earlier:
            raise ValueError(f"{word[:40]} occurs twice, with different values")
    return data


def _number(text: str) -> float | None:
    """A number without its uncertainty, as of 0.237(2); None for what is not known (?) or left to its default (.)."""
    text = text.strip()
    if text in ("?", ".", ""):
        return None
    if len(text) > 60 or not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d{1,2})?(\(\d*\))?", text, re.IGNORECASE):
        raise ValueError(f"{text[:30]} is not a number")
    return float(text.partition("(")[0])


def _cell(data: dict[str, list[str]]) -> list[float]:
    values = [_number(data.get(tag, ["?"])[0]) if data.get(tag, ["?"]) else None for tag in CELL]
    found = [value for value in values if value is not None]
    if len(found) < len(CELL):
        raise ValueError(f"no {CELL[values.index(None)]}")
    if not all(0 < length < LONGEST for length in found[:3]) or not all(0 < angle < 180 for angle in found[3:]):
        raise ValueError("lengths or angles that do not form a cell")
    return found


Formula = dict[str, float]


def _formula(data: dict[str, list[str]]) -> Formula | None:
    """Atoms by element of _chemical_formula_sum; None without one that can be read."""
    text = next(iter(data.get(FORMULAS[0], ())), "?")
    parts = re.findall(r"([A-Z][a-z]?)(\d*\.?\d*)\s*", text)
    if "".join(symbol + number for symbol, number in parts) != "".join(text.split()):
        return None
    formula = Counter[str]()
    for symbol, number in parts:
        formula[_element(symbol) or symbol] += float(number or 1)  # pyright: ignore[reportArgumentType]  (of a Counter of floats)
    return {symbol: count for symbol, count in formula.items() if count} if set(formula) <= set(SYMBOLS) else None


FORMULAS = ("_chemical_formula_sum", "_chemical_formula_moiety", "_chemical_formula_structural")


def _names_hydrogen(data: dict[str, list[str]]) -> bool:
    """Whether a formula of any kind, as "Ca (O H)2" or "C4 H6, 2(D2 O)", has hydrogen in it."""
    return any(re.search(r"[HD](?![a-z])", text) for tag in FORMULAS for text in data.get(tag, ()))


def _element(word: str) -> str | None:
    """The element that a word as "Na", "NA" or "Na1+" names by itself; none for "Na.5K.5"."""
    match = re.fullmatch(r"([A-Za-z]+)[\d.+()-]*", word)
    letters = match[1].capitalize() if match else ""
    letters = {"D": "H", "T": "H"}.get(letters, letters)
    return letters if letters in SYMBOLS[1:] else None


def _element_of_label(label: str, formula: Formula | None) -> str | None:
    """The element of a label as "Na1" or "O2A"; in capitals it can be two, as "CA1" is, which the formula decides."""
    one, two = _element(label[:1]), _element(label[:2]) if label[1:2].isalpha() else None
    if label[1:2].islower() and label[1:2].isalpha():
        return two
    fits = [symbol for symbol in (two, one) if symbol and (formula is None or symbol in formula)]
    if len(fits) > 1:
        raise ValueError(f"the label {label[:20]} names {fits[0]} or {fits[1]}")
    return fits[0] if fits else one


Site = tuple[str, float | None]
"""A site: its element, and the number of atoms in the cell that it stands for, if the file says."""


def _ordered_sites(data: dict[str, list[str]], formula: Formula | None) -> list[tuple[Site, np.ndarray]]:
    """Sites with coordinates [3]."""
    if any(tag not in data for tag in COORDINATES):
        raise ValueError("atoms without fractional coordinates")
    count = len(data[COORDINATES[0]])
    symbols, labels = data.get("_atom_site_type_symbol"), data.get("_atom_site_label")
    optional = {tag: data.get(tag, ["."] * count) for tag in OPTIONAL}
    columns = [
        symbols or labels or [],
        labels or symbols or [],
        *(data[tag] for tag in COORDINATES),
        *optional.values(),
    ]
    if any(len(column) != count for column in columns) or not count:
        raise ValueError("atoms without elements, or rows of different lengths")
    _refuse_alternatives(
        zip(optional["_atom_site_disorder_assembly"], optional["_atom_site_disorder_group"], strict=True)
    )
    sites = []
    for named, label, *place, occupancy, flag, _, _, multiplicity, other in zip(*columns, strict=True):
        share = _number(occupancy)
        if share == 0 or flag.lower() == "dum":
            continue
        known = [(value, text) for text in place if (value := _number(text)) is not None]
        if len(known) < 3:
            raise ValueError(f"the atom {label[:20]} has no coordinates")
        point = np.array([_third(value, text) for value, text in known])
        symbol = _element(named) if symbols else _element_of_label(named, formula)
        if symbol is None:
            raise ValueError(f"{named[:20]} is not an element")
        if share is not None and abs(share - 1) > 1e-8:
            raise ValueError(DISORDERED)
        if np.abs(point).max() > FARTHEST:
            raise ValueError(f"the atom {label[:20]} is more than {FARTHEST:g} cells away")
        number = _number(multiplicity) if multiplicity not in "?." else _number(other)
        sites.append(((symbol, number), point))
    if not sites:
        raise ValueError("no atoms")
    return sites


def _refuse_alternatives(groups: Iterable[tuple[str, str]]) -> None:
    """Refuses sites of which one or the other is there, whatever their occupancy says.

    A group with a minus sign is an alternative to its own images.
    """
    alternatives: dict[str, set[str]] = {}
    for assembly, group in groups:
        if group not in ("?", ".", "0"):
            alternatives.setdefault(assembly, set()).add(group)
    if any(len(found) > 1 or min(found).startswith("-") for found in alternatives.values()):
        raise ValueError(DISORDERED)


OPTIONAL = [
    "_atom_site_occupancy",
    "_atom_site_calc_flag",
    "_atom_site_disorder_assembly",
    "_atom_site_disorder_group",
    "_atom_site_symmetry_multiplicity",
    "_atom_site_site_symmetry_multiplicity",
]
"""Columns of sites that may be missing."""


def _third(value: float, text: str) -> float:
    """The third or sixth that a coordinate stands for, as 1.6667 does for 5/3; otherwise the coordinate."""
    thirds = round(3 * value)
    # pymatgen's tolerance, which it applies between 0 and 1 only.
    if thirds % 3 and abs((abs(value) % 1) / (abs(thirds) % 3 / 3) - 1) <= 1.001e-4:
        return thirds / 3
    digits = len(re.sub(r"\(.*", "", text).partition(".")[2])
    sixths = round(6 * value)
    return (
        sixths / 6 if sixths % 2 and sixths % 3 and digits in (4, 5) and round(sixths / 6, digits) == value else value
    )


def _images(point: np.ndarray, group: Operations, matrix: np.ndarray, multiplicity: float | None) -> np.ndarray:
    """The different images [n, 3] of a site in the cell, in the order of the operations.

    Images up to SAME_ATOM apart are one atom, unless the site's multiplicity says that they are different ones: models
    do draw atoms that close, and these are to be judged as they are.
    """
    images = group.rotations @ point + group.translations
    images -= np.floor(images)
    difference = images[:, None] - images[None]
    difference -= np.rint(difference)
    same = np.asarray((np.abs(difference) < SAME_POINT).all(-1))
    if len(kept := _first_of_each(same)) != multiplicity:
        close = np.asarray(np.linalg.norm(difference @ matrix, axis=-1) < SAME_ATOM)
        kept = _first_of_each(same | close)
    return images[kept]


def _first_of_each(same: np.ndarray) -> list[int]:
    """The first of each group of rows that are the same."""
    kept: list[int] = []
    for i in range(len(same)):
        if not same[i, kept].any():
            kept.append(i)
    return kept


def _has_said_number(cell: list[tuple[Site, np.ndarray]], data: dict[str, list[str]], formula: Formula | None) -> bool:
    """Whether a cell has the numbers of atoms that its sites or Z and the formula say; False if they say nothing."""
    if all(number is not None for (_, number), _ in cell):
        return all(len(points) == number for (_, number), points in cell)
    units = _number(next(iter(data.get("_cell_formula_units_z", ())), "?"))
    if not units or not formula:
        return False
    # pymatgen gives the atoms of the cell as the formula, and Z as what is common to their numbers.
    whole = units > 1 and all(count % units == 0 for count in formula.values())
    return sum(len(points) for _, points in cell) == round((1 if whole else units) * sum(formula.values()))


def _check_formula(counts: Counter[str], formula: Formula | None, data: dict[str, list[str]]) -> None:
    """Refuses a crystal that lacks atoms of its formula, hydrogen most of all, which X-rays hardly see."""
    if formula is None:
        if "H" not in counts and _names_hydrogen(data):
            raise ValueError("H has no sites although a formula names it")
        return
    for these, those, what in ((formula, counts, "no sites"), (counts, formula, "sites, and no place in the formula")):
        if missing := sorted(set(these) - set(those)):
            raise ValueError(f"{missing[0]} has {what}" + (" although the formula names it" if those is counts else ""))
    ratios = [counts[symbol] / number for symbol, number in formula.items()]
    if max(ratios) > min(ratios) * (1 + FORMULA_TOLERANCE):
        raise ValueError("sites that do not match the formula")
