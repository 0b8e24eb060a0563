"""Published crystals, where a directory with them is named: CFX_DATA."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cfx.data.read import parse_structure, read_records
from cfx.evaluation.matching import find_duplicates
from cfx.evaluation.novelty import find_novel, make_reference
from cfx.evaluation.summary import rate
from cfx.evaluation.validity import composition_validity, structure_validity

FILE = Path(os.environ.get("CFX_DATA", "")) / "mp20_subset_val.csv.gz"
pytestmark = [
    pytest.mark.skipif(not FILE.is_file(), reason="CFX_DATA names no directory with mp20_subset_val.csv.gz"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def crystals() -> list:
    """793 relaxed crystals of the Materials Project."""
    return [parse_structure(record) for record in read_records(FILE)]


def test_validity_is_as_published_for_mp20(crystals):
    pytest.importorskip("smact")
    assert rate([record.valid for record in structure_validity(crystals)])["value"] >= 0.99
    assert 0.90 <= rate([record.valid for record in composition_validity(crystals)])["value"] <= 0.93


def test_they_are_unique_and_not_novel_against_themselves(crystals):
    assert rate([record.unique for record in find_duplicates(crystals)])["value"] >= 0.995
    assert not any(record.novel for record in find_novel(crystals, make_reference(crystals)))
