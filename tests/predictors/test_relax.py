"""Relaxation, against ASE's optimisers with ASE's or the library's own calculators."""

from __future__ import annotations

import numpy as np
import pytest
import spglib
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE
from pymatgen.core import Lattice, Structure

from cfx.predictors.base import to_atoms
from cfx.predictors.batching import BatchedPotential, Output
from cfx.predictors.relax import Relaxed, find_symmetry, relax

pytestmark = pytest.mark.integration


def by_ase(structure: Structure, calculator, optimiser, fmax: float) -> tuple[float, int]:
    """Energy per atom and number of steps of an optimiser of ASE."""
    atoms = to_atoms(structure)
    atoms.calc = calculator
    run = optimiser(FrechetCellFilter(atoms), logfile=None)
    assert run.run(fmax=fmax, steps=500)
    return atoms.get_potential_energy() / len(atoms), run.get_number_of_steps()


def space_group(structure: Structure, symprec: float = 0.01) -> int:
    cell = (structure.lattice.matrix, structure.frac_coords, [site.specie.Z for site in structure])
    return spglib.get_symmetry_dataset(cell, symprec).number


def bcc_copper() -> Structure:
    """A cell that is nearly cubic; EMT would rather have it longer along z."""
    return Structure(Lattice.tetragonal(2.86, 2.868), ["Cu", "Cu"], [[0, 0, 0.0005], [0.5, 0.5, 0.5]])


def wurtzite() -> Structure:
    coords = [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.35]]
    return Structure.from_spacegroup("P6_3mc", Lattice.hexagonal(4.0, 6.0), ["Zn", "S"], coords)


def test_the_same_minima_as_ase(get_potential, alloys):
    for start, found in zip(alloys[2:4], relax(get_potential("emt"), alloys[2:4], 0.05), strict=True):
        energy, steps = by_ase(start, EMT(), FIRE, 0.05)
        assert found.converged and found.reason == "" and found.fmax <= 0.05
        assert found.energy / len(start) == pytest.approx(energy, abs=0.005)
        assert found.energy / len(start) == pytest.approx(by_ase(start, EMT(), BFGS, 0.05)[0], abs=0.005)
        assert steps / 2 < found.steps < 2 * steps
        assert found.energy < get_potential("emt").evaluate([start], forces=False).energy[0] - 0.001
        again = get_potential("emt").evaluate([found.structure])
        assert again.energy[0] == pytest.approx(found.energy, abs=1e-9)
        assert np.linalg.norm(again.forces[0], axis=1).max() <= 0.05
        assert np.abs(again.stress[0]).max() * start.volume / len(start) <= 0.051


def test_forces_are_counted_as_in_ase(get_potential, alloys):
    for start, found in zip(alloys, relax(get_potential("emt"), alloys, 0.05, 0), strict=True):
        atoms = to_atoms(start)
        atoms.calc = EMT()
        forces = FrechetCellFilter(atoms).get_forces()
        assert found.fmax == pytest.approx(np.linalg.norm(forces, axis=1).max(), rel=1e-6)
        assert len(start) > 1 or found.fmax == pytest.approx(np.linalg.norm(forces[1:], axis=1).max(), rel=1e-6)


def test_chgnet_as_with_its_own_calculator(get_potential):
    potential = get_potential("chgnet")
    from chgnet.model.dynamics import CHGNetCalculator

    salt = Structure(Lattice.rhombohedral(4.2, 62), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.52, 0.49]])
    silicon = Structure(Lattice.rhombohedral(3.7, 59), ["Si", "Si"], [[0, 0, 0], [0.26, 0.25, 0.25]])
    calculator = CHGNetCalculator(use_device="cpu", verbose=False)
    for start, found in zip((salt, silicon), relax(potential, [salt, silicon], fmax=0.05), strict=True):
        assert found.converged
        assert found.energy / 2 == pytest.approx(by_ase(start, calculator, BFGS, 0.05)[0], abs=0.005)


def test_symmetry_is_kept_where_it_would_break(get_potential):
    emt, start = get_potential("emt"), bcc_copper()
    assert space_group(start) == 229
    free, kept = relax(emt, [start], 0.001)[0], relax(emt, [start], 0.001, fix_symmetry=True)[0]
    assert free.converged and space_group(free.structure) != 229
    assert kept.converged and space_group(kept.structure, 1e-4) == 229
    assert free.energy < kept.energy
    assert abs(kept.structure.lattice.a - 2.86) > 0.003  # the cell did relax


def test_symmetry_with_free_coordinates(get_potential):
    start = wurtzite()
    relaxed = relax(get_potential("chgnet"), [start], 0.02, fix_symmetry=True)[0]
    assert relaxed.converged and space_group(start) == space_group(relaxed.structure, 1e-4) == 186
    lattice = relaxed.structure.lattice
    assert abs(lattice.a - 3.82) < 0.08 and abs(lattice.c / lattice.a - 1.637) < 0.03
    heights = relaxed.structure.frac_coords[:, 2]
    assert abs(heights[2] - heights[0]) == pytest.approx(0.375, abs=0.01)


class Lopsided:
    """A potential with a fault: pushes the first atom of every crystal, and shears it."""

    name, scale, elements = "lopsided", "raw", None

    def compute(self, structures, forces):
        push = [np.eye(len(s))[:, :1] * [0.3, 0.2, 0.1] for s in structures]
        return [Output(0.0, one, np.array([[0, 0.02, 0], [0.02, 0.01, 0], [0, 0, 0]])) for one in push]


def test_symmetry_is_kept_whatever_the_potential_says():
    potential = BatchedPotential(Lopsided())
    free, kept = relax(potential, [quartz()], 0.001, 8)[0], relax(potential, [quartz()], 0.001, 8, fix_symmetry=True)[0]
    assert free.steps == kept.steps == 8
    assert space_group(free.structure) == 1 and space_group(kept.structure, 1e-4) == 152
    assert np.abs(kept.structure.frac_coords - quartz().frac_coords).max() > 1e-4


def quartz() -> Structure:
    """Oxygen on a general position of P3_121, where no two operations of a screw axis may be mixed up."""
    coords = [[0.47, 0, 1 / 3], [0.413, 0.267, 0.119 + 1 / 3]]
    return Structure.from_spacegroup("P3_121", Lattice.hexagonal(4.91, 5.40), ["Si", "O"], coords)


def test_what_is_symmetric_is_not_changed():
    crystal, symmetry = find_symmetry(quartz())
    assert len(symmetry.images) == 6 and len(crystal) == 9
    centre, neighbour, image, distance = crystal.get_neighbor_list(5.0)
    vectors = crystal.frac_coords[neighbour] + image - crystal.frac_coords[centre]
    pulls = np.zeros((9, 3))
    np.add.at(pulls, centre, crystal.lattice.get_cartesian_coords(vectors) * np.exp(-distance)[:, None])
    assert np.abs(pulls).max() > 0.05
    np.testing.assert_allclose(symmetry.symmetrize_vectors(pulls), pulls, atol=1e-3)


def test_an_exact_crystal_is_near_the_given_one():
    rng = np.random.default_rng(0)
    noisy = wurtzite().copy(site_properties={"tag": [1, 2, 3, 4]})
    noisy = Structure(
        Lattice(noisy.lattice.matrix + rng.normal(0, 0.001, (3, 3))),
        noisy.species,
        noisy.frac_coords + rng.normal(0, 0.0003, (4, 3)) + [0, 0, 3],
        site_properties=noisy.site_properties,
    )
    exact, symmetry = find_symmetry(noisy)
    assert space_group(noisy, 0.01) == 186 and space_group(noisy, 1e-4) == 1
    assert len(symmetry.rotations) == 12 and exact.site_properties == noisy.site_properties
    np.testing.assert_allclose(exact.cart_coords, noisy.cart_coords, atol=0.02)
    np.testing.assert_allclose(
        symmetry.rotations @ symmetry.rotations.transpose(0, 2, 1), np.tile(np.eye(3), (12, 1, 1)), atol=1e-9
    )
    forces = rng.normal(size=(4, 3))
    kept = symmetry.symmetrize_vectors(forces)
    np.testing.assert_allclose(symmetry.symmetrize_vectors(kept), kept, atol=1e-12)
    np.testing.assert_allclose(kept[:, :2], 0, atol=1e-4)  # on threefold axes along z, or nearly
    assert np.abs(kept[:, 2]).max() > 0.01
    stress = symmetry.symmetrize_tensor(rng.normal(size=(3, 3)))
    assert (
        stress[0, 0] == pytest.approx(stress[1, 1], abs=1e-3)
        and abs(stress[0, 1]) < 1e-3
        and abs(stress[2, 2] - stress[0, 0]) > 0.1
    )


def test_crystals_that_cannot_be_relaxed_do_not_disturb_the_others(get_potential, alloys):
    unknown = Structure(Lattice.cubic(3.5), ["Po"], [[0, 0, 0]])
    point = Structure(Lattice.cubic(4), ["Cu", "Cu"], [[0, 0, 0], [0, 0, 0]])
    for fix_symmetry in (False, True):
        found = relax(get_potential("emt"), [None, alloys[1], unknown, point], 0.05, fix_symmetry=fix_symmetry)
        assert [one.converged for one in found] == [False, True, False, False]
        assert found[0] == Relaxed(None, found[0].energy, False, 0, found[0].fmax, "no structure")
        assert "Po" in found[2].reason and found[2].structure is unknown and np.isnan(found[2].energy)
        assert "apart" in found[3].reason


class Repulsive:
    """A potential with a fault: everything pushes everything away, for ever."""

    name, scale, elements = "repulsive", "raw", None

    def compute(self, structures, forces):
        return [Output(-s.volume, np.zeros((len(s), 3)), -np.eye(3)) for s in structures]


def test_crystals_that_explode_have_a_reason():
    start = Structure(Lattice.cubic(3), ["Cu"], [[0, 0, 0]])
    found = relax(BatchedPotential(Repulsive()), [start], 0.05, 500)[0]
    assert not found.converged and 2 < found.steps < 500
    assert f"after {found.steps + 1} steps: " in found.reason and "cubic angstrom per atom" in found.reason
    assert 3**3 < found.structure.volume < 200 and found.energy == pytest.approx(-found.structure.volume)


def test_nothing_is_mutated_and_nothing_lost(get_potential, alloys):
    marked = [crystal.copy(site_properties={"tag": list(range(len(crystal)))}) for crystal in alloys]
    before = [crystal.as_dict() for crystal in marked]
    found = relax(get_potential("emt"), marked, 0.05, 3)
    assert [crystal.as_dict() for crystal in marked] == before
    for start, one in zip(marked, found, strict=True):
        assert one.structure.species == start.species and one.structure.site_properties == start.site_properties
        assert one.steps == 3 and not one.converged and one.reason == ""
        moved = one.structure.frac_coords - start.frac_coords
        assert len(start) == 1 or 0 < np.abs(moved).max() < 0.1  # atoms stay in their cells of the lattice


def test_no_steps_means_an_evaluation(get_potential, alloys):
    found = relax(get_potential("emt"), alloys, 0.05, 0)
    np.testing.assert_allclose([one.energy for one in found], get_potential("emt").evaluate(alloys).energy)
    assert all(one.steps == 0 and one.structure == start for one, start in zip(found, alloys, strict=True))
    assert relax(get_potential("emt"), []) == []


def test_the_energy_of_the_start_is_kept(get_potential, alloys):
    found = relax(get_potential("emt"), [*alloys, None], 0.05, 5)
    start = get_potential("emt").evaluate(alloys).energy
    np.testing.assert_allclose([one.initial_energy for one in found], [*start, np.nan])
    assert sum(one.energy < one.initial_energy for one in found) > 1


def test_finished_crystals_are_told_and_make_room(get_potential, alloys):
    crystals = [alloys[1], alloys[3], alloys[2], alloys[2], alloys[1]]
    told: dict[int, Relaxed] = {}
    found = relax(get_potential("emt"), crystals, 0.1, on_done=lambda i, one: told.setdefault(i, one), at_once=3)
    assert sorted(told) == list(range(len(crystals))) and list(told) != sorted(told)
    assert all(told[i] is one for i, one in enumerate(found))
    assert len({round(one.energy, 6) for one in found}) == 3 and all(one.converged for one in found)


def test_stopping_keeps_what_is_done(get_potential, alloys):
    told: list[int] = []
    crystals = [alloys[1], alloys[2], alloys[3], alloys[1]]
    found = relax(
        get_potential("emt"), crystals, 0.1, on_done=lambda i, _: told.append(i), stop=lambda: bool(told), at_once=2
    )
    assert told and len(found) == len(crystals)
    for i, one in enumerate(found):
        if i in told:
            assert one.converged
        elif one.reason == "stopped":
            assert not one.converged and one.steps > 0 and np.isfinite(one.energy)
        else:
            assert one.reason == "stopped before it began" and one.structure is crystals[i] and one.steps == 0
    assert {one.reason for one in found} == {"", "stopped", "stopped before it began"}
    assert relax(get_potential("emt"), alloys, stop=lambda: True)[0].reason == "stopped before it began"
