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
def forward(params, config, tokens, cache):
    return hk.transform(lambda: network.transform(config, tokens, cache)).apply(params, None)


@compiled
def site_rows(params, config, cache, group, letter, multiplicity, species, coords):
    """The five tokens of a site, one by one, as the decoder feeds them: rows [B, 5, D] and the cache."""

    def step(kind, value, cache):
        token = network.embed_token(config, kind, group, value, multiplicity if kind == "letter" else None)
        return network.transform(config, token[:, None], cache)

    rows = []
    for kind, value in zip(network.TOKEN_KINDS, (letter, species, *coords.T), strict=True):
        row, keys, inputs = hk.transform(functools.partial(step, kind, value, cache)).apply(params, None)
        cache = network.append(cache, keys, inputs)
        rows.append(row[:, 0])
    return jnp.stack(rows, axis=1), cache


def test_token_by_token_equals_the_full_forward_pass(golden, cast):
    """Teacher forcing of golden crystals through the cache, site by site, all 21 slots."""
    params, config = golden.params, golden.config
    batch = cast(golden.batch[:12], np.float32)
    expected = np.asarray(compiled(output_rows)(params, config, batch).rows)
    cache = network.empty_cache(config, len(batch), 5 * config.n_max)
    rows = []
    for site in range(config.n_max):
        row, cache = site_rows(
            params, config, cache, batch.space_group, batch.wyckoff[:, site], batch.multiplicity[:, site],
            batch.species[:, site], batch.frac_coords[:, site],
        )  # fmt: skip
        rows.append(np.asarray(row))
    assert int(cache.length) == 5 * config.n_max
    cached = np.concatenate(rows, axis=1)[:, : expected.shape[1]]
    assert np.abs(expected).max() > 1
    assert np.abs(cached - expected).max() < 1e-4


@pytest.fixture(scope="module", params=["rotary", "absolute"])
def tiny(request):
    """A config, random parameters, and tokens that repeat after the second."""
    config = dataclasses.replace(TINY, position=request.param)
    params = compiled(init_params)(config=config, rng_key=jax.random.key(0))
    return (
        config,
        params,
        jnp.tile(jax.random.normal(jax.random.key(1), (2, 3, config.model_size)), (1, 3, 1)),
    )


def test_runs_of_tokens_after_a_cache_equal_one_pass(tiny):
    """Three runs of three tokens, in a cache with room to spare."""
    config, params, tokens = tiny
    whole, _, _ = forward(params, config, tokens, network.empty_cache(config, 2, 0))
    cache, rows = network.empty_cache(config, 2, 12), []
    for part in jnp.split(tokens, 3, axis=1):
        row, keys, inputs = forward(params, config, part, cache)
        cache = network.append(cache, keys, inputs)
        rows.append(row)
    assert int(cache.length) == 9
    np.testing.assert_allclose(np.concatenate(rows, axis=1), whole, atol=1e-5)
    assert np.asarray(cache.keys)[:, :, :, :9].any(-1).all()
    assert not np.asarray(cache.keys)[:, :, :, 9:].any()


def test_positions_matter(tiny):
    """The same token at another place gives another row."""
    config, params, tokens = tiny
    rows, _, _ = forward(params, config, tokens, network.empty_cache(config, 2, 0))
    assert np.abs(rows[:, 0] - rows[:, 3]).max() > 1e-4
    assert np.abs(rows[:, 3] - rows[:, 6]).max() > 1e-5


def test_rotation_is_by_position_times_frequency():
    """Component j and j + K/2 turn as a complex number by position * 10000^(-2 j / K)."""
    heads = np.random.default_rng(0).normal(size=(2, 3, 5, 8))
    positions = np.array([0, 1, 2, 50, 104])
    frequency = 10000.0 ** (-2 * np.arange(4) / 8)
    turned = (heads[..., :4] + 1j * heads[..., 4:]) * np.exp(1j * positions[:, None] * frequency)
    with jax.enable_x64(True):
        ours = network.rotate(jnp.asarray(heads), jnp.asarray(positions))
    np.testing.assert_allclose(ours, np.concatenate([turned.real, turned.imag], axis=-1), atol=1e-9)
    np.testing.assert_array_equal(ours[:, :, 0], heads[:, :, 0])


def test_rotated_products_depend_on_the_distance_alone():
    query, key = np.random.default_rng(1).normal(size=(2, 1, 1, 1, 64))

    def product(i, j):
        with jax.enable_x64(True):
            a, b = (network.rotate(jnp.asarray(x), jnp.array([n])) for x, n in ((query, i), (key, j)))
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
