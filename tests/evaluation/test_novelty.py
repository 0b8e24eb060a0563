"""What a reference holds and does not hold."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cfx.data.structures import UNREAD
from cfx.evaluation.matching import composition_key, same_crystal
from cfx.evaluation.novelty import cached_reference, find_novel, make_reference, open_reference

from .crystals import DISGUISES, caesium_chloride, displaced, rock_salt


@pytest.fixture(scope="module")
def known(golden_structures) -> list:
    return golden_structures[:30]


def test_without_a_reference_nothing_is_evaluated():
    (record,) = find_novel([rock_salt()], None)
    assert record.novel is None and "no reference" in record.reason


def test_known_crystals_are_not_novel_in_any_disguise(known):
    rng = np.random.default_rng(0)
    samples = [DISGUISES[i % 4](structure, rng) for i, structure in enumerate(known)]
    records = find_novel(samples, make_reference(known))
    assert not any(record.novel for record in records)
    for record, sample in zip(records, samples, strict=True):
        assert same_crystal(known[record.match], sample)


def test_the_answer_is_that_of_all_pairs(known):
    rng = np.random.default_rng(1)
    samples = [displaced(structure, rng, 0.2 + 0.2 * (i % 6)) for i, structure in enumerate(known)]
    samples += [rock_salt(cation="Fr"), caesium_chloride()]
    novel = [record.novel for record in find_novel(samples, make_reference(known))]
    assert novel == [not any(same_crystal(other, sample) for other in known) for sample in samples]
    assert 5 < sum(novel) < 25
    assert [record.novel for record in find_novel(samples, make_reference(known), n_jobs=2)] == novel


def test_another_arrangement_is_novel():
    reference = make_reference([rock_salt(), rock_salt(cation="K")])
    assert [record.novel for record in find_novel([caesium_chloride(), rock_salt(5.7)], reference)] == [True, False]


def test_matches_are_rows_of_what_was_given():
    """Rows that are left out of the reference still count."""
    alloy = Structure(Lattice.cubic(3), [{"Fe": 0.5, "Co": 0.5}], [[0, 0, 0]])
    reference = make_reference([None, alloy, caesium_chloride(), rock_salt()])
    assert len(reference) == 2
    assert [record.match for record in find_novel([rock_salt(), caesium_chloride()], reference)] == [3, 2]


def test_known_crystals_keep_their_names(tmp_path):
    names = ["unread", "mp-22862", "ÅCsCl", ""]
    structures = [None, rock_salt(), caesium_chloride(), rock_salt(cation="K")]
    for _ in range(2):  # made, then opened
        reference = cached_reference(lambda: structures, "digest", tmp_path, names)
        assert [reference.name(row) for row in (1, 2, 3)] == names[1:]
    assert make_reference(structures).name(3) == "3"


def test_unread_rows_are_not_novel():
    (record,) = find_novel([None], make_reference([rock_salt()]))
    assert record.novel is False and record.reason == UNREAD


def test_only_compositions_that_occur_are_looked_at(monkeypatch):
    reference = make_reference([rock_salt(), rock_salt(cation="K"), rock_salt(cation="Li")])
    looked = []
    original = type(reference).structure
    monkeypatch.setattr(type(reference), "structure", lambda self, i: looked.append(i) or original(self, i))
    find_novel([rock_salt(cation="K")], reference)
    assert looked == [1]


def test_a_reference_gives_back_its_crystals(known):
    reference = make_reference(known)
    for i, structure in enumerate(known):
        assert reference.structure(i) == structure
        assert i in reference.of_composition(composition_key(structure))
    assert reference.density() == pytest.approx([structure.density for structure in known], rel=1e-5)
    assert list(reference.num_elements()) == [len(structure.composition) for structure in known]


def test_an_empty_reference():
    reference = make_reference([])
    assert len(reference) == len(reference.density()) == len(reference.num_elements()) == 0
    assert find_novel([rock_salt()], reference)[0].novel is True


def test_a_stored_reference_is_not_made_again(known, tmp_path):
    made = []

    def structures():
        made.append(True)
        return known

    for _ in range(2):
        reference = cached_reference(structures, "digest", tmp_path)
        assert len(reference) == len(known)
        assert find_novel(known[:3], reference)[2].novel is False
    assert len(made) == 1
    cached_reference(structures, "another", tmp_path)
    assert len(made) == 2
    assert len(list(tmp_path.iterdir())) == 2  # and nothing half made


def test_another_process_may_be_faster(known, tmp_path, monkeypatch):
    rename = os.rename

    def late(source, target):
        shutil.copytree(source, target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    assert len(cached_reference(lambda: known, "digest", tmp_path)) == len(known)
    (path,) = tmp_path.iterdir()
    assert len(open_reference(path)) == len(known)


def test_a_damaged_reference_is_made_again(known, tmp_path):
    cached_reference(lambda: known, "digest", tmp_path)
    (path,) = tmp_path.iterdir()
    numbers = np.load(path / "numbers.npy")
    np.save(path / "numbers.npy", numbers[:-1])
    with pytest.raises(ValueError, match="damaged"):
        open_reference(path)
    (path / "keys.npy").write_bytes(b"")
    assert len(cached_reference(lambda: known, "digest", tmp_path)) == len(known)
    assert len(open_reference(path)) == len(known)
