"""Crystals of many known prototypes drawn together: they have their sites, and their log-probabilities."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfx.core.known_prototypes import KnownPrototype, prototypes_of, typical_crystals
from cfx.core.prototypes import Geometry
from cfx.core.symmetry import LETTERS
from cfx.errors import UsageError
from cfx.model import Model
from cfx.sampling.constraints import satisfied, unconstrained
from cfx.sampling.policy import Policy, Sharpness, policy_log_prob
from cfx.sampling.prototypes import given_sites

pytestmark = pytest.mark.integration

SHAPE = np.array([1, 1, 1, 90, 90, 90], np.float32)

TWO_ON_E = KnownPrototype(225, ("e", "e"), ("Na", "Cl"), 1, 1, Geometry(np.array([[0.2, 0, 0], [0.3, 0, 0]]), SHAPE))
"""An encoder tells the two sites apart by their coordinates only."""


@pytest.fixture(scope="module")
def model(rotary) -> Model:
    return Model("golden", dataclasses.replace(rotary.config, n_max=7), rotary.params)


@pytest.fixture(scope="module")
def known() -> list[KnownPrototype]:
    found = prototypes_of({"Sr": 1, "Ti": 1, "O": 3})
    return [*[one for one in found if len(one.letters) <= 6][:69], TWO_ON_E]


@pytest.fixture(scope="module")
def draws(model, known):
    return model.draw_prototypes(known, seed=5)


def test_what_is_drawn_has_the_sites_of_its_prototype(model, draws, known):
    assert len(draws) > 40  # random weights give some impossible lattices again and again
    for row, which in enumerate(draws.prototype):
        own, crystals = known[which], draws.crystals
        count = int(crystals.num_sites[row])
        assert int(crystals.space_group[row]) == own.space_group
        assert tuple(LETTERS[letter] for letter in crystals.wyckoff[row, :count]) == own.letters
        symbols = [site.specie.symbol for site in crystals[row : row + 1].to_structures()[0]]
        assert set(symbols) == set(own.species)
    sites = given_sites([known[which] for which in draws.prototype], 7)
    constraints = dataclasses.replace(unconstrained(model.config), sites=sites)
    assert satisfied(constraints, draws.crystals).all()


def test_other_species_or_letters_do_not_satisfy_it(model, draws, known):
    crystals, perovskite = draws.crystals, int(np.flatnonzero(draws.prototype == 0)[0])
    sites = given_sites([known[which] for which in draws.prototype], 7)
    constraints = dataclasses.replace(unconstrained(model.config), sites=sites)
    species, wyckoff = crystals.species.copy(), crystals.wyckoff.copy()
    species[perovskite, [0, 1]] = species[perovskite, [1, 0]]
    assert not satisfied(constraints, dataclasses.replace(crystals, species=species))[perovskite]
    wyckoff[perovskite, 2] = LETTERS.index("d")
    assert not satisfied(constraints, dataclasses.replace(crystals, wyckoff=wyckoff))[perovskite]


def test_log_probabilities_are_those_of_a_second_look(model, draws, known):
    sites = given_sites([known[which] for which in draws.prototype], 7)
    policy = Policy(dataclasses.replace(unconstrained(model.config), sites=sites), Sharpness())
    again = policy_log_prob(jax.tree.map(jnp.asarray, model.params), model.config, draws.crystals, policy)
    for name, value in draws.policy_log_prob.parts().items():
        np.testing.assert_allclose(value, getattr(again, name), atol=2e-4, err_msg=name)
    published = model.log_prob(draws.crystals)
    for name, value in draws.log_prob.parts().items():
        np.testing.assert_allclose(value, getattr(published, name), atol=2e-4, err_msg=name)
    assert (draws.policy_log_prob.wyckoff == 0).all()  # letters are given


def test_the_model_orders_species_on_sites_of_one_letter(model):
    draws = model.draw_prototypes([TWO_ON_E], n_each=64, seed=1)
    orders = draws.crystals.species[:, 0]
    by_first = {int(first): np.unique(draws.policy_log_prob.species[orders == first].round(4)) for first in (11, 17)}
    assert all(
        len(values) == 1 for values in by_first.values()
    )  # the first species is drawn, the second is what is left
    assert sum(float(np.exp(values[0])) for values in by_first.values()) == pytest.approx(1, abs=1e-3)


def test_more_draws_begin_with_fewer(model, known):
    few, more = known[:5], model.draw_prototypes(known[:5], n_each=2, seed=3)
    once = model.draw_prototypes(few, n_each=1, seed=3)
    assert np.array_equal(more.prototype[: len(once)], once.prototype)
    assert np.array_equal(more.crystals.frac_coords[: len(once)], once.crystals.frac_coords)
    assert np.array_equal(more.crystals.lattice[: len(once)], once.crystals.lattice)
    assert not np.array_equal(model.draw_prototypes(few, seed=4).crystals.lattice, once.crystals.lattice)


def test_nothing_to_draw_and_too_many_sites(model):
    assert len(model.draw_prototypes([])) == 0
    with pytest.raises(UsageError, match="7 sites"):
        model.draw_prototypes([KnownPrototype(1, ("a",) * 7, ("C",) * 7, 1, 1, Geometry(np.zeros((7, 3)), SHAPE))])


def test_rank_adds_what_the_model_says_of_the_elements_to_how_often_a_prototype_occurs(model, known):
    ranked = model.rank_prototypes(known)
    assert sorted(map(str, ranked)) == sorted(map(str, known)) and ranked != known
    said = model.log_prob(typical_crystals(ranked, 7))
    scores = np.log([one.formulas for one in ranked]) + said.wyckoff + said.species
    assert (np.diff(scores[[not one.is_large for one in ranked]]) < 1e-4).all()


def test_mini_puts_titanium_into_the_octahedra_of_strontium_titanate():
    import cfx

    perovskites = [one for one in prototypes_of("SrTiO3", [221]) if one.letters == ("a", "b", "c")]
    [first, _] = cfx.load_model("mini").rank_prototypes(perovskites[::-1])
    assert first.species == ("Sr", "Ti", "O")  # oxygen at c is half an edge from b
