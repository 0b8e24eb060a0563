"""Structures to Wyckoff sites and back: textbook crystals, AFLOW prototypes, the golden arrays, pyxtal."""

from collections import Counter
from pathlib import Path

import numpy as np
import pymatgen.analysis
import pytest
import spglib
from monty.serialization import loadfn
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from scipy.spatial.transform import Rotation

from cfx.core.crystal import validate
from cfx.core.elements import SYMBOLS
from cfx.core.symmetry import LETTERS, symmetry_table
from cfx.data import encode as encoding
from cfx.data.dataset import encode
from cfx.data.encode import EncodingError, encode_structure

MATCHER = StructureMatcher(scale=False)


def build(symbol: str, cell: Lattice, species: list[str], coords: list) -> Structure:
    return Structure.from_spacegroup(symbol, cell, species, coords)


cubic, hexagonal = Lattice.cubic, Lattice.hexagonal
TEXTBOOK = {
    # Structure, space group, and sites: first those of the structure as it stands, then those with the origin
    # on the other equivalent points.
    "rock salt": (
        build("Fm-3m", cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        225,
        ["a Na, b Cl", "a Cl, b Na"],
    ),
    "fluorite": (
        build("Fm-3m", cubic(5.46), ["Ca", "F"], [[0, 0, 0], [0.25, 0.25, 0.25]]),
        225,
        ["a Ca, c F", "b Ca, c F"],
    ),
    "perovskite": (
        build("Pm-3m", cubic(3.905), ["Sr", "Ti", "O"], [[0.5, 0.5, 0.5], [0, 0, 0], [0.5, 0, 0]]),
        221,
        ["a Ti, b Sr, d O", "a Sr, b Ti, c O"],
    ),
    "diamond": (build("Fd-3m", cubic(5.43), ["Si"], [[0, 0, 0]]), 227, ["a Si", "b Si"]),
    "hcp": (build("P6_3/mmc", hexagonal(3.21, 5.21), ["Mg"], [[1 / 3, 2 / 3, 0.25]]), 194, ["c Mg", "d Mg"]),
    "wurtzite": (
        build("P6_3mc", hexagonal(3.25, 5.2), ["Zn", "O"], [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.382]]),
        186,
        ["b O, b Zn"],
    ),
}


def settings(structure: Structure) -> dict[str, Structure]:
    """One crystal in many cells."""
    supercell = structure.copy()
    supercell.make_supercell([2, 1, 1])
    skewed = structure.get_primitive_structure()
    skewed.make_supercell([[1, 1, 0], [0, 1, 0], [0, 1, 1]])
    rotation = Rotation.from_euler("xyz", [0.3, 1.1, -0.7]).as_matrix()
    rotated = Structure(Lattice(structure.lattice.matrix @ rotation.T), structure.species, structure.frac_coords)
    shifted = Structure(structure.lattice, structure.species, np.add(structure.frac_coords, [0.11, -0.23, 0.37]))
    order = np.random.default_rng(0).permutation(len(structure))
    return {
        "conventional": structure,
        "primitive": structure.get_primitive_structure(),
        "supercell": supercell,
        "skewed": skewed,
        "rotated": rotated,
        "shifted": shifted,
        "shuffled": Structure.from_sites([structure[i] for i in order]),
    }


def as_cell(structure: Structure) -> tuple:
    return structure.lattice.matrix, structure.frac_coords, list(structure.atomic_numbers)


@pytest.mark.parametrize("setting", settings(TEXTBOOK["rock salt"][0]))
@pytest.mark.parametrize("name", TEXTBOOK)
def test_textbook_crystals_in_any_cell(name, setting):
    structure, group, variants = TEXTBOOK[name]
    crystal = encode_structure(settings(structure)[setting])
    assert crystal.space_group == group
    sites = zip(crystal.wyckoff, crystal.species, strict=True)
    found = ", ".join(sorted(f"{LETTERS[letter]} {SYMBOLS[z]}" for letter, z in sites))
    assert found in (variants[:1] if setting in ("conventional", "rotated", "shuffled") else variants)
    np.testing.assert_allclose(crystal.lattice, structure.lattice.parameters, atol=1e-4)
    assert (np.diff(crystal.wyckoff) >= 0).all()


def test_representatives_lie_on_op_0_and_are_sorted():
    structure = TEXTBOOK["wurtzite"][0]
    crystal = encode_structure(structure)
    op = symmetry_table().projector[185, crystal.wyckoff].astype(float)
    projected = np.einsum("nij,nj->ni", op[..., :3], crystal.frac_coords) + op[..., 3]
    deviation = projected - crystal.frac_coords
    assert np.abs(deviation - np.rint(deviation)).max() < 1e-9
    assert crystal.frac_coords[0, 2] < crystal.frac_coords[1, 2]


def test_sites_are_sorted_by_letter_then_coordinates():
    rng = np.random.default_rng(0)
    structure = Structure(Lattice.from_parameters(7, 8, 9, 80, 95, 105), ["O"] * 12, rng.random((12, 3)))
    crystal = encode_structure(structure)
    assert crystal.space_group == 1
    rows = np.column_stack([crystal.wyckoff, crystal.frac_coords]).tolist()
    assert rows == sorted(rows)


@pytest.fixture(scope="module")
def prototypes() -> list[Structure]:
    """The AFLOW prototypes that pymatgen ships."""
    (file,) = Path(next(iter(pymatgen.analysis.__path__))).rglob("aflow_prototypes.json*")
    return [Structure.from_dict(entry["snl"]) for entry in loadfn(file, cls=None)]


@pytest.fixture(scope="module")
def encoded(prototypes):
    return encode(prototypes)


@pytest.mark.integration
def test_every_prototype_is_encoded_or_refused_with_a_reason(prototypes, encoded):
    assert len(prototypes) == 288
    rows = [row for row, _ in encoded.failures]
    assert sorted([*encoded.index, *rows]) == list(range(288))
    assert all("more than 20" in reason for _, reason in encoded.failures)
    assert len(encoded.failures) == 2
    validate(encoded.batch)
    for row, group, decoded in zip(
        encoded.index, encoded.batch.space_group, encoded.batch.to_structures(), strict=True
    ):
        assert MATCHER.fit(prototypes[row], decoded), row
        assert spglib.get_symmetry_dataset(as_cell(decoded), symprec=0.01).number == group, row


def test_letters_obey_the_rules_of_the_model(encoded):
    """They never decrease, and one without a free coordinate never repeats."""
    batch = encoded.batch
    fixed = symmetry_table().is_fixed[batch.space_group[:, None] - 1, batch.wyckoff]
    filled = batch.wyckoff[:, 1:] > 0
    step = np.diff(batch.wyckoff, axis=1)
    assert (step >= fixed[:, :-1])[filled].all()


def test_encoding_is_idempotent(encoded):
    """A decoded crystal encodes to the same space group, letters, species and cell."""
    once = encoded.batch[:100]
    twice = encode(once.to_structures())
    assert not twice.failures
    np.testing.assert_array_equal(once.space_group, twice.batch.space_group)
    np.testing.assert_array_equal(once.num_sites, twice.batch.num_sites)
    np.testing.assert_allclose(once.lattice, twice.batch.lattice, atol=1e-3)
    same = (once.wyckoff == twice.batch.wyckoff).all(1) & (once.species == twice.batch.species).all(1)
    assert same.mean() > 0.95


def test_golden_arrays(rotary, golden_structures):
    """All 150 space groups, and at least 127 crystals to the last coordinate.

    The others are equivalent settings that another version of spglib chose.
    """
    encoded = encode(golden_structures)
    assert not encoded.failures
    ours, golden = encoded.batch, rotary.batch
    np.testing.assert_array_equal(ours.space_group, golden.space_group)
    np.testing.assert_allclose(ours.lattice, golden.lattice, atol=1e-3)
    identical = (
        (ours.wyckoff == golden.wyckoff).all(1)
        & (ours.species == golden.species).all(1)
        & (np.abs(ours.frac_coords - golden.frac_coords) < 1e-4).all((1, 2))
    )
    assert identical.sum() >= 127
    for row in np.flatnonzero(~identical):
        decoded = golden.numpy()[row : row + 1].to_structures()[0]
        assert MATCHER.fit(decoded, golden_structures[row])
        assert MATCHER.fit(ours[row : row + 1].to_structures()[0], decoded)


def test_agreement_with_pyxtal(golden_structures):
    """Letters, species and coordinates of every seventh golden crystal."""
    pyxtal = pytest.importorskip("pyxtal")
    rows = range(0, 150, 7)
    batch = encode([golden_structures[row] for row in rows]).batch
    for row, group, letters, species, coords in zip(
        rows, batch.space_group, batch.wyckoff, batch.species, batch.frac_coords, strict=True
    ):
        crystal = pyxtal.pyxtal()
        crystal.from_seed(golden_structures[row], tol=0.01)
        assert crystal.group.number == group
        theirs = []
        for site in crystal.atom_sites:
            position = np.asarray(site.position, float) % 1
            theirs.append((LETTERS.index(site.wp.letter), *position.round(9) % 1, str(site.specie)))
        theirs.sort()
        filled = letters > 0
        assert [site[0] for site in theirs] == letters[filled].tolist(), row
        assert [site[4] for site in theirs] == [SYMBOLS[z] for z in species[filled]], row
        np.testing.assert_allclose([site[1:4] for site in theirs], coords[filled], atol=1e-3)


def cubic_cells() -> list[Structure]:
    """Crystals of Pm-3m, Fm-3m and Im-3m in several cells, at several origins."""
    crystals = [
        TEXTBOOK["rock salt"][0],
        TEXTBOOK["fluorite"][0],
        TEXTBOOK["perovskite"][0],
        build("Pm-3m", cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        build("Pm-3m", cubic(3.75), ["Au", "Cu"], [[0, 0, 0], [0.5, 0.5, 0]]),
        build("Im-3m", cubic(2.87), ["Fe"], [[0, 0, 0]]),
        build("Im-3m", cubic(5.585), ["Pt", "O"], [[0, 0.5, 0.5], [0.25, 0.25, 0.25]]),
        build("Fm-3m", cubic(5.95), ["Al", "Mn", "Cu"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]]),
        build("Fm-3m", cubic(9.75), ["Pt", "K", "Cl"], [[0, 0, 0], [0.25, 0.25, 0.25], [0.24, 0, 0]]),
    ]
    cells = []
    for crystal in crystals:
        cells_of_it = settings(crystal)
        for setting in ("conventional", "primitive", "supercell", "skewed"):
            structure = cells_of_it[setting]
            for shift in ([0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0, 0], [0.25, 0.25, 0.25]):
                cells.append(Structure(structure.lattice, structure.species, np.add(structure.frac_coords, shift)))
    return cells


@pytest.mark.integration
def test_cubic_crystals_without_a_search_are_those_of_spglib(prototypes):
    answered = Counter()
    for structure in [*cubic_cells(), *prototypes]:
        quick = encoding.cubic_without_search(as_cell(structure), 0.01)
        if quick is None:
            continue
        answered[quick.space_group] += 1
        searched = encoding._by_spglib(as_cell(structure), 0.01)
        assert quick.space_group == searched.space_group
        np.testing.assert_array_equal(quick.wyckoff, searched.wyckoff)
        np.testing.assert_array_equal(quick.species, searched.species)
        np.testing.assert_allclose(quick.frac_coords, searched.frac_coords, atol=1e-9)
        np.testing.assert_allclose(quick.lattice, searched.lattice, atol=1e-6)
    assert answered[221] > 10
    assert answered[225] > 10
    assert answered[229] > 5


def test_displaced_atoms_move_back():
    """Displacements of 0.3 mangstrom, well within symprec: the ideal crystal, on whichever origin."""
    rng = np.random.default_rng(0)
    for structure in cubic_cells()[::7]:
        coords = structure.cart_coords + rng.normal(0, 3e-4, (len(structure), 3))
        displaced = Structure(structure.lattice, structure.species, coords, coords_are_cartesian=True)
        encoded = encode([displaced, structure])
        assert not encoded.failures
        assert encoded.batch.space_group[0] == encoded.batch.space_group[1]
        assert encoded.batch.num_sites[0] == encoded.batch.num_sites[1]
        assert MATCHER.fit(*encoded.batch.to_structures())


def test_space_group_alone(prototypes, encoded):
    """moyo finds what the encoder finds, but where a distortion lies near symprec."""
    groups = [encoding.find_space_group(as_cell(prototypes[row])) for row in encoded.index]
    assert np.mean(groups == encoded.batch.space_group) > 0.98
    flat = np.array([[4.0, 0, 0], [4.0, 0, 0], [0, 0, 4.0]])
    assert encoding.find_space_group((flat, np.zeros((1, 3)), [11])) is None


def test_symprec_decides_what_is_symmetric():
    coords = [[0, 0, 0], [0.5, 0.5, 0.5 + 0.02 / 4.12]]
    structure = Structure(Lattice.cubic(4.12), ["Cs", "Cl"], coords)
    assert encode_structure(structure, symprec=0.01).space_group == 99
    assert encode_structure(structure, symprec=0.1).space_group == 221


def test_left_handed_cells_keep_their_hand():
    """Quartz in a left-handed cell is the same crystal, not its mirror image."""
    coords = [[0.4697, 0, 2 / 3], [0.4135, 0.2669, 0.7858]]
    quartz = build("P3_221", hexagonal(4.913, 5.405), ["Si", "O"], coords)
    assert encode_structure(quartz).space_group == 154
    matrix = quartz.lattice.matrix * [[1], [1], [-1]]
    left_handed = Structure(Lattice(matrix), quartz.species, quartz.frac_coords * [1, 1, -1])
    assert np.linalg.det(left_handed.lattice.matrix) < 0
    assert encode_structure(left_handed).space_group == 154
    mirrored = Structure(Lattice(matrix), quartz.species, quartz.frac_coords)
    assert encode_structure(mirrored).space_group == 152


P1_SITES = np.random.default_rng(0).random((21, 3))
TRICLINIC = Lattice.from_parameters(4, 5, 6, 80, 85, 95)
TWO_ATOMS = "atoms|overlap|same point|one point"
REFUSED = {
    "disorder": (Structure(cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]]), "occupancy"),
    "vacancies": (Structure(cubic(4), [{"Na": 0.5}], [[0, 0, 0]]), "occupancy"),
    "no atoms": (Structure(cubic(4), [], []), "no atoms"),
    "too many sites": (
        Structure(cubic(20), ["O"] * 21, P1_SITES),
        "21 symmetry-inequivalent sites, more than 20",
    ),
    "a coordinate that is nan": (Structure(cubic(4), ["Na"], [[np.nan, 0, 0]]), "not finite"),
    "an infinite cell": (Structure(Lattice(np.diag([4, np.inf, 4])), ["Na"], [[0, 0, 0]]), "not finite"),
    "a dummy element": (Structure(cubic(4), ["X"], [[0, 0, 0]]), "element"),
    "a flat cell": (Structure(Lattice([[4, 0, 0], [4, 0, 0], [0, 0, 4]]), ["Na"], [[0, 0, 0]]), "degenerate"),
    "overlapping atoms": (Structure(cubic(4), ["Na", "Na"], [[0, 0, 0], [0, 0, 0]]), "too close"),
    "two elements on a fixed point": (Structure(cubic(4), ["Na", "Cl"], [[0, 0, 0], [0, 0, 0]]), TWO_ATOMS),
    "two elements near a fixed point": (
        Structure(cubic(4), ["Na", "Cl"], [[0, 0, 0], [0, 0, 1e-4]]),
        TWO_ATOMS,
    ),
    "two elements on one point of a tetragonal crystal": (
        Structure(Lattice.tetragonal(4, 5), ["Na", "Cl", "Br"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5001]]),
        TWO_ATOMS,
    ),
    "two elements on a free point": (
        Structure(TRICLINIC, ["Na", "Cl", "Br"], [[0, 0, 0], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3]]),
        TWO_ATOMS,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_reasons(name):
    structure, reason = REFUSED[name]
    with pytest.raises(EncodingError, match=reason):
        encode_structure(structure)


def test_most_sites_can_be_chosen():
    structure = Structure(cubic(20), ["O"] * 21, P1_SITES)
    assert len(encode_structure(structure, max_sites=21).wyckoff) == 21
    assert encode([structure], n_max=22).batch.wyckoff.shape == (1, 22)


def test_a_batch_survives_its_failures():
    good, bad = TEXTBOOK["rock salt"][0], REFUSED["disorder"][0]
    encoded = encode([bad, good, REFUSED["no atoms"][0], good])
    assert encoded.index.tolist() == [1, 3]
    assert [row for row, _ in encoded.failures] == [0, 2]
    assert encoded.batch.space_group.tolist() == [225, 225]
    nothing = encode([bad])
    assert len(nothing.batch) == 0
    assert nothing.batch.frac_coords.shape == (0, 21, 3)
    assert len(encode([]).batch) == 0


def test_oxidation_states_are_ignored():
    structure = TEXTBOOK["rock salt"][0].copy()
    structure.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    assert encode_structure(structure).species.tolist() == [11, 17]
