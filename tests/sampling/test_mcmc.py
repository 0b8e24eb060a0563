"""Monte Carlo: the target stays what it is, chains reach it, and nothing that a request fixes is moved.

Statistical checks fix the seed; each of the 5 fails by chance with a probability of 1e-4 for a new one.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cfx.config import SampleConfig, Template
from cfx.core import heads
from cfx.core.crystal import CrystalBatch, validate
from cfx.core.likelihood import LogProb, log_prob, output_rows, von_mises_log_prob
from cfx.core.symmetry import symmetry_table
from cfx.model import Model
from cfx.sampling import mcmc
from cfx.sampling.constraints import satisfied
from cfx.sampling.decode import Drawn
from cfx.sampling.pools import Job
from cfx.sampling.request import build_constraints, prepare

pytestmark = pytest.mark.integration

FALSE_ALARM = 1e-4
TABLE = symmetry_table()
GROUP = 221
SPECIES = (49, 50, 56)
CHAINS = 768
CELL = (4.1, 4.1, 4.1, 90.0, 90.0, 90.0)


@pytest.fixture(scope="module")
def model(rotary) -> Model:
    """The golden network with room for four sites."""
    return Model("golden", dataclasses.replace(rotary.config, n_max=5), rotary.params)


@pytest.fixture(scope="module")
def small(rotary) -> Model:
    """With room for two sites."""
    return Model("golden", dataclasses.replace(rotary.config, n_max=3), jax.tree.map(jnp.asarray, rotary.params))


def target_of(model: Model, request: SampleConfig) -> mcmc.Target:
    sharpness = prepare(request, model.config).policy.sharpness
    return mcmc.Target(model.params, build_constraints(request, model.config), sharpness)


init = jax.jit(mcmc.init, static_argnames="config")
step = jax.jit(mcmc.step, static_argnames="config")


@functools.partial(jax.jit, static_argnames="config")
def run(target, config, seed, crystals, num_steps) -> mcmc.State:
    """The chains after some steps; each has a key of its own."""
    keys = jax.random.split(jax.random.key(seed), len(crystals))

    def body(i, state):
        return mcmc.step(jax.vmap(jax.random.fold_in, (0, None))(keys, i), state, target, config)[0]

    return jax.lax.fori_loop(0, num_steps, body, mcmc.init(target, config, crystals))


def crystals_of(rows: list[tuple[tuple, tuple]], num_slots: int) -> CrystalBatch:
    """From letters and species, in Pm-3m; every point is the one that op 0 gives the origin."""
    wyckoff, species = np.zeros((2, len(rows), num_slots), np.int32)
    for row, (letters, numbers) in enumerate(rows):
        wyckoff[row, : len(letters)], species[row, : len(letters)] = letters, numbers
    coords = TABLE.projector[GROUP - 1, wyckoff, :, 3]
    return CrystalBatch(np.full(len(rows), GROUP), np.tile(CELL, (len(rows), 1)), coords, species, wyckoff).numpy()


# A target that can be enumerated: letters without a free coordinate.

WARM = SampleConfig(
    space_groups=(GROUP,),
    temperature=1.6,
    bias=(("Ba", 0.5),),
    elements=("In", "Sn", "Ba"),
    template=Template(letters=("a", "d")),
)


@pytest.fixture(scope="module")
def enumerated(small) -> tuple[CrystalBatch, np.ndarray]:
    """All crystals of WARM and their probabilities, from the published heads alone."""
    outcomes = crystals_of([((1, 4), numbers) for numbers in itertools.product(SPECIES, repeat=2)], 3)
    raw = output_rows(small.params, small.config, outcomes)
    logits = np.array(heads.species_logits(raw.rows[:, ::5], outcomes.wyckoff, small.config.num_species), float)
    logits[:, :2, 56] += 0.5
    with np.errstate(invalid="ignore"):
        log_species = logits / WARM.temperature
    log_species -= np.log(np.exp(log_species).sum(-1, keepdims=True))
    following = np.array(
        heads.next_letter_logits(raw.rows[:, 4::5], np.full((9, 1), GROUP), outcomes.wyckoff[:, :-1], 28), float
    )
    log_letter = following[:, 0] / WARM.temperature
    log_letter -= np.log(np.exp(log_letter).sum(-1, keepdims=True))
    rows = np.arange(9)
    log_target = log_letter[rows, outcomes.wyckoff[:, 1]]
    for slot in (0, 1):
        log_target = log_target + log_species[rows, slot, outcomes.species[:, slot]]
    probability = np.exp(log_target - log_target.max())
    return outcomes, probability / probability.sum()


def p_value(found: CrystalBatch, enumerated) -> float:
    outcomes, probability = enumerated
    same = (np.asarray(found.species)[:, None] == outcomes.species).all(-1)
    assert same.any(1).all()
    return stats.chisquare(same.sum(0), len(same) * probability).pvalue


@pytest.mark.slow
def test_the_target_is_invariant(small, enumerated):
    """Chains that begin at draws from it are draws from it after 1 and 7 steps; the target is far from even."""
    outcomes, probability = enumerated
    assert probability.max() > 4 * probability.min()
    begin = outcomes[np.random.default_rng(0).choice(9, CHAINS, p=probability)]
    assert p_value(begin, enumerated) > FALSE_ALARM
    target = target_of(small, WARM)
    for num_steps in (1, 7):
        after = run(target, small.config, 1, begin, num_steps).crystals
        assert (np.asarray(after.species) != begin.species).any(1).mean() > 0.05
        assert p_value(after, enumerated) > FALSE_ALARM


@pytest.mark.slow
def test_chains_from_one_crystal_reach_the_target(small, enumerated):
    begin = enumerated[0][np.full(CHAINS, 0)]
    target = target_of(small, WARM)
    assert p_value(run(target, small.config, 2, begin, 1).crystals, enumerated) < 1e-12
    assert p_value(run(target, small.config, 2, begin, 60).crystals, enumerated) > FALSE_ALARM


@pytest.mark.slow
def test_a_coordinate_is_distributed_as_the_model_says(small):
    """x of 6e in Pm-3m: its mixture times the probability that the crystal ends after it, by numerical integration.

    The other two coordinates are fixed, and stay.
    """
    request = SampleConfig(space_groups=(GROUP,), elements=("Ba",), template=Template(letters=("e",)))
    target = target_of(small, request)
    begin = crystals_of([((5,), (56,))] * CHAINS, 3)
    after = run(target, small.config, 3, begin, 80).crystals
    assert not np.asarray(after.frac_coords)[:, 0, 1:].any()
    grid = np.linspace(0, 1, CHAINS)
    coords = np.zeros_like(begin.frac_coords)
    coords[:, 0, 0] = grid
    raw = output_rows(small.params, small.config, dataclasses.replace(begin, frac_coords=coords))
    mixture = heads.coordinate_mixture(raw.rows[:, 1], small.config)
    letter = np.asarray(heads.next_letter_logits(raw.rows[:, 4], begin.space_group, begin.wyckoff[:, 0], 28))
    alone = np.asarray(von_mises_log_prob(mixture, grid), float)

    def p_value_against(log_density) -> float:
        density = np.exp(log_density)
        cdf = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
        return stats.kstest(np.asarray(after.frac_coords)[:, 0, 0], lambda x: np.interp(x, grid, cdf / cdf[-1])).pvalue

    assert p_value_against(alone + letter[:, 0]) > FALSE_ALARM
    assert p_value_against(np.zeros(CHAINS)) < 1e-3


# Constraints.

MOVES = {
    "tied": SampleConfig(
        space_groups=(GROUP,),
        elements=("In", "Sn", "Ba", "O"),
        template=Template(
            letters=("a", "b", "e", "f"), species=(("In", "Ba"), (), ("Ba", "Sn", "In")), tied=((0, 2), (1, 3))
        ),
    ),
    "require": SampleConfig(
        space_groups=(GROUP,), elements=("Ba", "O", "Ti"), require=("Ba", "O"), max_sites=3, max_atoms=14
    ),
    "formula": SampleConfig(space_groups=(GROUP,), formula=(("Sr", 1), ("Ti", 1), ("O", 3))),
}


def draw(model: Model, request: SampleConfig, n: int) -> tuple[list[Job], Drawn]:
    """Crystals of a request and their jobs."""
    some = list(model.draws(dataclasses.replace(request, n=n, batch_size=16, keep_invalid=True)))
    drawn = [Drawn(draws.crystals, draws.log_prob, draws.policy_log_prob) for draws in some]
    together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *drawn)
    return [job for draws in some for job in draws.jobs], together


@pytest.mark.parametrize("name", MOVES)
def test_constraints_hold_after_every_move(model, name):
    request = MOVES[name]
    target = target_of(model, request)
    begin = draw(model, request, 64)[1].crystals
    state = init(target, model.config, begin)
    assert np.isfinite(np.asarray(state.log_prob)).all()
    keys = jax.random.split(jax.random.key(5), 64)
    moved, kinds = np.zeros((2, 64), bool), set()
    for i in range(40):
        before = jax.tree.map(np.asarray, state.crystals)
        state, info = step(jax.vmap(jax.random.fold_in, (0, None))(keys, i), state, target, model.config)
        crystals, accepted = jax.tree.map(np.asarray, state.crystals), np.asarray(info.accepted)
        validate(crystals)
        assert satisfied(target.constraints, crystals).all()
        np.testing.assert_array_equal(crystals.wyckoff, begin.wyckoff)
        np.testing.assert_array_equal(crystals.lattice, begin.lattice)
        is_new = (crystals.species != before.species).any(1), (crystals.frac_coords != before.frac_coords).any((1, 2))
        is_species = np.asarray(info.is_species)
        assert not (is_new[0] & ~(accepted & is_species)).any()
        assert not (is_new[1] & ~(accepted & ~is_species)).any()
        moved |= is_new[0] | is_new[1]
        kinds |= {kind for kind, some in zip(("species", "coords"), is_new, strict=True) if some.any()}
        if name == "tied":
            assert (crystals.species[:, :2] == crystals.species[:, 2:4]).all()
            assert set(crystals.species[:, 0]) <= {49, 56}
    assert moved.mean() > 0.3
    assert kinds == {"species", "coords"}
    assert (crystals.species != begin.species).any()
    if name == "formula":
        for row in range(64):
            assert crystals.composition(row) == begin.composition(row)
    if name == "require":
        assert (crystals.species == 8).any(1).all() and (crystals.species == 56).any(1).all()
    again = init(target, model.config, crystals)
    np.testing.assert_allclose(state.log_prob, again.log_prob, atol=2e-3, rtol=1e-4)


def test_coordinates_stay_on_their_positions(model):
    request = MOVES["tied"]
    target = target_of(model, request)
    begin = draw(model, request, 64)[1].crystals
    after = jax.tree.map(np.asarray, run(target, model.config, 4, begin, 60).crystals)
    assert (after.frac_coords[:, 2:4] != begin.frac_coords[:, 2:4]).any((1, 2)).mean() > 0.3
    op = TABLE.projector[after.space_group[:, None] - 1, after.wyckoff]
    deviation = np.einsum("bnij,bnj->bni", op[..., :3], after.frac_coords) + op[..., 3] - after.frac_coords
    assert np.abs(deviation - np.rint(deviation)).max() < 1e-6
    assert ((after.frac_coords >= 0) & (after.frac_coords < 1)).all()


# refine


def rows_of(drawn: Drawn, rows) -> Drawn:
    return jax.tree.map(lambda leaf: leaf[rows], drawn)


PLAIN = SampleConfig(space_groups=(166, 221), seed=3, max_sites=2)


@pytest.fixture(scope="module")
def refined(small):
    """24 crystals of one and two sites, and what 20 steps make of them."""
    jobs, drawn = draw(small, PLAIN, 24)
    assert set(drawn.crystals.num_sites) == {1, 2}
    target, key = target_of(small, PLAIN), jax.random.key(9)
    return target, key, jobs, drawn, *mcmc.refine(target, small.config, key, jobs, drawn, 20)


@pytest.mark.slow
def test_refine_depends_on_a_crystal_and_its_number_alone(small, refined):
    """Some of the crystals, in another order."""
    target, key, jobs, drawn, after, rates = refined
    order = np.random.default_rng(0).permutation(24)[:7]
    some, few = mcmc.refine(target, small.config, key, [jobs[i] for i in order], rows_of(drawn, order), 20)
    np.testing.assert_array_equal(some.crystals.species, after.crystals.species[order])
    distance = some.crystals.frac_coords - after.crystals.frac_coords[order]
    assert np.abs(distance - np.rint(distance)).max() < 1e-5
    np.testing.assert_allclose(some.crystals.lattice, after.crystals.lattice[order], rtol=1e-4)
    np.testing.assert_allclose(few, rates[order], atol=1e-6)


@pytest.mark.slow
def test_refine_changes_and_scores_crystals(small, refined):
    _, _, _, drawn, after, rates = refined
    validate(after.crystals)
    assert after.crystals.num_slots == small.config.n_max
    np.testing.assert_array_equal(after.crystals.wyckoff, drawn.crystals.wyckoff)
    np.testing.assert_array_equal(after.crystals.space_group, drawn.crystals.space_group)
    assert np.isfinite(after.crystals.lattice).all()
    assert (after.crystals.lattice[:, 0] != drawn.crystals.lattice[:, 0]).all()
    assert rates.shape == (24,)
    assert ((rates >= 0) & (rates <= 1)).all()
    assert 0 < rates.mean() < 1
    has_moved = (after.crystals.species != drawn.crystals.species).any(1)
    has_moved |= (after.crystals.frac_coords != drawn.crystals.frac_coords).any((1, 2))
    assert has_moved.mean() > 0.5
    published = log_prob(small.params, small.config, after.crystals)
    for part, value in published.parts().items():
        np.testing.assert_allclose(after.log_prob.parts()[part], value, atol=2e-3, rtol=1e-4, err_msg=part)
    again = small.policy_log_prob(after.crystals, PLAIN)
    for part, value in again.parts().items():
        np.testing.assert_allclose(after.policy_log_prob.parts()[part], value, atol=2e-3, rtol=1e-4, err_msg=part)


def test_refine_of_nothing(small):
    target = target_of(small, PLAIN)
    empty = np.zeros(0, np.float32)
    nothing = Drawn(crystals_of([], 3), *(LogProb(empty, empty, empty, empty),) * 2)
    drawn, rates = mcmc.refine(target, small.config, jax.random.key(0), [], nothing, 5)
    assert len(drawn) == 0
    assert rates.shape == (0,)


@pytest.mark.parametrize("kept", [("coords",), ("coords", "lattice"), ("lattice",)])
def test_refine_leaves_what_is_kept(small, kept):
    """Species move, and what is not kept."""
    given = {"frac_coords": ((0.0, 0.0, 0.0), (0.23, 0.0, 0.0))} if "coords" in kept else {}
    given |= {"lattice": CELL} if "lattice" in kept else {}
    request = SampleConfig(space_groups=(GROUP,), template=Template(letters=("a", "e"), **given))
    target = target_of(small, request)
    jobs, drawn = draw(small, request, 16)
    after, _ = mcmc.refine(target, small.config, jax.random.key(1), jobs, drawn, 30)
    assert (after.crystals.species != drawn.crystals.species).any(1).mean() > 0.5
    same_coords = (after.crystals.frac_coords == drawn.crystals.frac_coords).all((1, 2))
    same_lattice = (after.crystals.lattice == drawn.crystals.lattice).all(1)
    assert same_coords.all() if "coords" in kept else not same_coords.all()
    assert same_lattice.all() if "lattice" in kept else not same_lattice.any()


def test_refinement_through_the_model(small):
    """Steps of a request, and of its second half alone; the refined crystals are others than the unrefined."""
    found = [
        list(small.draws(dataclasses.replace(PLAIN, n=6, refine=steps, shard=shard, batch_size=16, keep_invalid=True)))
        for steps, shard in ((20, (1, 1)), (20, (2, 2)), (0, (1, 1)))
    ]
    species = [np.concatenate([draws.crystals.species for draws in some]) for some in found]
    np.testing.assert_array_equal(species[0][3:], species[1])
    assert (species[0] != species[2]).any()
    assert 0 < found[0][-1].accepted_moves < 1
    assert found[2][-1].accepted_moves is None
