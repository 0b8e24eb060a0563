"""The sampler: every draw is a crystal, reproducible, and distributed as the likelihood says.

Statistical checks fix the seed; each of the 20 fails by chance with a probability of 1e-4 for a new one.
"""

from __future__ import annotations

import dataclasses
import threading

import jax
import numpy as np
import pytest
from scipy import stats

from cfx.core import heads, lattice
from cfx.core.crystal import CrystalBatch, concatenate, validate
from cfx.core.likelihood import log_prob, output_rows
from cfx.core.symmetry import symmetry_table
from cfx.sampling import decode, incremental, policy, stages
from cfx.sampling.constraints import unconstrained
from cfx.sampling.pools import Decoder, Job

pytestmark = pytest.mark.integration

BATCH = 32
FALSE_ALARM = 1e-4
TABLE = symmetry_table()
GROUPS = np.array([1, 2, 12, 14, 47, 62, 63, 123, 139, 141, 152, 166, 180, 186, 194, 216, 221, 225, 227, 230])

rows = jax.jit(output_rows, static_argnums=1)
score = jax.jit(log_prob, static_argnums=1)
prepare = jax.jit(incremental.prepare, static_argnums=1)


def make_decoder(model, seed=0, temperature=1.0, top_p=1.0, batch=BATCH) -> Decoder:
    sharpness = policy.Sharpness(np.float32(temperature), np.float32(top_p))
    weights, in_force = prepare(model.params, model.config), policy.Policy(unconstrained(model.config), sharpness)
    return Decoder(weights, model.config, in_force, jax.random.key(seed), batch)


def decode_numbers(model, groups, numbers, seed=0, temperature=1.0, top_p=1.0, batch=BATCH) -> decode.Drawn:
    """The crystals with these numbers, in their order."""
    jobs = [Job(int(number), 0, int(group)) for number, group in zip(numbers, groups, strict=True)]
    done, parts = zip(*make_decoder(model, seed, temperature, top_p, batch).drain(jobs), strict=True)
    order = {job: i for i, job in enumerate(job for some in done for job in some)}
    together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    assert len(order) == len(jobs)
    return jax.tree.map(lambda leaf: leaf[[order[job] for job in jobs]], together)


def draw(model, group, seed=0, first=0, **sharpness) -> CrystalBatch:
    """Draws `first`, `first` + 1, ... of a seed; `group` is one for all of a batch, or one for each."""
    groups = np.broadcast_to(group, BATCH)
    return decode_numbers(model, groups, np.arange(first, first + BATCH), seed, **sharpness).crystals


@pytest.fixture(scope="module")
def small(rotary):
    """The same network with 3 slots: quick to draw from."""
    return dataclasses.replace(rotary, config=dataclasses.replace(rotary.config, n_max=3))


@pytest.fixture(scope="module")
def crystals(rotary) -> CrystalBatch:
    groups = np.resize(GROUPS, 4 * BATCH)
    return concatenate([draw(rotary, groups[i : i + BATCH], first=i) for i in range(0, len(groups), BATCH)])


def test_draws_are_valid_crystals(crystals):
    validate(crystals)
    assert not crystals.wyckoff[:, -1].any()
    assert (crystals.num_sites >= 1).all()
    assert len(np.unique(crystals.num_sites)) > 3
    assert crystals.lattice.dtype == np.float32


def test_letters_follow_the_rules(crystals):
    """They never decrease, and a letter without a free coordinate never repeats."""
    for group, letters in zip(crystals.space_group, crystals.wyckoff, strict=True):
        letters = letters[letters > 0]
        assert (np.diff(letters) >= 0).all()
        repeated = letters[1:][np.diff(letters) == 0]
        assert not TABLE.is_fixed[group - 1, repeated].any()


def test_coordinates_lie_on_op_0(crystals):
    op = TABLE.projector[crystals.space_group[:, None] - 1, crystals.wyckoff].astype(float)
    again = np.einsum("bnij,bnj->bni", op[..., :3], crystals.frac_coords) + op[..., 3]
    deviation = again - crystals.frac_coords
    assert np.abs(deviation - np.rint(deviation)).max() < 1e-6
    assert not crystals.frac_coords[crystals.wyckoff == 0].any()


def test_lattices_obey_the_crystal_family(crystals):
    np.testing.assert_array_equal(lattice.impose_family(crystals.lattice, crystals.space_group), crystals.lattice)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 0.9)])
def test_draws_come_with_their_published_log_prob(rotary, temperature, top_p):
    """Whatever they were drawn at."""
    groups = np.resize(GROUPS, BATCH)
    drawn = decode_numbers(rotary, groups, np.arange(BATCH), 2, temperature, top_p)
    scored = score(rotary.params, rotary.config, drawn.crystals)
    for name, value in scored.parts().items():
        assert np.isfinite(np.asarray(value)).all(), name
        np.testing.assert_allclose(drawn.log_prob.parts()[name], value, atol=2e-3, rtol=1e-4, err_msg=name)


def circular_distance(x, y):
    return np.abs((x - y) - np.rint(x - y))


def assert_same_crystals(one: CrystalBatch, other: CrystalBatch):
    for name in ("space_group", "species", "wyckoff"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    # On some processors XLA sums in another order in pools of another size; a draw can make 1e-4 of the last digit.
    assert circular_distance(one.frac_coords, other.frac_coords).max() < 5e-4
    np.testing.assert_allclose(one.lattice, other.lattice, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("batch", [7, 256])
def test_a_draw_is_the_same_beside_any_others(rotary, batch):
    """Another batch size (one pool of slots, or four), another order, other crystals beside it."""
    groups = np.resize(GROUPS, 4 * BATCH)
    reference = decode_numbers(rotary, groups, np.arange(len(groups)))
    order = np.random.default_rng(0).permutation(len(groups))[: 64 if batch == 7 else None]
    other = decode_numbers(rotary, groups[order], order, batch=batch)
    assert_same_crystals(other.crystals, reference.crystals[order])
    for part, value in other.policy_log_prob.parts().items():
        np.testing.assert_allclose(value, reference.policy_log_prob.parts()[part][order], rtol=1e-3, atol=1e-2)


def test_seeds_and_draw_numbers_differ(small):
    one, other = draw(small, 1, seed=0), draw(small, 1, seed=1)
    assert len(np.unique(np.concatenate([one.lattice, other.lattice]), axis=0)) == 2 * BATCH
    assert (one.species[:, 0] != other.species[:, 0]).any()
    assert_same_crystals(draw(small, 1, seed=0, first=7)[: BATCH - 7], one[7:])


def test_one_compilation_serves_every_request(small):
    """3 space groups, 2 ranges of draws, 2 seeds, other temperatures: nothing is compiled again."""
    kernels = (decode.start, decode.advance, decode.take_over, decode.finish, stages.run, stages.take_outgrown)
    draw(small, 225)
    compiled = [kernel._cache_size() for kernel in kernels]
    draw(small, 194, first=0)
    draw(small, 62, first=1000)
    draw(small, 62, seed=5, temperature=0.7, top_p=0.9)
    decode_numbers(small, np.full(100, 14), np.arange(100))
    assert [kernel._cache_size() for kernel in kernels] == compiled


def test_the_last_slot_stays_a_pad(rotary, small):
    """With 3 slots, P1 would often want a third site."""
    drawn = draw(small, 1)
    validate(drawn)
    assert (drawn.num_sites == 2).sum() > 3
    assert np.isfinite(drawn.lattice).all()
    free = draw(rotary, 1)
    assert (free.num_sites > 2).any()
    for crystal in range(BATCH):
        shared = min(2, free.num_sites[crystal])
        assert drawn.wyckoff[crystal, :shared].tolist() == free.wyckoff[crystal, :shared].tolist()
        assert drawn.species[crystal, :shared].tolist() == free.species[crystal, :shared].tolist()


def assert_most_likely(model, drawn: CrystalBatch, coords: bool):
    """Letters and species (coordinates and lattice too) are the likeliest at every step, but for near ties."""
    config, group, letters = model.config, drawn.space_group, drawn.wyckoff
    raw = rows(model.params, config, drawn)
    filled = letters[:, :-1] > 0

    def is_most_likely(log_probs, index):
        log_probs = np.asarray(log_probs)
        return np.take_along_axis(log_probs, index[..., None], -1)[..., 0] > log_probs.max(-1) - 1e-4

    assert is_most_likely(heads.first_letter_logits(raw.first, group), letters[:, 0]).all()
    species = heads.species_logits(raw.rows[:, ::5], letters, config.num_species)
    assert is_most_likely(species, drawn.species).all()
    following = heads.next_letter_logits(raw.rows[:, 4::5], group[:, None], letters[:, :-1], config.num_letters)
    assert is_most_likely(following, letters[:, 1:])[:, :-1].all()  # the last pad is forced
    if not coords:
        return
    for axis in range(3):
        mixture = heads.coordinate_mixture(raw.rows[:, 1 + axis :: 5], config)
        loc = np.take_along_axis(np.asarray(mixture.loc), np.argmax(mixture.logits, -1)[..., None], -1)[..., 0]
        own = (TABLE.projector[group[:, None] - 1, letters[:, :-1], axis] == np.eye(3, 4)[axis]).all(-1)
        assert (filled & own).any()
        distance = circular_distance(drawn.frac_coords[:, :-1, axis], loc / (2 * np.pi) + 0.5)
        assert distance[filled & own].max() < 1e-3
    mixture = heads.lattice_mixture(raw.rows[np.arange(len(drawn)), 5 * drawn.num_sites], config)
    mean = np.asarray(mixture.mean)[np.arange(len(drawn)), np.argmax(mixture.logits, -1)]
    cell = lattice.impose_family(lattice.to_physical_frame(mean, drawn.num_atoms), group)
    np.testing.assert_allclose(drawn.lattice, cell, rtol=1e-3, atol=1e-3)


def test_low_temperature_draws_the_most_likely_crystal(rotary):
    """And, sites 2 and up aside (a rounding error may turn a near tie), draws it every time."""
    drawn = draw(rotary, np.resize(GROUPS[:16], BATCH), temperature=1e-10)
    assert_most_likely(rotary, drawn, coords=True)
    np.testing.assert_array_equal(drawn.wyckoff[:16, :2], drawn.wyckoff[16:, :2])
    np.testing.assert_array_equal(drawn.species[:16, :2], drawn.species[16:, :2])
    assert circular_distance(drawn.frac_coords[:16, :2], drawn.frac_coords[16:, :2]).max() < 1e-3


def test_tiny_top_p_keeps_the_most_likely_letter_and_species(rotary):
    """Angles are drawn all the same."""
    drawn = draw(rotary, 1, top_p=1e-6)
    assert len(np.unique(drawn.frac_coords[:, 0, 0])) > BATCH // 2
    assert_most_likely(rotary, drawn, coords=False)


def test_draws_are_distributed_as_the_likelihood_says(small):
    """Probability integral transform under the teacher-forced rows: uniform for every coordinate and length.

    In P1 all coordinates and lattice parameters are free.
    """
    drawn = concatenate([draw(small, 1, seed=3, first=i) for i in range(0, 16 * BATCH, BATCH)])
    raw = np.asarray(rows(small.params, small.config, drawn).rows)
    grid = np.linspace(0, 1, 1001)
    angle = 2 * np.pi * (grid - 0.5)
    for axis in range(3):
        mixture = heads.coordinate_mixture(raw[:, 1 + axis], small.config)
        weights, loc, kappa = (np.asarray(leaf, float)[..., None] for leaf in mixture)
        density = (np.exp(weights) * stats.vonmises.pdf(angle, kappa, loc)).sum(1)
        cdf = np.cumsum(density[:, 1:] + density[:, :-1], axis=1)
        cdf = np.pad(cdf / cdf[:, -1:], [(0, 0), (1, 0)])
        below = [np.interp(x, grid, row) for x, row in zip(drawn.frac_coords[:, 0, axis], cdf, strict=True)]
        assert stats.kstest(below, "uniform").pvalue > FALSE_ALARM
    mixture = heads.lattice_mixture(raw[np.arange(len(drawn)), 5 * drawn.num_sites], small.config)
    weights, mean, sigma = (np.asarray(leaf, float) for leaf in mixture)
    value = lattice.to_model_frame(drawn.lattice.astype(float), drawn.num_atoms)[:, None]
    below = (np.exp(weights)[..., None] * stats.norm.cdf(value, mean, sigma)).sum(1)
    for dimension in (0, 4):
        assert stats.kstest(below[:, dimension], "uniform").pvalue > FALSE_ALARM


def test_letters_are_distributed_as_the_likelihood_says(small):
    """First letters of Pmmm, with 27 to choose from."""
    drawn = concatenate([draw(small, 47, seed=4, first=i) for i in range(0, 16 * BATCH, BATCH)])
    raw = rows(small.params, small.config, drawn).first[:1]
    probability = np.exp(np.asarray(heads.first_letter_logits(raw, np.array([47]))[0], float))
    counts = np.bincount(drawn.wyckoff[:, 0], minlength=28)
    assert counts[0] == 0
    expected = len(drawn) * probability[1:] / probability[1:].sum()
    assert stats.chisquare(counts[1:], expected).pvalue > FALSE_ALARM


@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_parameters_that_are_nan_do_not_hang(rotary, top_p):
    """The sampler ends; what it returns is for `is_physical` to refuse."""
    broken = dataclasses.replace(rotary, params=jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), rotary.params))
    drawn = []
    thread = threading.Thread(target=lambda: drawn.append(draw(broken, 225, top_p=top_p)), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "the sampler hangs"
    assert drawn
    assert not lattice.is_physical(drawn[0].lattice).any()
