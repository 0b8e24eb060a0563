"""Symmetry operations of a CIF: those that it lists, or those that its space group's name stands for.

Names are looked up among the 530 settings of spglib's data base (Hall 1981; International Tables B, 2010, table
A1.4.2.7). A name that fits several settings, or a list that is not as long as its name asks for, is decided by the
cell, or else by what the file says about the number of atoms; where neither decides, there is no crystal.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

MOST_OPERATIONS = 1000
"""Operations in a list, at most. A space group in its conventional cell has no more than 192."""

FEW_DIGITS = 0.004
"""Translations are rounded by so much at most: 0.33 is 1/3."""

METRIC_TOLERANCE = 0.02
"""Largest change that an operation may make to a cell's metric, as a part of its largest entry."""

LISTS = ("_space_group_symop_operation_xyz", "_symmetry_equiv_pos_as_xyz")
MAGNETIC_LIST = "_space_group_symop_magn_operation_xyz"
CENTERINGS = "_space_group_symop_magn_centering_xyz"
HALL_NAMES = ("_space_group_name_hall", "_symmetry_space_group_name_hall")
NAMES = (
    "_space_group_name_h-m_alt",
    "_symmetry_space_group_name_h-m",
    "_space_group_name_h-m",
    "_space_group_name_h-m_full",
    "_space_group_name_h-m_ref",
)
NUMBERS = ("_space_group_it_number", "_symmetry_int_tables_number")
STANDARD = ("", "1", "2", "H", "R", "b", "c", "b1", "c1")
MAGNETIC = ("_space_group_magn", "_parent_space_group")
MODULATED = ("_space_group_ssg", "_space_group_symop_ssg", "_cell_wave_vector", "_cell_modulation_dimension")


class Operations(NamedTuple):
    """Rotations [n, 3, 3] and translations [n, 3] in fractional coordinates."""

    rotations: np.ndarray
    translations: np.ndarray


def operations(data: Mapping[str, Sequence[str]], metric: np.ndarray) -> list[Operations]:
    """The operations of a CIF block; several sets where it leaves open which is meant, which the sites must decide.

    Args:
        data: values by tag in lower case.
        metric: [3, 3], scalar products of the cell vectors.

    Raises:
        ValueError: if what the block says is unknown, contradictory, or no group of operations.
    """
    if any(tag.startswith(MODULATED) for tag in data):
        raise ValueError("a modulated structure, which repeats in more than three dimensions")
    if any(map(_said, data.get(MAGNETIC_LIST, ()))):
        listed = _listed(tuple(data[MAGNETIC_LIST]))
        centerings = data.get(CENTERINGS, ())
        return [_combined(listed, _listed(tuple(centerings))) if centerings else listed]
    if any(tag.startswith(MAGNETIC) for tag in data):
        raise ValueError("a magnetic space group without a list of its operations")
    texts = next((data[tag] for tag in LISTS if any(map(_said, data.get(tag, ())))), None)
    if texts is None:
        settings = _named_settings(data)
        if settings is None:
            raise ValueError("neither symmetry operations nor a space group, not even P 1")
        return _fitting(settings, metric)
    listed = _listed(tuple(texts))
    if _deviation(listed, metric) > METRIC_TOLERANCE:
        raise ValueError("a cell without the symmetry of the operations that the file lists")
    return _beside_the_name(listed, data, metric)


def _beside_the_name(listed: Operations, data: Mapping[str, Sequence[str]], metric: np.ndarray) -> list[Operations]:
    """Listed operations, and those of the group's name where it has another number of them.

    Some programs list the identity alone beside any symbol, and mean the symbol; others expand the cell and keep it.
    """
    count = len(listed.translations)
    try:
        settings = _named_settings(data)
    except ValueError:  # operations need no name; but the identity is also what stands there by default
        if count == 1:
            raise
        return [listed]
    if settings is None or any(len(_of_setting(hall).translations) == count for hall in settings):
        return [listed]
    return [listed, *_fitting(settings, metric)]


def why_undecided(candidates: list[Operations]) -> str:
    """Why there are several sets of operations."""
    counts = [len(group.translations) for group in candidates]
    if len(set(counts)) > 1:
        return f"a list of {counts[0]} symmetry operations, and a space group that has {counts[1]}"
    return (
        "a space group with two origin choices or settings, and the file does not say which: "
        "write :1 or :2 after its symbol, or list its operations"
    )


def _said(value: str) -> bool:
    return value.strip() not in ("", "?", ".")


def _first(data: Mapping[str, Sequence[str]], tags: Iterable[str]) -> str | None:
    return next((value for tag in tags for value in data.get(tag, ())[:1] if _said(value)), None)


@functools.lru_cache(512)
def _listed(texts: tuple[str, ...]) -> Operations:
    """The different operations of a list.

    Raises:
        ValueError: if they are no group.
    """
    if len(texts) > MOST_OPERATIONS:
        raise ValueError(f"{len(texts)} symmetry operations, more than {MOST_OPERATIONS}")
    parsed = [_operation(text) for text in texts]
    every = Operations(np.array([rotation for rotation, _ in parsed]), np.array([shift for _, shift in parsed]))
    codes, first = np.unique(_codes(*every), return_index=True)
    if not np.isin(_codes(np.eye(3), np.zeros(3)), codes):
        raise ValueError("a list of symmetry operations without the identity")
    found = Operations(*(part[np.sort(first)] for part in every))
    on_grid = np.abs(found.translations * GRID - np.rint(found.translations * GRID)).max() < 1e-6
    if on_grid and not all(np.isin(products, codes).all() for products in _products(found)):
        raise ValueError(f"{len(codes)} symmetry operations that are no group: some are missing, or wrong")
    return found


GRID = 24
"""Translations of all settings are multiples of this part of an edge."""

LARGEST = 8
"""Largest entry of a rotation."""

_WEIGHTS = (2 * LARGEST + 1) ** np.arange(9)


def _codes(rotations: np.ndarray, translations: np.ndarray) -> np.ndarray:
    """A number for each operation [...], equal for those that do the same to a crystal."""
    entries = np.rint(rotations).astype(int).reshape(*rotations.shape[:-2], 9) + LARGEST
    shifts = np.rint(GRID * translations).astype(int) % GRID
    return entries @ _WEIGHTS * GRID**3 + shifts @ GRID ** np.arange(3)


def _products(group: Operations) -> Iterator[np.ndarray]:
    """Codes of every operation followed by each of them."""
    for rotation, shift in zip(*group, strict=True):
        yield _codes(rotation @ group.rotations, group.translations @ rotation.T + shift)


_TERM = re.compile(r"([+-]?)(?:(\d+\.?\d*|\.\d+)(?:/(\d+))?)?\*?([xyz]?)")


def _operation(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Rotation [3, 3] and translation [3] of a text as "-y, x-y, z+1/3"; a magnetic one's sign of time is left out."""
    parts = "".join(text.lower().split()).split(",")
    rotation, shift = np.zeros((3, 3)), np.zeros(3)
    if len(parts) not in (3, 4) or len(text) > 200:
        raise ValueError(f"{text[:40]} is not a symmetry operation")
    for row, part in enumerate(parts[:3]):
        end = 0
        for term in _TERM.finditer(part):
            sign, number, below, axis = term.groups()
            if term.start() != end or not (number or axis) or (below and not int(below)):
                break
            end = term.end()
            value = float(Fraction(number or "1") / int(below or 1)) * (-1 if sign == "-" else 1)
            if axis:
                rotation[row, "xyz".index(axis)] += value
            else:
                shift[row] += value
        if end != len(part) or not part:
            raise ValueError(f"{text[:40]} is not a symmetry operation")
    if (rotation != np.rint(rotation)).any() or abs(abs(np.linalg.det(rotation)) - 1) > 1e-6:
        raise ValueError(f"{text[:40]} is not a symmetry operation of a lattice")
    if np.abs(rotation).max() > LARGEST or np.abs(shift).max() > LARGEST:
        raise ValueError(f"{text[:40]} is not a symmetry operation")
    exact = np.rint(GRID * shift) / GRID  # of thirds in few digits, as 0.333
    return rotation, np.where(np.abs(exact - shift) < FEW_DIGITS, exact, shift)


def _combined(first: Operations, second: Operations) -> Operations:
    """Every operation of the first list, followed by every translation of the second, a list of centerings."""
    shifts = (first.translations[:, None] + second.translations[None]).reshape(-1, 3)
    return Operations(np.repeat(first.rotations, len(second.translations), axis=0), shifts)


def _named_settings(data: Mapping[str, Sequence[str]]) -> set[int] | None:
    """Hall numbers of all settings that fit what the block calls its group, or None where it says nothing."""
    hall, number = (_first(data, tags) for tags in (HALL_NAMES, NUMBERS))
    symbols = [value for tag in NAMES for value in data.get(tag, ())[:1] if _said(value)]
    # The reference setting, and what comes after a name that is known, may be of other axes.
    known = [halls for halls in (_of_hall(hall or ""), *map(_of_symbol, symbols[:2])) if halls]
    if (hall or symbols) and not known:
        raise ValueError(f"no operations, and the unknown space group {[*symbols, hall][0][:30]}")
    if number:
        same = {setting for setting, kind in _types().items() if str(kind.number) == number.strip()}
        if not same:
            raise ValueError(f"there is no space group {number[:30]}")
        # Alone it stands for a setting of International Tables: unique axis b or c, either origin, either axes.
        known.append(same if known else {setting for setting in same if _types()[setting].choice in STANDARD})
    if not known:
        return None
    if not (common := set.intersection(*known)):
        raise ValueError("no operations, and names or numbers of the space group that contradict each other")
    return common


@functools.cache
def _types() -> dict[int, Any]:
    """spglib's SpaceGroupType of every setting."""
    import spglib

    return {hall: spglib.get_spacegroup_type(hall) for hall in range(1, 531)}


def _plain(symbol: str) -> str:
    return re.sub(r"[\s_()]", "", symbol).lower()


@functools.cache
def _hall_symbols() -> dict[str, set[int]]:
    """Settings by their Hall symbol, in lower case with single blanks, and without: "p 32" is not "p 3 2"."""
    found: dict[str, set[int]] = {}
    for hall, kind in _types().items():
        spaced = kind.hall_symbol.lower()
        for name in {spaced, _plain(spaced)}:
            found.setdefault(name, set()).add(hall)
    return found


def _of_hall(symbol: str) -> set[int]:
    spaced = " ".join(re.split(r"[\s_]+", symbol.strip().lower()))
    return _hall_symbols().get(spaced) or _hall_symbols().get(_plain(spaced), set())


@functools.cache
def _symbols() -> dict[str, set[int]]:
    """Settings by every usual way to write their symbol, without blanks and in lower case."""
    found: dict[str, set[int]] = {}
    for hall, kind in _types().items():
        for name in _aliases(kind):
            found.setdefault(name, set()).add(hall)
            if kind.choice:
                found.setdefault(f"{name}:{kind.choice.lower()}", set()).add(hall)
    # As it was written until 1992, where that is no other group's name now.
    old = {name.replace("-3", "3"): halls for name, halls in found.items() if "-3" in name[2:]}
    return old | found


def _aliases(kind) -> Iterator[str]:
    full, short = kind.international_full, kind.international_short
    names = {full} if 3 <= kind.number <= 15 else {full, short, kind.international.split("=")[0]}
    if match := re.fullmatch(r"(\S) (?:1 (\S+) 1|1 1 (\S+)|(\S+) 1 1)", full):
        names.add(match[1] + "".join(filter(None, match.groups()[1:])))
    if kind.number in (39, 41, 64) or short in ("Cmme", "Ccce"):  # a double glide plane was named by one of its glides
        standard = kind.choice in ("", "1", "2")
        letters = "abc" if kind.number in (39, 41, 64) else "a" * standard
        names |= {name[0] + name[1:].replace("e", letter) for name in set(names) for letter in letters}
    yield from {_plain(name) for name in names}


CHOICES = {"s": "1", "z": "2", "o1": "1", "o2": "2", "hr": "h", "rs": "r", "rh": "r", "originchoice1": "1"}
CHOICES |= {"originchoice2": "2", "origin1": "1", "origin2": "2"}


def _of_symbol(name: str) -> set[int]:
    """Settings of a symbol, which may end with its choice, as in "R -3 m :H", "R -3 m H" and "F d -3 m Z"."""
    known, plain = _symbols(), _plain(name)
    if plain in known:
        return known[plain]
    words = re.split(r"\s*:\s*|\s+(?=\S+$)|\s*\((?=origin)|,", name.strip().lower(), maxsplit=1)
    tight = re.fullmatch(r"(.*\D.*?)(hr|rs|rh|h|r|s|z)", plain)
    for symbol, choice in [tuple(words)] * (len(words) == 2) + ([tight.groups()] if tight else []):
        choice = _plain(choice).strip(":")
        if found := known.get(f"{_plain(symbol).strip(':')}:{CHOICES.get(choice, choice)}"):
            return found
    return set()


@functools.cache
def _of_setting(hall: int) -> Operations:
    import spglib

    found = spglib.get_symmetry_from_database(hall)
    assert found is not None  # one of spglib's own numbers
    return Operations(found["rotations"], found["translations"])


def _fitting(settings: set[int], metric: np.ndarray) -> list[Operations]:
    """The settings that fit the cell best: one, or both origins of a group that has two."""
    deviation = {hall: _deviation(_of_setting(hall), metric) for hall in sorted(settings)}
    best = min(deviation.values())
    if best > METRIC_TOLERANCE:
        raise ValueError(f"a cell without the symmetry of space group {_types()[min(settings)].international_short}")
    fitting = [hall for hall in deviation if deviation[hall] < best + 1e-6]
    first = _types()[fitting[0]]
    # A cell tells axes, not origins: of those settings, the one with the other origin has the same axes.
    if first.number in TWO_PER_NAME and first.choice not in STANDARD:
        chosen = fitting
    else:
        origins = {first.choice, "2" + first.choice[1:]} if first.choice.startswith("1") else {first.choice}
        chosen = [hall for hall in fitting if _types()[hall].choice in origins]
    different = {tuple(np.sort(_codes(*_of_setting(hall)))): _of_setting(hall) for hall in chosen}
    return list(different.values())


TWO_PER_NAME = (67, 68)
"""Groups with a double glide plane e, whose other settings share names in pairs: A e m m is A b m m or A c m m."""


def _deviation(group: Operations, metric: np.ndarray) -> float:
    turned = np.einsum("nji,jk,nkl->nil", group.rotations, metric, group.rotations)
    return float(np.abs(turned - metric).max() / np.abs(metric).max())
