"""The sampler: every draw is a crystal, reproducible, and distributed as the likelihood says.

Statistical checks fix the seed; each fails by chance with a probability of 1e-4 for a new one, and there are 6.
"""

from __future__ import annotations

import dataclasses
import threading

import jax
import numpy as np
import pytest
from scipy import stats

from cfx.core import decode, heads, lattice, random
from cfx.core.crystal import CrystalBatch, concatenate, validate
from cfx.core.likelihood import log_prob, output_rows
from cfx.core.symmetry import symmetry_table

BATCH = 32
FALSE_ALARM = 1e-4
TABLE = symmetry_table()
GROUPS = np.array([1, 2, 12, 14, 47, 62, 63, 123, 139, 141, 152, 166, 180, 186, 194, 216, 221, 225, 227, 230])

rows = jax.jit(output_rows, static_argnums=1)
score = jax.jit(log_prob, static_argnums=1)


def draw(model, groups, seed=0, first=0, temperature=1.0, top_p=1.0, config=None) -> CrystalBatch:
    """Draws `first`, `first` + 1, ... of a seed, one for each space group."""
    groups = np.asarray(groups, np.int32)
    sharpness = random.Sharpness(np.float32(temperature), np.float32(top_p))
    numbers = np.arange(first, first + len(groups)).astype(np.uint32)
    return decode.decode(
        model.params, config or model.config, jax.random.key(seed), numbers, groups, sharpness
    ).numpy()


@pytest.fixture(scope="module")
def crystals(golden) -> CrystalBatch:
    """Draws from both golden models, a crystal system at a time."""
    groups = np.resize(GROUPS, 4 * BATCH)
    return concatenate([draw(golden, groups[i : i + BATCH], first=i) for i in range(0, len(groups), BATCH)])


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


def test_lattices_obey_the_crystal_system(crystals):
    np.testing.assert_array_equal(lattice.impose_system(crystals.lattice, crystals.space_group), crystals.lattice)


def test_draws_have_a_log_prob(golden, crystals):
    """What can be drawn has a probability, part by part (unphysical lattices included)."""
    scored = score(golden.params, golden.config, crystals)
    for name, value in scored.parts().items():
        assert np.isfinite(np.asarray(value)).all(), name


def assert_same_crystals(one: CrystalBatch, other: CrystalBatch):
    for name in ("space_group", "species", "wyckoff"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_allclose(one.frac_coords, other.frac_coords, atol=1e-5)
    np.testing.assert_allclose(one.lattice, other.lattice, rtol=1e-4, atol=1e-4)


def test_a_draw_is_the_same_beside_any_others(rotary):
    """Another batch size, another place in the batch, other space groups beside it."""
    groups = np.resize(GROUPS, BATCH)
    reference = draw(rotary, groups)
    key, model = jax.random.key(0), random.Sharpness(np.float32(1), np.float32(1))
    order = np.random.default_rng(0).permutation(BATCH).astype(np.uint32)
    shuffled = decode.decode(rotary.params, rotary.config, key, order, groups[order].astype(np.int32), model)
    assert_same_crystals(shuffled.numpy(), reference[order])
    few = order[:5]
    alone = decode.decode(rotary.params, rotary.config, key, few, groups[few].astype(np.int32), model)
    assert_same_crystals(alone.numpy(), reference[few])


def test_seeds_and_draw_numbers_differ(rotary):
    groups = np.full(BATCH, 1)
    one, other = draw(rotary, groups, seed=0), draw(rotary, groups, seed=1)
    assert len(np.unique(np.concatenate([one.lattice, other.lattice]), axis=0)) == 2 * BATCH
    assert (one.species[:, 0] != other.species[:, 0]).any()
    assert_same_crystals(draw(rotary, groups, seed=0, first=7)[: BATCH - 7], one[7:])


def test_one_compilation_serves_every_request(rotary):
    """3 space groups, 2 ranges of draws, 2 seeds, other temperatures: nothing is compiled again."""
    draw(rotary, np.full(BATCH, 225))
    compiled = decode.decode._cache_size()
    draw(rotary, np.full(BATCH, 194), first=0)
    draw(rotary, np.full(BATCH, 62), first=1000)
    draw(rotary, np.full(BATCH, 62), seed=5, temperature=0.7, top_p=0.9)
    assert decode.decode._cache_size() == compiled


def test_the_last_slot_stays_a_pad(rotary):
    """With 3 slots, P1 would often want a third site."""
    config = dataclasses.replace(rotary.config, n_max=3)
    drawn = draw(rotary, np.full(BATCH, 1), config=config)
    validate(drawn)
    assert (drawn.num_sites == 2).sum() > 3
    assert np.isfinite(drawn.lattice).all()
    full = draw(rotary, np.full(BATCH, 1))
    finished = full.num_sites < 3
    assert_same_crystals(drawn[finished], full.with_slots(21)[finished].with_slots(3))


def circular_distance(x, y):
    return np.abs((x - y) - np.rint(x - y))


def assert_most_likely(golden, drawn: CrystalBatch, coords: bool):
    """Letters and species (and coordinates and lattice) are the most likely ones at every step."""
    config = golden.config
    raw = jax.tree.map(np.asarray, rows(golden.params, config, drawn))
    first = heads.first_letter_logits(raw.first, drawn.space_group)
    np.testing.assert_array_equal(drawn.wyckoff[:, 0], np.argmax(first, axis=1))
    for i, crystal in enumerate(zip(drawn.space_group, drawn.wyckoff, drawn.species, drawn.frac_coords, strict=True)):
        group, letters, species, points = crystal
        for site in range(int((letters > 0).sum())):
            row = raw.rows[i, 5 * site : 5 * site + 5]
            assert species[site] == np.argmax(heads.species_logits(row[0], letters[site], config.num_species))
            following = heads.next_letter_logits(row[4], group, letters[site], config.num_letters)
            assert letters[site + 1] == np.argmax(following)
            for axis in range(3 if coords else 0):
                mixture = heads.coordinate_mixture(row[1 + axis], config)
                centre = mixture.loc[np.argmax(mixture.logits)] / (2 * np.pi) + 0.5
                if TABLE.projector[group - 1, letters[site], axis].tolist() == np.eye(3, 4)[axis].tolist():
                    assert circular_distance(points[site, axis], centre) < 1e-3
        if coords:
            mixture = heads.lattice_mixture(raw.rows[i, 5 * int((letters > 0).sum())], config)
            mean = np.asarray(mixture.mean)[np.argmax(mixture.logits)][None]
            cell = lattice.to_physical_frame(mean, drawn.num_atoms[i : i + 1])
            expected = lattice.impose_system(cell, drawn.space_group[i : i + 1])
            np.testing.assert_allclose(drawn.lattice[i : i + 1], expected, rtol=1e-2, atol=1e-2)


def test_low_temperature_draws_the_most_likely_crystal(rotary):
    """And draws it every time."""
    groups = np.resize(GROUPS[:16], BATCH)
    drawn = draw(rotary, groups, temperature=1e-8)
    np.testing.assert_array_equal(drawn.wyckoff[:16], drawn.wyckoff[16:])
    np.testing.assert_array_equal(drawn.species[:16], drawn.species[16:])
    assert circular_distance(drawn.frac_coords[:16], drawn.frac_coords[16:]).max() < 1e-3
    assert_most_likely(rotary, drawn, coords=True)


def test_tiny_top_p_keeps_the_most_likely_letter_and_species(rotary):
    """Angles are drawn all the same."""
    drawn = draw(rotary, np.full(BATCH, 1), top_p=1e-6)
    assert len(np.unique(drawn.frac_coords[:, 0, 0])) > BATCH // 2
    assert_most_likely(rotary, drawn, coords=False)


def test_draws_are_distributed_as_the_likelihood_says(rotary):
    """Probability integral transform under the teacher-forced rows: uniform for every coordinate and length.

    In P1 all coordinates and lattice parameters are free.
    """
    drawn = concatenate([draw(rotary, np.full(BATCH, 1), seed=3, first=i) for i in range(0, 8 * BATCH, BATCH)])
    raw = [rows(rotary.params, rotary.config, drawn[i : i + BATCH]) for i in range(0, len(drawn), BATCH)]
    raw = np.concatenate([np.asarray(part.rows) for part in raw])
    grid = np.linspace(0, 1, 1001)
    angle = 2 * np.pi * (grid - 0.5)
    for axis in range(3):
        mixture = jax.tree.map(
            lambda leaf: np.asarray(leaf, float), heads.coordinate_mixture(raw[:, 1 + axis], rotary.config)
        )
        transformed = []
        for x, logits, loc, kappa in zip(drawn.frac_coords[:, 0, axis], *mixture, strict=True):
            density = np.exp(logits) @ stats.vonmises.pdf(angle, kappa[:, None], loc[:, None])
            cdf = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
            transformed.append(np.interp(x, grid, cdf / cdf[-1]))
        assert stats.kstest(transformed, "uniform").pvalue > FALSE_ALARM
    row = raw[np.arange(len(drawn)), 5 * drawn.num_sites]
    mixture = jax.tree.map(lambda leaf: np.asarray(leaf, float), heads.lattice_mixture(row, rotary.config))
    value = lattice.to_model_frame(drawn.lattice.astype(float), drawn.num_atoms)[:, None]
    below = (np.exp(mixture.logits)[..., None] * stats.norm.cdf(value, mixture.mean, mixture.sigma)).sum(1)
    for dimension in (0, 4):
        assert stats.kstest(below[:, dimension], "uniform").pvalue > FALSE_ALARM


def test_letters_are_distributed_as_the_likelihood_says(rotary):
    """First letters of Pmmm, with 27 to choose from."""
    first = [draw(rotary, np.full(BATCH, 47), seed=4, first=i).wyckoff[:, 0] for i in range(0, 32 * BATCH, BATCH)]
    raw = rows(rotary.params, rotary.config, draw(rotary, np.full(BATCH, 47), seed=4)).first[:1]
    probability = np.exp(np.asarray(heads.first_letter_logits(raw, np.array([47]))[0], float))
    counts = np.bincount(np.concatenate(first), minlength=28)
    assert counts[0] == 0
    expected = len(first) * BATCH * probability[1:] / probability[1:].sum()
    assert stats.chisquare(counts[1:], expected).pvalue > FALSE_ALARM


def test_parameters_that_are_nan_do_not_hang(rotary):
    """The sampler ends; what it returns is for `is_physical` and `validate` to refuse."""
    broken = dataclasses.replace(rotary, params=jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), rotary.params))
    drawn = []
    thread = threading.Thread(target=lambda: drawn.append(draw(broken, np.full(BATCH, 225))), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "the sampler hangs"
    assert drawn
    assert not lattice.is_physical(drawn[0].lattice).any()
