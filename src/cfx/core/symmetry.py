"""Wyckoff positions of the 230 space groups, in the standard setting of International Tables A.

Letters are numbers: 0 is a pad, a = 1, ..., z = 26, A = 27. "Op 0" is the first operation listed for a position;
a representative of an orbit is a point that op 0 maps to itself.
"""

import functools
from dataclasses import dataclass
from fractions import Fraction
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Float32, Int, Shaped

from cfx.core import AnyArray

LETTERS = " abcdefghijklmnopqrstuvwxyzA"

PRIMITIVE_AXES = {
    "P": np.eye(3),
    "A": np.array([[2, 0, 0], [0, 1, -1], [0, 1, 1]]) / 2,
    "C": np.array([[1, 1, 0], [-1, 1, 0], [0, 0, 2]]) / 2,
    "I": np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]) / 2,
    "F": np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2,
    "R": np.array([[2, 1, 1], [-1, 1, 1], [-1, -2, 1]]) / 3,
}
"""Axes of the primitive cell (rows) in those of the conventional one, by centring."""


@dataclass(frozen=True)
class SymmetryTable:
    """Wyckoff positions as arrays; row g - 1 is space group g, column w is letter w (column 0, the pad, is zero).

    Attributes:
        multiplicity: points of the orbit in the conventional cell.
        last_letter: the letter of the general position.
        is_fixed: True where the position has no free coordinate.
        free_mask: True where op 0 makes a coordinate depend on (x, y, z).
        drawn_mask: True where op 0 leaves a coordinate as it is; the other free ones are tied to an earlier coordinate,
            as y = 2x.
        projector: op 0 as rotation and translation.
        hall_number: spglib's number of the setting.
        symbol: Hermann-Mauguin symbol of the setting, as text.
        rotation, translation, start: all operations, ragged; see `operations`.
    """

    multiplicity: Int[np.ndarray, "230 28"]
    last_letter: Int[np.ndarray, "230"]
    is_fixed: Bool[np.ndarray, "230 28"]
    free_mask: Bool[np.ndarray, "230 28 3"]
    drawn_mask: Bool[np.ndarray, "230 28 3"]
    projector: Float32[np.ndarray, "230 28 3 4"]
    hall_number: Int[np.ndarray, "230"]
    symbol: Shaped[np.ndarray, "230"]
    rotation: Int[np.ndarray, "operations 3 3"]
    translation: Int[np.ndarray, "operations 3"]
    start: Int[np.ndarray, "230 28"]

    def operations(self, space_group: int, letter: int) -> tuple[Float[np.ndarray, "M 3 3"], Float[np.ndarray, "M 3"]]:
        """All operations of a position: rotations, and translations in [0, 1)."""
        first = self.start[space_group - 1, letter]
        rows = slice(first, first + self.multiplicity[space_group - 1, letter])
        return self.rotation[rows].astype(float), self.translation[rows] / 24.0

    def general_operations(self, space_group: int) -> tuple[Float[np.ndarray, "M 3 3"], Float[np.ndarray, "M 3"]]:
        """The operations of the space group itself, centrings included, as `operations`."""
        return self.operations(space_group, int(self.last_letter[space_group - 1]))

    def num_lattice_points(self, space_group: int) -> int:
        """Primitive cells in the conventional one: 1 for P, 2 for A, C and I, 3 for R, 4 for F."""
        rotations, _ = self.general_operations(space_group)
        return len(rotations) // len(np.unique(rotations, axis=0))

    @functools.cached_property
    def lattice_points(self) -> Int[np.ndarray, "230"]:
        """`num_lattice_points` of every space group."""
        return np.array([self.num_lattice_points(group) for group in range(1, 231)], np.int32)

    def primitive_axes(self, space_group: int) -> Float[np.ndarray, "3 3"]:
        """See PRIMITIVE_AXES."""
        return PRIMITIVE_AXES[str(self.symbol[space_group - 1])[0]]


@functools.cache
def primitive_rows(space_group: int, letter: int) -> Int[np.ndarray, " rows"]:
    """Operations of a position that make the atoms of one primitive cell: of those that centrings relate, the first."""
    table = symmetry_table()
    rotations, translations = table.operations(space_group, letter)
    inverse = np.linalg.inv(table.primitive_axes(space_group))
    between = (translations[:, None] - translations[None]) @ inverse
    related = (np.abs(between - np.rint(between)) < 1e-6).all(-1)
    related &= (rotations[:, None] == rotations[None]).all((2, 3))
    return np.unique(related.argmax(1))


@functools.cache
def symmetry_table() -> SymmetryTable:
    """The table, read once from the package's resources."""
    with (files("cfx") / "resources" / "symmetry.npz").open("rb") as file:
        stored = dict(np.load(file))
    multiplicity = stored["multiplicity"].astype(np.int32)
    start = np.concatenate([[0], np.cumsum(multiplicity.ravel())[:-1]]).reshape(multiplicity.shape)
    exists = multiplicity > 0
    projector = np.zeros((*multiplicity.shape, 3, 4), np.float32)
    projector[exists, :, :3] = stored["rotation"][start[exists]]
    projector[exists, :, 3] = stored["translation"][start[exists]] / 24.0
    free_mask = (projector[..., :3] != 0).any(-1)
    return SymmetryTable(
        multiplicity=multiplicity,
        last_letter=exists.sum(1).astype(np.int32),
        is_fixed=exists & ~free_mask.any(-1),
        free_mask=free_mask,
        drawn_mask=(projector == np.eye(3, 4)).all(-1),
        projector=projector,
        hall_number=stored["hall_number"].astype(int),
        symbol=stored["symbol"],
        rotation=stored["rotation"],
        translation=stored["translation"],
        start=start,
    )


@dataclass(frozen=True)
class SettingsTable:
    """The equivalent settings of every space group: changes (W, w) of axes and origin that keep its operations.

    They are the cosets of the group in its normaliser (International Tables A, chapter 3.5): in the Euclidean one for
    a general cell, and with permuted axes in orthorhombic groups. Of continuous translations, in polar groups, there
    are none. The first setting of a group is the one that a crystal is given in. What `tools/make_settings_table.py`
    has found is in row `start[g - 1] + number`.

    Attributes:
        count: settings of a group, at least 1.
        start: the row of a group's first one.
        rotation: W; its determinant is negative where the group has mirror images of its crystals, not of itself.
        translation: w.
        letter: what each Wyckoff letter becomes.
        site_map: by letter, the rotation and translation that take a representative to that of the new setting.
        axes: which axis each new one was.
    """

    count: Int[np.ndarray, "230"]
    start: Int[np.ndarray, "230"]
    rotation: Int[np.ndarray, "settings 3 3"]
    translation: Float[np.ndarray, "settings 3"]
    letter: Int[np.ndarray, "settings 28"]
    site_map: Float[np.ndarray, "settings 28 3 4"]
    axes: Int[np.ndarray, "settings 3"]


@functools.cache
def settings_table() -> SettingsTable:
    """The table, read once from the package's resources."""
    with (files("cfx") / "resources" / "settings.npz").open("rb") as file:
        stored = dict(np.load(file))
    count = stored["count"].astype(np.int32)
    start = np.cumsum(count) - count
    rotation, translation = stored["rotation"].astype(int), stored["translation"] / 24.0
    letter = stored["letter"].astype(np.int32)
    table = symmetry_table()
    group = np.repeat(np.arange(230), count)
    # Op 0 of the new letter, after the first general operation that takes the image of a representative there.
    op_0 = table.projector[group[:, None], letter].astype(float)
    general = table.start[group, table.last_letter[group]][:, None] + stored["image"]
    turn = op_0[..., :3] @ table.rotation[general]
    shift = turn @ translation[:, None, :, None]
    shift += op_0[..., :3] @ (table.translation[general] / 24.0)[..., None] + op_0[..., 3:]
    site_map = np.concatenate([turn @ rotation[:, None], shift - np.floor(shift + 1e-6)], axis=-1)
    site_map[start] = np.eye(3, 4)
    orthorhombic = (group >= 15) & (group < 74)
    axes = np.where(orthorhombic[:, None], np.abs(rotation).argmax(2), np.arange(3))
    return SettingsTable(count, start, rotation, translation, letter, site_map, axes)


def operation_text(rotation: npt.ArrayLike, translation: npt.ArrayLike) -> str:
    """An operation, [3, 3] and [3], in the notation of a CIF, as '-x+y, 2*x, z+1/2'."""
    terms = []
    for row, shift in zip(np.asarray(rotation, int), np.rint(np.asarray(translation) * 24).astype(int), strict=True):
        text = ""
        for factor, axis in zip(row, "xyz", strict=True):
            if factor:
                sign, times = "-" if factor < 0 else "+" if text else "", f"{abs(factor)}*" if abs(factor) > 1 else ""
                text += f"{sign}{times}{axis}"
        if shift or not text:
            text += ("+" if text else "") + str(Fraction(int(shift), 24))
        terms.append(text)
    return ", ".join(terms)


def orbit(space_group: int, letter: int, point: Float[np.ndarray, "3"]) -> Float[np.ndarray, "M 3"]:
    """All points, in [0, 1), of the orbit of a representative."""
    rotations, translations = symmetry_table().operations(space_group, letter)
    return wrap(rotations @ np.asarray(point, float) + translations)


def wrap(points: Float[AnyArray, "..."], xp: Any = np) -> Float[AnyArray, "..."]:
    """Fractional coordinates moved into [0, 1); a rounding step below 1 becomes 0. `xp` is numpy or jax.numpy."""
    points = points - xp.floor(points)
    return xp.where(points >= 1.0, 0.0, points)
