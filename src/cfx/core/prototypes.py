"""Known prototypes: which Wyckoff positions crystals occupy, whatever their elements, and how often that occurs.

A prototype is a space group, letters, and which of them hold the same element (its *roles*). Prototypes that a change
of setting (`SettingsTable`) makes equal are one; the most frequent of its forms is stored, with the geometry of one of
the crystals that have it. The order of sites of one letter does not count: the encoder gives it by their coordinates.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cfx.config import Template, texts
from cfx.core.crystal import CrystalBatch
from cfx.core.elements import SYMBOLS, lowest_terms
from cfx.core.lattice import cell_vectors, impose_family, volume
from cfx.core.symmetry import LETTERS, orbit, settings_table, symmetry_table

MOST_ATOMS = 100
"""Most atoms in the primitive cell of a prototype that is kept."""

LARGE = 20
"""Atoms in the primitive cell of a prototype beyond which it is kept only if two formulas have it. Models have hardly
seen such cells: MP-20, which most are trained on, has none."""

LARGE_PLACES = 4
"""Of so many places in the order of a composition's prototypes, the last is for a large one."""

ATOM_VOLUME = 15.0
"""Angstrom^3 that an atom of an element takes of which no crystal is known, about as most do."""

NEIGHBOURS = 4
"""Nearest atoms of each role whose distances tell roles apart."""

ALIKE = 0.05
"""Relative difference of these distances up to which roles have the same surroundings."""

COMPARED = 200
"""Crystals of a prototype, at most, among which the one is chosen whose geometry is kept."""

Occupation = tuple[tuple[Any, tuple[int, ...]], ...]
"""(element, letters of its sites in order) of each element, in order; None for every element is a prototype."""

Arrangement = tuple[int, Occupation]
"""A space group and an occupation in its standard form: which element is on which letter, whatever the setting."""


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


class Geometry(NamedTuple):
    """Where the atoms of a prototype are in one crystal that has it.

    Attributes:
        frac_coords: of its sites.
        cell: the conventional one at a volume of 1: lengths and, in degree, angles.
    """

    frac_coords: Float[np.ndarray, "sites 3"]
    cell: Float[np.ndarray, "6"]


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
        frac_coords: of each site of a typical crystal, in [0, 1), to 2^-16.
        cell: of that crystal, the conventional one at a volume of 1: lengths and, in degree, angles.
        element_volume: angstrom^3 that an atom takes, by atomic number; their sums are nearest to the volumes of
            crystals.
        info: where they come from.
    """

    space_group: Int[np.ndarray, " P"]
    num_sites: Int[np.ndarray, " P"]
    crystals: Int[np.ndarray, " P"]
    formulas: Int[np.ndarray, " P"]
    letter: Int[np.ndarray, " sites"]
    role: Int[np.ndarray, " sites"]
    frac_coords: Float[np.ndarray, "sites 3"]
    cell: Float[np.ndarray, "P 6"]
    element_volume: Float[np.ndarray, " S"]
    info: dict[str, Any]

    def __len__(self) -> int:
        return len(self.space_group)

    def sites(self, row: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Letters and roles of a prototype."""
        part = self._part(row)
        return tuple(self.letter[part].tolist()), tuple(self.role[part].tolist())

    def geometry(self, row: int) -> Geometry:
        """Coordinates and cell of a typical crystal of a prototype."""
        return Geometry(self.frac_coords[self._part(row)], self.cell[row])

    def _part(self, row: int) -> slice:
        first = int(self._start[row])
        return slice(first, first + int(self.num_sites[row]))

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

    def role_distances(self, row: int) -> Float[np.ndarray, "R R neighbours"]:
        """From an atom of each role to the nearest of each, on average, at a volume of 1: what tells roles apart."""
        (letters, roles), geometry = self.sites(row), self.geometry(row)
        group, own = int(self.space_group[row]), np.array(roles)
        orbits = [orbit(group, letter, point) for letter, point in zip(letters, geometry.frac_coords, strict=True)]
        sizes = np.array([len(points) for points in orbits])
        apart = np.concatenate(orbits)[None] - np.stack([points[0] for points in orbits])[:, None]
        images = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
        vectors = (apart - np.rint(apart))[:, :, None] + images
        lengths = np.linalg.norm(vectors @ cell_vectors(geometry.cell[None])[0], axis=-1)
        lengths[lengths < 1e-3] = np.inf  # the atom itself
        of_atom = np.repeat(own, sizes)
        nearest = np.stack(
            [
                np.sort(lengths[:, of_atom == role].reshape(len(own), -1), axis=1)[:, :NEIGHBOURS]
                for role in range(own.max() + 1)
            ],
            axis=1,
        )
        return np.stack(
            [np.average(nearest[own == role], axis=0, weights=sizes[own == role]) for role in range(own.max() + 1)]
        )

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
            frac_coords=np.mod(np.rint(self.frac_coords * 2**16), 2**16).astype("<u2"),
            cell=self.cell.astype("<f2"),
            element_volume=self.element_volume.astype("<f4"),
        )

    @classmethod
    def read(cls, file: Path | IO[bytes] | io.BytesIO) -> PrototypeTable:
        """Reads a table that `write` has written."""
        stored = dict(np.load(file))
        info = json.loads(stored.pop("header").tobytes())
        coords, cell = stored.pop("frac_coords") / np.float32(2**16), stored.pop("cell").astype(np.float32)
        real = {"frac_coords": coords, "cell": cell, "element_volume": stored.pop("element_volume")}
        return cls(**{name: values.astype(np.int32) for name, values in stored.items()}, **real, info=info)


@functools.cache
def prototype_table() -> PrototypeTable:
    """The bundled table, of the training data of `mini`; read once."""
    with (files("cfx") / "resources" / "prototypes.npz").open("rb") as file:
        return PrototypeTable.read(file)


def count_prototypes(batch: CrystalBatch, info: Mapping[str, Any]) -> PrototypeTable:
    """The prototypes of crystals (numpy), those of most formulas first.

    Those of more than MOST_ATOMS atoms in the primitive cell are left out, and those of more than LARGE that a single
    formula has; `info` counts their crystals.
    """
    members: dict[tuple[int, Occupation], dict[tuple, list[int]]] = defaultdict(lambda: defaultdict(list))
    formulas: dict[tuple[int, Occupation], set] = defaultdict(set)
    atoms = primitive_atoms(batch)
    for row in np.flatnonzero(atoms <= MOST_ATOMS).tolist():
        form = tuple(sorted(letters for _, letters in occupation_of(batch, row)))
        key = prototype_key(int(batch.space_group[row]), form)
        members[key][form].append(row)
        formulas[key].add(tuple(sorted(lowest_terms(batch[row : row + 1].composition(0)).items())))
    crystals = {key: sum(map(len, forms.values())) for key, forms in members.items()}
    large = {key for key, forms in members.items() if atoms[next(iter(forms.values()))[0]] > LARGE}
    kept = [key for key in members if key not in large or len(formulas[key]) > 1]
    ordered = sorted(kept, key=lambda key: (-len(formulas[key]), -crystals[key], key))
    stored = [max(sorted(members[key].items()), key=lambda pair: len(pair[1]))[1] for key in ordered]
    typical = batch[np.array([_typical(batch, rows) for rows in stored], int)]
    filled = typical.wyckoff > 0
    cell = impose_family(typical.lattice, typical.space_group)
    cell[:, :3] /= np.cbrt(volume(cell))[:, None]
    return PrototypeTable(
        space_group=np.array([group for group, _ in ordered], np.int32),
        num_sites=filled.sum(1).astype(np.int32),
        crystals=np.array([crystals[key] for key in ordered], np.int32),
        formulas=np.array([len(formulas[key]) for key in ordered], np.int32),
        letter=typical.wyckoff[filled].astype(np.int32),
        role=np.array([role for row in typical.species for role in _roles(row)], np.int32),
        frac_coords=typical.frac_coords[filled],
        cell=cell,
        element_volume=_element_volumes(batch),
        info={**info, "crystals_left_out": len(batch) - sum(crystals[key] for key in ordered)},
    )


def primitive_atoms(batch: CrystalBatch) -> Int[np.ndarray, " B"]:
    """Atoms in the primitive cell of each crystal (numpy)."""
    return batch.num_atoms // symmetry_table().lattice_points[batch.space_group - 1]


def _element_volumes(batch: CrystalBatch) -> Float[np.ndarray, " S"]:
    """Angstrom^3 of an atom of each element, by least squares of the relative errors over crystals (numpy).

    Each element counts as a crystal of ATOM_VOLUME, too, or those of few crystals would take absurd values.
    """
    share = np.zeros((len(batch), len(SYMBOLS)))
    np.add.at(share, (np.arange(len(batch))[:, None], batch.species), batch.multiplicity / batch.num_atoms[:, None])
    relative = share * (ATOM_VOLUME * batch.num_atoms / volume(batch.lattice.astype(float)))[:, None]
    normal = relative.T @ relative + np.eye(len(SYMBOLS))
    return (ATOM_VOLUME * np.linalg.solve(normal, relative.sum(0) + 1)).astype(np.float32)


def _typical(batch: CrystalBatch, rows: Sequence[int]) -> int:
    """Of crystals with the same letters the one that is nearest to all: in coordinates and logarithms of lengths."""
    some = batch[np.array(rows[:COMPARED])]
    lengths = np.log(some.lattice[:, :3])
    lengths -= lengths.mean(1, keepdims=True)
    apart = some.frac_coords[:, None] - some.frac_coords[None]
    distance = np.abs(apart - np.rint(apart)).sum((2, 3)) + np.abs(lengths[:, None] - lengths[None]).sum(2)
    return rows[int(distance.sum(1).argmin())]


def _roles(species: Int[np.ndarray, " N"]) -> list[int]:
    """The role of each site: its element's place in the order in which elements come first."""
    numbers = species[species > 0].tolist()
    order = {number: i for i, number in enumerate(dict.fromkeys(numbers))}
    return [order[number] for number in numbers]


def occupation_of(batch: CrystalBatch, row: int) -> Occupation:
    """Atomic numbers of a crystal (numpy) with the letters of their sites."""
    letters: dict[int, list[int]] = defaultdict(list)
    for number, letter in zip(batch.species[row].tolist(), batch.wyckoff[row].tolist(), strict=True):
        if letter:
            letters[number].append(letter)
    return tuple(sorted((number, tuple(sorted(own))) for number, own in letters.items()))


def arrangements_of(batch: CrystalBatch) -> list[Arrangement]:
    """The arrangement of each crystal (numpy)."""
    groups = batch.space_group.tolist()
    return [(group, standard_form(group, occupation_of(batch, row))) for row, group in enumerate(groups)]


@functools.cache
def prototype_key(space_group: int, letters_by_role: tuple[tuple[int, ...], ...]) -> tuple[int, Occupation]:
    """What crystals of one prototype share, from the letters of the sites of each element."""
    return space_group, standard_form(space_group, ((0, letters) for letters in letters_by_role))


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
