"""Masks and normalisation of the output rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfx.config import ModelConfig
from cfx.core import heads
from cfx.core.symmetry import LETTERS, symmetry_table

CONFIG = ModelConfig()
TABLE = symmetry_table()


def rows(num: int, seed: int = 0) -> jax.Array:
    """Raw output rows far from uniform."""
    return 5 * jax.random.normal(jax.random.key(seed), (num, CONFIG.output_size))


def allowed(log_probs) -> list[str]:
    """Letters with a probability, the pad as '-', for each row."""
    names = "-" + LETTERS[1:]
    return ["".join(names[i] for i in np.flatnonzero(np.isfinite(row))) for row in np.asarray(log_probs)]


def after(group: int, letter: str) -> str:
    """Letters that may follow `letter`, given as '-' for a pad."""
    number = 0 if letter == "-" else LETTERS.index(letter)
    log_probs = heads.next_letter_logits(rows(1), jnp.array([group]), jnp.array([number]), CONFIG.num_letters)
    return allowed(log_probs)[0]


def assert_normalised(log_probs):
    np.testing.assert_allclose(np.exp(np.asarray(log_probs, float)).sum(-1), 1, atol=1e-5)
    assert not np.isnan(log_probs).any()


def test_first_letter_is_one_that_the_group_has():
    groups = jnp.arange(1, 231)
    raw = 5 * jax.random.normal(jax.random.key(0), (230, CONFIG.num_letters))
    log_probs = heads.first_letter_logits(raw, groups)
    assert_normalised(log_probs)
    expected = ["".join(LETTERS[1 : last + 1]) for last in TABLE.last_letter]
    assert allowed(log_probs) == expected


@pytest.mark.parametrize(
    ("group", "letter", "expected"),
    [
        (1, "a", "-a"),  # P1: the general position repeats
        (225, "a", "-bcdefghijkl"),  # fixed: only once
        (225, "c", "-defghijkl"),
        (225, "e", "-efghijkl"),  # (x, 0, 0) may repeat
        (225, "l", "-l"),
        (186, "a", "-abcd"),  # polar: (0, 0, z)
        (194, "d", "-efghijkl"),
        (47, "A", "-A"),
        (47, "h", "-ijklmnopqrstuvwxyzA"),
        (47, "z", "-zA"),
        (2, "h", "-i"),
        (225, "-", "-"),  # after a pad only pads
        (47, "-", "-"),
    ],
)
def test_next_letter(group, letter, expected):
    assert after(group, letter) == expected


def test_next_letter_of_every_position():
    groups, letters = np.nonzero(TABLE.multiplicity)
    log_probs = heads.next_letter_logits(
        rows(len(groups)), jnp.asarray(groups + 1), jnp.asarray(letters), CONFIG.num_letters
    )
    assert_normalised(log_probs)
    names = "-" + LETTERS[1:]
    for group, letter, found in zip(groups, letters, allowed(log_probs), strict=True):
        free = TABLE.free_mask[group, letter].any()
        assert found == "-" + names[letter + (not free) : TABLE.last_letter[group] + 1]


def test_a_pad_follows_a_pad_for_certain():
    log_probs = heads.next_letter_logits(rows(3), jnp.array([1, 47, 225]), jnp.zeros(3, int), CONFIG.num_letters)
    np.testing.assert_array_equal(log_probs[:, 0], 0.0)


def test_species_is_a_pad_exactly_where_the_letter_is():
    log_probs = heads.species_logits(rows(3), jnp.array([0, 1, 27]), CONFIG.num_species)
    assert log_probs.shape == (3, 119)
    assert_normalised(log_probs)
    finite = np.isfinite(np.asarray(log_probs))
    assert finite[0].tolist() == [True] + [False] * 118
    assert finite[1:].tolist() == [[False] + [True] * 118] * 2


def test_masks_keep_the_logits_that_they_allow():
    """Float32 differences between logits survive the mask (adding 1e10 to a logit would destroy them)."""
    row = rows(1)
    log_probs = heads.species_logits(row, jnp.array([3]), CONFIG.num_species)[0]
    np.testing.assert_allclose(log_probs[1:] - log_probs[1], row[0, 1:119] - row[0, 1], atol=1e-4)


def test_coordinate_mixture_reads_its_columns():
    row = np.asarray(rows(2), float)
    mixture = heads.coordinate_mixture(jnp.asarray(row), CONFIG)
    assert_normalised(mixture.logits)
    np.testing.assert_allclose(mixture.logits - mixture.logits[:, :1], row[:, :16] - row[:, :1], atol=1e-4)
    np.testing.assert_allclose(mixture.loc, row[:, 16:32], rtol=1e-6)
    np.testing.assert_allclose(mixture.kappa, np.log1p(np.exp(row[:, 32:48])), rtol=1e-4, atol=1e-6)
    assert (np.asarray(mixture.kappa) > 0).all()


def test_lattice_mixture_reads_its_columns():
    row = np.asarray(rows(2), float)
    mixture = heads.lattice_mixture(jnp.asarray(row), CONFIG)
    assert_normalised(mixture.logits)
    np.testing.assert_allclose(mixture.logits - mixture.logits[:, :1], row[:, 119:123] - row[:, 119:120], atol=1e-4)
    assert mixture.mean.shape == mixture.sigma.shape == (2, 4, 6)
    np.testing.assert_allclose(mixture.mean.reshape(2, 24), row[:, 123:147], rtol=1e-6)
    sigma = np.log1p(np.exp(row[:, 147:171])) + 1e-3
    np.testing.assert_allclose(mixture.sigma.reshape(2, 24), sigma, rtol=1e-4)
    assert np.asarray(mixture.sigma).min() >= CONFIG.sigma_min


def test_gradient_through_masks_is_finite():
    """-inf on masked logits must not make a gradient nan, not even where one entry only is left."""

    def loss(row):
        letters = heads.next_letter_logits(row, jnp.array([225, 225]), jnp.array([0, 1]), CONFIG.num_letters)
        species = heads.species_logits(row, jnp.array([0, 1]), CONFIG.num_species)
        return letters[0, 0] + letters[1, 3] + species[0, 0] + species[1, 8]

    gradient = np.asarray(jax.grad(loss)(rows(2)))
    assert np.isfinite(gradient).all()
    assert not gradient[0].any()
    assert gradient[1].any()
