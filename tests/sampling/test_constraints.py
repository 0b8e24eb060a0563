"""The masks of a request against brute force: what they let through is what the request allows, no more and no less."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfx.config import ModelConfig, SampleConfig, Template
from cfx.core.crystal import CrystalBatch
from cfx.core.elements import SYMBOLS
from cfx.core.symmetry import LETTERS, symmetry_table
from cfx.sampling.constraints import (
    IMPOSSIBLE,
    MOST_ATOMS,
    letter_mask,
    make_formula,
    min_sites,
    prefix,
    prefixes,
    satisfied,
    species_mask,
    unconstrained,
)
from cfx.sampling.request import build_constraints

TABLE = symmetry_table()
CONFIG = ModelConfig(n_max=4, num_species=9, num_letters=7)
"""Three sites, letters a to f; rows for species up to oxygen."""

ELEMENTS = ("Li", "B", "O")
NUMBERS = (3, 5, 8)

letter_masks, species_masks = jax.jit(letter_mask), jax.jit(species_mask)
satisfied_jax = jax.jit(lambda constraints, crystals: satisfied(constraints, crystals, jnp))


def letter_sequences(group: int, num_letters: int, most: int) -> list[tuple[int, ...]]:
    """All letters of at most `most` sites: they never decrease, and one without a free coordinate serves once."""
    letters = range(1, min(num_letters, int(TABLE.last_letter[group - 1]) + 1))
    return [
        sequence
        for sites in range(1, most + 1)
        for sequence in itertools.combinations_with_replacement(letters, sites)
        if not any(TABLE.is_fixed[group - 1, w] and sequence.count(w) > 1 for w in sequence)
    ]


def universe(group: int) -> CrystalBatch:
    """Every crystal of ELEMENTS in the slots of CONFIG."""
    rows = [
        (sequence, species)
        for sequence in letter_sequences(group, CONFIG.num_letters, CONFIG.n_max - 1)
        for species in itertools.product(NUMBERS, repeat=len(sequence))
    ]
    wyckoff, numbers = np.zeros((2, len(rows), CONFIG.n_max), np.int32)
    for row, (sequence, species) in enumerate(rows):
        wyckoff[row, : len(sequence)], numbers[row, : len(sequence)] = sequence, species
    return CrystalBatch(
        np.full(len(rows), group, np.int32),
        np.ones((len(rows), 6), np.float32),
        np.zeros((len(rows), CONFIG.n_max, 3), np.float32),
        numbers,
        wyckoff,
    )


def is_wanted(request: SampleConfig, crystals: CrystalBatch, row: int) -> bool:
    """Whether a crystal meets a request, in the plainest words."""
    letters = [int(w) for w in crystals.wyckoff[row] if w]
    symbols = [SYMBOLS[z] for z in crystals.species[row][: len(letters)]]
    atoms: Counter[str] = Counter()
    for letter, symbol in zip(letters, symbols, strict=True):
        atoms[symbol] += int(TABLE.multiplicity[crystals.space_group[row] - 1, letter])
    template = request.template
    if request.elements and not set(symbols) <= set(request.elements):
        return False
    if set(symbols) & set(request.exclude) or not set(request.require) <= set(symbols):
        return False
    if request.any_of and not set(symbols) & set(request.any_of):
        return False
    if request.max_atoms is not None and atoms.total() > request.max_atoms:
        return False
    if request.max_sites is not None and len(letters) > request.max_sites:
        return False
    if template.letters and [LETTERS[w] for w in letters] != list(template.letters):
        return False
    if any(some and s not in some for s, some in zip(symbols, template.species, strict=False)):
        return False
    for group in template.tied:
        shared = {symbols[site] for site in group if site < len(symbols)}
        lists = [template.species[site] for site in group if site < len(template.species)]
        if len(shared) > 1 or not all(shared <= set(some) for some in lists if some):  # of sites it may lack, too
            return False
    ratio = np.array([count for _, count in request.formula])
    share = np.array([atoms[symbol] for symbol, _ in request.formula])
    return not request.formula or (atoms.total() == share.sum() and (share * ratio.sum() == ratio * share.sum()).all())


def mask_allows(constraints, crystals: CrystalBatch) -> np.ndarray:
    """bool [B]: every letter, the first pad and every species is inside the mask of its draw."""
    before = prefixes(crystals, CONFIG.num_species)
    group, slots = crystals.space_group[:, None], np.arange(crystals.num_slots)
    letters = np.asarray(letter_masks(constraints, group, before))
    species = np.asarray(species_masks(constraints, group, before, crystals.wyckoff, crystals.species[:, None]))
    letter_ok = np.take_along_axis(letters, crystals.wyckoff[..., None], -1)[..., 0]
    species_ok = np.take_along_axis(species, crystals.species[..., None], -1)[..., 0]
    sites = crystals.num_sites[:, None]
    return (letter_ok | (slots > sites)).all(1) & (species_ok | (slots >= sites)).all(1)


OPTIONS = {
    "all": {"elements": ELEMENTS},
    "elements": {"elements": ("Li", "O")},
    "exclude": {"exclude": ("O",)},
    "require": {"require": ("B", "O")},
    "require three": {"require": ELEMENTS},
    "any of": {"any_of": ("B", "O")},
    "any of and require": {"any_of": ("B", "O"), "require": ("Li",)},
    "any of, excluded in part": {"any_of": ("B", "O"), "exclude": ("B",)},
    "formula and any of": {"formula": (("B", 1), ("O", 1)), "any_of": ("O", "Li")},
    "max atoms": {"max_atoms": 7},
    "max sites": {"max_sites": 2, "require": ("Li", "B")},
    "site species": {"template": Template(species=(("Li",), (), ("O", "B")))},
    "tied": {"template": Template(tied=((0, 2),)), "require": ("B",)},
    "tied lists": {"template": Template(species=(("Li", "O"), ("O", "B")), tied=((0, 1),))},
    "letters": {"template": Template(letters=("a", "c")), "max_atoms": 9},
    "formula": {"formula": (("Li", 1), ("B", 1), ("O", 1))},
    "uneven formula": {"formula": (("Li", 1), ("B", 1), ("O", 3))},
    "two elements": {"formula": (("Li", 2), ("O", 6)), "max_atoms": 12},
    "one element": {"formula": (("B", 1),), "max_sites": 2},
    "formula and require": {"formula": (("B", 1), ("O", 1)), "require": ("B",)},
    "formula and tie": {"formula": (("B", 1), ("O", 2)), "template": Template(tied=((0, 1),)), "max_atoms": 12},
}


@pytest.fixture(scope="module")
def universes() -> dict[int, CrystalBatch]:
    """Of cubic Pm-3m, of P4mm where every letter has a free coordinate, of C2/m with its centring."""
    return {group: universe(group) for group in (221, 99, 12)}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("group", [221, 99, 12])
def test_masks_let_through_what_is_wanted(universes, group, name):
    """Of all crystals of up to three sites: the masks never forbid a wanted one, and those they allow are wanted.

    A draw that the masks led into a dead end has no crystal here: it would need a letter or species outside them.
    Required elements, and those of which there must be one, are no matter of masks.
    """
    crystals = universes[group]
    request = SampleConfig(space_groups=(group,), **OPTIONS[name])
    constraints = build_constraints(request, CONFIG)
    wanted = np.array([is_wanted(request, crystals, row) for row in range(len(crystals))])
    if request.formula and request.max_atoms is None:
        wanted &= crystals.num_atoms <= 20 * TABLE.num_lattice_points(group)
    np.testing.assert_array_equal(satisfied(constraints, crystals), wanted)
    np.testing.assert_array_equal(np.asarray(satisfied_jax(constraints, crystals)), wanted)
    masked = wanted
    if (request.require or request.any_of) and not request.formula:
        unmasked = dataclasses.replace(request, require=(), any_of=())
        masked = np.array([is_wanted(unmasked, crystals, row) for row in range(len(crystals))])
    np.testing.assert_array_equal(mask_allows(constraints, crystals), masked)
    if name != "all":
        assert not wanted.all()


@pytest.mark.parametrize("name", ["max atoms", "tied lists", "uneven formula", "two elements"])
def test_random_walks_inside_the_masks_are_wanted(name):
    """Letters and species drawn evenly from the masks, in Pm-3m: what does not end in a dead end is wanted."""
    request = SampleConfig(space_groups=(221,), **OPTIONS[name])
    constraints = build_constraints(request, CONFIG)
    rng, num, group = np.random.default_rng(0), 400, np.full(400, 221, np.int32)
    wyckoff, species = np.zeros((2, num, CONFIG.n_max), np.int32)
    dead, ended = np.zeros((2, num), bool)
    fixed, last = TABLE.is_fixed[220], np.zeros(num, int)

    def crystals() -> CrystalBatch:
        return CrystalBatch(group, np.ones((num, 6)), np.zeros((num, CONFIG.n_max, 3)), species.copy(), wyckoff.copy())

    def pick(mask: np.ndarray) -> np.ndarray:
        return np.where(mask, rng.random(mask.shape), -1).argmax(-1)

    for slot in range(CONFIG.n_max):
        before = prefix(crystals(), CONFIG.num_species)
        before = before._replace(slot=np.full(num, slot, np.int32))
        letters = np.arange(CONFIG.num_letters)
        rules = (letters >= (last + fixed[last])[:, None]) & (letters > 0) | (letters == 0) & (slot > 0)
        mask = np.array(letter_masks(constraints, group, before)) & rules
        dead |= ~ended & ~mask.any(1)
        letter = np.where(ended | dead, 0, pick(mask))
        ended |= letter == 0
        mask = np.array(species_masks(constraints, group, before, np.maximum(letter, 1), species))
        mask[:, [z for z in range(CONFIG.num_species) if z not in NUMBERS]] = False
        dead |= ~ended & ~mask.any(1)
        ended |= dead
        wyckoff[:, slot], species[:, slot] = np.where(ended, 0, letter), np.where(ended, 0, pick(mask))
        last = letter
    good = satisfied(constraints, crystals())
    assert good[~dead].all()
    assert not good[dead].any()
    assert (~dead).sum() > 20


def test_forbidden_species_are_in_no_mask(universes):
    crystals = universes[221]
    constraints = build_constraints(SampleConfig(space_groups=(221,), elements=("Li", "B"), exclude=("B",)), CONFIG)
    before = prefixes(crystals, CONFIG.num_species)
    masks = species_masks(
        constraints, crystals.space_group[:, None], before, crystals.wyckoff, crystals.species[:, None]
    )
    assert np.flatnonzero(np.asarray(masks).any((0, 1))).tolist() == [3]


def test_a_crystal_of_the_wrong_size_is_not_wanted():
    """The limit is the one of its own space group; two of them in one batch."""
    crystals = universe(221)
    some = crystals[:2]
    both = dataclasses.replace(some, space_group=np.array([221, 225], np.int32), wyckoff=some.wyckoff[[0, 0]])
    assert both.num_atoms.tolist() == [1, 4]
    limits = np.full(230, 2, np.int32)
    constraints = dataclasses.replace(unconstrained(CONFIG), max_atoms=limits)
    assert satisfied(constraints, both).tolist() == [True, False]
    limits[224] = 4
    assert satisfied(constraints, both).all()


def test_unconstrained_allows_everything_the_slots_hold():
    constraints = unconstrained(CONFIG)
    assert constraints.max_sites == CONFIG.n_max - 1
    for group in (99, 221):
        crystals = universe(group)
        assert satisfied(constraints, crystals).all()
        assert mask_allows(constraints, crystals).all()


@pytest.mark.parametrize("group", [1, 2, 12, 47, 99, 166, 221, 225, 227])
def test_min_sites_against_all_combinations(group):
    """Of up to 4 sites; more sites have to be said to be more."""
    most = 4
    brute = np.full((29, MOST_ATOMS + 1), IMPOSSIBLE)
    brute[:, 0] = 0
    for sequence in letter_sequences(group, 28, most):
        atoms = int(TABLE.multiplicity[group - 1, list(sequence)].sum())
        if atoms <= MOST_ATOMS:
            rows = brute[: sequence[0] + 1, atoms]
            np.minimum(rows, len(sequence), out=rows)
    found = min_sites(group)
    assert found.shape == brute.shape
    np.testing.assert_array_equal(np.where(found <= most, found, IMPOSSIBLE), brute)


def test_min_sites_of_many_atoms():
    """Pm-3m holds two atoms of one kind on a and b, four on a and c; P1 takes a site an atom; Fd-3m has none of 4."""
    assert min_sites(221)[1, [1, 2, 3, 4, 9]].tolist() == [1, 2, 1, 2, 2]
    assert min_sites(221)[2, 2] == IMPOSSIBLE
    assert min_sites(1)[1, :255].tolist() == list(range(255))
    assert min_sites(227)[1, 4] == IMPOSSIBLE
    assert (min_sites(221)[28, 1:] == IMPOSSIBLE).all()


def test_make_formula_is_in_lowest_terms():
    formula = make_formula({38: 2, 22: 2, 8: 6}, (221, 62))
    assert formula.species.tolist() == [38, 22, 8, 0]
    assert formula.counts.tolist() == [1, 1, 3, 0]
    np.testing.assert_array_equal(formula.min_sites[220], min_sites(221))
    np.testing.assert_array_equal(formula.min_sites[61], min_sites(62))
    assert (formula.min_sites[0] == IMPOSSIBLE).all()
    assert make_formula(dict.fromkeys(range(1, 6), 4), (1,)).counts.tolist() == [1] * 5 + [0] * 3


@pytest.mark.parametrize("leaves", [np.asarray, jnp.asarray])
def test_prefixes_are_those_of_crystals_cut_short(rotary, leaves):
    crystals = rotary.batch[:40].numpy()
    every = prefixes(jax.tree.map(leaves, crystals), 119)
    assert every.slot.shape == crystals.wyckoff.shape
    for slot in range(crystals.num_slots):
        is_before = np.arange(crystals.num_slots) < slot
        cut = dataclasses.replace(crystals, wyckoff=crystals.wyckoff * is_before, species=crystals.species * is_before)
        one = prefix(jax.tree.map(leaves, cut), 119)
        np.testing.assert_array_equal(every.atoms[:, slot], one.atoms)
        reached = slot <= crystals.num_sites
        np.testing.assert_array_equal(np.asarray(every.slot)[reached, slot], np.asarray(one.slot)[reached])
    np.testing.assert_array_equal(np.asarray(every.atoms)[:, -1].sum(1), crystals.num_atoms)
