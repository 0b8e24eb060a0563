"""Models that have a composition as input, against the public program's numbers (see golden/README.md)."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from cfx.config import ModelConfig
from cfx.core.composition import composition_vector, compositions, elements_of
from cfx.core.likelihood import log_prob, output_rows, space_group_log_prob
from cfx.core.network import parameter_shapes

PARTS = {"wyckoff": "logp_w", "species": "logp_a", "coords": "logp_xyz", "lattice": "logp_l"}
score = jax.jit(log_prob, static_argnums=1)
rows = jax.jit(output_rows, static_argnums=1)
tell_groups = jax.jit(space_group_log_prob, static_argnums=1)


def test_log_prob_is_that_of_the_public_program(csp, cast):
    """Each crystal given its own composition."""
    with jax.enable_x64(True):
        scored = score(cast(csp.params, np.float64), csp.config, csp.batch)
    for name, expected in PARTS.items():
        assert np.abs(np.asarray(scored.parts()[name]) - csp.expected[expected]).max() < 1e-5, name


def test_log_prob_in_single_precision(csp, cast):
    scored = score(csp.params, csp.config, cast(csp.batch, np.float32))
    for name, expected in PARTS.items():
        worst = np.abs(scored.parts()[name] - csp.expected[expected]).max()
        assert worst < (5e-4 if name == "lattice" else 1e-4), name


def test_space_groups_are_those_of_the_public_program(csp):
    """The whole distribution of four compositions, and the probability of each crystal's own group."""
    found = np.asarray(tell_groups(csp.params, csp.config, csp.expected["composition"].astype(np.float32)))
    np.testing.assert_allclose(found[:4], csp.expected["group_log_prob"], atol=1e-4)
    own = np.take_along_axis(found, csp.batch.space_group[:, None] - 1, axis=1)[:, 0]
    np.testing.assert_allclose(own, csp.expected["logp_g"], atol=1e-4)
    np.testing.assert_allclose(np.exp(found).sum(1), 1, atol=1e-5)


def test_compositions_are_in_lowest_terms(csp):
    found = np.asarray(compositions(csp.batch, 119))
    np.testing.assert_array_equal(found, csp.expected["composition"])
    for row in range(10):
        np.testing.assert_array_equal(found[row], composition_vector(csp.batch.composition(row), 119))


def test_the_composition_decides(csp, cast):
    """Told of another one, the network says something else, and the crystal's own species become impossible."""
    batch = cast(csp.batch[:3], np.float32)
    other = composition_vector({57: 2, 7: 1}, 119)
    told = score(csp.params, csp.config, batch, composition=other)
    assert np.isneginf(np.asarray(told.species)).all()
    assert (np.abs(told.lattice - score(csp.params, csp.config, batch).lattice) > 1e-3).all()


def test_elements_of_no_composition_are_all():
    assert np.asarray(elements_of(np.zeros(119))).all()
    assert list(np.flatnonzero(elements_of(composition_vector({38: 2, 22: 2, 8: 6}, 119)))) == [8, 22, 38]


def test_no_composition_has_an_embedding_of_its_own(csp, cast):
    """Where it is that of a composition, the rows are those of the composition; given one, it does not matter."""
    config = dataclasses.replace(csp.config, composition="optional")
    batch = cast(csp.batch[:3], np.float32)
    silicon = composition_vector({14: 1}, 119)
    params = {**csp.params, "~": {**csp.params["~"], "no_composition": csp.params["~"]["species"][14]}}
    untold = rows(params, config, batch, composition=np.zeros(119, np.float32))
    np.testing.assert_allclose(untold.rows, rows(csp.params, csp.config, batch, composition=silicon).rows, atol=1e-5)
    np.testing.assert_allclose(rows(params, config, batch).rows, rows(csp.params, csp.config, batch).rows, atol=1e-5)
    free = score(params, config, batch, composition=np.zeros(119, np.float32))
    assert np.isfinite(free.species).all()


@pytest.mark.parametrize(("composition", "size"), [("required", 13_836_205), ("optional", 13_836_461)])
def test_published_size(composition, size):
    """13.8 M parameters, say the authors."""
    config = ModelConfig(composition=composition, num_heads=8, key_size=32, model_size=256, embed_size=256)
    assert sum(np.prod(shape) for shape in parameter_shapes(config).values()) == size
