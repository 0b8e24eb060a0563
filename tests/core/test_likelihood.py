"""Log-probabilities, loss and gradient against the public implementation (see golden/README.md)."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from scipy import stats

from cfx.core import heads, lattice
from cfx.core.likelihood import log_prob, normal_log_prob, output_rows, von_mises_log_prob
from cfx.io import upstream
from cfx.training.objectives import negative_log_likelihood

PARTS = {"wyckoff": "logp_w", "species": "logp_a", "coords": "logp_xyz", "lattice": "logp_l"}
TOLERANCE = {
    np.float64: dict.fromkeys(PARTS, 1e-5),
    np.float32: {"wyckoff": 1e-4, "species": 1e-4, "coords": 1e-4, "lattice": 5e-4},
}
SHORT = 6
"""Sites of the crystals that a truncated batch holds."""

score = jax.jit(log_prob, static_argnums=1)
rows = jax.jit(output_rows, static_argnums=1)
loss = jax.jit(negative_log_likelihood, static_argnums=1)
loss_and_gradient = jax.jit(jax.value_and_grad(negative_log_likelihood, has_aux=True), static_argnums=1)


def numpy_tree(tree):
    return jax.tree.map(np.asarray, tree)


@pytest.fixture(scope="module", params=[np.float64, np.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def scored(golden, dtype, cast):
    """log_prob of the golden crystals in all 21 slots."""
    with jax.enable_x64(dtype is np.float64):
        return numpy_tree(score(cast(golden.params, dtype), golden.config, cast(golden.batch, dtype)))


def test_log_prob_is_that_of_the_public_implementation(golden, dtype, scored):
    for name, expected in PARTS.items():
        value = scored.parts()[name]
        assert value.dtype == dtype
        worst = np.abs(value - golden.expected[expected]).max()
        assert worst < TOLERANCE[dtype][name], f"{name}: {worst} nats"


def test_total_is_the_sum_of_the_parts(scored):
    np.testing.assert_allclose(scored.total, sum(scored.parts().values()), rtol=1e-6)
    assert list(scored.parts()) == list(PARTS)


def test_truncation_changes_no_log_prob(golden, cast):
    """Slots after the first pad contribute nothing."""
    short = golden.batch.num_sites <= SHORT
    assert short.sum() > 50
    with jax.enable_x64(True):
        params = cast(golden.params, np.float64)
        full = score(params, golden.config, golden.batch)
        truncated = score(params, golden.config, golden.batch[short].with_slots(SHORT + 1))
    for name, value in truncated.parts().items():
        np.testing.assert_allclose(value, full.parts()[name][short], atol=1e-10, rtol=0, err_msg=name)


def processed_rows(params, config, batch) -> np.ndarray:
    """Our distributions in the layout of the golden `h`, up to the row after the last slot's letter."""
    raw = rows(params, config, batch)
    h = np.full((len(batch), raw.rows.shape[1] + 1, config.output_size), np.nan)
    group = batch.space_group
    h[:, 0, : config.num_letters] = heads.first_letter_logits(raw.first, group)
    for kind in range(5):
        row = raw.rows[:, kind::5]
        letter, place = batch.wyckoff[:, : row.shape[1]], slice(kind + 1, None, 5)
        if kind == 0:
            mixture = heads.lattice_mixture(row, config)
            columns = [
                heads.species_logits(row, letter, config.num_species),
                mixture.logits,
                *(value.reshape(*value.shape[:-2], -1) for value in (mixture.mean, mixture.sigma)),
            ]
        elif kind == 4:
            columns = [heads.next_letter_logits(row, group[:, None], letter, config.num_letters)]
        else:
            columns = heads.coordinate_mixture(row, config)
        columns = np.concatenate(columns, axis=-1)
        h[:, place, : columns.shape[-1]] = columns
    return h


def test_output_rows_are_those_of_the_public_implementation(golden, cast):
    expected = golden.expected["h"]
    with jax.enable_x64(True):
        ours = processed_rows(cast(golden.params, np.float64), golden.config, golden.batch[: len(expected)])
    assert ours.shape[1] == 102
    expected = expected[:, :102]
    used = ~np.isnan(ours)
    assert used[:, 0].sum() == 8 * 28
    assert used[:, 1::5].all()
    finite = used & (expected > -1e9)
    assert np.abs(ours - expected)[finite].max() < 1e-4
    # What the public implementation masks, and nothing else, has no probability here.
    np.testing.assert_array_equal(np.isneginf(ours)[used], (expected < -1e9)[used])


def test_rows_do_not_depend_on_later_tokens(golden, cast):
    """Causality: another crystal from slot 2 on leaves the rows before it unchanged."""
    batch = golden.batch[:8]
    other = jax.tree.map(np.array, batch)
    other.species[:, 2:], other.wyckoff[:, 2:], other.frac_coords[:, 2:] = 7, 1, 0.3
    with jax.enable_x64(True):
        params = cast(golden.params, np.float64)
        one, two = (np.asarray(rows(params, golden.config, crystals).rows) for crystals in (batch, other))
    np.testing.assert_allclose(one[:, :10], two[:, :10], atol=1e-12)
    assert np.abs(one[:, 10] - two[:, 10]).max() > 1e-2


@pytest.mark.integration
def test_loss_and_gradient_are_those_of_the_public_implementation(rotary, golden_gradient, cast):
    with jax.enable_x64(True):
        params, batch = cast(rotary.params, np.float64), rotary.batch[:64]
        (value, parts), gradient = numpy_tree(loss_and_gradient(params, rotary.config, batch, np.full(64, 1 / 64)))
        # The same compiled function on the short crystals alone, the others weighing nothing.
        short = batch.num_sites <= SHORT
        (_, full_parts), full = numpy_tree(loss_and_gradient(params, rotary.config, batch, short * 1.0))
        truncated = batch[short].with_slots(SHORT + 1)
        (_, cut_parts), cut = numpy_tree(loss_and_gradient(params, rotary.config, truncated, np.ones(short.sum())))

    assert value == pytest.approx(float(golden_gradient["loss"]), rel=1e-6)
    for name, expected in PARTS.items():
        assert parts[name] == pytest.approx(float(golden_gradient[expected.replace("logp", "loss")]), rel=1e-6)

    published: dict[str, dict[str, np.ndarray]] = {}
    for key, value in golden_gradient.items():
        if key.startswith("grad/"):
            module, _, name = key.removeprefix("grad/").rpartition("/")
            published.setdefault(module, {})[name] = value
    assert_same_gradient(gradient, upstream.convert(published, rotary.config), 1e-4)

    assert 20 < short.sum() < 64
    for name in PARTS:
        assert cut_parts[name] == pytest.approx(full_parts[name], rel=1e-10)
    assert_same_gradient(cut, full, 1e-9)


def assert_same_gradient(gradient, expected, tolerance):
    """Relative L2 distance of every tensor; those that vanish, as that of a key's bias, against the whole."""
    assert jax.tree.structure(gradient) == jax.tree.structure(expected)
    whole = np.sqrt(sum((leaf.astype(float) ** 2).sum() for leaf in jax.tree.leaves(expected)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        ours = functools.reduce(lambda tree, key: tree[key.key], path, gradient)
        scale = max(np.linalg.norm(leaf), 1e-4 * whole)
        assert np.linalg.norm(ours - leaf) < tolerance * scale, jax.tree_util.keystr(path)


def test_loss_in_float32(rotary, golden_gradient, cast):
    batch = cast(rotary.batch[:64], np.float32)
    value, parts = loss(rotary.params, rotary.config, batch, np.full(64, 1 / 64, np.float32))
    assert value == pytest.approx(float(golden_gradient["loss"]), rel=1e-6)
    for name, expected in PARTS.items():
        assert parts[name] == pytest.approx(float(golden_gradient[expected.replace("logp", "loss")]), rel=1e-5)


def test_von_mises_density():
    """Density in the angle 2 pi (x - 1/2), against scipy."""
    logits = np.log([0.3, 0.7])
    loc, kappa = np.array([0.4, -2.5]), np.array([0.01, 40.0])
    x = np.linspace(0, 1, 7, endpoint=False)
    angle = 2 * np.pi * (x - 0.5)
    expected = np.log(sum(np.exp(logits[i]) * stats.vonmises.pdf(angle, kappa[i], loc[i]) for i in range(2)))
    with jax.enable_x64(True):
        density = von_mises_log_prob(heads.VonMisesMixture(logits, loc, kappa), x)
    np.testing.assert_allclose(density, expected, rtol=1e-9)


@pytest.mark.parametrize("kappa", [1e-6, 1.0, 1e3, 1e6])
def test_von_mises_density_in_float32(kappa):
    kappa = np.float32(kappa)
    mixture = heads.VonMisesMixture(*(np.array([value], np.float32) for value in (0.0, 0.3, kappa)))
    width = min(0.3, 1 / np.sqrt(kappa))
    x = ((np.array([0.3, 0.3 + width, 0.3 - 2 * width])) / (2 * np.pi) + 0.5).astype(np.float32)
    expected = stats.vonmises.logpdf(2 * np.pi * (x.astype(float) - 0.5), float(kappa), np.float32(0.3))
    # Half a unit in the last place of x moves the angle by 2e-7 and the density by 2e-7 sqrt(kappa) and more.
    np.testing.assert_allclose(von_mises_log_prob(mixture, x), expected, atol=1e-5 + 2e-6 * np.sqrt(kappa))


def test_lattice_density_is_a_mixture_for_each_parameter():
    rng = np.random.default_rng(0)
    logits = np.log([0.2, 0.8])
    mean, sigma, value = rng.normal(size=(2, 6)), rng.uniform(0.1, 2, (2, 6)), rng.normal(size=6)
    expected = np.log(np.exp(logits) @ stats.norm.pdf(value, mean, sigma))
    with jax.enable_x64(True):
        density = normal_log_prob(heads.LatticeMixture(logits, mean, sigma), value)
    np.testing.assert_allclose(density, expected, rtol=1e-9)


def test_dependent_lattice_parameters_do_not_count(golden, scored, dtype, cast):
    """Nonsense in the entries that the crystal system fixes leaves the log-probability alone."""
    batch = golden.batch[:]
    free = lattice.FREE_DIMENSIONS[lattice.crystal_family(batch.space_group)]
    nonsense = np.where(free, batch.lattice, 77.0)
    assert (~free).any(1).sum() > 100
    changed = cast(type(batch)(batch.space_group, nonsense, batch.frac_coords, batch.species, batch.wyckoff), dtype)
    with jax.enable_x64(dtype is np.float64):
        value = score(cast(golden.params, dtype), golden.config, changed)
    np.testing.assert_array_equal(value.lattice, scored.lattice)
