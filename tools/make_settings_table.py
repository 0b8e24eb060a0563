"""Makes src/cfx/resources/settings.npz, the equivalent settings of the 230 space groups, from the table of symmetry.

    python tools/make_settings_table.py

A change of setting (W, w) maps every point x of a crystal to W x + w and the group's operations onto themselves: an
element of the group's normaliser (International Tables A, chapter 3.5). W is sought among the operations that keep the
cell of the crystal family, in orthorhombic groups also among those that permute its axes; w among multiples of 1/24.
One operation is kept for every coset of the group itself and of the continuous translations that polar groups have,
the identity first. Operations of negative determinant make mirror images; where a coset has another operation, that one
is kept. So they are left in groups without mirror images of their own only.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from cfx.core.symmetry import symmetry_table

OUTPUT = Path(__file__).resolve().parents[1] / "src" / "cfx" / "resources" / "settings.npz"
UNITS = 24
"""Translations are whole numbers of 1/24."""

TRICLINIC, MONOCLINIC, ORTHORHOMBIC, TETRAGONAL, TRIGONAL_HEXAGONAL, CUBIC = 2, 15, 74, 142, 194, 230
"""The last space groups of the crystal families."""

Operation = tuple[np.ndarray, np.ndarray]
"""Rotation [3, 3] and translation [3] in units of 1/24, whole numbers."""


def main() -> None:
    counts, rotations, translations, letters, images = [], [], [], [], []
    for group in range(1, 231):
        settings = changes_of_setting(group)
        counts.append(len(settings))
        for operation in settings:
            rotations.append(operation[0])
            translations.append(operation[1])
            letter, image = letters_after(group, operation)
            letters.append(letter)
            images.append(image)
    np.savez_compressed(
        OUTPUT,
        count=np.array(counts, np.uint8),
        rotation=np.array(rotations, np.int8),
        translation=np.array(translations, np.int8),
        letter=np.array(letters, np.int8),
        image=np.array(images, np.uint8),
    )
    print(f"{OUTPUT}: {len(rotations)} settings, {max(counts)} of a group at most, {OUTPUT.stat().st_size} bytes")


def general_operations(group: int) -> Operation:
    """All operations of a group: [M, 3, 3] and [M, 3]."""
    rotations, translations = symmetry_table().general_operations(group)
    return rotations.astype(int), np.rint(translations * UNITS).astype(int)


def changes_of_setting(group: int) -> list[Operation]:
    """One operation for every coset, the identity first, then translations, then the others."""
    free = continuous_axes(group)
    rotations, translations = general_operations(group)
    kept, seen = [], set()
    for rotation, translation in sorted(normaliser(group), key=simplicity):
        if key(rotation, translation, free) in seen:
            continue
        kept.append((rotation, translation))
        seen |= {
            key(product, shift, free)
            for product, shift in zip(rotations @ rotation, rotations @ translation + translations, strict=True)
        }
    return kept


def key(rotation: np.ndarray, translation: np.ndarray, free: np.ndarray) -> tuple:
    """An operation modulo whole cells and continuous translations."""
    return (*rotation.ravel().tolist(), *np.where(free, 0, translation % UNITS).tolist())


def simplicity(operation: Operation) -> tuple:
    """Sorts the identity first, then translations, proper rotations, and those that leave more axes as they are."""
    rotation, translation = operation
    proper = round(np.linalg.det(rotation)) > 0
    shift = np.minimum(translation, UNITS - translation).sum()
    return (
        (rotation != np.eye(3)).any(),
        not proper,
        np.count_nonzero(rotation - np.diag(np.diag(rotation))),
        (rotation < 0).sum(),
        shift,
        *translation.tolist(),
        *rotation.ravel().tolist(),
    )


def continuous_axes(group: int) -> np.ndarray:
    """bool [3]: axes along which the origin of the group is free, those that all its rotations leave alone.

    In the standard settings such directions are axes of the cell, or planes and the space that axes span.
    """
    rotations, _ = general_operations(group)
    free = (rotations == np.eye(3, dtype=int)).all(axis=(0, 1))
    dimension = 3 - np.linalg.matrix_rank(np.concatenate(rotations - np.eye(3, dtype=int)))
    assert free.sum() == dimension, f"space group {group} is free along a direction that is no axis"
    return free


def normaliser(group: int) -> list[Operation]:
    """All (W, w), w in one cell and 0 along continuous axes, that map the group's operations onto themselves."""
    rotations, translations = general_operations(group)
    shift_of = {rotation.tobytes(): shift for rotation, shift in zip(rotations, translations, strict=True)}
    # Whether a translation is one of the lattice.
    lattice = np.zeros((UNITS,) * 3, bool)
    lattice[tuple(translations[(rotations == np.eye(3)).all(axis=(1, 2))].T)] = True
    steps = [[0] if free else range(UNITS) for free in continuous_axes(group)]
    grid = np.array(list(itertools.product(*steps)))
    found = []
    for candidate in cell_operations(group):
        inverse = np.rint(np.linalg.inv(candidate)).astype(int)
        shifts = grid
        for rotation, shift in zip(rotations, translations, strict=True):
            image = candidate @ rotation @ inverse
            if image.tobytes() not in shift_of:
                break
            # (W, w) (R, t) (W, w)^-1 has the translation W t + w - R' w; it may differ by one of the lattice.
            excess = shifts - shifts @ image.T + candidate @ shift - shift_of[image.tobytes()]
            shifts = shifts[lattice[tuple(excess.T % UNITS)]]
        else:
            found += [(candidate, shift) for shift in shifts]
    return found


def cell_operations(group: int) -> list[np.ndarray]:
    """Matrices of -1, 0 and 1 that keep the cells of the crystal family, or permute orthorhombic axes."""
    signs = [np.diag(diagonal) for diagonal in itertools.product((1, -1), repeat=3)]
    axes = [np.eye(3, dtype=int)[list(order)] for order in itertools.permutations(range(3))]
    if group <= TRICLINIC:
        return [sign for sign in signs if abs(np.trace(sign)) == 3]
    if group <= MONOCLINIC:
        return [sign for sign in signs if sign[0, 0] == sign[2, 2]]
    if TETRAGONAL < group <= TRIGONAL_HEXAGONAL:
        metric = np.array([[2, -1, 0], [-1, 2, 0], [0, 0, 1]])
        plane = [np.array([[*row, 0] for row in rows] + [[0, 0, 0]]) for rows in _two_rows()]
        along = [np.diag([0, 0, sign]) for sign in (1, -1)]
        whole = [part + last for part in plane for last in along]
        return [matrix for matrix in whole if (matrix.T @ metric @ matrix == metric).all()]
    if ORTHORHOMBIC < group <= TETRAGONAL:
        axes = [order for order in axes if order[2, 2]]
    return [sign @ order for sign in signs for order in axes]


def _two_rows():
    return itertools.product(itertools.product((-1, 0, 1), repeat=2), repeat=2)


def letters_after(group: int, operation: Operation) -> tuple[list[int], list[int]]:
    """By letter, its letter in the new setting, and the first general operation that takes its image to op 0 there."""
    table, last = symmetry_table(), int(symmetry_table().last_letter[group - 1])
    projector = table.projector[group - 1]
    op_rotations, op_shifts = projector[..., :3].astype(int), np.rint(projector[..., 3] * UNITS).astype(int)
    rotations, translations = general_operations(group)
    letters, images = [0] * 28, [0] * 28
    for letter in range(1, last + 1):
        # All images, as functions of the free coordinates: [M, 3, 3] and [M, 3].
        linear = rotations @ operation[0] @ op_rotations[letter]
        shift = rotations @ (operation[0] @ op_shifts[letter] + operation[1]) + translations
        for other in range(1, last + 1):
            if table.multiplicity[group - 1, other] != table.multiplicity[group - 1, letter]:
                continue
            same = (op_rotations[other] @ linear == linear).all(axis=(1, 2))
            excess = shift @ op_rotations[other].T + op_shifts[other] - shift
            on_position = same & (excess % UNITS == 0).all(axis=1)
            if on_position.any():
                letters[letter], images[letter] = other, int(np.argmax(on_position))
                break
    assert sorted(letters[1 : last + 1]) == list(range(1, last + 1)), f"letters of space group {group}"
    return letters, images


if __name__ == "__main__":
    main()
