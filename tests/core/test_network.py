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
from cfx.core import incremental, network
from cfx.core.likelihood import init_params, output_rows
from cfx.core.network import Dropout

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
    return hk.transform(lambda: network.transform(config, tokens)).apply(params, None)


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


def test_slots_of_any_age_stand_side_by_side(tiny):
    """One slot begins four tokens after the other, and both give the rows of a full pass."""
    config, params, tokens = tiny
    expected = np.asarray(forward(params, config, tokens))
    weights, cache = prepare(params, config), incremental.empty_cache(config, 2, 9)
    for step in range(9):
        ages = np.array([step, max(step - 4, 0)])
        row, cache = extend(weights, config, tokens[np.arange(2), ages], cache, ages)
        np.testing.assert_allclose(row, expected[np.arange(2), ages], atol=2e-5)


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


@pytest.mark.parametrize("position", ["rotary", "absolute"])
def test_parameter_shapes_are_those_that_init_makes(position):
    config = ModelConfig(position=position, num_layers=2, num_heads=3, key_size=8, model_size=12, embed_size=10)
    params = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    made = {(module, name): leaf.shape for module, leaves in params.items() for name, leaf in leaves.items()}
    assert made == network.parameter_shapes(config)
