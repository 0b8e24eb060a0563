"""Extended XYZ and POSCAR: frames of atoms, one after the other in a file."""

import itertools
import re
from collections.abc import Iterator
from typing import TextIO

import numpy as np

from cfx.core import Structure
from cfx.core.elements import SYMBOLS
from cfx.data.formats import MOST_ATOMS, MOST_CHARACTERS, Record


def extxyz_records(name: str, lines: TextIO) -> Iterator[Record]:
    """Every frame. After a line that is not a number of atoms nobody knows where the next frame starts."""
    numbered = enumerate(lines, start=1)
    frames = itertools.count(1)
    for number, line in numbered:
        if not line.strip():
            continue
        count = int(line) if re.fullmatch(r"\s*[0-9]{1,18}\s*", line) else 0
        if count < 1:
            raise ValueError(f"line {number} is not a number of atoms")
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
    entries = {key.lower(): value.strip("\"'{}[]") for key, value in _ENTRY.findall(comment)}
    if "lattice" not in entries:
        raise ValueError("a frame without a Lattice")
    matrix = np.array([float(number) for number in re.split(r"[\s,]+", entries["lattice"].strip())])
    if matrix.shape != (9,):
        raise ValueError("a Lattice that is not nine numbers")
    # Where a cell is given, "F F F" is what programs write that know no period; a slab or a wire is not a crystal.
    if len(set(re.findall(r"[TF1]|0", entries.get("pbc", "T").upper()))) > 1:
        raise ValueError("a structure that is periodic in some directions only")
    place, kind = _columns(entries.get("properties", "species:S:1:pos:R:3"))
    if any(len(row) < max(place + 3, kind[0] + 1) for row in atoms):
        raise ValueError("lines of atoms that are too short for their Properties")
    species = [row[kind[0]] if kind[1] == "S" else SYMBOLS[int(row[kind[0]])] for row in atoms]
    points = [[float(number) for number in row[place : place + 3]] for row in atoms]
    return Structure(Lattice(matrix.reshape(3, 3)), elements(species), points, coords_are_cartesian=True)


def _columns(properties: str) -> tuple[int, tuple[int, str]]:
    """Where positions start, and where the elements stand with their type (S, or I for atomic numbers)."""
    parts, start = properties.split(":"), 0
    found: dict[str, tuple[int, str]] = {}
    for name, kind, width in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        found[name.lower()] = (start, kind)
        start += int(width)
    elements_at = found.get("species") or found.get("z") or found.get("numbers")
    if "pos" not in found or elements_at is None:
        raise ValueError("Properties without species and pos")
    return found["pos"][0], elements_at


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
    frames = _poscar_frames(text.splitlines()) or [text]
    for i, frame in enumerate(frames, start=1):
        yield Record(name if len(frames) == 1 else f"{name}#{i}", "poscar", frame)


def _poscar_frames(lines: list[str]) -> list[str]:
    frames: list[str] = []
    header, count, at = [], 0, 0
    while at < len(lines):
        if starts := _poscar_header(lines, at):
            header, count, at = lines[at : starts[0]], starts[1], starts[0]
        elif not header or not re.match(r"\s*direct configuration", lines[at], re.IGNORECASE):
            at += 1  # velocities, and what else follows the atoms
            continue
        selective = bool(re.match(r"\s*s", lines[at], re.IGNORECASE)) if at < len(lines) else False
        end = at + 1 + selective + min(count, MOST_ATOMS)
        frames.append("\n".join([*header, *lines[at:end]]) + "\n")
        at = end
    return frames


_NUMBERS = re.compile(r"\s*([-+]?(\d+\.?\d*|\.\d+)([eEdD][-+]?\d+)?\s*){3}")
_COUNTS = re.compile(r"\s*\d+(\s+\d+)*\s*(!.*)?")


def _poscar_header(lines: list[str], at: int) -> tuple[int, int] | None:
    """Where the line after the counts is, and how many atoms there are, if a header starts at a line."""
    if at + 6 >= len(lines) or not re.fullmatch(r"\s*[-+]?[\d.]+([eEdD][-+]?\d+)?\s*", lines[at + 1]):
        return None
    if not all(_NUMBERS.match(line) for line in lines[at + 2 : at + 5]):
        return None
    first = next((i for i in range(at + 5, min(at + 15, len(lines))) if _COUNTS.fullmatch(lines[i])), None)
    if first is None:
        return None
    last = first
    while last + 1 < len(lines) and last - first < 10 and _COUNTS.fullmatch(lines[last + 1]):
        last += 1
    counts = [int(word[:12]) for line in lines[first : last + 1] for word in line.split("!")[0].split()]
    return last + 1, sum(counts)


def structure_of_poscar(text: str) -> "Structure":
    """The cell of a POSCAR; elements by their names above the counts, behind the atoms, or in the comment."""
    from pymatgen.io.vasp import Poscar

    lines = text.splitlines()
    if (starts := _poscar_header(lines, 0)) is None:
        raise ValueError("not a POSCAR: a comment, a scale, three vectors, elements and their numbers are expected")
    ends, total = starts
    selective = re.match(r"\s*s", lines[ends], re.IGNORECASE) if ends < len(lines) else None
    if total > len(lines) - ends - 1:
        raise ValueError(f"{total:,} atoms announced, but {max(len(lines) - ends - 1 - bool(selective), 0)} there")
    above = [line for line in lines[5:ends] if not _COUNTS.fullmatch(line)]
    counts = [int(word) for line in lines[5 + len(above) : ends] for word in line.split("!")[0].split()]
    names = [re.split("[/_]", word)[0] for line in above for word in line.split()]
    if above and (len(names) != len(counts) or not elements(names)):
        raise ValueError(f"{len(names)} elements with {len(counts)} numbers of atoms")
    place = ends + 1 + bool(selective)
    behind = [line.split()[6 if selective else 3 :] for line in lines[place : place + total]]
    if not above and not all(words and words[0] in SYMBOLS[1:] for words in behind):
        names = _names_in_comment(lines[0], counts)
    found = Poscar.from_str(text, default_names=names or None, read_velocities=False).structure
    elements([site.specie.symbol for site in found])
    return found


def _names_in_comment(comment: str, counts: list[int]) -> list[str]:
    """The elements of a comment as "Na Cl" or "Na4 Cl4", which must fit the numbers of atoms."""
    pairs = re.findall(r"([A-Z][a-z]?)(\d*)\s*", comment.strip())
    whole = "".join(symbol + number for symbol, number in pairs) == "".join(comment.split())
    numbers = [int(number) for _, number in pairs if number and len(number) < 9]
    if not whole or len(pairs) != len(counts) or numbers not in ([], counts):
        raise ValueError("a POSCAR that names no elements")
    return elements([symbol for symbol, _ in pairs])
