"""The random draws against the distributions they claim.

Seeds are fixed. Every statistical check fails by chance with a probability of 1e-4 for a new seed; there are
fewer than 30 of them, so that a change of the random numbers raises a false alarm in 0.3 % of cases.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cfx.config import ModelConfig
from cfx.core.heads import LatticeMixture, VonMisesMixture
from cfx.core.symmetry import wrap
from cfx.sampling import policy
from cfx.sampling.constraints import unconstrained

FALSE_ALARM = 1e-4
N = 20_000


def request(temperature: float = 1.0, top_p: float = 1.0) -> policy.Policy:
    """What is in force, apart from constraints."""
    return policy.Policy(unconstrained(ModelConfig()), policy.Sharpness(np.float32(temperature), np.float32(top_p)))


MODEL = request()


@jax.jit
def categorical(keys, log_probs, in_force):
    return policy.draw_categorical(keys, policy.sharpen(log_probs, in_force.sharpness))


@jax.jit
def coordinate(keys, mixture, in_force):
    return policy.draw_coordinate(keys, policy.sharpen_coordinate(in_force, mixture))


@jax.jit
def draw_lattice(keys, mixture, in_force):
    return policy.draw_lattice(keys, policy.sharpen_lattice(in_force, mixture))


von_mises = jax.jit(policy.von_mises)


def keys(seed: int, num: int = N) -> jax.Array:
    return jax.random.split(jax.random.key(seed), num)


def repeat(row, num: int = N) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(row, jnp.float32), (num, *np.shape(row)))


def assert_drawn_from(draws, cdf):
    assert stats.kstest(np.asarray(draws, float), cdf).pvalue > FALSE_ALARM


def assert_frequencies(draws, probability):
    """Chi-squared test; entries of probability 0 must not occur at all."""
    counts = np.bincount(np.asarray(draws), minlength=len(probability))
    probability = np.asarray(probability, float) / np.sum(probability)
    possible = probability > 0
    assert not counts[~possible].any()
    if possible.sum() > 1:
        expected = len(draws) * probability[possible]
        assert stats.chisquare(counts[possible], expected).pvalue > FALSE_ALARM


@pytest.mark.parametrize("kappa", [0.01, 0.5, 3.0, 50.0, 1e4, 1e6])
def test_von_mises(kappa):
    angles = np.asarray(von_mises(keys(1), repeat(kappa)))
    assert (np.abs(angles) <= np.pi + 1e-6).all()
    assert_drawn_from(angles, stats.vonmises(kappa).cdf)


@pytest.mark.parametrize("kappa", [0.0, 1e-30])
def test_von_mises_without_concentration_is_uniform(kappa):
    """softplus of a raw kappa below -104 is 0 in float32."""
    angles = von_mises(keys(2), repeat(kappa))
    assert_drawn_from(angles, stats.uniform(-np.pi, 2 * np.pi).cdf)


@pytest.mark.parametrize("kappa", [1e15, 1e25])
def test_von_mises_of_extreme_concentration_is_its_centre(kappa):
    """A low temperature divides kappa by it."""
    angles = np.asarray(von_mises(keys(3, 1000), repeat(kappa, 1000)))
    assert np.abs(angles).max() < 1e-5


def test_von_mises_mixes_concentrations_in_one_batch():
    """A row that is accepted early keeps its draw while others still propose."""
    kappa = np.where(np.arange(N) % 2, 50.0, 0.01)
    angles = np.asarray(von_mises(keys(1), jnp.asarray(kappa, jnp.float32)))
    for value in (50.0, 0.01):
        alone = von_mises(keys(1), repeat(value))
        np.testing.assert_array_equal(angles[kappa == value], np.asarray(alone)[kappa == value])


def test_von_mises_ends_on_nan():
    assert np.isnan(von_mises(keys(0, 4), jnp.full(4, jnp.nan))).all()


PROBABILITIES = np.array([0.5, 0.25, 0.15, 0.1, 0.0])
with np.errstate(divide="ignore"):
    LOG_PROBS = np.log(PROBABILITIES)


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, PROBABILITIES),
        (0.5, 1.0, PROBABILITIES**2),
        (2.0, 1.0, PROBABILITIES**0.5),
        (1.0, 0.7, [0.5, 0.25, 0, 0, 0]),
        (1.0, 1e-6, [1, 0, 0, 0, 0]),
        (2.0, 0.7, [0.5**0.5, 0.25**0.5, 0, 0, 0]),  # top-p is a share of the untempered probability
        (1e-4, 1.0, [1, 0, 0, 0, 0]),
    ],
)
def test_categorical(temperature, top_p, expected):
    draws = categorical(keys(4), repeat(LOG_PROBS), request(temperature, top_p))
    assert draws.dtype == jnp.int32
    assert_frequencies(draws, expected)


def test_a_row_is_drawn_by_its_own_key_alone():
    mixture = VonMisesMixture(*(jax.random.normal(jax.random.key(i), (50, 3)) for i in range(3)))
    mixture = mixture._replace(logits=jax.nn.log_softmax(mixture.logits), kappa=jnp.exp(mixture.kappa))
    some = np.array([7, 3, 40])
    every = coordinate(keys(5, 50), mixture, MODEL)
    few = coordinate(keys(5, 50)[some], jax.tree.map(lambda leaf: leaf[some], mixture), MODEL)
    np.testing.assert_allclose(every[some], few, atol=1e-6)


MIXTURE = VonMisesMixture(np.log([0.3, 0.7]), np.array([3.0, -1.2]), np.array([2.0, 30.0]))


def mixture_cdf(weights, kappa):
    """CDF over x in [0, 1) of the mixture above, by numerical integration."""
    grid = np.linspace(0, 1, 20_001)
    angle = 2 * np.pi * (grid - 0.5)
    density = sum(
        w * 2 * np.pi * stats.vonmises.pdf(angle, k, loc) for w, k, loc in zip(weights, kappa, MIXTURE.loc, strict=True)
    )
    cdf = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2) * (grid[1] - grid[0])])
    assert cdf[-1] == pytest.approx(1, abs=1e-6)
    return lambda x: np.interp(x, grid, cdf)


@pytest.mark.parametrize(
    ("temperature", "weights", "kappa"),
    [(1.0, [0.3, 0.7], [2, 30]), (0.5, [0.09 / 0.58, 0.49 / 0.58], [4, 60])],
)
def test_coordinate(temperature, weights, kappa):
    mixture = VonMisesMixture(*map(repeat, MIXTURE))
    draws = coordinate(keys(6), mixture, request(temperature))
    assert_drawn_from(draws, mixture_cdf(weights, kappa))


@pytest.mark.parametrize("loc", [np.pi, -np.pi, 0.0, 40.0, -40.0])
def test_coordinate_lies_in_the_unit_interval(loc):
    """Centres on the edge and far outside; sharp ones round to 1 unless wrapped."""
    kappa = jnp.where(jnp.arange(N) % 2, 1e6, 1e14).astype(jnp.float32)[:, None]
    draws = np.asarray(coordinate(keys(7), VonMisesMixture(repeat([0.0]), repeat([loc]), kappa), MODEL))
    assert ((draws >= 0) & (draws < 1)).all()
    distance = draws - (loc / (2 * np.pi) + 0.5)
    assert np.abs(distance - np.rint(distance)).max() < 1e-2


def test_wrap():
    points = wrap(jnp.array([-0.25, 1.0, 2.5, -1e-9, 0.0]), jnp)
    assert points.tolist() == [0.75, 0.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_lattice(temperature):
    """One component serves all six parameters; sigma grows with the square root of the temperature."""
    weights = np.array([0.25, 0.75])
    mean = np.stack([np.arange(6.0), 100 + np.arange(6.0)])
    sigma = np.stack([np.full(6, 0.5), np.linspace(0.1, 1, 6)])
    mixture = LatticeMixture(*map(repeat, (np.log(weights), mean, sigma)))
    draws = np.asarray(draw_lattice(keys(8), mixture, request(temperature)))
    component = (draws > 50).astype(int)
    assert (component == component[:, :1]).all()
    assert_frequencies(component[:, 0], weights ** (1 / temperature))
    z = (draws - mean[component[:, 0]]) / sigma[component[:, 0]] / np.sqrt(temperature)
    for axis in range(6):
        assert_drawn_from(z[:, axis], stats.norm.cdf)
    correlation = np.corrcoef(z.T)[np.triu_indices(6, 1)]
    assert np.abs(correlation).max() < 5 / np.sqrt(N)
