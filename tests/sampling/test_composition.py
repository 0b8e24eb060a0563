"""Drawing from a model that has a composition as input: it is told the formula of the request."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from cfx.config import SampleConfig
from cfx.core.composition import composition_vector
from cfx.core.likelihood import LogProb
from cfx.errors import UsageError
from cfx.model import Model, load_model
from cfx.sampling.decode import Drawn
from cfx.sampling.request import prepare

SALT = (("Na", 2), ("Cl", 2))
REQUEST = SampleConfig(space_groups=(225, 216, 1), formula=SALT, n=12, seed=1, max_atoms=16, keep_invalid=True)


@pytest.fixture(scope="module")
def model(csp) -> Model:
    """The golden model with 5 slots: quick to draw from."""
    return Model("csp", dataclasses.replace(csp.config, n_max=5), csp.params)


def test_the_network_is_told_the_formula(csp):
    policy = prepare(REQUEST, csp.config).policy
    np.testing.assert_array_equal(policy.composition, composition_vector({11: 1, 17: 1}, 119))


def test_a_model_that_needs_a_formula_says_so(csp):
    with pytest.raises(UsageError, match="crystals of a given composition") as error:
        prepare(SampleConfig(space_groups=(225,)), csp.config)
    assert "formula" in error.value.hint


def test_a_model_that_can_do_without_is_told_nothing(csp):
    config = dataclasses.replace(csp.config, composition="optional")
    policy = prepare(SampleConfig(space_groups=(225,)), config).policy
    assert not policy.composition.any()


def test_other_models_are_told_nothing(rotary):
    assert prepare(REQUEST, rotary.config).policy.composition is None
    with pytest.raises(UsageError, match="does not tell the space groups"):
        Model("rotary", rotary.config, rotary.params).space_group_log_prob(SALT)


def test_space_groups_of_a_formula(csp):
    found = Model("csp", csp.config, csp.params).space_group_log_prob(SALT)
    assert found.shape == (230,)
    np.testing.assert_array_equal(Model("csp", csp.config, csp.params).space_group_log_prob("NaCl"), found)
    assert np.exp(found).sum() == pytest.approx(1, abs=1e-5)
    with pytest.raises(UsageError, match="given composition"):
        Model("csp", csp.config, csp.params).space_group_log_prob()


def test_a_checkpoint_keeps_what_the_model_reads(csp, tmp_path):
    Model("csp", csp.config, csp.params).save(tmp_path / "csp")
    loaded = load_model(tmp_path / "csp")
    assert loaded.config == csp.config
    assert loaded.has_space_group_head


def draw(model: Model, request: SampleConfig) -> Drawn:
    """All crystals of a request."""
    batches = [Drawn(draws.crystals, draws.log_prob, draws.policy_log_prob) for draws in model.draws(request)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)


def assert_agree(decoded: LogProb, scored: LogProb) -> None:
    for name, value in scored.parts().items():
        np.testing.assert_allclose(decoded.parts()[name], value, atol=2e-3, rtol=1e-4, err_msg=name)


@pytest.mark.integration
def test_draws_have_the_formula_and_score_as_they_were_drawn(model):
    """Decoder and network agree, in both log-probabilities, and what the decoder is told makes a difference."""
    drawn = draw(model, REQUEST)
    assert all(set(drawn.crystals.composition(row)) == {11, 17} for row in range(REQUEST.n))
    assert_agree(drawn.log_prob, model.log_prob(drawn.crystals))
    assert_agree(drawn.policy_log_prob, model.policy_log_prob(drawn.crystals, REQUEST))
    others = np.where(drawn.crystals.species == 17, 9, drawn.crystals.species)
    fluorides = model.log_prob(dataclasses.replace(drawn.crystals, species=others))
    assert np.abs(fluorides.wyckoff - drawn.log_prob.wyckoff).max() > 1e-2


@pytest.mark.integration
def test_chains_are_told_the_formula(model):
    drawn = draw(model, dataclasses.replace(REQUEST, refine=2, n=2, space_groups=(216,)))
    assert_agree(drawn.log_prob, model.log_prob(drawn.crystals))


def test_the_head_says_which_groups_are_likely_of_those_that_can_have_the_formula(model):
    """What the training data held does not matter then, and nothing is drawn."""
    counts = dataclasses.replace(model, info={"space_groups": {"216": 5, "225": 1}})
    request = dataclasses.replace(REQUEST, space_groups=(216, 225, 227), max_atoms=8)
    found = counts.likely_space_groups(request)
    head = np.exp(model.space_group_log_prob("NaCl").astype(float))[[215, 224]]  # Fd-3m has 16 atoms or more
    assert dict(found.ranked) == pytest.approx(dict(zip((216, 225), head / head.sum(), strict=True)))
    assert [share for _, share in found.ranked] == sorted(dict(found.ranked).values(), reverse=True)
    narrowed = found.narrow(request)
    assert narrowed.space_groups == (216, 225) and narrowed.weights == pytest.approx(head / head.sum())
    with pytest.raises(UsageError, match="tells the space groups of a formula itself"):
        model.space_group_posterior("NaCl", space_groups=(216, 225))
