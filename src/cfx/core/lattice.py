"""The conventional cell: its two frames, its degrees of freedom, its shape.

Physical frame: a, b, c in angstrom, alpha, beta, gamma in degree; every `CrystalBatch` holds this one.
Model frame: a, b, c divided by the cube root of the number of atoms in the cell, angles in radian; it exists only
inside the likelihood and the decoder.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from cfx.core import AnyArray

CRYSTAL_SYSTEMS = {
    "triclinic": 2,
    "monoclinic": 15,
    "orthorhombic": 74,
    "tetragonal": 142,
    "trigonal": 167,
    "hexagonal": 194,
    "cubic": 230,
}
"""Last space group of each of the seven crystal systems."""

CRYSTAL_FAMILIES = tuple(last for name, last in CRYSTAL_SYSTEMS.items() if name != "trigonal")
"""Last space group of each of the six crystal families; trigonal and hexagonal groups share one."""

FREE_DIMENSIONS = np.array(
    [
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, 0, 1, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
    ],
    bool,
)
"""Free entries of (a, b, c, alpha, beta, gamma) by crystal family, bool [6, 6]."""

SOURCE_DIMENSION = np.array([[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 0, 2], [0, 0, 2], [0, 0, 0]])
"""Which drawn length each of a, b, c takes, by crystal family, int [6, 3]."""

FIXED_ANGLES = np.array([[90.0, 90.0, 90.0]] * 4 + [[90.0, 90.0, 120.0], [90.0, 90.0, 90.0]])
"""Angles (degree) of each crystal family where they are not free, [6, 3]."""


def crystal_family(space_group: Int[AnyArray, "..."]) -> Int[AnyArray, "..."]:
    """Index 0..5 of the crystal family, as in CRYSTAL_FAMILIES."""
    return (space_group[..., None] > np.array(CRYSTAL_FAMILIES[:-1])).sum(-1)


def to_model_frame(
    lattice: Float[AnyArray, "B 6"], num_atoms: Int[AnyArray, " B"], xp: Any = np
) -> Float[AnyArray, "B 6"]:
    """Physical to model frame; `num_atoms` counts the conventional cell; `xp` is numpy or jax.numpy."""
    return xp.concatenate([lattice[:, :3] / xp.cbrt(num_atoms * 1.0)[:, None], xp.deg2rad(lattice[:, 3:])], axis=1)


def to_physical_frame(
    lattice: Float[AnyArray, "B 6"], num_atoms: Int[AnyArray, " B"], xp: Any = np
) -> Float[AnyArray, "B 6"]:
    """Inverse of `to_model_frame`."""
    return xp.concatenate([lattice[:, :3] * xp.cbrt(num_atoms * 1.0)[:, None], xp.rad2deg(lattice[:, 3:])], axis=1)


def impose_family(
    lattice: Float[AnyArray, "B 6"], space_group: Int[AnyArray, " B"], xp: Any = np
) -> Float[AnyArray, "B 6"]:
    """The equalities of the crystal family, as a = b and gamma = 120 degree, imposed on physical lattices."""
    family = crystal_family(space_group)
    lengths = xp.take_along_axis(lattice[:, :3], xp.asarray(SOURCE_DIMENSION)[family], axis=1)
    fixed = xp.asarray(FIXED_ANGLES, lattice.dtype)[family]
    angles = xp.where(xp.asarray(FREE_DIMENSIONS)[family][:, 3:], lattice[:, 3:], fixed)
    return xp.concatenate([lengths, angles], axis=1)


def is_physical(lattice: Float[AnyArray, "B 6"]) -> Bool[np.ndarray, " B"]:
    """Which lattices have finite positive lengths, angles inside (0, 180) degree and a positive volume."""
    lattice = np.asarray(lattice, float)
    lengths, angles = lattice[:, :3], lattice[:, 3:]
    with np.errstate(invalid="ignore"):  # nan fails every comparison, as it should
        shape_ok = (lengths > 0).all(1) & (angles > 0).all(1) & (angles < 180).all(1)
        return np.isfinite(lattice).all(1) & shape_ok & (squared_volume_ratio(lattice) > 1e-6)


def squared_volume_ratio(lattice: Float[np.ndarray, "B 6"]) -> Float[np.ndarray, " B"]:
    """(V / abc)^2 of lattices; not positive for angles that close no cell."""
    cosines = np.cos(np.deg2rad(lattice[:, 3:]))
    return 1 - (cosines**2).sum(1) + 2 * cosines.prod(1)


def volume(lattice: Float[np.ndarray, "B 6"]) -> Float[np.ndarray, " B"]:
    """Cell volumes in cubic angstrom."""
    return lattice[:, :3].prod(1) * np.sqrt(squared_volume_ratio(lattice))


def cell_vectors(lattice: Float[np.ndarray, "B 6"]) -> Float[np.ndarray, "B 3 3"]:
    """Vectors of cells in angstrom, one a row: c along z, a in the xz plane, as pymatgen has them."""
    a, b, c = lattice[:, :3].T
    alpha, beta, gamma = np.deg2rad(lattice[:, 3:]).T
    cos_gamma_star = (np.cos(alpha) * np.cos(beta) - np.cos(gamma)) / (np.sin(alpha) * np.sin(beta))
    gamma_star = np.arccos(np.clip(cos_gamma_star, -1, 1))
    zero = np.zeros_like(a)
    rows = (
        (a * np.sin(beta), zero, a * np.cos(beta)),
        (-b * np.sin(alpha) * np.cos(gamma_star), b * np.sin(alpha) * np.sin(gamma_star), b * np.cos(alpha)),
        (zero, zero, c),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=1)
