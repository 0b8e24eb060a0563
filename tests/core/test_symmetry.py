"""The table of Wyckoff positions against spglib and against itself."""

from __future__ import annotations

import numpy as np
import pytest
import spglib
from pymatgen.core.operations import SymmOp

from cfx.core.symmetry import LETTERS, operation_text, orbit, primitive_rows, symmetry_table, wrap

TABLE = symmetry_table()
POSITIONS = [(group, letter) for group in range(1, 231) for letter in range(1, TABLE.last_letter[group - 1] + 1)]


def op_0(group: int, letter: int) -> tuple[np.ndarray, np.ndarray]:
    projector = TABLE.projector[group - 1, letter].astype(float)
    return projector[:, :3], projector[:, 3]


def on_lattice(shift: np.ndarray, tolerance: float = 1e-6) -> np.ndarray:
    """True where a difference of points [..., 3] is a lattice translation."""
    return np.abs(shift - np.rint(shift)).max(-1) < tolerance


def distinct_points(points: np.ndarray) -> int:
    equal = on_lattice(points[:, None] - points[None])
    return int((equal.argmax(1) == np.arange(len(points))).sum())


def test_number_of_positions():
    assert len(POSITIONS) == 1731
    assert (TABLE.multiplicity > 0).sum() == 1731
    assert (TABLE.multiplicity[:, 0] == 0).all()


def test_primitive_cells_hold_one_point_of_those_that_centrings_relate():
    """Of a random point's orbit, no two chosen ones differ by a translation of the primitive lattice; all others do."""
    point = np.random.default_rng(1).uniform(size=3)
    for group, letter in POSITIONS:
        axes, count = TABLE.primitive_axes(group), TABLE.num_lattice_points(group)
        assert np.linalg.det(axes) == pytest.approx(1 / count)
        rotation, translation = op_0(group, letter)
        points = orbit(group, letter, rotation @ point + translation) @ np.linalg.inv(axes)
        chosen = primitive_rows(group, letter)
        assert len(chosen) * count == len(points)
        related = on_lattice(points[:, None] - points[chosen])
        assert (related.sum(1) == 1).all() and (related.sum(0) == count).all()


def test_orbit_has_as_many_points_as_the_multiplicity_says():
    """The general operations take a point on op 0 to exactly `multiplicity` points: those of `orbit`."""
    rng = np.random.default_rng(0)
    for group, letter in POSITIONS:
        multiplicity = TABLE.multiplicity[group - 1, letter]
        rotation, translation = op_0(group, letter)
        point = rotation @ rng.random(3) + translation
        rotations, translations = TABLE.general_operations(group)
        images = rotations @ point + translations
        assert distinct_points(images) == multiplicity, (group, letter)
        points = orbit(group, letter, point)
        assert ((points >= 0) & (points < 1)).all()
        assert len(points) == distinct_points(points) == multiplicity, (group, letter)
        assert on_lattice(points[:, None] - images[None]).any(1).all(), (group, letter)


def test_op_0_is_idempotent():
    rng = np.random.default_rng(1)
    for group, letter in POSITIONS:
        rotation, translation = op_0(group, letter)
        once = rotation @ rng.random(3) + translation
        assert on_lattice(rotation @ once + translation - once), (group, letter)


def test_coordinates_projected_one_by_one_end_on_op_0():
    """The sampler draws and projects x, then y, then z."""
    rng = np.random.default_rng(2)
    for group, letter in POSITIONS:
        rotation, translation = op_0(group, letter)
        point = np.zeros(3)
        for axis in range(3):
            point[axis] = rng.random()
            point[axis] = wrap(rotation @ point + translation)[axis]
        assert on_lattice(rotation @ point + translation - point), (group, letter)


def test_general_operations_are_those_of_spglib():
    def as_set(rotations, translations):
        shifts = np.rint(np.asarray(translations) * 24).astype(int) % 24
        rows = np.concatenate([np.asarray(rotations).reshape(-1, 9).astype(int), shifts], axis=1)
        return set(map(tuple, rows.tolist()))

    for group in range(1, 231):
        ours = as_set(*TABLE.general_operations(group))
        database = spglib.get_symmetry_from_database(int(TABLE.hall_number[group - 1]))
        assert ours == as_set(database["rotations"], database["translations"]), group
        assert len(ours) == TABLE.multiplicity[group - 1].max(), group


def test_settings_are_the_standard_ones():
    """Unique axis b with cell choice 1, origin choice 2, hexagonal axes."""
    types = [spglib.get_spacegroup_type(int(number)) for number in TABLE.hall_number]
    assert [entry.number for entry in types] == list(range(1, 231))
    choices = {group: entry.choice for group, entry in enumerate(types, start=1)}
    assert {choices[group] for group in range(3, 16)} == {"b", "b1"}
    assert {choices[group] for group in (146, 148, 155, 160, 161, 166, 167)} == {"H"}
    assert {group for group, choice in choices.items() if choice == "2"} == {
        48, 50, 59, 68, 70, 85, 86, 88, 125, 126, 129, 130, 133, 134, 137, 138, 141, 142,
        201, 203, 222, 224, 227, 228,
    }  # fmt: skip
    assert set(choices.values()) == {"", "b", "b1", "H", "2"}
    symbols = dict(zip(choices, TABLE.symbol.tolist(), strict=True))
    assert [symbols[group] for group in (14, 225, 227, 166)] == [
        "P 1 21/c 1",
        "F m -3 m",
        "F d -3 m:2",
        "R -3 m:H",
    ]


def test_free_and_fixed_coordinates():
    """free_mask holds tied coordinates too: 183 positions have some (a nonzero row that others determine)."""
    tied = 0
    for group, letter in POSITIONS:
        rotation, _ = op_0(group, letter)
        free = (rotation != 0).any(1)
        assert (TABLE.free_mask[group - 1, letter] == free).all()
        assert TABLE.is_fixed[group - 1, letter] == (not free.any())
        tied += free.sum() > np.linalg.matrix_rank(rotation)
    assert tied == 183
    assert not TABLE.free_mask[:, 0].any()
    assert not TABLE.is_fixed[:, 0].any()


def test_textbook_positions():
    def position(group, letter):
        return op_0(group, LETTERS.index(letter))

    assert TABLE.multiplicity[194 - 1, LETTERS.index("a")] == 2
    assert TABLE.multiplicity[225 - 1, LETTERS.index("a")] == 4
    assert TABLE.multiplicity[225 - 1, LETTERS.index("l")] == 192
    rotation, translation = position(194, "c")  # the hcp site, (1/3, 2/3, 1/4)
    assert not rotation.any()
    np.testing.assert_allclose(translation, [1 / 3, 2 / 3, 1 / 4], atol=1e-6)
    np.testing.assert_allclose(position(227, "a")[1], [1 / 8, 1 / 8, 1 / 8])  # diamond, origin choice 2
    rotation, _ = position(194, "k")  # (x, 2x, z)
    assert rotation.tolist() == [[1, 0, 0], [2, 0, 0], [0, 0, 1]]


def test_letters():
    assert len(LETTERS) == 28
    assert (LETTERS[0], LETTERS[1], LETTERS[26], LETTERS[27]) == (" ", "a", "z", "A")
    assert TABLE.last_letter[47 - 1] == 27 == LETTERS.index("A")
    assert TABLE.last_letter.max() == 27
    assert TABLE.last_letter[1 - 1] == 1
    for group in range(1, 231):
        last = TABLE.last_letter[group - 1]
        assert (TABLE.multiplicity[group - 1, 1 : last + 1] > 0).all()
        assert (TABLE.multiplicity[group - 1, last + 1 :] == 0).all()
        rotation, translation = op_0(group, last)
        assert (rotation == np.eye(3)).all()
        assert not translation.any()


@pytest.mark.parametrize("group", [1, 15, 62, 100, 148, 166, 176, 194, 214, 225, 227, 230])
def test_operation_text_reads_back(group):
    for letter in range(1, TABLE.last_letter[group - 1] + 1):
        rotations, translations = TABLE.operations(group, letter)
        for rotation, translation in zip(rotations, translations, strict=True):
            text = operation_text(rotation, translation)
            read = SymmOp.from_xyz_str(text.replace("*", ""))  # pymatgen writes 2x, not 2*x
            np.testing.assert_allclose(read.rotation_matrix, rotation, err_msg=text)
            np.testing.assert_allclose(read.translation_vector, translation, atol=1e-9, err_msg=text)


def test_operation_text_of_textbook_operations():
    assert operation_text(np.eye(3), np.zeros(3)) == "x, y, z"
    assert operation_text([[-1, 1, 0], [0, 2, 0], [0, 0, 1]], [0, 0, 0.5]) == "-x+y, 2*y, z+1/2"
    assert operation_text(np.zeros((3, 3)), [1 / 3, 2 / 3, 0]) == "1/3, 2/3, 0"


def test_wrap():
    points = wrap(np.array([-0.25, 0.0, 1.0, 2.5, -1e-18]))
    assert points.tolist() == [0.75, 0.0, 0.0, 0.5, 0.0]
