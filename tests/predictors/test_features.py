"""CHGNet's features: of the crystal and not of its cell, its neighbours in the batch, or the day."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cfx.predictors.chgnet import WIDTH, FeatureExtractor

from ..needs import needs

needs("chgnet")


@pytest.fixture(scope="module")
def features() -> FeatureExtractor:
    import torch

    torch.set_num_threads(1)
    return FeatureExtractor()


@pytest.fixture(scope="module")
def crystals() -> list[Structure]:
    """One to eight atoms, most without symmetry."""
    rng = np.random.default_rng(3)
    fcc = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    found = [salt, Structure(Lattice.cubic(2.87), ["Fe"], [[0.1, 0.2, 0.3]])]
    for species in (["Cu", "Au", "Cu", "O"], ["Ga", "As", "Ga", "As"]):
        lattice = Lattice.from_parameters(*rng.uniform(4.0, 4.8, 3), *rng.uniform(85, 95, 3))
        found.append(Structure(lattice, species, fcc + rng.normal(0, 0.02, (4, 3))))
    return found


@pytest.fixture(scope="module")
def batch(features, crystals):
    return features.evaluate(crystals)


def assert_same(one, other, atol: float = 1e-3):
    np.testing.assert_allclose(one.atoms, other.atoms, atol=atol)
    np.testing.assert_array_equal(one.numbers, other.numbers)
    assert one.volume == pytest.approx(other.volume) and one.energy == pytest.approx(other.energy, abs=1e-4)


def test_what_a_crystal_has(crystals, batch):
    for crystal, found in zip(crystals, batch, strict=True):
        assert found.atoms.shape == (len(crystal), WIDTH) and found.atoms.dtype == np.float32
        assert found.numbers.tolist() == [site.specie.Z for site in crystal]
        assert found.volume == pytest.approx(crystal.volume / len(crystal))
    assert batch[0].energy == pytest.approx(-3.67, abs=0.005)  # rock salt, as CHGNet publishes it
    moments = [found.atoms[:, 256].mean() for found in batch]
    assert moments[1] > 1.5 and moments[0] < 0.1, "iron is a magnet, salt is none"


def test_energies_of_atoms_add_up(batch):
    for found in batch:
        assert found.atoms[:, 257].mean() == pytest.approx(found.energy, abs=1e-3)


def test_each_convolution_is_there_once(batch):
    """The blocks differ from one another, and the last is normalised."""
    blocks = [batch[2].atoms[:, 64 * i : 64 * i + 64] for i in range(4)]
    assert all(not np.allclose(one, other, atol=0.1) for i, one in enumerate(blocks) for other in blocks[:i])


def test_batch_equals_singles_in_any_order(features, crystals, batch):
    for crystal, found in zip(crystals, batch, strict=True):
        assert_same(features.evaluate([crystal])[0], found)
    for one, other in zip(features.evaluate(crystals[::-1])[::-1], batch, strict=True):
        assert_same(one, other)


def test_again_is_the_same_to_the_last_bit(features, crystals, batch):
    for one, other in zip(features.evaluate(crystals), batch, strict=True):
        np.testing.assert_array_equal(one.atoms, other.atoms)


def test_crystals_are_left_alone(features, crystals):
    before = [crystal.copy() for crystal in crystals]
    features.evaluate(crystals)
    assert crystals == before and all(not crystal.site_properties for crystal in crystals)


def test_nothing_changes_with_the_cell_or_the_labels(features, crystals, batch):
    doubled = features.evaluate([crystal * (1, 1, 2) for crystal in crystals])
    for one, other in zip(doubled, batch, strict=True):
        np.testing.assert_allclose(one.atoms.mean(0), other.atoms.mean(0), atol=1e-3)
    charged = crystals[0].copy().add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    assert_same(features.evaluate([charged])[0], batch[0])


def test_a_crystal_that_breaks_leaves_the_others_alone(features, crystals, batch):
    cubic, pair = Lattice.cubic(4.0), [[0, 0, 0], [0.5, 0.5, 0.5]]
    broken = {
        "no structure": None,
        "does not know Po": Structure(cubic, ["Po", "Cu"], pair),
        "partial or mixed": Structure(cubic, [{"Cu": 0.5}, "Cu"], pair),
        "less than 2": Structure(Lattice.cubic(1.2), ["Cu", "Cu"], pair),
        "so dense": Structure(Lattice.cubic(2.25), ["Cu"], [[0, 0, 0]]) * (8, 8, 8),
        "isolated atom": Structure(Lattice.rhombohedral(6.1, 60), ["Ar"], [[0, 0, 0]]),
    }
    mixed = [one for pair in zip(broken.values(), [*crystals, *crystals[:2]], strict=True) for one in pair]
    found = features.evaluate(mixed)
    for words, reason in zip(broken, found[::2], strict=True):
        assert isinstance(reason, str) and words in reason and "\n" not in reason
    for one, other in zip(found[1::2], [*batch, *batch[:2]], strict=True):
        assert_same(one, other)


def test_no_crystals(features):
    assert features.evaluate([]) == [] and features.evaluate([None]) == ["no structure"]
