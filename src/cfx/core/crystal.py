"""CrystalBatch, the one type that crystals travel in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from cfx.core import AnyArray, Structure
from cfx.core.elements import SYMBOLS
from cfx.core.symmetry import LETTERS, orbit, primitive_rows, settings_table, symmetry_table, wrap
from cfx.errors import DataError
from cfx.reporter import counted

_Own = TypeVar("_Own")
"""A batch's own type; beartype does not read typing.Self where it is given methods alone."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CrystalBatch:
    """B crystals as their symmetry-inequivalent sites in N slots; a pytree.

    Attributes:
        space_group: 1 to 230.
        lattice: conventional cell: a, b, c in angstrom, alpha, beta, gamma in degree.
        frac_coords: orbit representatives in [0, 1); 0 in pads.
        species: atomic numbers; 0 in pads.
        wyckoff: letters a = 1, b = 2, ...; 0 in pads, and pads are a suffix.
    """

    space_group: Int[AnyArray, " B"]
    lattice: Float[AnyArray, "B 6"]
    frac_coords: Float[AnyArray, "B N 3"]
    species: Int[AnyArray, "B N"]
    wyckoff: Int[AnyArray, "B N"]

    def __len__(self) -> int:
        return self.space_group.shape[0]

    def __repr__(self) -> str:
        return f"CrystalBatch({counted(len(self), 'crystal')} in {self.num_slots} slots)"

    def __getitem__(self: _Own, rows) -> _Own:
        """The crystals picked by a slice, a mask or an array of indices."""
        return jax.tree.map(lambda leaf: leaf[rows], self)

    @property
    def num_slots(self) -> int:
        """N, the slots a crystal has."""
        return self.wyckoff.shape[1]

    @property
    def num_sites(self) -> Int[AnyArray, " B"]:
        """Symmetry-inequivalent sites."""
        return (self.wyckoff > 0).sum(1)

    @property
    def multiplicity(self) -> Int[AnyArray, "B N"]:
        """Atoms of each orbit in the conventional cell; 0 in pads."""
        table = symmetry_table().multiplicity
        # Tracers can index a JAX table only; numpy stays numpy, and off the device.
        table = table if isinstance(self.wyckoff, np.ndarray) else jax.numpy.asarray(table)
        return table[self.space_group[:, None] - 1, self.wyckoff]

    @property
    def num_atoms(self) -> Int[AnyArray, " B"]:
        """Atoms in the conventional cell."""
        return self.multiplicity.sum(1)

    def numpy(self) -> CrystalBatch:
        """The same crystals as numpy arrays of the standard types."""
        return CrystalBatch(
            np.asarray(self.space_group, np.int32),
            np.asarray(self.lattice, np.float32),
            np.asarray(self.frac_coords, np.float32),
            np.asarray(self.species, np.int32),
            np.asarray(self.wyckoff, np.int32),
        )

    def with_slots(self, num_slots: int) -> CrystalBatch:
        """The same crystals in another number of slots (numpy).

        Raises:
            DataError: if a crystal has more sites than `num_slots`.
        """
        extra = num_slots - self.num_slots
        if len(self) and int(np.max(self.num_sites)) > num_slots:
            raise DataError(f"crystals with {int(np.max(self.num_sites))} sites do not fit {num_slots} slots")

        def fit(leaf):
            leaf = np.asarray(leaf)[:, :num_slots]
            return np.pad(leaf, [(0, 0), (0, max(extra, 0))] + [(0, 0)] * (leaf.ndim - 2))

        whole = (np.asarray(self.space_group), np.asarray(self.lattice))
        return CrystalBatch(*whole, fit(self.frac_coords), fit(self.species), fit(self.wyckoff))

    def take(self, rows: Int[np.ndarray, " rows"], num_slots: int) -> CrystalBatch:
        """The crystals of these rows in another number of slots (numpy)."""
        return self[rows].with_slots(num_slots)

    def in_settings(self, number: Int[np.ndarray, " B"]) -> CrystalBatch:
        """Each crystal in one of the equivalent settings of its space group (numpy), sites in the encoder's order.

        Other letters, coordinates and, in orthorhombic groups, axes, or the mirror image; see `SettingsTable`.
        Representatives follow the encoder's rule, which takes an image of the given one for an orbit's first atom.

        Args:
            number: of the setting, from 0, which is the given one, to the group's `count`.
        """
        table, batch = settings_table(), self.numpy()
        row = table.start[batch.space_group - 1] + number
        site_map = table.site_map[row[:, None], batch.wyckoff]
        coords = (site_map[..., :3] @ batch.frac_coords[..., None].astype(float))[..., 0] + site_map[..., 3]
        coords = wrap(coords)
        coords = np.where(coords > 1 - 1e-7, 0.0, coords).astype(np.float32)  # as in the encoder
        letters = table.letter[row[:, None], batch.wyckoff]
        x, y, z = np.moveaxis(coords, -1, 0)
        order = np.lexsort((z, y, x, np.where(letters, letters, len(LETTERS))))
        whole = np.arange(len(batch))[:, None]
        axes = table.axes[row]
        return CrystalBatch(
            batch.space_group,
            batch.lattice[whole, np.concatenate([axes, axes + 3], axis=1)],
            coords[whole, order],
            batch.species[whole, order],
            letters[whole, order],
        )

    def atoms(self, row: int) -> tuple[Float[np.ndarray, "atoms 3"], Int[np.ndarray, " atoms"]]:
        """All atoms of one conventional cell (numpy): coordinates, and the site that each belongs to."""
        group, letters = int(self.space_group[row]), self.wyckoff[row]
        orbits = [orbit(group, int(letters[i]), self.frac_coords[row, i]) for i in np.flatnonzero(letters)]
        return np.concatenate(orbits), np.repeat(np.arange(len(orbits)), [len(points) for points in orbits])

    def primitive_atoms(self, row: int) -> Int[np.ndarray, " atoms"]:
        """Which of `atoms` make one primitive cell."""
        group, letters = int(self.space_group[row]), self.wyckoff[row]
        letters = letters[letters > 0].tolist()
        sizes = [int(symmetry_table().multiplicity[group - 1, letter]) for letter in letters]
        starts = np.cumsum([0, *sizes])
        return np.concatenate(
            [start + primitive_rows(group, letter) for start, letter in zip(starts, letters, strict=False)]
        )

    def composition(self, row: int) -> dict[int, int]:
        """Atomic number -> atoms in one conventional cell (numpy)."""
        counts: dict[int, int] = {}
        one = self[row : row + 1]  # or all rows would be looked up for each
        for number, multiplicity in zip(one.species[0], one.multiplicity[0], strict=True):
            if number:
                counts[int(number)] = counts.get(int(number), 0) + int(multiplicity)
        return counts

    def to_structures(self, primitive: bool = False) -> list[Structure]:
        """pymatgen Structures, one a crystal, of the conventional cells, or of the primitive ones.

        Site properties: `wyckoff`, the letter, and `site`, the index of the symmetry-inequivalent site.
        """
        from pymatgen.core import Lattice, Structure

        batch, structures = self.numpy(), []
        for row in range(len(batch)):
            coords, site = batch.atoms(row)
            lattice = Lattice.from_parameters(*batch.lattice[row].astype(float))
            if primitive:
                axes, atoms = symmetry_table().primitive_axes(int(batch.space_group[row])), batch.primitive_atoms(row)
                lattice = Lattice(axes @ lattice.matrix)
                coords, site = wrap(coords[atoms] @ np.linalg.inv(axes)), site[atoms]
            letters = batch.wyckoff[row][site]
            structures.append(
                Structure(
                    lattice,
                    [SYMBOLS[number] for number in batch.species[row][site]],
                    coords,
                    site_properties={"wyckoff": [LETTERS[letter] for letter in letters], "site": site.tolist()},
                )
            )
        return structures

    def to_ase(self) -> list[Any]:
        """ASE Atoms of the conventional cells, one a crystal; arrays and info as pymatgen's adaptor gives them."""
        return [structure.to_ase_atoms(msonable=False) for structure in self.to_structures()]


Batch = TypeVar("Batch", bound=CrystalBatch)


def all_settings(batch: CrystalBatch) -> tuple[CrystalBatch, Int[np.ndarray, " settings"]]:
    """Every distinct setting of every crystal (numpy), and the crystal that each belongs to.

    Those of a crystal stand together, the given one first. Settings are one where letters, species and coordinates
    are, to 1e-5, and the lattice: a crystal has fewer than its group where a change of setting is a symmetry of it.
    """
    batch = batch.numpy()
    count = settings_table().count[batch.space_group - 1]
    crystal = np.repeat(np.arange(len(batch)), count)
    number = np.arange(len(crystal)) - np.repeat(np.cumsum(count) - count, count)
    found = batch[crystal].in_settings(number)
    distinct = np.ones(len(crystal), bool)
    for i in np.flatnonzero(number):
        before = np.arange(i - number[i], i)
        before = before[distinct[before]]
        same = (found.wyckoff[before] == found.wyckoff[i]).all(1) & (found.species[before] == found.species[i]).all(1)
        deviation = found.frac_coords[before] - found.frac_coords[i]
        same &= np.abs(deviation - np.rint(deviation)).max((1, 2)) < 1e-5
        same &= np.isclose(found.lattice[before], found.lattice[i], rtol=1e-5).all(1)
        distinct[i] = not same.any()
    return found[distinct], crystal[distinct]


def empty_batch(num_slots: int) -> CrystalBatch:
    """No crystals (numpy), in that many slots."""
    sites = np.zeros((0, num_slots), np.int32)
    return CrystalBatch(
        np.zeros(0, np.int32), np.zeros((0, 6), np.float32), np.zeros((0, num_slots, 3), np.float32), sites, sites
    )


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Batches with equal slots, one after another (numpy); what is known of their draws only if that is one model's."""
    if len({jax.tree.structure(one) for one in batches}) > 1:
        batches = [one.numpy() for one in batches]  # pyright: ignore[reportAssignmentType]  (of other kinds: plain)
    return jax.tree.map(lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]), *batches)


def validate(batch: CrystalBatch, num_species: int = 119) -> None:
    """Checks what the network takes for granted.

    Raises:
        DataError: naming the first crystal whose numbers are out of range, or whose pads are not a suffix.
    """
    for fault, fine in row_checks(batch.numpy(), num_species).items():
        if not fine.all():
            raise DataError(f"crystal {int(np.argmin(fine))} has {fault}")


def row_checks(batch: CrystalBatch, num_species: int = 119) -> dict[str, Bool[AnyArray, " B"]]:
    """Checks of a batch (numpy): for every fault that a crystal can have, which crystals are free of it."""
    table = symmetry_table()
    group_ok = (batch.space_group >= 1) & (batch.space_group <= 230)
    last_letter = table.last_letter[np.where(group_ok, batch.space_group, 1) - 1]
    filled = batch.wyckoff > 0
    return {
        "no sites": filled.any(1),
        "a space group outside 1..230": group_ok,
        "a letter that its space group lacks": ((batch.wyckoff >= 0) & (batch.wyckoff <= last_letter[:, None])).all(1),
        "a pad before a site": (filled[:, 1:] <= filled[:, :-1]).all(1),
        "an atomic number out of range": (
            (batch.species >= 0) & (batch.species < num_species) & ((batch.species > 0) == filled)
        ).all(1),
        "no pad left after its sites": ~filled[:, -1],
        "coordinates outside [0, 1)": ((batch.frac_coords >= 0) & (batch.frac_coords < 1)).all((1, 2)),
        "a lattice that is not finite": np.isfinite(batch.lattice).all(1),
    }
