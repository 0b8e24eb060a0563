"""Which of many crystals are duplicates."""

from __future__ import annotations

import itertools
import random

import joblib
import numpy as np
from pymatgen.core import Lattice, Structure

from cfx.data.structures import UNREAD
from cfx.evaluation.matching import Uniqueness, find_duplicates, same_crystal

from .crystals import DISGUISES, caesium_chloride, displaced, rock_salt


def unique(structures: list, **options) -> list[bool]:
    return [record.unique for record in find_duplicates(structures, **options)]


def by_all_pairs(structures: list) -> list[bool]:
    """The definition: a crystal that matches an earlier kept one is a duplicate."""
    kept: list = []
    for structure in structures:
        kept.append(None if any(same_crystal(other, structure) for other in kept if other is not None) else structure)
    return [one is not None for one in kept]


def crowd(golden_structures: list, bases: int, seed: int = 0) -> list:
    """Crystals, their disguises, and near relatives of which StructureMatcher takes some for the same."""
    rng = np.random.default_rng(seed)
    structures = []
    for i, base in enumerate(golden_structures[:bases]):
        structures += [base, *(disguise(base, rng) for disguise in DISGUISES)]
        structures += [displaced(base, rng, 0.3 + 0.2 * (i % 5))]
    random.Random(seed).shuffle(structures)
    return structures


def test_the_answer_is_that_of_all_pairs(golden_structures):
    structures = crowd(golden_structures, 12)
    expected = by_all_pairs(structures)
    assert unique(structures) == expected
    # The relatives are a hard test: some match, some do not.
    assert 12 < sum(expected) < 24


def test_disguises_of_a_crystal_are_duplicates(golden_structures):
    rng = np.random.default_rng(1)
    for base in golden_structures[20:30]:
        structures = [base, *(disguise(base, rng) for disguise in DISGUISES)]
        assert [record.match for record in find_duplicates(structures)] == [None, 0, 0, 0, 0]


def test_the_earlier_crystal_is_the_first_argument(golden_structures):
    """StructureMatcher is not symmetric; this is one of 1,300 pairs where that shows."""
    base = golden_structures[142]
    other = displaced(base, np.random.default_rng(2), 0.9)
    for pair in ([base, other], [other, base]):
        assert unique(pair) == [True, not same_crystal(*pair)]


def test_matches_are_rows_of_the_input():
    crowd = [rock_salt(cation="K"), None, rock_salt(), caesium_chloride(), rock_salt(5.7), rock_salt(cation="K")]
    assert [record.match for record in find_duplicates(crowd)] == [None, None, None, None, 2, 0]


def test_a_duplicate_of_a_duplicate_only_is_kept():
    """Matching is not transitive: what matches only a crystal that was not kept is none."""
    chain = [stretched(amount) for amount in (1.0, 1.15, 1.32)]
    assert [same_crystal(one, other) for one, other in itertools.combinations(chain, 2)] == [True, False, True]
    assert find_duplicates(chain) == [Uniqueness(True), Uniqueness(False, 0), Uniqueness(True)]
    assert unique([chain[1], chain[0], chain[2]]) == [True, False, False]


def stretched(amount: float) -> Structure:
    return Structure(Lattice.tetragonal(4, 5 * amount), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.45]])


def test_jobs_and_backends_do_not_change_the_result(golden_structures):
    structures = crowd(golden_structures, 5)
    alone = find_duplicates(structures, n_jobs=1)
    assert find_duplicates(structures, n_jobs=2) == alone
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert find_duplicates(structures) == alone


def test_the_backend_is_the_callers(monkeypatch):
    """What `parallel_config` says is what runs."""
    used = []
    original = joblib.parallel.ThreadingBackend.configure

    def configure(self, *arguments, **options):
        used.append(type(self).__name__)
        return original(self, *arguments, **options)

    monkeypatch.setattr(joblib.parallel.ThreadingBackend, "configure", configure)
    with joblib.parallel_config(backend="threading"):
        find_duplicates([rock_salt(), rock_salt()], n_jobs=2)
    assert used == ["ThreadingBackend"]


def test_progress_counts_compositions_that_occur_twice():
    done: list[int] = []
    pairs = [rock_salt(), rock_salt(), rock_salt(cation="K"), rock_salt(cation="K"), rock_salt(cation="Li")]
    find_duplicates(pairs, on_done=done.append)
    assert done == [1, 2]


def test_rows_that_cannot_be_compared_are_not_unique_and_say_why():
    flat = Structure(Lattice([[1, 0, 0], [0, 1, 0], [1, 1, 0]]), ["Na"], [[0, 0, 0]])
    nowhere = Structure(Lattice.cubic(4), ["Na"], [[np.nan, 0, 0]])
    records = find_duplicates([None, flat, nowhere, None, rock_salt()])
    assert [record.unique for record in records] == [False] * 4 + [True]
    assert records[0].reason == UNREAD
    assert "cubic angstrom" in records[1].reason
    assert "not finite" in records[2].reason
    assert all(record.match is None for record in records)


def test_oxidation_states_do_not_make_another_crystal():
    decorated = rock_salt()
    decorated.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    assert not same_crystal(decorated, rock_salt())  # pymatgen's own answer
    assert unique([decorated, rock_salt()]) == [True, False]


def test_partial_occupancies_are_compared_among_themselves():
    alloy = Structure(Lattice.cubic(3), [{"Fe": 0.5, "Co": 0.5}], [[0, 0, 0]])
    richer = Structure(Lattice.cubic(3), [{"Fe": 0.75, "Co": 0.25}], [[0, 0, 0]])
    assert unique([alloy, alloy.copy(), richer]) == [True, False, True]
