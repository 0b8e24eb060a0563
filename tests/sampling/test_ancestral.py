"""The decoder against a plain ancestral sampler: the full forward pass for every token, numpy for every draw.

50,000 crystals each, in four space groups. All 30 checks are two-sample tests with a false-alarm rate of 1e-4 each;
seeds are fixed.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from scipy import stats

from cfx.config import ModelConfig, SampleConfig
from cfx.core import heads, lattice
from cfx.core.crystal import CrystalBatch
from cfx.core.likelihood import init_params, output_rows
from cfx.core.symmetry import symmetry_table
from cfx.model import Model

pytestmark = pytest.mark.slow

NUM = 50_000
AT_ONCE = 5_000
GROUPS = (1, 15, 62, 166)
FALSE_ALARM = 1e-4
TABLE = symmetry_table()

# Half a million passes are worth the optimiser that other tests do without.
rows_of = jax.jit(output_rows, static_argnums=1, compiler_options={"xla_backend_optimization_level": 2})


def choose(rng, log_probs) -> np.ndarray:
    """One index from each row of log-probabilities, by inverting the cumulative distribution."""
    cumulative = np.cumsum(np.exp(np.asarray(log_probs, float)), axis=-1)
    return (cumulative < rng.random((len(cumulative), 1)) * cumulative[:, -1:]).sum(1)


def at(values, index) -> np.ndarray:
    return np.asarray(values, float)[np.arange(len(index)), index]


def ancestral(model, groups, seed: int) -> CrystalBatch:
    """Crystals drawn with the whole network for every token."""
    rng, config, num = np.random.default_rng(seed), model.config, len(groups)
    slots = config.n_max
    crystals = CrystalBatch(
        np.asarray(groups, np.int32),
        np.ones((num, 6), np.float32),
        np.zeros((num, slots, 3), np.float32),
        np.zeros((num, slots), np.int32),
        np.zeros((num, slots), np.int32),
    )

    def rows(token: int):
        return np.asarray(rows_of(model.params, config, crystals).rows[:, token])

    first = rows_of(model.params, config, crystals).first
    for site in range(slots):
        if site == 0:
            letter = choose(rng, heads.first_letter_logits(first, crystals.space_group))
        elif site == slots - 1:
            letter = np.zeros(num, int)
        else:
            before = crystals.wyckoff[:, site - 1]
            raw = rows(5 * site - 1)
            letter = choose(rng, heads.next_letter_logits(raw, crystals.space_group, before, config.num_letters))
        crystals.wyckoff[:, site] = letter
        if site == slots - 1:
            break
        log_probs = heads.species_logits(rows(5 * site), crystals.wyckoff[:, site], config.num_species)
        crystals.species[:, site] = choose(rng, log_probs)
        op = TABLE.projector[crystals.space_group - 1, crystals.wyckoff[:, site]].astype(float)
        for axis in range(3):
            mixture = heads.coordinate_mixture(rows(5 * site + 1 + axis), config)
            component = choose(rng, mixture.logits)
            angle = rng.vonmises(0, at(mixture.kappa, component)) + at(mixture.loc, component)
            point = crystals.frac_coords[:, site].astype(float)
            point[:, axis] = angle / (2 * np.pi) + 0.5
            value = np.einsum("bj,bj->b", op[:, axis, :3], point) + op[:, axis, 3]
            crystals.frac_coords[:, site, axis] = value - np.floor(value)
    raw = np.asarray(rows_of(model.params, config, crystals).rows)[np.arange(num), 5 * crystals.num_sites]
    mixture = heads.lattice_mixture(raw, config)
    component = choose(rng, mixture.logits)
    drawn = at(mixture.mean, component) + at(mixture.sigma, component) * rng.normal(size=(num, 6))
    cell = lattice.impose_family(lattice.to_physical_frame(drawn, crystals.num_atoms), crystals.space_group)
    return dataclasses.replace(crystals, lattice=cell)


SMALL = ModelConfig(
    n_max=3, num_layers=2, num_heads=2, key_size=8, model_size=16, embed_size=8, first_hidden=16, coord_components=3,
    lattice_components=2, num_species=12,
)  # fmt: skip


@pytest.fixture(scope="module")
def both() -> tuple[CrystalBatch, CrystalBatch]:
    """Crystals of the decoder and of the plain sampler, from a small model with random weights."""
    leaves, tree = jax.tree.flatten(init_params(SMALL, jax.random.key(0)))
    noise = [0.4 * jax.random.normal(jax.random.key(i), leaf.shape) for i, leaf in enumerate(leaves)]
    model = Model("small", SMALL, tree.unflatten([leaf + more for leaf, more in zip(leaves, noise, strict=True)]))
    request = SampleConfig(space_groups=GROUPS, n=NUM, seed=11, batch_size=2048, keep_invalid=True)
    parts = [draws.crystals for draws in model.draws(request)]
    fast = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    groups = np.resize(GROUPS, AT_ONCE)
    parts = [ancestral(model, groups, seed) for seed in range(NUM // AT_ONCE)]
    return fast, jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def assert_same_counts(one: np.ndarray, other: np.ndarray) -> None:
    """Chi-squared on a contingency table; values seen fewer than 20 times count as one."""
    size = int(max(one.max(), other.max())) + 1
    table = np.stack([np.bincount(each, minlength=size) for each in (one, other)])
    rare = table.sum(0) < 20
    table = np.concatenate([table[:, ~rare], table[:, rare].sum(1, keepdims=True)], axis=1)
    table = table[:, table.sum(0) > 0]
    assert table.shape[1] > 1
    assert stats.chi2_contingency(table).pvalue > FALSE_ALARM


@pytest.mark.parametrize("group", GROUPS)
def test_letters_and_species(both, group):
    fast, plain = (crystals[crystals.space_group == group] for crystals in both)
    assert len(fast) == len(plain) == NUM // len(GROUPS)
    letters = [crystals.wyckoff[:, 0] * 28 + crystals.wyckoff[:, 1] for crystals in (fast, plain)]
    assert_same_counts(*letters)
    for site in (0, 1):
        assert_same_counts(fast.species[:, site], plain.species[:, site])


@pytest.mark.parametrize("group", GROUPS)
def test_coordinates(both, group):
    """Of the general position, where all are free, at the first site and the second."""
    general = TABLE.last_letter[group - 1]
    for site in (0, 1):
        one, other = (
            crystals.frac_coords[(crystals.space_group == group) & (crystals.wyckoff[:, site] == general), site]
            for crystals in both
        )
        if min(len(one), len(other)) < 500:
            continue
        for axis in range(3):
            assert stats.ks_2samp(one[:, axis], other[:, axis]).pvalue > FALSE_ALARM


@pytest.mark.parametrize("group", GROUPS)
def test_lattices(both, group):
    one, other = (crystals.lattice[crystals.space_group == group] for crystals in both)
    free = lattice.FREE_DIMENSIONS[lattice.crystal_family(np.array(group))]
    for dimension in np.flatnonzero(free):
        assert stats.ks_2samp(one[:, dimension], other[:, dimension]).pvalue > FALSE_ALARM
