"""Extended XYZ and POSCAR: frames of atoms, one after the other in a file."""

import itertools
import re
from collections.abc import Iterator
from typing import TextIO

import numpy as np

from cfx.core import Structure
from cfx.core.elements import SYMBOLS
from cfx.data.encode import DISORDERED
from cfx.data.formats import MOST_ATOMS, MOST_CHARACTERS, Record


def extxyz_records(name: str, lines: TextIO) -> Iterator[Record]:
    """Every frame. After a line that is not a number of atoms nobody knows where the next frame starts."""
    numbered = enumerate(lines, start=1)
    frames = itertools.count(1)
    for number, line in numbered:
        if not line.strip():
            continue
        if not re.fullmatch(r"\s*[0-9]{1,18}\s*", line):
            raise ValueError(f"line {number} is not a number of atoms")
        count = int(line)
        if count > MOST_ATOMS:
            raise ValueError(f"line {number} announces {count:,} atoms, more than {MOST_ATOMS:,}")
        rest = [text for _, text in itertools.islice(numbered, count + 1)]
        yield Record(f"{name}#{next(frames)}", "extxyz", line + "".join(rest))


_ENTRY = re.compile(r"""([\w-]+)\s*=\s*("[^"]*"|'[^']*'|\{[^}]*\}|\[[^\]]*\]|\S+)""")


def structure_of_extxyz(text: str) -> "Structure":
    """The cell of a frame."""
    from pymatgen.core import Lattice, Structure

    first, comment, *atoms = text.split("\n")
    atoms = [line.split() for line in atoms if line.strip()]
    if len(atoms) != int(first):
        raise ValueError(f"{int(first)} atoms announced, but {len(atoms)} there")
    if not atoms:
        raise ValueError("no atoms")
    pairs = {(key.lower(), value.strip("\"'{}[]")) for key, value in _ENTRY.findall(comment)}
    entries = dict(pairs)
    if "lattice" not in entries or sum(key == "lattice" for key, _ in pairs) > 1:
        raise ValueError("a frame without a Lattice, or with two")
    matrix = np.array([float(number) for number in re.split(r"[\s,]+", entries["lattice"].strip())])
    if matrix.shape != (9,):
        raise ValueError("a Lattice that is not nine numbers")
    # Where a cell is given, "F F F" is what programs write that know no period; a slab or a wire is not a crystal.
    if (
        len(set(re.findall(r"[\w]+", re.sub(r"[TF1]\w*|0", lambda word: word[0][0], entries.get("pbc", "T").upper()))))
        > 1
    ):
        raise ValueError("a structure that is periodic in some directions only")
    place, kind, shares = _columns(entries.get("properties", "species:S:1:pos:R:3"))
    if any(len(row) < max(place + 3, kind[0] + 1, (shares or 0) + 1) for row in atoms):
        raise ValueError("lines of atoms that are too short for their Properties")
    if shares is not None and any(float(row[shares]) != 1 for row in atoms):
        raise ValueError(DISORDERED)
    species = [row[kind[0]] if kind[1] == "S" else _symbol(row[kind[0]]) for row in atoms]
    points = [[float(number) for number in row[place : place + 3]] for row in atoms]
    return Structure(Lattice(matrix.reshape(3, 3)), elements(species), points, coords_are_cartesian=True)


def _columns(properties: str) -> tuple[int, tuple[int, str], int | None]:
    """Where positions start, where the elements stand with their type (S, or I for atomic numbers), and occupancies."""
    parts, start = properties.split(":"), 0
    found: dict[str, tuple[int, str]] = {}
    for name, kind, width in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        if (
            name.lower() in found
            or not re.fullmatch(r"[1-9]\d{0,9}", width)
            or (name.lower() == "pos" and width != "3")
        ):
            raise ValueError(f"Properties with {name[:20]}:{kind[:20]}:{width[:20]}")
        found[name.lower()] = (start, kind)
        start += int(width)
    elements_at = found.get("species") or found.get("z") or found.get("numbers")
    if "pos" not in found or elements_at is None:
        raise ValueError("Properties without species and pos")
    shares = found.get("occupancy") or found.get("occupancies")
    return found["pos"][0], elements_at, shares and shares[0]


def _symbol(number: str) -> str:
    """The symbol of an atomic number."""
    if not re.fullmatch(r"\d{1,3}", number) or not 0 < int(number) < len(SYMBOLS):
        raise ValueError(f"{number[:20]} is not an atomic number")
    return SYMBOLS[int(number)]


def elements(names: list[str]) -> list[str]:
    """The names, if they are elements; ValueError names one that is not."""
    if strange := next((name for name in names if name not in SYMBOLS[1:] and name not in ("D", "T")), None):
        raise ValueError(f"{strange[:20]} is not an element")
    return names


def poscar_records(name: str, lines: TextIO) -> Iterator[Record]:
    """Every frame: of a POSCAR, of several one after the other, and of an XDATCAR, which says the elements once."""
    text = lines.read(MOST_CHARACTERS + 1)
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"more than {MOST_CHARACTERS:,} characters")
    frames = _poscar_frames(text.split("\n")) or [text]
    for i, frame in enumerate(frames, start=1):
        yield Record(name if len(frames) == 1 else f"{name}#{i}", "poscar", frame)


def _poscar_frames(lines: list[str]) -> list[str]:
    """The lines of every frame. What begins like one, and is none, is a frame that cannot be read."""
    frames: list[str] = []
    header, count, at = [], 0, 0
    while at < len(lines):
        if starts := _poscar_header(lines, at):
            header, count, at = lines[at : starts[0]], starts[1], starts[0]
        elif not header or not re.match(r"\s*direct configuration", lines[at], re.IGNORECASE):
            if frames and _begins_like_a_frame(lines[at : at + 2]):
                frames.append("\n".join(lines[at : at + 5]))
            at += 1  # velocities, and what else follows the atoms
            continue
        selective = bool(re.match(r"\s*s", lines[at], re.IGNORECASE)) if at < len(lines) else False
        end = at + 1 + selective + min(count, MOST_ATOMS)
        frames.append("\n".join([*header, *lines[at:end]]) + "\n")
        at = end
    return frames


_N = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][-+]?\d+)?"
_NUMBER = re.compile(rf"\s*{_N}\s*([!#].*)?")
_POINT = re.compile(rf"\s*({_N})(?:\s+|(?=-))({_N})(?:\s+|(?=-))({_N})(?:\s+|$)")
_VECTOR = re.compile(rf"{_POINT.pattern}([!#].*)?")
_SCALES = re.compile(rf"(?:{_NUMBER.pattern}|{_VECTOR.pattern})")
_COUNTS = re.compile(r"\s*\d+(\s+\d+)*\s*([!#].*)?")


def _begins_like_a_frame(lines: list[str]) -> bool:
    """Whether a comment and a scale stand here, and not the velocities of a lattice."""
    words = re.search("[A-Za-z]", lines[0]) and not re.match(r"\s*(lattice|cart|direct)", lines[0], re.IGNORECASE)
    return bool(words) and len(lines) > 1 and bool(_NUMBER.fullmatch(lines[1]))


def _poscar_header(lines: list[str], at: int) -> tuple[int, int] | None:
    """Where the line after the counts is, and how many atoms there are, if a header starts at a line."""
    if at + 6 >= len(lines) or not (_SCALES if at == 0 else _NUMBER).fullmatch(lines[at + 1]):
        return None
    if not all(_VECTOR.fullmatch(line) for line in lines[at + 2 : at + 5]):
        return None
    first = next((i for i in range(at + 5, min(at + 15, len(lines))) if _COUNTS.fullmatch(lines[i])), None)
    if first is None or (at and re.match(r"\s*lattice vel", lines[at], re.IGNORECASE)):
        return None
    if not all(re.search("[A-Za-z]", line) for line in lines[at + 5 : first]):
        return None
    last = first
    while last + 1 < len(lines) and last - first < 10 and _COUNTS.fullmatch(lines[last + 1]):
        last += 1
    total = sum(_counts(lines[first : last + 1]))
    # Velocities look like a header too, but have no words around them.
    worded = re.search("[A-Za-z]", lines[at]) or re.match(r"\s*[A-Za-z]", "".join(lines[last + 1 : last + 2]))
    return (last + 1, total) if total and (at == 0 or worded) else None


def _counts(lines: list[str]) -> list[int]:
    return [int(word[:12]) for line in lines for word in re.split("[!#]", line)[0].split()]


def structure_of_poscar(text: str) -> "Structure":
    """The cell of a POSCAR; elements by their names above the counts, behind the atoms, or in the comment."""
    from pymatgen.core import Lattice, Structure

    lines = text.split("\n")
    if (starts := _poscar_header(lines, 0)) is None:
        raise ValueError("not a POSCAR: a comment, a scale, three vectors, elements and their numbers are expected")
    ends, total = starts
    above = [re.split("[!#]", line)[0] for line in lines[5:ends] if not _COUNTS.fullmatch(line)]
    counts = _counts(lines[5 + len(above) : ends])
    names = [re.split("[/_]", word)[0] for line in above for word in line.split()]
    if above and (len(names) != len(counts) or not elements(names)):
        raise ValueError(f"{len(names)} elements with {len(counts)} numbers of atoms")
    selective = bool(re.match(r"\s*s", lines[ends], re.IGNORECASE))
    atoms = [line.split() for line in lines[ends + 1 + selective :] if line.strip()][:total]
    if total > len(atoms):
        raise ValueError(f"{total:,} atoms announced, but {len(atoms)} there")
    if not (mode := lines[ends + selective].strip().lower()):
        raise ValueError("a POSCAR that does not say whether its coordinates are direct or Cartesian")
    behind = [words[6 if selective else 3 :] for words in atoms]
    if not above and all(words and words[0] in SYMBOLS[1:] for words in behind):
        species = [words[0] for words in behind]
    else:
        names = names or _names_in_comment(lines[0], counts)
        species = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    matrix, scale = _scaled([float(n) for n in _numbers(lines[1])], np.array([_three(line) for line in lines[2:5]]))
    cartesian = mode[0] in "ck"
    points = np.array([_three(" ".join(words)) for words in atoms]) * (scale if cartesian else 1)
    return Structure(Lattice(matrix), species, points, coords_are_cartesian=cartesian)


def _numbers(line: str) -> list[str]:
    return re.split("[!#]", line.replace("D", "E").replace("d", "e"))[0].split()


def _three(line: str) -> list[float]:
    """The numbers that a line begins with, which may touch where the next is negative."""
    if not (match := _POINT.match(line)):
        raise ValueError(f"{line.strip()[:40]} does not begin with three numbers")
    return [float(number.upper().replace("D", "E")) for number in match.groups()[:3]]


def _scaled(scales: list[float], matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray | float]:
    """Vectors in angstrom and the scale of Cartesian coordinates: one factor, one of each axis, or minus the volume."""
    if len(scales) == 3:
        return matrix * scales, np.array(scales)
    [scale] = scales
    volume = abs(np.linalg.det(matrix))
    if scale < 0 and volume > 0:
        scale = (-scale / volume) ** (1 / 3)
    return matrix * scale, scale


def _names_in_comment(comment: str, counts: list[int]) -> list[str]:
    """The elements of a comment as "Na Cl" or "Na4 Cl4", which must fit the numbers of atoms."""
    pairs = re.findall(r"([A-Z][a-z]?)(\d*)\s*", comment.strip())
    whole = "".join(symbol + number for symbol, number in pairs) == "".join(comment.split())
    numbers = [int(number) for _, number in pairs if number and len(number) < 9]
    if not whole or len(pairs) != len(counts) or numbers not in ([], counts):
        raise ValueError("a POSCAR that names no elements")
    return elements([symbol for symbol, _ in pairs])
