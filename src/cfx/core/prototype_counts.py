"""Makes a table of known prototypes: counts them among crystals, and keeps the geometry of a typical one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cfx.core.crystal import CrystalBatch
from cfx.core.elements import SYMBOLS, lowest_terms
from cfx.core.lattice import impose_family, volume
from cfx.core.prototypes import LARGE, Occupation, PrototypeTable, occupation_of, primitive_atoms, prototype_key

MOST_ATOMS = 100
"""Most atoms in the primitive cell of a prototype that is kept."""

ATOM_VOLUME = 15.0
"""Angstrom^3 that an atom of an element takes of which no crystal is known, about as most do."""

COMPARED = 200
"""Crystals of a prototype, at most, among which the one is chosen whose geometry is kept."""


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
