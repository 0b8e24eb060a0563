"""The equivalent settings of a crystal, against International Tables, geometry, pymatgen and spglib."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cfx.core.batches import InRandomSettings
from cfx.core.crystal import CrystalBatch, all_settings, concatenate, validate
from cfx.core.lattice import cell_vectors, impose_family
from cfx.core.symmetry import LETTERS, orbit, settings_table, symmetry_table

TABLE, SETTINGS = symmetry_table(), settings_table()
GOLDEN = Path(__file__).parents[1] / "golden"
POSITIONS = [(group, letter) for group in range(1, 231) for letter in range(1, TABLE.last_letter[group - 1] + 1)]


def of_position(group: int, letter: int, rng: np.random.Generator) -> CrystalBatch:
    """One atom somewhere on a position, in a cell of the group's family."""
    projector = TABLE.projector[group - 1, letter].astype(float)
    point = projector[:, :3] @ rng.random(3) + projector[:, 3]
    lengths, angles = rng.uniform(4, 9, 3), rng.uniform(70, 110, 3)
    group_array = np.array([group], np.int32)
    return CrystalBatch(
        space_group=group_array,
        lattice=impose_family(np.concatenate([lengths, angles])[None], group_array).astype(np.float32),
        frac_coords=np.array([[point - np.floor(point), np.zeros(3)]], np.float32),
        species=np.array([[6, 0]], np.int32),
        wyckoff=np.array([[letter, 0]], np.int32),
    )


@pytest.fixture(scope="module")
def one_site() -> CrystalBatch:
    """A crystal for every Wyckoff position."""
    rng = np.random.default_rng(0)
    return concatenate([of_position(group, letter, rng) for group, letter in POSITIONS])


def on_lattice(shift: np.ndarray) -> np.ndarray:
    return np.abs(shift - np.rint(shift)).max(-1) < 1e-5


def random_numbers(batch: CrystalBatch, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(SETTINGS.count[batch.space_group - 1])


def test_as_many_settings_as_international_tables_say():
    """Index of the group in its Euclidean normaliser, modulo continuous translations (ITA, Tables 3.5.2.3 to 3.5.2.5).

    In orthorhombic groups, times the permutations of axes that keep the symbol.
    """
    monoclinic = {3: 8, 4: 8, 6: 4, 7: 4, 9: 2, 10: 8, 11: 8, 12: 4, 14: 8, 15: 4}
    orthorhombic = {16: 16 * 6, 19: 16 * 6, 22: 8 * 6, 25: 8 * 2, 33: 8, 47: 8 * 6, 61: 8 * 3, 62: 8, 63: 4, 69: 2 * 6}
    tetragonal = {75: 8, 82: 16, 99: 4, 123: 4, 136: 4, 139: 2, 141: 2}
    hexagonal = {143: 24, 147: 8, 148: 4, 160: 2, 166: 2, 167: 2, 168: 4, 187: 12, 191: 2, 194: 2}
    cubic = {195: 8, 198: 8, 212: 2, 216: 8, 217: 2, 221: 2, 225: 2, 227: 2, 229: 1, 230: 1}
    expected = {1: 2, 2: 8, **monoclinic, **orthorhombic, **tetragonal, **hexagonal, **cubic}
    assert {group: int(SETTINGS.count[group - 1]) for group in expected} == expected
    assert SETTINGS.start[229] + 1 == len(SETTINGS.rotation)


def test_letters_of_textbook_settings():
    """The origin on the other point of full symmetry: a and b of rock salt, c and d of hcp; all four of zincblende."""
    for group, expected in ((225, "bacdefgihjkl"), (194, "abdcefghijkl"), (227, "badcefghi")):
        letters = SETTINGS.letter[SETTINGS.start[group - 1] + 1]
        changed = "".join(LETTERS[letter] for letter in letters[1 : len(expected) + 1])
        assert changed == expected, group
    first = SETTINGS.start[215]
    assert {tuple(SETTINGS.letter[first + i, 1:5].tolist()) for i in range(8)} == {
        (1, 2, 3, 4), (1, 2, 4, 3), (2, 1, 3, 4), (2, 1, 4, 3), (3, 4, 1, 2), (3, 4, 2, 1), (4, 3, 1, 2), (4, 3, 2, 1),
    }  # fmt: skip


def test_the_first_setting_is_the_given_one(one_site):
    rows = SETTINGS.start
    assert (SETTINGS.rotation[rows] == np.eye(3)).all() and not SETTINGS.translation[rows].any()
    same = one_site.in_settings(np.zeros(len(one_site), int))
    for name in ("space_group", "lattice", "frac_coords", "species", "wyckoff"):
        np.testing.assert_array_equal(getattr(same, name), getattr(one_site, name))


def test_atoms_are_where_the_change_of_setting_takes_them(one_site):
    """Every position of every group, in one of its settings: the orbit there is the image of the whole orbit."""
    changed = one_site.in_settings(number := random_numbers(one_site, np.random.default_rng(1)))
    validate(changed)
    rows = SETTINGS.start[one_site.space_group - 1] + number
    for i, (group, letter) in enumerate(POSITIONS):
        images = orbit(group, letter, one_site.frac_coords[i, 0]) @ SETTINGS.rotation[rows[i]].T
        images += SETTINGS.translation[rows[i]]
        points = orbit(group, int(changed.wyckoff[i, 0]), changed.frac_coords[i, 0])
        assert len(images) == len(points)
        assert on_lattice(points[:, None] - images).any(1).all(), (group, letter, number[i])


def test_cells_are_those_of_the_new_axes(one_site):
    """Lengths and angles do not change but with permuted axes: G' = W^-T G W^-1."""
    number = random_numbers(one_site, np.random.default_rng(2))
    changed = one_site.in_settings(number)
    inverse = np.linalg.inv(SETTINGS.rotation[SETTINGS.start[one_site.space_group - 1] + number])
    before, after = (cell_vectors(batch.lattice.astype(float)) for batch in (one_site, changed))
    gram = np.swapaxes(inverse, 1, 2) @ before @ np.swapaxes(before, 1, 2) @ inverse
    np.testing.assert_allclose(after @ np.swapaxes(after, 1, 2), gram, atol=1e-4)
    assert (changed.lattice[one_site.space_group > 74] == one_site.lattice[one_site.space_group > 74]).all()
    assert (changed.lattice[one_site.space_group <= 74] != one_site.lattice[one_site.space_group <= 74]).any()


def test_settings_are_a_group():
    """One change after another is one of the group's changes, with the letters that both give."""
    rng = np.random.default_rng(3)
    for group in range(1, 231):
        rows = slice(first := SETTINGS.start[group - 1], first + SETTINGS.count[group - 1])
        rotation, translation, letter = SETTINGS.rotation[rows], SETTINGS.translation[rows], SETTINGS.letter[rows]
        general, shift = TABLE.general_operations(group)
        free = (general == np.eye(3)).all(axis=(0, 1))
        # All cosets written out: [settings, operations, ...].
        members = general @ rotation[:, None]
        shifts = (general @ translation[:, None, :, None])[..., 0] + shift
        for one, other in rng.integers(len(rotation), size=(4, 2)):
            product = rotation[one] @ rotation[other]
            moved = rotation[one] @ translation[other] + translation[one]
            same = (members == product).all((2, 3)) & on_lattice(np.where(free, 0, shifts - moved))
            assert same.any(1).sum() == 1, group
            np.testing.assert_array_equal(letter[same.any(1)][0], letter[one][letter[other]])


def rock_salt(first: int = 11, second: int = 17) -> CrystalBatch:
    return CrystalBatch(
        space_group=np.array([225], np.int32),
        lattice=np.array([[5.64, 5.64, 5.64, 90, 90, 90]], np.float32),
        frac_coords=np.array([[[0, 0, 0], [0.5, 0.5, 0.5], [0, 0, 0]]], np.float32),
        species=np.array([[first, second, 0]], np.int32),
        wyckoff=np.array([[1, 2, 0]], np.int32),
    )


def test_distinct_settings_of_rock_salt():
    found, crystal = all_settings(concatenate([rock_salt(), rock_salt(14, 14), rock_salt(17, 11)]))
    assert crystal.tolist() == [0, 0, 1, 2, 2]
    assert found.species.tolist() == [[11, 17, 0], [17, 11, 0], [14, 14, 0], [17, 11, 0], [11, 17, 0]]
    assert (found.wyckoff == [1, 2, 0]).all()


def test_sites_are_in_the_order_of_the_encoder():
    """By letter, then coordinates, pads last, also where a change of setting turns the order around."""
    rng = np.random.default_rng(4)
    coords = np.zeros((20, 5, 3), np.float32)
    coords[:, :4] = rng.random((20, 4, 3))
    coords[:, 0] = 0.5
    batch = CrystalBatch(
        space_group=np.full(20, 2, np.int32),
        lattice=np.full((20, 6), 90, np.float32),
        frac_coords=coords,
        species=np.array([[1, 2, 3, 4, 0]] * 20, np.int32),
        wyckoff=np.array([[8, 9, 9, 9, 0]] * 20, np.int32),
    )
    changed = batch.in_settings(np.arange(20) % 8)
    validate(changed)
    for letters, points in zip(changed.wyckoff, changed.frac_coords, strict=True):
        rows = np.column_stack([letters, points])[:4].tolist()
        assert rows == sorted(rows)
    assert sorted(changed.wyckoff[:8, 0].tolist()) == list(range(1, 9))
    for before, after in zip(batch.frac_coords, changed.frac_coords, strict=True):
        # Half the cell along some axes.
        assert {tuple(point) for point in np.rint(after[:4] % 0.5 * 1e5)} == {
            tuple(point) for point in np.rint(before[:4] % 0.5 * 1e5)
        }


def test_random_settings_follow_from_seed_and_epoch_alone():
    data = concatenate([rock_salt()] * 400)
    rows = np.random.default_rng(5).permutation(400)
    one = InRandomSettings.of_epoch(data, 7, 3)
    whole = one.take(np.arange(400), 3)
    np.testing.assert_array_equal(one.take(rows[:50], 4).species[:, :3], whole.species[rows[:50]])
    again = InRandomSettings.of_epoch(data, 7, 3).take(rows, 3)
    np.testing.assert_array_equal(again.species, whole.species[rows])
    for other in (InRandomSettings.of_epoch(data, 7, 4), InRandomSettings.of_epoch(data, 8, 3)):
        assert 100 < (other.take(np.arange(400), 3).species != whole.species).any(1).sum() < 300
    assert 150 < (whole.species[:, 0] == 11).sum() < 250


@pytest.mark.integration
def test_settings_of_real_crystals_are_the_same_crystals():
    """One of each space group in the golden data, in several settings: for StructureMatcher, spglib and the encoder."""
    import spglib
    from pymatgen.analysis.structure_matcher import StructureMatcher

    from cfx.data.dataset import encode
    from cfx.data.formats.cif import structure_of_cif

    structures = [structure_of_cif(entry["cif"]) for entry in json.loads((GOLDEN / "v042_dev_cifs.json").read_text())]
    batch = encode(structures).batch
    _, first = np.unique(batch.space_group, return_index=True)
    batch = batch[first]
    batch = batch[batch.num_atoms <= 40]
    assert len(batch) > 40
    rng, matcher = np.random.default_rng(6), StructureMatcher(scale=False, attempt_supercell=False)
    for _ in range(3):
        changed = batch.in_settings(random_numbers(batch, rng))
        for i, (given, other) in enumerate(zip(batch.to_structures(), changed.to_structures(), strict=True)):
            group = int(batch.space_group[i])
            assert given.composition == other.composition
            assert matcher.fit(given, other), group
            cell = (other.lattice.matrix, other.frac_coords, list(other.atomic_numbers))
            dataset = spglib.get_symmetry_dataset(cell, 0.01, hall_number=int(TABLE.hall_number[group - 1]))
            assert dataset is not None and dataset.number == group
        again = encode(changed.to_structures())
        assert not again.failures
        np.testing.assert_array_equal(again.batch.space_group, batch.space_group)


@pytest.mark.integration
def test_probability_over_settings_is_the_sum_over_distinct_ones():
    """Rock salt has two, NaCl and ClNa, whichever of them is given; with one element on both positions it has one."""
    from cfx.config import ModelConfig
    from cfx.model import Model

    tiny = ModelConfig(num_layers=1, num_heads=2, key_size=8, model_size=16, embed_size=8, first_hidden=16, n_max=3)
    model = Model.init(tiny)
    batch = concatenate([rock_salt(), rock_salt(17, 11), rock_salt(14, 14)])
    given, summed = np.exp(model.log_prob(batch).total.astype(float)), np.exp(model.settings_log_prob(batch))
    assert given[0] != pytest.approx(given[1], rel=1e-2)
    np.testing.assert_allclose(summed, [given[0] + given[1], given[0] + given[1], given[2]], rtol=1e-5)
