"""Encoded data sets mixed in memory."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from cfx.core.crystal import concatenate
from cfx.data.mixture import Mixture, repeated_rows

from .test_dataset import HCP, ROCK_SALT, load, write_csv


@pytest.fixture
def sets(tmp_path):
    """Rock salt and magnesium; silver chloride alone."""
    two = write_csv(tmp_path / "two.csv", ("salt", ROCK_SALT.to(fmt="cif")), ("magnesium", HCP.to(fmt="cif")))
    silver = ROCK_SALT.copy()
    silver.replace_species({"Na": "Ag"})
    return load(two), load(write_csv(tmp_path / "one.csv", ("silver", silver.to(fmt="cif"))))


def test_rows_of_both_sets_some_of_them_repeated(sets):
    two, one = sets
    mixed = Mixture("mixed", [(two, np.array([1, 0])), (one, np.array([0, 0, 0]))])
    assert (len(mixed), mixed.n_max, mixed.source) == (5, 21, "mixed")
    assert mixed.names == ["magnesium", "salt", "silver", "silver", "silver"]
    expected = concatenate([two.batch[np.array([1, 0])], one.batch[np.zeros(3, int)]])
    for ours, theirs in zip(jax.tree.leaves(mixed.batch), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert {z: n for z, n in enumerate(mixed.element_counts()) if n} == {11: 1, 12: 1, 17: 4, 47: 3}
    assert (mixed.space_group_counts()[224], mixed.space_group_counts()[193]) == (4, 1)
    assert mixed.provenance == {"source": "mixed", "sha256": mixed.digest, "crystals": 5}


def test_a_mixture_of_mixtures(sets):
    two, one = sets
    inner = Mixture("inner", [(one, np.array([0])), (two, np.array([0]))])
    outer = Mixture("outer", [(two, np.array([1])), (inner, np.array([1, 0]))])
    assert outer.names == ["magnesium", "salt", "silver"]
    expected = concatenate([two.batch[np.array([1, 0])], one.batch])
    np.testing.assert_array_equal(outer.batch.species, expected.species)


def test_the_digest_is_that_of_content_and_choice(sets):
    two, one = sets
    digests = [
        Mixture(name, [(two, np.array(rows)), (one, np.array([0]))]).digest
        for name, rows in (("a", [0, 1]), ("b", [0, 1]), ("a", [1, 0]), ("a", [0]), ("a", [0, 0]))
    ]
    assert digests[0] == digests[1] and len(set(digests)) == 4


@pytest.mark.parametrize("size", [1, 3, 40, 250, 251, 10_000])
@pytest.mark.parametrize("most", [1, 4, 1000])
def test_kept_crystals_fill_the_room_they_are_given(size, most):
    rows = repeated_rows(["salt"] * size, {"salt": 0.3}, room=250, most=most, seed=0)
    times = np.bincount(rows, minlength=size)
    assert len(rows) == min(250, size * most) and times.max() <= most
    assert times.max() - times.min() <= 1, "each as often as any other, as far as that goes"


@pytest.mark.parametrize(("many", "few", "most"), [(300, 30, 1), (300, 30, 4), (20, 40, 3), (1000, 1, 1)])
def test_every_kind_is_as_frequent_as_it_should_be(many, few, most):
    kinds = ["metal"] * many + ["salt"] * few
    rows = repeated_rows(kinds, {"metal": 0.2, "salt": 0.4, "gas": 0.4}, room=150, most=most, seed=0)
    times = np.bincount(rows, minlength=len(kinds))
    metals, salts = times[:many].sum(), times[many:].sum()
    assert abs(salts - 2 * metals) <= 2, "two to one; a kind that is not there takes no room"
    assert 148 <= metals + salts <= 150 or times[many:].min() == most or times[:many].min() == most


def test_a_choice_among_many_follows_from_the_seed():
    kinds, shares = ["salt"] * 5000, {"salt": 1.0}
    first, again, other = (repeated_rows(kinds, shares, 250, 4, seed) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()
    assert len(repeated_rows(kinds, shares, 0, 4, 0)) == 1, "one at least"
