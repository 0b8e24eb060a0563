"""Space groups by formula: importance weights against enumeration and against counting, and where draws go.

Statistical checks fix the seed; for a new one, each of the 6 fails by chance with a probability of 1e-4 or less.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

import cfx
from cfx.config import ModelConfig, SampleConfig
from cfx.core.crystal import CrystalBatch, concatenate
from cfx.core.elements import lowest_terms
from cfx.errors import UsageError
from cfx.model import Model
from cfx.sampling import posterior

pytestmark = pytest.mark.integration

LIMIT = stats.norm.isf(1e-4 / 2)
LITHIUM, HYDRIDE = (("Li", 1),), (("Li", 1), ("H", 1))
SMALL = ModelConfig(
    n_max=8,
    num_species=5,
    first_hidden=8,
    num_layers=1,
    num_heads=2,
    key_size=8,
    model_size=8,
    embed_size=8,
    coord_components=2,
    lattice_components=2,
)


@pytest.fixture(scope="module")
def model() -> Model:
    """A small network that knows four elements, trained on nothing."""
    return Model.init(SMALL, seed=1)


@pytest.fixture(scope="module")
def mini() -> Model:
    return cfx.load_model("mini")


@pytest.fixture
def all_draws(monkeypatch):
    """As many draws as are asked for, however many are enough."""
    monkeypatch.setattr(posterior, "ENOUGH", np.inf)


def relative_variance(found, place: int) -> float:
    """Of the likelihood of the group in a place: an upper bound, by the squares of its draws' shares."""
    share = np.exp(found.log_weights[found.crystals.space_group == found.space_groups[place]])
    return (share**2).sum() / share.sum() ** 2


def cubic_lithium(letters: list[tuple[int, ...]]) -> CrystalBatch:
    """Crystals of Pm-3m with lithium on letters 1 (a) and 2 (b), at the origin and in the middle of the cell."""
    wyckoff = np.array([row + (0,) * (SMALL.n_max - len(row)) for row in letters], np.int32)
    lattice = np.tile(np.array([4.0, 4, 4, 90, 90, 90], np.float32), (len(letters), 1))
    coords = np.repeat(np.where(wyckoff == 2, 0.5, 0.0)[..., None], 3, axis=2).astype(np.float32)
    return CrystalBatch(np.full(len(letters), 221, np.int32), lattice, coords, 3 * np.sign(wyckoff), wyckoff)


@pytest.mark.parametrize("max_atoms", [1, 2])
def test_the_likelihood_is_the_sum_over_all_arrangements(model, all_draws, max_atoms):
    """In Pm-3m one or two atoms have three arrangements, none with a free coordinate."""
    found = model.space_group_posterior(LITHIUM, max_atoms, draws=400, space_groups=[221])
    arrangements = cubic_lithium([(1,), (2,), (1, 2)][: max_atoms + 1])
    scored = model.log_prob(arrangements)
    exact = np.exp(np.asarray(scored.wyckoff + scored.species, float)).sum()
    error = LIMIT * np.sqrt(max(relative_variance(found, 0) - 1 / 400, 1e-9))
    assert np.exp(found.log_likelihood[0]) == pytest.approx(exact, rel=error)
    assert found.probability == pytest.approx([1.0])
    assert len({tuple(row) for row in found.crystals.wyckoff.tolist()}) == len(arrangements)


@pytest.mark.slow
@pytest.mark.parametrize("formula", [LITHIUM, HYDRIDE])
def test_the_likelihood_is_how_often_the_model_makes_the_formula(model, all_draws, formula):
    """Counted among 4,000 crystals drawn without a constraint, in two groups with free coordinates."""
    groups, most, num = (2, 25), 4, 4000
    found = model.space_group_posterior(formula, most, draws=1500, space_groups=groups)
    wanted = lowest_terms({("H", "He", "Li").index(symbol) + 1: count for symbol, count in formula})
    request = SampleConfig(space_groups=groups, n=2 * num, seed=7, keep_invalid=True)
    free = concatenate([draws.crystals for draws in model.draws(request)])
    meets = np.array([lowest_terms(free.composition(row)) == wanted for row in range(len(free))])
    meets &= np.asarray(free.num_atoms) <= most
    for place, group in enumerate(groups):
        count = int(meets[free.space_group == group].sum())
        assert count > 50
        error = LIMIT * np.sqrt(relative_variance(found, place) + 1 / count)
        assert np.exp(found.log_likelihood[place]) == pytest.approx(count / num, rel=error)
    evidence = np.exp(found.log_likelihood)
    np.testing.assert_allclose(found.probability, evidence / evidence.sum(), rtol=1e-6)


def test_the_prior_is_the_frequency_in_the_training_data(model):
    known = dataclasses.replace(model, info={"space_groups": {"2": 30, "25": 10, "47": 60}})
    found = known.space_group_posterior(LITHIUM, 4, space_groups=[2, 25, 16])
    uniform = model.space_group_posterior(LITHIUM, 4, space_groups=[2, 25, 16])
    assert (found.is_uniform, uniform.is_uniform) == (False, True)
    np.testing.assert_allclose(found.prior, [0.75, 0.25, 0.0])
    np.testing.assert_allclose(uniform.prior, 1 / 3)
    product = found.prior[:2] * np.exp(found.log_likelihood[:2])
    np.testing.assert_allclose(found.probability[:2], product / product.sum(), rtol=1e-6)
    # A group that the model never saw has no probability, and is not drawn.
    assert (found.probability[2], found.draws[2]) == (0.0, 0)
    assert uniform.probability[2] > 0


def test_groups_that_cannot_hold_the_formula_have_no_probability(model):
    found = model.space_group_posterior(LITHIUM, 4, space_groups=[225, 2, 227, 229])
    assert found.probability[2] == 0.0  # the smallest orbit of Fd-3m has 8 atoms
    assert found.draws[2] == 0
    assert found.log_likelihood[2] == -np.inf
    assert (found.probability[[0, 1, 3]] > 0).all()
    assert found.probability.sum() == pytest.approx(1)
    assert [group for group, _ in found.ranked] == [
        group for _, group in sorted(zip(-found.probability[[0, 1, 3]], [225, 2, 229], strict=True))
    ]


def test_the_seed_decides_and_the_batch_size_does_not(model):
    def find(seed: int, **settings):
        return model.space_group_posterior(HYDRIDE, 4, draws=300, seed=seed, space_groups=[2, 25], **settings)

    one, again, other, wide = find(3), find(3), find(4), find(3, batch_size=100)
    np.testing.assert_array_equal(one.probability, again.probability)
    np.testing.assert_array_equal(one.log_weights, again.log_weights)
    np.testing.assert_array_equal(one.draws, again.draws)
    np.testing.assert_allclose(one.probability, wide.probability, rtol=1e-4)
    assert (one.probability != other.probability).any()


def test_what_sharpens_draws_is_not_in_force(model):
    """Temperature, top-p, bias and weights change what is drawn, not what the model says of space groups."""
    plain = SampleConfig(space_groups=(2, 25), formula=HYDRIDE, max_atoms=4)
    changes = {"temperature": 0.3, "top_p": 0.6, "bias": (("H", 4.0),), "weights": (1.0, 9.0)}
    one, other = (model.posterior(each, 200) for each in (plain, dataclasses.replace(plain, **changes)))
    np.testing.assert_array_equal(one.probability, other.probability)


def test_weighted_crystals_add_up_to_the_probabilities(model):
    found = model.space_group_posterior(HYDRIDE, 4, space_groups=[2, 25, 47])
    share = np.exp(found.log_weights)
    by_group = [share[found.crystals.space_group == group].sum() for group in found.space_groups]
    np.testing.assert_allclose(by_group, found.probability, rtol=1e-6)
    assert found.effective_sample_size == pytest.approx(1 / (share**2).sum())
    assert found.effective_sample_size >= posterior.ENOUGH
    for row in range(len(found.crystals)):
        assert lowest_terms(found.crystals.composition(row)) == {1: 1, 3: 1}
    scored = model.log_prob(found.crystals)
    np.testing.assert_allclose(
        scored.wyckoff + scored.species, found.log_prob.wyckoff + found.log_prob.species, atol=1e-3
    )


@pytest.mark.slow
def test_the_standard_error_is_the_spread_over_seeds(model):
    """40 seeds: their variance over that claimed is chi-squared over 39, were the claim exact; it is an upper bound."""
    some = [model.space_group_posterior(HYDRIDE, 4, draws=128, seed=seed, space_groups=[2, 25]) for seed in range(40)]
    spread = np.std([found.probability[0] for found in some], ddof=1)
    claimed = np.sqrt(np.mean([found.standard_error[0] ** 2 for found in some]))
    assert spread**2 < claimed**2 * stats.chi2.isf(1e-4, 39) / 39
    assert spread > claimed / 4


def test_draws_go_where_the_posterior_is_and_uncertain():
    place = np.repeat([0, 1, 2], 4)
    share = np.array([0.1, 0.1, 0.1, 0.1, 0.6, 0, 0, 0, 0, 0, 0, 0])
    more = np.bincount(posterior._allocate(place, share, np.array([0.3, 0.3, 0.4]), 100), minlength=3)
    assert more.sum() == 100
    assert more[1] > 2 * more[0] > 2 * more[2] > 0


def test_what_cannot_be_is_an_error(model):
    with pytest.raises(UsageError, match="at least 8 atoms"):
        model.space_group_posterior(LITHIUM, 4, space_groups=[227])


def test_groups_that_the_model_never_saw_are_alike_beforehand(model):
    never = dataclasses.replace(model, info={"space_groups": {"47": 60}})
    assert never.space_group_posterior(LITHIUM, 4, space_groups=[2, 25]).prior.tolist() == [0.5, 0.5]
    assert never.space_group_posterior(LITHIUM, 4, space_groups=[2, 47]).prior.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("formula", "times"), [((("Sr", 1), ("Ti", 1), ("O", 3)), 2), ((("K", 1), ("Mg", 1), ("F", 3)), 3)]
)
def test_mini_knows_the_group_of_perovskites(mini, formula, times):
    """Among the groups in which compounds are most often found."""
    groups = [2, 12, 14, 15, 62, 63, 139, 166, 194, 216, 221, 225]
    found = mini.space_group_posterior(formula, space_groups=groups, seed=1)
    perovskite = groups.index(221)
    assert found.probability[perovskite] > times * found.prior[perovskite]
    assert found.probability[groups.index(14)] < found.prior[groups.index(14)]
