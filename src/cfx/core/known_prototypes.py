"""Known prototypes of a composition: elements put into their roles, in the geometry of a known crystal, in order."""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from cfx.config import Template, texts
from cfx.core.crystal import CrystalBatch
from cfx.core.elements import SYMBOLS, lowest_terms
from cfx.core.prototypes import (
    LARGE,
    Arrangement,
    Geometry,
    Occupation,
    PrototypeTable,
    prototype_table,
    standard_form,
)
from cfx.core.symmetry import LETTERS, symmetry_table

LARGE_PLACES = 4
"""Of so many places in the order of a composition's prototypes, the last is for a large one."""

ALIKE = 0.05
"""Relative difference of `PrototypeTable.role_distances` up to which roles have the same surroundings."""


@dataclass(frozen=True)
class KnownPrototype:
    """A prototype with elements in its roles.

    Attributes:
        space_group: 1 to 230.
        letters: Wyckoff letters of the sites, in order.
        species: symbols of the sites.
        crystals: of the table with this prototype, of whatever elements.
        formulas: different reduced formulas among them.
        geometry: of a typical one of these crystals.
    """

    space_group: int
    letters: tuple[str, ...]
    species: tuple[str, ...]
    crystals: int
    formulas: int
    geometry: Geometry = field(compare=False, repr=False)

    @property
    def occupation(self) -> Occupation:
        """Atomic numbers with the letters (a = 1) of their sites."""
        letters: dict[int, list[int]] = defaultdict(list)
        for letter, symbol in zip(self.letters, self.species, strict=True):
            letters[SYMBOLS.index(symbol)].append(LETTERS.index(letter))
        return tuple(sorted((number, tuple(own)) for number, own in letters.items()))

    @property
    def arrangement(self) -> Arrangement:
        """The same, whatever the setting."""
        return self.space_group, standard_form(self.space_group, self.occupation)

    @property
    def num_atoms(self) -> int:
        """Atoms in the conventional cell."""
        size = symmetry_table().multiplicity[self.space_group - 1]
        return sum(int(size[LETTERS.index(letter)]) for letter in self.letters)

    @property
    def is_large(self) -> bool:
        """Whether the primitive cell has more than LARGE atoms."""
        return self.num_atoms // int(symmetry_table().lattice_points[self.space_group - 1]) > LARGE

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
    with it, then of crystals. Of assignments that are equal, by a change of setting or since their sites have the same
    surroundings (`PrototypeTable.role_distances`), there is the one that keeps more of the order in which the formula
    names the elements: cations first, as in the crystals of most databases.

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
            known = int(table.crystals[row]), int(table.formulas[row])
            found.append(KnownPrototype(group, names, species, *known, table.geometry(row)))
    return found


def _assignments(table: PrototypeTable, row: int, counts: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
    """The element of each role of a prototype, in all ways that differ whatever the setting, in letters or geometry.

    Two elements on one letter make two crystals if they are exchanged, as the metal and the phosphorus of an olivine,
    on 4c both.
    """
    letters, roles = table.sites(row)
    needed, group = table.role_counts(row), int(table.space_group[row])
    seen: dict[Occupation, list[list[int]]] = defaultdict(list)
    distances = functools.cache(lambda: table.role_distances(row))
    by_count = {n: [symbol for symbol, count in counts.items() if count == n] for n in sorted(set(needed))}
    for choice in itertools.product(*(itertools.permutations(symbols) for symbols in by_count.values())):
        left = {n: list(symbols) for n, symbols in zip(by_count, choice, strict=True)}
        elements = tuple(left[n].pop(0) for n in needed)
        own = [
            (SYMBOLS.index(symbol), [letter for letter, of in zip(letters, roles, strict=True) if of == role])
            for role, symbol in enumerate(elements)
        ]
        order, alike = [elements.index(symbol) for symbol in counts], seen[standard_form(group, own)]
        if not any(
            np.allclose(distances()[np.ix_(order, order)], distances()[np.ix_(other, other)], rtol=ALIKE)
            for other in alike
        ):
            alike.append(order)
            yield elements


def typical_crystals(prototypes: Sequence[KnownPrototype], num_slots: int) -> CrystalBatch:
    """Crystals of prototypes (numpy), one of each: its elements in the geometry of the known crystal.

    Volumes are sums over elements (those of the bundled table), by which half of the known crystals are met within 7 %.
    Sites are in the encoder's order.

    Args:
        prototypes: with their elements.
        num_slots: of the batch.

    Raises:
        DataError: if a prototype has more sites than slots.
    """
    most = max((len(one.letters) for one in prototypes), default=0)
    letters, species = np.zeros((2, len(prototypes), most), np.int32)
    coords = np.zeros((len(prototypes), most, 3), np.float32)
    for row, one in enumerate(prototypes):
        own = slice(len(one.letters))
        letters[row, own] = [LETTERS.index(letter) for letter in one.letters]
        species[row, own] = [SYMBOLS.index(symbol) for symbol in one.species]
        coords[row, own] = one.geometry.frac_coords
    groups = np.array([one.space_group for one in prototypes], np.int32)
    cells = np.array([one.geometry.cell for one in prototypes], np.float32).reshape(-1, 6)
    batch = CrystalBatch(groups, cells, coords, species, letters)
    atoms = prototype_table().element_volume[species] * batch.multiplicity
    cells[:, :3] *= np.cbrt(atoms.sum(1))[:, None]
    return batch.with_slots(num_slots)


def likeliest(prototypes: Sequence[KnownPrototype], log_prob: Float[np.ndarray, " P"]) -> Int[np.ndarray, " P"]:
    """Which prototype of a composition comes first, second, ...

    The score is the logarithm of the number of formulas known with a prototype, whatever their elements, plus what a
    model says of its letters with these elements in the geometry of the known crystal. (Letters count too: which letter
    follows tells one assignment of elements from another.) Cells of more than LARGE atoms take every fourth place: the
    model finds every larger cell unlikelier, so of these it only compares the assignments of one prototype.

    Args:
        prototypes: with their elements.
        log_prob: log p(letters, species | space group) of their typical crystals, nats.
    """
    best: dict[Hashable, float] = {}
    names = [(one.space_group, one.letters, one.geometry.frac_coords.tobytes()) for one in prototypes]
    for name, nats in zip(names, log_prob.tolist(), strict=True):
        best[name] = max(nats, best.get(name, -np.inf))
    large = np.array([one.is_large for one in prototypes], bool)
    said = log_prob - np.where(large, [best[name] for name in names], 0)
    order = np.argsort(-(np.log([one.formulas for one in prototypes]) + said), kind="stable")
    number = np.cumsum(large[order]) - 1  # among the large ones
    rest = np.cumsum(~large[order]) - 1
    place = np.where(large[order], LARGE_PLACES * (number + 1) - 1, rest + rest // (LARGE_PLACES - 1))
    return order[np.argsort(place)]
