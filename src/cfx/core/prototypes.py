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
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cfx.core.crystal import CrystalBatch
from cfx.core.elements import lowest_terms
from cfx.core.lattice import cell_vectors
from cfx.core.symmetry import orbit, settings_table, symmetry_table

LARGE = 20
"""Atoms in the primitive cell of a prototype beyond which it is kept only if two formulas have it. Models have hardly
seen such cells: MP-20, which most are trained on, has none."""

NEIGHBOURS = 4
"""Nearest atoms of each role whose distances tell roles apart."""

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


def primitive_atoms(batch: CrystalBatch) -> Int[np.ndarray, " B"]:
    """Atoms in the primitive cell of each crystal (numpy)."""
    return batch.num_atoms // symmetry_table().lattice_points[batch.space_group - 1]


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
