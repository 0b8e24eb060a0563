"""The policy: what the decoder says of its draws is what the teacher-forced pass says, and draws are distributed so.

Statistical checks fix the seed; each of the 2 chi-squared tests fails by chance with a probability of 1e-4 for a new
one.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from cfx.config import ModelConfig, SampleConfig, Template
from cfx.core import heads, lattice
from cfx.core.crystal import CrystalBatch, concatenate
from cfx.core.elements import SYMBOLS
from cfx.core.likelihood import LogProb
from cfx.core.symmetry import symmetry_table
from cfx.model import Model
from cfx.sampling import policy
from cfx.sampling.constraints import satisfied, unconstrained
from cfx.sampling.policy import Policy, Sharpness, policy_log_prob
from cfx.sampling.request import build_constraints, prepare

pytestmark = pytest.mark.integration

FALSE_ALARM = 1e-4
TABLE = symmetry_table()
PARTS = ("wyckoff", "species", "coords", "lattice")


class Collected(NamedTuple):
    """All draws of a request."""

    crystals: CrystalBatch
    log_prob: LogProb
    policy_log_prob: LogProb
    rejected: dict[str, int]


def collect(model: Model, request: SampleConfig) -> Collected:
    some = list(model.draws(request))
    parts = [
        jax.tree.map(lambda *leaves: np.concatenate(leaves), *(getattr(draws, name) for draws in some))
        for name in ("log_prob", "policy_log_prob")
    ]
    return Collected(concatenate([draws.crystals for draws in some]), *parts, dict(some[-1].rejected))


@pytest.fixture(scope="module")
def model(rotary) -> Model:
    """The golden network with room for four sites."""
    return Model("golden", dataclasses.replace(rotary.config, n_max=5), rotary.params)


def request(*groups: int, **options) -> SampleConfig:
    return SampleConfig(space_groups=groups, n=64, seed=7, batch_size=16, keep_invalid=True, **options)


ABE = Template(letters=("a", "b", "c", "e"))
COORDS = ((0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.0, 0.5, 0.5), (0.23, 0.0, 0.0))
CELL = (4.1, 4.1, 4.1, 90.0, 90.0, 90.0)
PEROVSKITE = (("Sr", 1), ("Ti", 1), ("O", 3))
REQUESTS = {
    "plain": request(1, 12, 62, 166, 194, 221, 225),
    "element mask": request(62, 225, elements=("La", "Ni", "O", "F")),
    "exclude": request(12, 221, exclude=("O", "Fe"), radioactive=False),
    "bias": request(62, 166, bias=(("O", 7.0), ("H", -2.0))),
    "temperature": request(12, 194, 221, temperature=0.6),
    "hot": request(12, 194, 221, temperature=1.7),
    "top-p": request(12, 194, 221, top_p=0.7),
    "sharp": request(1, 166, top_p=0.8, temperature=0.5),
    "max sites": request(1, 62, max_sites=2),
    "max atoms": request(12, 62, 221, max_atoms=8),
    "letters": request(221, template=ABE),
    "tied": request(
        221,
        template=Template(
            letters=ABE.letters, species=(("Sr", "Ba", "O"), (), ("O", "F", "Ba")), tied=((0, 2), (1, 3))
        ),
    ),
    "require": request(
        12, 221, elements=("O", "Ti", "Sr"), require=("O", "Ti"), template=Template(letters=("a", "b", "d"))
    ),
    "any of": request(12, 221, any_of=("O", "F", "Cl")),
    "formula": request(221, formula=PEROVSKITE),
    "formula, biased": request(221, 123, formula=PEROVSKITE, temperature=0.8, top_p=0.9, bias=(("Ti", 1.0),)),
    "kept": request(221, template=dataclasses.replace(ABE, frac_coords=COORDS, lattice=CELL)),
    "kept coordinates": request(221, template=dataclasses.replace(ABE, frac_coords=COORDS), temperature=0.9),
    "kept lattice": request(221, template=dataclasses.replace(ABE, lattice=CELL), elements=("Na", "Cl")),
}


@pytest.fixture(scope="module")
def drawn(model) -> dict[str, Collected]:
    """The draws of every request."""
    return {name: collect(model, each) for name, each in REQUESTS.items()}


@pytest.mark.parametrize("name", REQUESTS)
def test_decoder_and_teacher_forcing_agree(model, drawn, name):
    asked, found = REQUESTS[name], drawn[name]
    assert len(found.crystals) == asked.n
    again = model.policy_log_prob(found.crystals, asked).parts()
    for part, value in found.policy_log_prob.parts().items():
        assert np.isfinite(value).all(), part
        np.testing.assert_allclose(again[part], value, atol=2e-3, rtol=1e-4, err_msg=part)


@pytest.mark.parametrize("name", REQUESTS)
def test_draws_meet_their_request(model, drawn, name):
    constraints = build_constraints(REQUESTS[name], model.config)
    assert satisfied(constraints, drawn[name].crystals).all()


def test_masks_leave_out_and_steer(drawn):
    """What each request asks for is there, in plain words; few draws end dead."""
    symbols = {
        name: [{SYMBOLS[z] for z in row if z} for row in found.crystals.species] for name, found in drawn.items()
    }
    assert all(some <= {"La", "Ni", "O", "F"} for some in symbols["element mask"])
    assert not any(some & {"O", "Fe", "Tc", "U", "Po"} for some in symbols["exclude"])
    assert all({"O", "Ti"} <= some for some in symbols["require"])
    assert all(some & {"O", "F", "Cl"} for some in symbols["any of"])
    assert all(some == {"Sr", "Ti", "O"} for some in symbols["formula"])
    assert all(some <= {"Na", "Cl"} for some in symbols["kept lattice"])
    assert drawn["max sites"].crystals.num_sites.max() == 2
    assert drawn["max atoms"].crystals.num_atoms.max() <= 8
    tied = drawn["tied"].crystals.species
    assert (tied[:, 0] == tied[:, 2]).all() and (tied[:, 1] == tied[:, 3]).all()
    assert set(tied[:, 0]) == {8, 56}
    assert len(set(tied[:, 1])) > 10
    has_oxygen = np.array([[8 in row for row in drawn[name].crystals.species] for name in ("plain", "bias")])
    assert has_oxygen[1].mean() > 0.5 > has_oxygen[0].mean()
    for found in drawn.values():
        assert set(found.rejected) <= {"against the constraints"}
    for name in ("element mask", "max sites", "max atoms", "letters", "tied", "kept"):
        assert not drawn[name].rejected, name
    for name in ("require", "any of"):  # no mask: draws that lack an element do not count
        assert drawn[name].rejected


def test_forced_steps_contribute_nothing(drawn):
    """Letters of a template, the only species left, kept coordinates and a kept lattice."""
    for name in ("letters", "tied", "kept", "kept coordinates", "kept lattice"):
        np.testing.assert_array_equal(drawn[name].policy_log_prob.wyckoff, 0, err_msg=name)
        assert (drawn[name].log_prob.wyckoff < -1).all()
    for name in ("kept", "kept coordinates"):
        np.testing.assert_array_equal(drawn[name].policy_log_prob.coords, 0, err_msg=name)
        assert drawn[name].log_prob.coords.any()
        np.testing.assert_allclose(drawn[name].crystals.frac_coords[:, :4] - np.float32(COORDS), 0, atol=1e-7)
    for name in ("kept", "kept lattice"):
        np.testing.assert_array_equal(drawn[name].policy_log_prob.lattice, 0, err_msg=name)
        assert drawn[name].log_prob.lattice.any()
        np.testing.assert_allclose(drawn[name].crystals.lattice, np.broadcast_to(CELL, (64, 6)), rtol=1e-5)
    assert drawn["letters"].policy_log_prob.coords.all()
    assert drawn["kept lattice"].policy_log_prob.coords.all()
    assert drawn["kept coordinates"].policy_log_prob.lattice.all()


def test_the_only_species_left_is_certain(model):
    asked = request(221, elements=("Fe",))
    found = collect(model, dataclasses.replace(asked, n=16))
    np.testing.assert_array_equal(found.policy_log_prob.species, 0)
    np.testing.assert_array_equal(model.policy_log_prob(found.crystals, asked).species, 0)


def test_a_tied_site_contributes_nothing(model, drawn):
    """Without the tie its species counts; the sites it repeats count either way."""
    template = dataclasses.replace(REQUESTS["tied"].template, tied=())
    free = model.policy_log_prob(drawn["tied"].crystals, dataclasses.replace(REQUESTS["tied"], template=template))
    assert (free.species < drawn["tied"].policy_log_prob.species - 0.1).all()


def test_the_model_itself_is_published(model, drawn):
    """But for the last pad, coordinates tied to others, and the component that the lattice parameters share."""
    found, crystals = drawn["plain"], drawn["plain"].crystals
    own, published = found.policy_log_prob, model.log_prob(crystals)
    is_full = crystals.num_sites == model.config.n_max - 1
    assert 5 < is_full.sum() < 59
    np.testing.assert_allclose(own.species, published.species, atol=2e-3, rtol=1e-4)
    np.testing.assert_allclose(own.wyckoff[~is_full], published.wyckoff[~is_full], atol=2e-3, rtol=1e-4)
    assert (own.wyckoff[is_full] > published.wyckoff[is_full] + 1e-2).all()
    group = crystals.space_group[:, None] - 1
    has_tied = (TABLE.free_mask & ~TABLE.drawn_mask)[group, crystals.wyckoff].any((1, 2))
    assert 5 < has_tied.sum() < 59
    np.testing.assert_allclose(own.coords[~has_tied], published.coords[~has_tied], atol=2e-3, rtol=1e-4)
    assert (np.abs(own.coords - published.coords)[has_tied] > 1e-2).all()
    # A cubic lattice has one free parameter, for which the component is its own.
    is_cubic = crystals.space_group > 194
    np.testing.assert_allclose(own.lattice[is_cubic], published.lattice[is_cubic], atol=2e-3, rtol=1e-4)
    assert (np.abs(own.lattice - published.lattice)[~is_cubic] > 1e-4).any()


def test_the_last_pad_counts_where_there_is_room_for_more(rotary, model, drawn):
    """The same crystals in the network's full number of slots: all of their letters are published ones."""
    crystals = drawn["plain"].crystals
    full = crystals.num_sites == model.config.n_max - 1
    longer = dataclasses.replace(model, config=dataclasses.replace(model.config, n_max=6))
    own = longer.policy_log_prob(crystals[full], REQUESTS["plain"])
    published = model.log_prob(crystals[full])
    np.testing.assert_allclose(own.wyckoff, published.wyckoff, atol=2e-3, rtol=1e-4)


def test_what_cannot_be_drawn_has_no_probability(model, drawn):
    crystals = drawn["letters"].crystals
    assert (model.policy_log_prob(crystals, request(221, max_sites=3)).wyckoff == -np.inf).all()
    assert (model.policy_log_prob(crystals, request(221, max_atoms=10)).wyckoff == -np.inf).all()
    none = model.policy_log_prob(crystals, request(221, exclude=tuple(SYMBOLS[z] for z in set(crystals.species[:, 0]))))
    assert (none.species == -np.inf).all()


def test_the_gradient_is_finite_under_masks(model, drawn):
    """Masked entries are -inf, at a formula that is sharpened, biased and cut."""
    asked, crystals = REQUESTS["formula, biased"], drawn["formula, biased"].crystals[:16]
    in_force = prepare(asked, model.config).policy

    def loss(params):
        return policy_log_prob(params, model.config, crystals, in_force).total.mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(model.params)
    assert np.isfinite(value)
    leaves = jax.tree.leaves(gradient)
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert any(np.abs(leaf).max() > 1e-3 for leaf in leaves)


# The distributions one by one.


def nucleus(probabilities, top_p) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.asarray(policy.nucleus(jnp.log(jnp.asarray(probabilities, jnp.float32)), top_p))


@pytest.mark.parametrize(
    ("probabilities", "top_p", "kept"),
    [
        ([0.5, 0.3, 0.2], 0.4, [0]),
        ([0.5, 0.3, 0.2], 0.6, [0, 1]),
        ([0.5, 0.3, 0.2], 0.9, [0, 1, 2]),
        ([0.2, 0.5, 0.3], 0.6, [1, 2]),  # order does not matter
        ([0.2, 0.5, 0.3], 1e-9, [1]),  # one at least
        ([0.5, 0.25, 0.25], 0.5, [0]),  # reached exactly
        ([0.25, 0.0, 0.75], 0.99, [0, 2]),
        ([0.0, 1.0, 0.0], 0.5, [1]),
    ],
)
def test_nucleus(probabilities, top_p, kept):
    result = nucleus(probabilities, top_p)
    assert np.flatnonzero(np.isfinite(result)).tolist() == kept
    np.testing.assert_allclose(np.exp(result[kept]), np.array(probabilities)[kept], rtol=1e-6)


@pytest.mark.parametrize(
    ("probabilities", "top_p", "num_kept"),
    [([0.5, 0.5], 0.5, 1), ([0.3, 0.1, 0.3, 0.3], 0.5, 2), ([0.25] * 4, 0.7, 3), ([0.4, 0.2, 0.2, 0.2], 0.5, 2)],
)
def test_nucleus_keeps_as_many_equal_entries_as_it_needs(probabilities, top_p, num_kept):
    kept = np.array(probabilities)[np.isfinite(nucleus(probabilities, top_p))]
    assert sorted(kept, reverse=True) == sorted(probabilities, reverse=True)[:num_kept]


def test_nucleus_is_the_smallest_set_that_reaches_the_share():
    probabilities = np.random.default_rng(0).dirichlet(np.full(20, 0.3), (4, 50))
    for top_p in (0.05, 0.5, 0.9, 0.999):
        kept = np.isfinite(nucleus(probabilities, top_p))
        share = np.where(kept, probabilities, 0).sum(-1)
        least = np.where(kept, probabilities, 2).min(-1)
        assert kept.any(-1).all()
        assert (share > top_p - 1e-5).all()
        assert (share - least < top_p + 1e-5).all()
        assert (np.where(kept, 0, probabilities).max(-1) <= least).all()


def test_sharpen():
    """Top-p is a share of the untempered probability; what is left is normalised."""
    log_probs = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1]))
    for temperature, top_p, expected in [
        (1.0, 1.0, [0.5, 0.25, 0.15, 0.1]),
        (0.5, 1.0, np.square([0.5, 0.25, 0.15, 0.1])),
        (2.0, 0.7, [0.5**0.5, 0.25**0.5, 0, 0]),
        (1.0, 0.3, [1, 0, 0, 0]),
    ]:
        found = np.exp(policy.sharpen(log_probs, Sharpness(temperature, top_p)))
        np.testing.assert_allclose(found, expected / np.sum(expected), rtol=1e-5)


@pytest.mark.parametrize("group", [1, 12, 166, 221])
def test_joint_lattice_density(group):
    """A mixture of products, over the parameters that the crystal system leaves free."""
    rng = np.random.default_rng(group)
    weights, mean, sigma = rng.dirichlet(np.ones(3)), rng.normal(size=(3, 6)), rng.uniform(0.2, 2, (3, 6))
    mixture = heads.LatticeMixture(np.log(weights)[None], mean[None], sigma[None])
    point = rng.normal(size=(1, 6))
    free = np.flatnonzero(lattice.FREE_DIMENSIONS[lattice.crystal_family(np.array(group))])
    expected = logsumexp(np.log(weights) + stats.norm.logpdf(point, mean, sigma)[:, free].sum(-1))
    found = policy.joint_lattice_log_prob(jax.tree.map(jnp.asarray, mixture), jnp.asarray(point), np.array([group]))
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


def test_temperature_of_continuous_draws():
    """It divides concentrations and multiplies variances; the lattice's and coordinates' components are sharpened."""
    logits = jnp.log(jnp.array([0.8, 0.2]))
    hot = Policy(unconstrained(ModelConfig()), Sharpness(4.0, 1.0))
    angle = policy.sharpen_coordinate(hot, heads.VonMisesMixture(logits, jnp.ones(2), jnp.array([2.0, 30.0])))
    np.testing.assert_allclose(angle.kappa, [0.5, 7.5])
    cell = policy.sharpen_lattice(hot, heads.LatticeMixture(logits, jnp.ones((2, 6)), jnp.full((2, 6), 0.3)))
    np.testing.assert_allclose(cell.sigma, 0.6, rtol=1e-6)
    expected = np.array([0.8, 0.2]) ** 0.25
    for mixture in (angle, cell):
        np.testing.assert_allclose(np.exp(mixture.logits), expected / expected.sum(), rtol=1e-5)


# Draws against the enumerated policy.

GROUP = 221
SPECIES = (49, 50, 56)  # In, Sn, Ba: no letter and no coordinate uses their part of an output row
SMALL = SampleConfig(
    space_groups=(GROUP,),
    n=20_000,
    seed=11,
    batch_size=128,
    keep_invalid=True,
    temperature=0.8,
    elements=("In", "Sn", "Ba"),
    max_atoms=5,
)
"""Pm-3m within 5 atoms: letters a, b, c, d, none of which has a free coordinate; two sites."""


@pytest.fixture(scope="module")
def small(rotary) -> Model:
    """Two sites, and weights that prefer what SMALL asks for, so that filtering keeps a good part of the draws."""
    params = {name: dict(leaves) for name, leaves in rotary.params.items()}
    row, first = params["output"]["b"].copy(), params["first_output"]["b"].copy()
    row[list(SPECIES)] += 8
    row[:5] += 2
    first[1:5] += 2
    params["output"]["b"], params["first_output"]["b"] = row, first
    return Model("small", dataclasses.replace(rotary.config, n_max=3), params)


@pytest.fixture(scope="module")
def outcomes() -> CrystalBatch:
    """Every crystal that SMALL allows."""
    letters = [some for n in (1, 2) for some in itertools.combinations((1, 2, 3, 4), n)]
    rows = [
        (some, species)
        for some in letters
        if TABLE.multiplicity[GROUP - 1, list(some)].sum() <= 5
        for species in itertools.product(SPECIES, repeat=len(some))
    ]
    wyckoff, species = np.zeros((2, len(rows), 3), np.int32)
    for row, (some, numbers) in enumerate(rows):
        wyckoff[row, : len(some)], species[row, : len(some)] = some, numbers
    coords = TABLE.projector[GROUP - 1, wyckoff, :, 3]
    assert len(rows) == 4 * 3 + 5 * 9
    return CrystalBatch(np.full(len(rows), GROUP), np.tile(CELL, (len(rows), 1)), coords, species, wyckoff).numpy()


def probabilities(model: Model, crystals: CrystalBatch, asked: SampleConfig) -> np.ndarray:
    parts = model.policy_log_prob(crystals, asked)
    np.testing.assert_array_equal(parts.coords, 0)
    return np.exp(parts.wyckoff.astype(float) + parts.species)


def counts(found: CrystalBatch, outcomes: CrystalBatch) -> np.ndarray:
    """How often each outcome was drawn; nothing else may be."""
    every = [(*w, *s) for w, s in zip(outcomes.wyckoff.tolist(), outcomes.species.tolist(), strict=True)]
    place = {outcome: i for i, outcome in enumerate(every)}
    seen = [place[(*w, *s)] for w, s in zip(found.wyckoff.tolist(), found.species.tolist(), strict=True)]
    return np.bincount(seen, minlength=len(every))


def p_value(observed: np.ndarray, probability: np.ndarray) -> float:
    """Chi-squared; outcomes that 5 draws are not expected of count as one."""
    expected = observed.sum() * probability / probability.sum()
    rare = expected < 5
    both = [np.append(values[~rare], values[rare].sum()) for values in (observed, expected)]
    some = both[1] > 0
    return stats.chisquare(both[0][some], both[1][some]).pvalue


@pytest.mark.slow
def test_draws_are_distributed_as_the_policy_and_exact_ones_as_the_filtered_model(small, outcomes):
    """Masks and a filter give different distributions, and a test that took one for the other would fail."""
    exact = dataclasses.replace(SMALL, exact=True, n=4000)
    masked, filtered = (probabilities(small, outcomes, asked) for asked in (SMALL, exact))
    assert masked.sum() == pytest.approx(1, abs=1e-4)
    assert 0.05 < filtered.sum() < 0.95
    drawn = {asked: collect(small, asked) for asked in (SMALL, exact)}
    assert not drawn[SMALL].rejected
    share = exact.n / (exact.n + drawn[exact].rejected["against the constraints"])
    assert share == pytest.approx(filtered.sum(), abs=0.02)
    observed = {asked: counts(found.crystals, outcomes) for asked, found in drawn.items()}
    assert p_value(observed[SMALL], masked) > FALSE_ALARM
    assert p_value(observed[exact], filtered) > FALSE_ALARM
    assert p_value(observed[SMALL], filtered) < 1e-12
    assert p_value(observed[exact], masked) < 1e-12
