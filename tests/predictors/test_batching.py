"""Batches, crystals that break a model, memory that runs out."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cfx.errors import DependencyError
from cfx.predictors.batching import BatchedPotential, Output, explain, memory_load, plan


def chain(atoms: int) -> Structure:
    """So many copper atoms in a row, each of which counts once."""
    return Structure(
        Lattice.orthorhombic(4, 4, 1.25 * atoms), ["Cu"] * atoms, [[0, 0, i / atoms] for i in range(atoms)]
    )


class Picky:
    """A model with rules: fails on crystals of some sizes, and on batches with more atoms than the memory holds."""

    name, scale, elements = "picky", "raw", None

    def __init__(self, hates: tuple[int, ...] = (), memory: int = 10**6, answer: dict[int, Output] | None = None):
        self.hates, self.memory, self.answer = hates, memory, answer or {}
        self.batches: list[list[int]] = []

    def compute(self, structures, forces):
        sizes = [len(structure) for structure in structures]
        self.batches.append(sizes)
        if sum(sizes) > self.memory:
            raise RuntimeError("CUDA out of memory.\nTried to allocate")
        if any(size in self.hates for size in sizes):
            raise ArithmeticError(f"a model\nthat dislikes {set(sizes) & set(self.hates)}")
        return [self.answer.get(n, Output(-n, np.zeros((n, 3)), np.zeros((3, 3)))) for n in sizes]


def test_batches_hold_crystals_of_similar_size():
    assert plan({0: 5, 1: 2, 2: 9, 3: 2, 4: 4, 5: 30}, 10) == [[1, 3, 4], [0], [2], [5]]
    assert plan({}, 10) == []


def test_dense_crystals_count_more():
    diamond = Structure.from_spacegroup("Fd-3m", Lattice.cubic(3.57), ["C"], [[0, 0, 0]])
    copper = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.6), ["Cu"], [[0, 0, 0]])
    # Measured with CHGNet: 76 MB for the forces of each atom, and 17 MB.
    assert memory_load(diamond) / 8 / (memory_load(copper) / 4) == pytest.approx(76 / 17, rel=0.1)
    assert memory_load(chain(7)) == pytest.approx(7)
    airy = Structure(Lattice.cubic(4), ["Cu"], [[0, 0, 0]])
    assert memory_load(airy) == pytest.approx(20 / 64)


def test_culprits_are_found_among_many_and_results_stay_in_place():
    model = Picky(hates=(7, 12))
    sizes = [3, 7, 5, 12, 1, 9, 2, 7]
    batch = BatchedPotential(model).evaluate([chain(n) for n in sizes])
    assert batch.ok.tolist() == [n not in (7, 12) for n in sizes]
    np.testing.assert_array_equal(batch.energy, [-n if n not in (7, 12) else np.nan for n in sizes])
    assert batch.reasons[3] == "the model fails: a model that dislikes {12}"
    assert len(model.batches) < 20


def test_a_smaller_batch_is_remembered_when_memory_runs_out():
    model = Picky(memory=20)
    potential = BatchedPotential(model, largest_batch=64.1)
    crystals = [chain(4) for _ in range(16)]
    assert potential.evaluate(crystals).ok.all()
    assert potential.largest_batch == pytest.approx(16)
    assert model.batches[:3] == [[4] * 16, [4] * 8, [4] * 4]  # 64 and 32 atoms do not fit, 16 do
    model.batches.clear()
    assert potential.evaluate(crystals).ok.all()
    assert model.batches == [[4] * 4] * 4


def test_a_crystal_that_does_not_fit_alone_is_reported_and_costs_the_others_nothing():
    potential = BatchedPotential(Picky(memory=20), largest_batch=16.1)
    batch = potential.evaluate([chain(4), chain(25), chain(6)])
    assert batch.reasons == ["", "25 atoms do not fit in memory", ""]
    assert potential.largest_batch == 16.1


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (Output(np.nan, np.zeros((2, 3)), np.zeros((3, 3))), "the model gives an energy that is not finite"),
        (Output(-1.0, np.full((2, 3), np.inf), np.zeros((3, 3))), "the model gives forces that are not finite"),
        (Output(-1.0, np.zeros((2, 3)), np.full((3, 3), np.nan)), "the model gives a stress that is not finite"),
        (Output(-1.0, np.zeros((1, 3)), np.zeros((3, 3))), "the model gives forces of shape (1, 3)"),
    ],
)
def test_outputs_that_are_no_numbers_are_failures(output, reason):
    batch = BatchedPotential(Picky(answer={2: output})).evaluate([chain(1), chain(2), chain(3)])
    assert batch.reasons == ["", reason, ""]
    assert np.isnan(batch.energy[1]) and batch.forces[1] is None and np.isnan(batch.stress[1]).all()


def test_what_cfx_says_itself_is_not_a_fault_of_a_crystal():
    class Missing(Picky):
        def compute(self, structures, forces):
            raise DependencyError("no library")

    with pytest.raises(DependencyError):
        BatchedPotential(Missing()).evaluate([chain(1)])


def test_reasons_are_short_and_on_one_line():
    assert explain(ValueError("two\n lines " + "x" * 300)) == ("the model fails: two lines " + "x" * 300)[:200]
    assert explain(ValueError()) == "the model fails: ValueError"
