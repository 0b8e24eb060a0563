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
def test_kept_crystals_are_at_most_a_share_of_an_epoch(size, most):
    rows = repeated_rows(size, beside=1000, share=0.2, most=most, seed=[0])
    times = np.bincount(rows, minlength=size)
    assert len(rows) / (1000 + len(rows)) <= 0.2 and times.max() <= most
    if size <= 250:
        assert (times == times[0]).all(), "each as often as any other"
        assert times[0] == most or len(rows) + size > 250, "as often as there is room"
    else:
        assert len(rows) == 250 and times.max() == 1


def test_a_choice_among_many_follows_from_the_seed():
    first, again, other = (repeated_rows(5000, 1000, 0.2, 4, [seed]) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()
    assert len(repeated_rows(7, 2, 0.01, 4, [0])) == 1, "one at least"
