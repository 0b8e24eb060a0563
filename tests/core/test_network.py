"""Positions, features and the cache of the transformer."""

from __future__ import annotations

import dataclasses
import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfx.config import ModelConfig
from cfx.core import network
from cfx.core.likelihood import init_params, output_rows
from cfx.core.network import Dropout
from cfx.sampling import incremental

TINY = ModelConfig(
    num_layers=2,
    num_heads=2,
    key_size=4,
    model_size=8,
    embed_size=4,
    first_hidden=8,
    coord_components=2,
    n_max=4,
)
compiled = functools.partial(jax.jit, static_argnames="config")


@compiled
def forward(params, config, tokens):
    return hk.transform(lambda: network.transformer(config, tokens)).apply(params, None)


prepare = compiled(incremental.prepare)
extend = compiled(incremental.extend)


@compiled
def embed(params, config, batch):
    return hk.transform(
        lambda: network.embed_sites(
            config, batch.space_group, batch.wyckoff, batch.multiplicity, batch.species, batch.frac_coords
        )
    ).apply(params, None)


def test_token_by_token_equals_the_full_forward_pass(golden, cast):
    """Teacher forcing of golden crystals through a cache that just holds them, all 21 slots."""
    params, config = golden.params, golden.config
    batch = cast(golden.batch[:12], np.float32)
    expected = np.asarray(compiled(output_rows)(params, config, batch).rows)
    tokens = embed(params, config, batch)
    weights, cache = prepare(params, config), incremental.empty_cache(config, len(batch), expected.shape[1])
    rows = []
    for age in range(expected.shape[1]):
        row, cache = extend(weights, config, tokens[:, age], cache, np.full(len(batch), age))
        rows.append(np.asarray(row))
    assert np.abs(expected).max() > 1
    assert np.abs(np.stack(rows, axis=1) - expected).max() < 1e-4


@pytest.fixture(scope="module", params=["rotary", "absolute"])
def tiny(request):
    """A config, random parameters, and tokens that repeat after the third."""
    config = dataclasses.replace(TINY, position=request.param)
    params = compiled(init_params)(config=config, rng_key=jax.random.key(0))
    # Biases start at zero: any would do for a test, none would hide a mistake.
    leaves, tree = jax.tree.flatten(params)
    params = tree.unflatten(
        [leaf + 0.1 * jax.random.normal(jax.random.key(i), leaf.shape) for i, leaf in enumerate(leaves)]
    )
    return (
        config,
        params,
        jnp.tile(jax.random.normal(jax.random.key(1), (2, 3, config.model_size)), (1, 3, 1)),
    )


@pytest.mark.integration
def test_slots_of_any_age_stand_side_by_side(tiny):
    """One slot begins four tokens after the other, and both give the rows of a full pass."""
    config, params, tokens = tiny
    expected = np.asarray(forward(params, config, tokens))
    weights, cache = prepare(params, config), incremental.empty_cache(config, 2, 9)
    for step in range(9):
        ages = np.array([step, max(step - 4, 0)])
        row, cache = extend(weights, config, tokens[np.arange(2), ages], cache, ages)
        np.testing.assert_allclose(row, expected[np.arange(2), ages], atol=2e-5)


@pytest.mark.integration
def test_a_slot_that_changes_caches_goes_on_as_before(tiny):
    """Into another slot of a larger cache, where another crystal was before."""
    config, params, tokens = tiny
    expected = np.asarray(forward(params, config, tokens))
    weights, small, large = prepare(params, config), *(incremental.empty_cache(config, 3, n) for n in (5, 8))
    both = tokens[np.array([0, 1, 0])]
    for age in range(8):
        row, large = extend(weights, config, both[:, age], large, np.full(3, age))
        if age < 5:
            _, small = extend(weights, config, both[:, age], small, np.full(3, age))
    large = incremental.take_over(large, small, np.array([1, 0]), np.array([2, 3]))  # there is no slot 3
    for age in range(5, 8):
        row, large = extend(weights, config, tokens[np.array([0, 1, 1]), age], large, np.full(3, age))
        np.testing.assert_allclose(row, expected[np.array([0, 1, 1]), age], atol=2e-5)


def test_positions_matter(tiny):
    """The same token at another place gives another row."""
    config, params, tokens = tiny
    rows = forward(params, config, tokens)
    assert np.abs(rows[:, 0] - rows[:, 3]).max() > 1e-4
    assert np.abs(rows[:, 3] - rows[:, 6]).max() > 1e-5


def test_rotation_is_by_position_times_frequency():
    """Component j and j + K/2 turn as a complex number by position * 10000^(-2 j / K)."""
    heads = np.random.default_rng(0).normal(size=(2, 3, 5, 8))
    positions = np.array([0, 1, 2, 50, 104])
    frequency = 10000.0 ** (-2 * np.arange(4) / 8)
    turned = (heads[..., :4] + 1j * heads[..., 4:]) * np.exp(1j * positions[:, None] * frequency)
    with jax.enable_x64(True):
        ours = network.rotate(jnp.asarray(heads), *network.rotary_table(jnp.asarray(positions), 8, jnp.float64))
    np.testing.assert_allclose(ours, np.concatenate([turned.real, turned.imag], axis=-1), atol=1e-9)
    np.testing.assert_array_equal(ours[:, :, 0], heads[:, :, 0])


def test_rotated_products_depend_on_the_distance_alone():
    query, key = np.random.default_rng(1).normal(size=(2, 1, 1, 1, 64))

    def product(i, j):
        with jax.enable_x64(True):
            tables = (network.rotary_table(jnp.array([n]), 64, jnp.float64) for n in (i, j))
            a, b = (network.rotate(jnp.asarray(x), *table) for x, table in zip((query, key), tables, strict=True))
        return float(np.sum(np.asarray(a) * np.asarray(b)))

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-9)
    assert product(7, 3) != pytest.approx(product(7, 4), abs=1e-3)


def test_fourier_features():
    x = np.array([0.0, 0.25, 0.3])
    features = np.asarray(network.fourier_features(jnp.asarray(x), 5))
    assert features.shape == (3, 10)
    np.testing.assert_allclose(features[0], [0, 1] * 5, atol=1e-6)
    np.testing.assert_allclose(features[1, :4], [1, 0, 0, -1], atol=1e-6)
    for f in range(1, 6):
        expected = [np.sin(2 * np.pi * f * 0.3), np.cos(2 * np.pi * f * 0.3)]
        np.testing.assert_allclose(features[2, 2 * f - 2 : 2 * f], expected, atol=1e-5)
    np.testing.assert_allclose(network.fourier_features(jnp.asarray(x + 1), 5), features, atol=1e-5)


def test_dropout_follows_its_key(rotary, cast):
    batch = cast(rotary.batch[rotary.batch.num_sites == 2][:4].with_slots(3), np.float32)
    params = compiled(init_params)(config=TINY, rng_key=jax.random.key(0))
    run = compiled(lambda key, config: output_rows(params, config, batch, key, Dropout(0.3, 0.3)).rows)
    one, same, other = (np.asarray(run(jax.random.key(seed), TINY)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3


def test_sizes_of_the_published_models():
    def count(config):
        shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    assert count(ModelConfig()) == 4_833_575
    assert count(ModelConfig(position="absolute")) == 4_840_295


@pytest.mark.parametrize(
    "kind",
    [{"position": "rotary"}, {"position": "absolute"}, {"composition": "required"}, {"composition": "optional"}],
)
def test_parameter_shapes_are_those_that_init_makes(kind):
    config = ModelConfig(**kind, num_layers=2, num_heads=3, key_size=8, model_size=12, embed_size=10)
    params = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    made = {(module, name): leaf.shape for module, leaves in params.items() for name, leaf in leaves.items()}
    assert made == network.parameter_shapes(config)


def test_merged_values_are_values_projected_twice():
    """For one block, and for a stack of three."""
    rng = np.random.default_rng(0)
    inputs, weights = rng.normal(size=(7, 6)), rng.normal(size=(4, 7))  # 4 rows attend to 7
    value_w, value_b, output_w = rng.normal(size=(3, 6, 2, 5)), rng.normal(size=(3, 2, 5)), rng.normal(size=(3, 10, 8))
    with jax.enable_x64(True):
        merged_w, merged_b = network.merge_values(*map(jnp.asarray, (value_w, value_b, output_w)))
        one_w, one_b = network.merge_values(*(jnp.asarray(leaf[1]) for leaf in (value_w, value_b, output_w)))
    np.testing.assert_allclose(one_w, merged_w[1], atol=1e-12)
    np.testing.assert_allclose(one_b, merged_b[1], atol=1e-12)
    for layer in range(3):
        values = np.einsum("sd,dhk->shk", inputs, value_w[layer]) + value_b[layer]
        expected = np.einsum("ts,shk->thk", weights, values).reshape(4, 10) @ output_w[layer]
        bias = weights.sum(1)[:, None] * np.asarray(merged_b[layer]).sum(0)
        merged = np.einsum("ts,sd,hde->te", weights, inputs, merged_w[layer]) + bias
        np.testing.assert_allclose(merged, expected, atol=1e-10)


SHARES = (0.1, 0.5, 0.9)
KEYS = [jax.random.key(0), jax.random.key(1), jax.random.fold_in(jax.random.key(0), 1)]
SIGMAS = 5.0
"""Of a mean of independent draws. Chance alone exceeds them in 6 of 10 million means; 2200 are looked at below, so that
one set of keys in 800 would fail."""


@functools.cache
def mask(share: float, key: int, shape=(16, 4, 105, 105)) -> np.ndarray:
    """A mask of attention weights, standardised: independent draws would have mean 0 and variance 1."""
    drawn = np.asarray(jax.jit(network.random_mask, static_argnums=(1, 2))(KEYS[key], share, shape))
    assert drawn.dtype == bool and drawn.shape == shape
    return (drawn - share) / np.sqrt(share * (1 - share))


def assert_mean_vanishes(draws: np.ndarray, axis=None) -> None:
    means = np.atleast_1d(draws.mean(axis))
    assert np.abs(means).max() < SIGMAS / np.sqrt(draws.size / means.size)


@pytest.mark.parametrize("key", range(len(KEYS)))
@pytest.mark.parametrize("share", SHARES)
def test_a_mask_keeps_its_share(share, key):
    """On the whole, and in every row, column, head and crystal."""
    draws = mask(share, key)
    assert_mean_vanishes(draws)
    for axis in range(4):
        assert_mean_vanishes(draws, tuple({0, 1, 2, 3} - {axis}))


@pytest.mark.parametrize("share", SHARES)
def test_entries_of_a_mask_are_independent(share):
    """Of neighbours along every axis, of those some powers of two apart, and of the next row's."""
    draws = mask(share, 0)
    for axis in range(4):
        for distance in (1, 2, 4, 8, 64):
            if distance < draws.shape[axis]:
                front, back = (np.moveaxis(draws, axis, 0)[part] for part in (slice(distance, None), slice(-distance)))
                assert_mean_vanishes(front * back)
    flat = draws.ravel()
    for distance in (1, 2, 3, 256, 2**12, 2**16):
        assert_mean_vanishes(flat[distance:] * flat[:-distance])


@pytest.mark.parametrize("share", SHARES)
def test_masks_follow_their_keys_alone(share):
    """The same key, the same mask; another key, one that has nothing to do with it, nor any shift of it."""
    np.testing.assert_array_equal(mask(share, 0), mask.__wrapped__(share, 0))
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        assert_mean_vanishes(mask(share, one) * mask(share, other))
        spectra = (np.fft.rfft(mask(share, key).ravel()) for key in (one, other))
        correlation = np.fft.irfft(next(spectra) * np.conj(next(spectra)), n=mask(share, 0).size)
        # The largest of 700000 shifts: seven standard deviations are exceeded by chance in 2 of a million pairs.
        assert np.abs(correlation).max() < 7 * np.sqrt(mask(share, 0).size)


def test_masks_take_two_words_from_their_key(monkeypatch):
    """One word alone would come again within the 10^5 or so draws of a run."""
    masks, (first, second, other) = [], np.random.default_rng(0).integers(2**32, size=3, dtype=np.uint32)
    for words in [(first, second), (first, other), (other, second)]:
        monkeypatch.setattr(jax.random, "bits", lambda *_, words=words: jnp.array(words, jnp.uint32))
        masks.append(2.0 * np.asarray(network.random_mask(KEYS[0], 0.5, (500, 500))) - 1)
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        assert_mean_vanishes(masks[i] * masks[j])


@functools.partial(jax.jit, static_argnums=1)
def drop(x, rate: float, key: int = 0):
    return hk.transform(lambda: network._dropout(x, rate)).apply({}, jax.random.key(key))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_mean_and_the_gradient(rate):
    """What stays is scaled by 1 / (1 - rate), in the value and in the gradient."""
    x = 1 + np.random.default_rng(0).random((200, 500), np.float32)
    dropped = np.asarray(drop(x, rate))
    kept = dropped != 0
    np.testing.assert_allclose(dropped, np.where(kept, x / (1 - rate), 0), rtol=1e-6)
    assert abs(dropped.mean() - x.mean()) < SIGMAS * np.sqrt((x**2).mean() * rate / (1 - rate) / x.size)
    gradient = jax.grad(lambda x: drop(x, rate).sum())(x)
    np.testing.assert_allclose(gradient, kept / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_dropout_keeps_the_type(dtype):
    with jax.enable_x64(True):
        assert drop(jnp.ones(64, dtype), 0.25).dtype == jnp.dtype(dtype)


def test_no_dropout_needs_no_key(tiny):
    config, params, tokens = tiny
    run = hk.transform(lambda: network.transformer(config, tokens, Dropout(0.0, 0.0)))
    np.testing.assert_array_equal(jax.jit(run.apply)(params, None), forward(params, config, tokens))


def test_a_block_with_dropout(monkeypatch):
    """Against values projected one by one, with masks that keep every entry but each third."""
    config, rng = dataclasses.replace(TINY, position="absolute"), np.random.default_rng(0)
    rates, tokens = Dropout(residual=0.25, attention=0.5), rng.normal(size=(2, 6, 8))

    def keep(shape):
        return np.arange(np.prod(shape)).reshape(shape) % 3 > 0

    monkeypatch.setattr(network, "random_mask", lambda key, share, shape: jnp.asarray(keep(shape)))
    run = hk.transform(lambda tokens: network.Block(config, rates)(tokens))
    with jax.enable_x64(True):
        shapes = jax.eval_shape(run.init, jax.random.key(0), tokens)
        params = jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape), shapes)
        ours = jax.jit(run.apply)(params, jax.random.key(0), tokens)

    def linear(name, x):
        return x @ params[f"block/{name}"]["w"] + params[f"block/{name}"]["b"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * params[f"block/{name}"]["scale"] + params[f"block/{name}"]["offset"]

    def dropout(x, rate):
        return np.where(keep(x.shape), x / (1 - rate), 0)

    inputs = norm("attention_norm", tokens)
    queries, keys = (linear(name, inputs).reshape(2, 6, 2, 4) for name in ("query", "key"))
    values = np.einsum("bsd,dhk->bshk", inputs, params["block"]["value_w"]) + params["block"]["value_b"]
    scores = np.exp(np.einsum("bthk,bshk->bhts", queries, keys) / 2) * np.tri(6)
    weights = dropout(scores / scores.sum(-1, keepdims=True), rates.attention)
    attended = linear("attention_output", np.einsum("bhts,bshk->bthk", weights, values).reshape(2, 6, 8))
    stream = tokens + dropout(attended, rates.residual)
    with jax.enable_x64(True):
        hidden = np.asarray(jax.nn.gelu(linear("mlp_hidden", norm("mlp_norm", stream))))
    expected = stream + dropout(linear("mlp_output", hidden), rates.residual)
    np.testing.assert_allclose(ours, expected, atol=1e-9)
