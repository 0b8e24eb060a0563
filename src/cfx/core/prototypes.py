"""Known prototypes: which Wyckoff positions crystals occupy, whatever their elements, and how often that occurs.

A prototype is a space group, letters, and which of them hold the same element (its *roles*). Prototypes that a change
of setting (`SettingsTable`) makes equal are one; the most frequent of its forms is stored. The order of sites of one
letter does not count: the encoder gives it by their coordinates.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Int

from cfx.config import Template, texts
from cfx.core.crystal import CrystalBatch
from cfx.core.elements import SYMBOLS, lowest_terms
from cfx.core.symmetry import LETTERS, settings_table, symmetry_table

MOST_ATOMS = 40
"""Most atoms in the primitive cell of a prototype that is kept."""

Occupation = tuple[tuple[Any, tuple[int, ...]], ...]
"""(element, letters of its sites in order) of each element, in order; None for every element is a prototype."""


def standard_form(space_group: int, occupation: Iterable[tuple[Any, Iterable[int]]]) -> Occupation:
    """An occupation in the setting in which it comes first: equal for crystals that a change of setting makes equal.

    Args:
        space_group: 1 to 230.
        occupation: of each element, or role, its label and the letters (a = 1) of its sites; one label for all makes
            the form independent of the elements.
    """
    parts = [(label, list(letters)) for label, letters in occupation]
    return min(
        tuple(sorted((label, tuple(sorted(becomes[letter] for letter in letters))) for label, letters in parts))
        for becomes in _letter_changes(space_group)
    )


@functools.cache
def _letter_changes(space_group: int) -> tuple[tuple[int, ...], ...]:
    """What the letters of a group become in its settings, every distinct way once, the identity first."""
    table = settings_table()
    first = table.start[space_group - 1]
    changes = table.letter[first : first + table.count[space_group - 1]].tolist()
    return tuple(dict.fromkeys(map(tuple, changes)))


@dataclass(frozen=True)
class PrototypeTable:
    """Prototypes with the numbers of crystals that have them; the sites of all stand one after another.

    Attributes:
        space_group: of each prototype.
        num_sites: symmetry-inequivalent sites.
        crystals: with this prototype.
        formulas: different reduced formulas among them.
        letter: of each site, a = 1; they do not decrease within a prototype.
        role: of each site: 0, 1, ... in the order in which they come first.
        info: where they come from.
    """

    space_group: Int[np.ndarray, " P"]
    num_sites: Int[np.ndarray, " P"]
    crystals: Int[np.ndarray, " P"]
    formulas: Int[np.ndarray, " P"]
    letter: Int[np.ndarray, " sites"]
    role: Int[np.ndarray, " sites"]
    info: dict[str, Any]

    def __len__(self) -> int:
        return len(self.space_group)

    def sites(self, row: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Letters and roles of a prototype."""
        first = int(self._start[row])
        part = slice(first, first + int(self.num_sites[row]))
        return tuple(self.letter[part].tolist()), tuple(self.role[part].tolist())

    @functools.cached_property
    def _start(self) -> Int[np.ndarray, " P"]:
        return np.cumsum(self.num_sites) - self.num_sites

    def role_counts(self, row: int) -> tuple[int, ...]:
        """Atoms of each role in the formula unit."""
        size = symmetry_table().multiplicity[self.space_group[row] - 1]
        counts: Counter[int] = Counter()
        for letter, role in zip(*self.sites(row), strict=True):
            counts[role] += int(size[letter])
        return tuple(lowest_terms(dict(sorted(counts.items()))).values())

    @functools.cached_property
    def rows_by_counts(self) -> dict[tuple[int, ...], list[int]]:
        """Prototypes by the numbers of atoms in their formula unit, in order, as (1, 1, 3)."""
        rows: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row in range(len(self)):
            rows[tuple(sorted(self.role_counts(row)))].append(row)
        return rows

    def write(self, file: Path | IO[bytes] | io.BytesIO) -> None:
        """Writes the table; the same one makes the same bytes."""
        np.savez_compressed(
            file,
            header=np.frombuffer(json.dumps(self.info).encode(), np.uint8),
            space_group=self.space_group.astype("<u1"),
            num_sites=self.num_sites.astype("<u1"),
            crystals=self.crystals.astype("<u4"),
            formulas=self.formulas.astype("<u4"),
            letter=self.letter.astype("<u1"),
            role=self.role.astype("<u1"),
        )

    @classmethod
    def read(cls, file: Path | IO[bytes] | io.BytesIO) -> PrototypeTable:
        """Reads a table that `write` has written."""
        stored = dict(np.load(file))
        info = json.loads(stored.pop("header").tobytes())
        return cls(**{name: values.astype(np.int32) for name, values in stored.items()}, info=info)


@functools.cache
def prototype_table() -> PrototypeTable:
    """The bundled table, of the training data of `mini`; read once."""
    with (files("cfx") / "resources" / "prototypes.npz").open("rb") as file:
        return PrototypeTable.read(file)


def count_prototypes(batch: CrystalBatch, info: Mapping[str, Any]) -> PrototypeTable:
    """The prototypes of crystals (numpy), those of most formulas first.

    Those of more than MOST_ATOMS atoms in the primitive cell are left out, and counted in `info`.
    """
    forms: dict[tuple[int, Occupation], Counter[tuple]] = defaultdict(Counter)  # of each prototype
    formulas: dict[tuple[int, Occupation], set] = defaultdict(set)
    lattice_points = np.array([symmetry_table().num_lattice_points(group) for group in range(1, 231)])
    atoms = batch.num_atoms / lattice_points[batch.space_group - 1]
    for row in np.flatnonzero(atoms <= MOST_ATOMS).tolist():
        form = tuple(sorted(letters for _, letters in occupation_of(batch, row)))
        key = prototype_key(int(batch.space_group[row]), form)
        forms[key][form] += 1
        formulas[key].add(tuple(sorted(lowest_terms(batch[row : row + 1].composition(0)).items())))
    ordered = sorted(forms, key=lambda key: (-len(formulas[key]), -forms[key].total(), key))
    sites = [_sites_of(max(sorted(forms[key]), key=lambda form, key=key: forms[key][form])) for key in ordered]
    return PrototypeTable(
        space_group=np.array([group for group, _ in ordered], np.int32),
        num_sites=np.array([len(letters) for letters, _ in sites], np.int32),
        crystals=np.array([forms[key].total() for key in ordered], np.int32),
        formulas=np.array([len(formulas[key]) for key in ordered], np.int32),
        letter=np.array([letter for letters, _ in sites for letter in letters], np.int32),
        role=np.array([role for _, roles in sites for role in roles], np.int32),
        info={**info, "crystals_too_large": int((atoms > MOST_ATOMS).sum())},
    )


def occupation_of(batch: CrystalBatch, row: int) -> Occupation:
    """Atomic numbers of a crystal (numpy) with the letters of their sites."""
    letters: dict[int, list[int]] = defaultdict(list)
    for number, letter in zip(batch.species[row].tolist(), batch.wyckoff[row].tolist(), strict=True):
        if letter:
            letters[number].append(letter)
    return tuple(sorted((number, tuple(sorted(own))) for number, own in letters.items()))


@functools.cache
def prototype_key(space_group: int, letters_by_role: tuple[tuple[int, ...], ...]) -> tuple[int, Occupation]:
    """What crystals of one prototype share, from the letters of the sites of each element."""
    return space_group, standard_form(space_group, ((0, letters) for letters in letters_by_role))


def _sites_of(letters_by_role: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Letters and roles of sites in order of their letters."""
    pairs = sorted((letter, role) for role, letters in enumerate(letters_by_role) for letter in letters)
    order = {role: i for i, role in enumerate(dict.fromkeys(role for _, role in pairs))}
    renamed = sorted((letter, order[role]) for letter, role in pairs)
    return tuple(letter for letter, _ in renamed), tuple(role for _, role in renamed)


@dataclass(frozen=True)
class KnownPrototype:
    """A prototype with elements in its roles.

    Attributes:
        space_group: 1 to 230.
        letters: Wyckoff letters of the sites, in order.
        species: symbols of the sites.
        crystals: of the table with this prototype, of whatever elements.
        formulas: different reduced formulas among them.
    """

    space_group: int
    letters: tuple[str, ...]
    species: tuple[str, ...]
    crystals: int
    formulas: int

    @property
    def occupation(self) -> Occupation:
        """Atomic numbers with the letters (a = 1) of their sites."""
        letters: dict[int, list[int]] = defaultdict(list)
        for letter, symbol in zip(self.letters, self.species, strict=True):
            letters[SYMBOLS.index(symbol)].append(LETTERS.index(letter))
        return tuple(sorted((number, tuple(own)) for number, own in letters.items()))

    @property
    def template(self) -> Template:
        """The same for `SampleConfig`, to be drawn in `space_group`; sites of one letter stay in this order."""
        return Template(letters=self.letters, species=tuple((symbol,) for symbol in self.species))


def prototypes_of(
    formula: str | Mapping[str, int] | Iterable[tuple[str, int]],
    space_groups: Iterable[int] | None = None,
    table: PrototypeTable | None = None,
) -> list[KnownPrototype]:
    """Known prototypes that a composition can have, its elements put into their roles in all distinct ways.

    They are in the order of how likely a prototype is beforehand: by the number of different formulas that are known
    with it, then of crystals. Of assignments that a change of setting makes equal there is the one that keeps more of
    the order in which the formula names the elements: cations first, as in the crystals of most databases.

    Args:
        formula: "SrTiO3", or symbols and numbers of atoms, of any number of formula units.
        space_groups: the only ones wanted; None for all.
        table: prototypes; by default the bundled ones.

    Raises:
        UsageError: if a text is no formula.
    """
    table = table or prototype_table()
    counts = lowest_terms(dict(texts.formula(formula) if isinstance(formula, str) else formula))
    wanted = None if space_groups is None else set(space_groups)
    found = []
    for row in table.rows_by_counts.get(tuple(sorted(counts.values())), []):
        group = int(table.space_group[row])
        if wanted is not None and group not in wanted:
            continue
        letters, roles = table.sites(row)
        names = tuple(LETTERS[letter] for letter in letters)
        for elements in _assignments(table, row, counts):
            species = tuple(elements[role] for role in roles)
            found.append(KnownPrototype(group, names, species, int(table.crystals[row]), int(table.formulas[row])))
    return found


def _assignments(table: PrototypeTable, row: int, counts: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
    """The element of each role of a prototype, in all ways that differ whatever the setting."""
    letters, roles = table.sites(row)
    needed, group, seen = table.role_counts(row), int(table.space_group[row]), set()
    by_count = {n: [symbol for symbol, count in counts.items() if count == n] for n in sorted(set(needed))}
    for choice in itertools.product(*(itertools.permutations(symbols) for symbols in by_count.values())):
        left = {n: list(symbols) for n, symbols in zip(by_count, choice, strict=True)}
        elements = tuple(left[n].pop(0) for n in needed)
        own = [
            (SYMBOLS.index(symbol), [letter for letter, of in zip(letters, roles, strict=True) if of == role])
            for role, symbol in enumerate(elements)
        ]
        if (form := standard_form(group, own)) not in seen:
            seen.add(form)
            yield elements
