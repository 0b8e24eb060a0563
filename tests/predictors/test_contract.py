"""What every potential promises, on real libraries."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

pytestmark = pytest.mark.integration

NAMES = ("chgnet", "emt", "orb", "tensornet")
KNOWS_ITS_ELEMENTS = ("chgnet", "orb", "tensornet")


@pytest.fixture(scope="module", params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def potential(name, get_potential):
    return get_potential(name)


@pytest.fixture(scope="module")
def batch(potential, alloys):
    return potential.evaluate(alloys)


def broken() -> dict[str, tuple[Structure | None, str]]:
    """Crystals on which no model may choke, and what is said of them."""
    pair = [[0, 0, 0], [0.5, 0.5, 0.5]]
    cubic = Lattice.cubic(4.0)
    return {
        "unread": (None, "no structure"),
        "empty": (Structure(cubic, [], []), "no atoms"),
        "one point": (Structure(cubic, ["Cu", "Cu"], [[0, 0, 0], [0, 0, 0]]), "atoms 0.00 angstrom apart"),
        "huge": (Structure(Lattice.cubic(80), ["Cu", "Cu"], pair), "cubic angstrom per atom, more than 200"),
        "crushed": (Structure(Lattice.cubic(1.2), ["Cu", "Cu"], pair), "cubic angstrom per atom, less than 2"),
        "unknown": (Structure(cubic, ["Po", "Cu"], pair), "Po"),
        "no element": (Structure(cubic, ["X", "Cu"], pair), "not an element"),
        "partial": (Structure(cubic, [{"Cu": 0.5}, "Cu"], pair), "partial or mixed occupancy"),
        "mixed": (Structure(cubic, [{"Cu": 0.5, "Au": 0.5}, "Cu"], pair), "partial or mixed occupancy"),
        "infinite": (Structure(cubic, ["Cu", "Cu"], [[0, 0, 0], [np.inf, 0, 0]]), "not finite"),
        "many": (Structure(cubic, ["Cu"], [[0, 0, 0]]) * (11, 10, 10), "1100 atoms"),
        "many and dense": (Structure(Lattice.cubic(2.25), ["Cu"], [[0, 0, 0]]) * (8, 8, 8), "512 atoms so dense"),
    }


def test_shapes_types_and_name(potential, alloys, batch):
    assert potential.name and potential.scale in ("raw", "mp2020")
    assert batch.energy.shape == (5,) and batch.energy.dtype == float and np.isfinite(batch.energy).all()
    assert batch.stress.shape == (5, 3, 3) and batch.stress.dtype == float
    assert [forces.shape for forces in batch.forces] == [(len(crystal), 3) for crystal in alloys]
    assert all(forces.dtype == float for forces in batch.forces)
    assert batch.ok.all() and batch.ok.dtype == bool and batch.reasons == [""] * 5
    np.testing.assert_allclose(batch.stress, batch.stress.transpose(0, 2, 1), atol=1e-5)


def test_no_crystals_are_a_batch_too(potential):
    batch = potential.evaluate([])
    assert batch.energy.shape == (0,) and batch.stress.shape == (0, 3, 3) and batch.ok.shape == (0,)
    assert batch.forces == [] and batch.reasons == []


def test_batch_equals_singles(potential, alloys, batch):
    for i, crystal in enumerate(alloys):
        single = potential.evaluate([crystal])
        assert single.energy[0] == pytest.approx(batch.energy[i], abs=1e-4 * len(crystal))
        np.testing.assert_allclose(single.forces[0], batch.forces[i], atol=1e-3)
        np.testing.assert_allclose(single.stress[0], batch.stress[i], atol=1e-4)


def test_order_is_kept(potential, alloys, batch):
    assert len(np.unique(batch.energy.round(2))) == len(alloys)
    turned = potential.evaluate(alloys[::-1])
    np.testing.assert_allclose(turned.energy[::-1], batch.energy, atol=1e-3)
    for forward, backward in zip(batch.forces, turned.forces[::-1], strict=True):
        np.testing.assert_allclose(forward, backward, atol=1e-3)


def test_energy_is_that_of_the_whole_cell(batch):
    assert batch.energy[0] == pytest.approx(2 * batch.energy[1], abs=1e-3)  # the first is two cells of the second


def test_energies_alone_are_the_same(potential, alloys, batch):
    alone = potential.evaluate(alloys, forces=False)
    np.testing.assert_allclose(alone.energy, batch.energy, atol=1e-4)
    assert alone.forces == [None] * 5 and np.isnan(alone.stress).all() and alone.ok.all()


def test_the_same_again(potential, alloys, batch):
    # What is compiled when first run (Orb's TorchScript) rounds otherwise afterwards; `batch` came first.
    once, again = potential.evaluate(alloys), potential.evaluate(alloys)
    assert (once.energy == again.energy).all() and (once.stress == again.stress).all()
    assert all((one == two).all() for one, two in zip(once.forces, again.forces, strict=True))
    np.testing.assert_allclose(once.energy, batch.energy, atol=1e-5)


def test_nothing_is_mutated(potential, alloys):
    marked = [crystal.copy(site_properties={"tag": list(range(len(crystal)))}) for crystal in alloys]
    marked[0].translate_sites([0], [2, 0, -1], to_unit_cell=False)
    before = [crystal.as_dict() for crystal in marked]
    potential.evaluate(marked)
    assert [crystal.as_dict() for crystal in marked] == before


def test_forces_are_the_slope_of_the_energy(potential, alloys, batch):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(4, 4, 3))
    directions /= np.linalg.norm(directions, axis=(1, 2), keepdims=True)
    step, crystal, moved = 0.01, alloys[1], []
    for direction in directions:
        for sign in (1, -1):
            coords = crystal.cart_coords + sign * step * direction
            moved.append(Structure(crystal.lattice, crystal.species, coords, coords_are_cartesian=True))
    up, down = potential.evaluate(moved, forces=False).energy.reshape(4, 2).T
    expected = -np.einsum("dij,ij->d", directions, batch.forces[1])
    largest = np.abs(batch.forces[1]).max()
    assert largest > 0.02
    np.testing.assert_allclose((up - down) / (2 * step), expected, atol=0.02 * largest + 1e-3)


def test_stress_is_the_slope_of_the_energy_over_strain(potential, alloys, batch):
    step, crystal, strained = 0.003, alloys[1], []
    components = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
    for i, j in components:
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            lattice = Lattice(crystal.lattice.matrix @ (np.eye(3) + strain))
            strained.append(Structure(lattice, crystal.species, crystal.frac_coords))
    up, down = potential.evaluate(strained, forces=False).energy.reshape(6, 2).T
    found = (up - down) / (2 * step) / crystal.volume
    stress = np.array([batch.stress[1][component] for component in components])
    assert np.abs(stress).max() > 1e-3 and np.abs(stress[3:]).max() > 1e-4
    np.testing.assert_allclose(found, stress, atol=0.02 * np.abs(stress).max() + 5e-5)


@pytest.mark.parametrize("case", broken())
def test_a_broken_crystal_is_reported_and_the_others_are_not_lost(case, potential, name, alloys, batch):
    crystal, reason = broken()[case]
    mixed = potential.evaluate([alloys[1], crystal, alloys[2]], forces=False)
    assert mixed.ok.tolist() == [True, False, True]
    assert reason in mixed.reasons[1] and "\n" not in mixed.reasons[1] and len(mixed.reasons[1]) <= 200
    assert np.isnan(mixed.energy[1]) and np.isnan(mixed.stress[1]).all() and mixed.forces[1] is None
    np.testing.assert_allclose(mixed.energy[[0, 2]], batch.energy[[1, 2]], atol=1e-3)
    if case == "unknown" and name in KNOWS_ITS_ELEMENTS:
        assert mixed.reasons[1] == "the model does not know Po"
