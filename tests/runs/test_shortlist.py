"""Which crystals are in a shortlist, in which order, and why others are not."""

from __future__ import annotations

import pytest

from cfx.config import EvalConfig, ShortlistConfig
from cfx.errors import OutputError, UsageError
from cfx.runs.shortlist import check_shortlist, select


def record(name: str, height: float | None, **changes) -> dict:
    good = {
        "name": name,
        "formula": name,
        "valid": True,
        "duplicate_of": None,
        "verdict": None if height is None else "unstable",
        "e_above_hull": height,
        "density": 3.0,
    }
    return good | changes


RECORDS = [
    record("high", 0.3),
    record("gap", -0.9, verdict="below the floor"),
    record("doubted", -0.1, verdict="stable", second_verdict="below the floor"),
    record("low", -0.01, density=1.0),
    record("again", -0.01, duplicate_of="low"),
    record("wrong", -0.1, valid=False),
    record("unreadable", None, formula=None, valid=False),
    record("unknown", None, density=9.0),
    record("equal", 0.3),
    record("middle", 0.1, density=5.0),
]


def names(records: list[dict], **settings) -> list[str]:
    return [records[row]["name"] for row in select(records, ShortlistConfig(**settings)).rows]


def test_the_lowest_come_first_and_equal_ones_as_in_the_file():
    assert names(RECORDS) == ["low", "middle", "high", "equal"]
    assert names(RECORDS[::-1]) == ["low", "middle", "equal", "high"]
    assert names(RECORDS, top=2) == ["low", "middle"]


def test_by_any_column_and_the_other_way_round():
    assert names(RECORDS, sort="-e_above_hull") == ["high", "equal", "middle", "low"]
    assert names(RECORDS, sort="density") == ["low", "high", "equal", "middle", "unknown"]
    assert names(RECORDS, sort="-density", top=1) == ["unknown"]


def test_every_crystal_is_in_it_or_left_out_for_one_reason():
    for top in (1, 3, 4, 100):
        rows, left_out = select(RECORDS, ShortlistConfig(top=top))
        assert len(rows) + sum(left_out.values()) == len(RECORDS)
        assert left_out.pop("ranked lower", 0) == max(0, 4 - top)
        assert left_out == {
            "below the floor (in a gap of the hull, or the potential is wrong)": 2,
            "duplicates": 1,
            "not valid": 1,
            "could not be read": 1,
            "without e_above_hull": 1,
        }


def test_nothing_is_fit():
    assert select([RECORDS[1]], ShortlistConfig()).rows == [] and select([], ShortlistConfig()).left_out == {}


def test_a_column_that_nothing_will_be_in_is_refused():
    with pytest.raises(UsageError, match="no column of numbers 'verdict'") as error:
        ShortlistConfig(sort="-verdict")
    assert "e_above_hull, " in str(error.value.hint) and "density" in str(error.value.hint)
    with pytest.raises(UsageError, match="only known with `hull`"):
        ShortlistConfig().check(EvalConfig(potential="orb"))
    with pytest.raises(UsageError, match="only known with `hull` and `relax`"):
        ShortlistConfig(sort="e_above_hull_unrelaxed").check(EvalConfig())
    ShortlistConfig().check(EvalConfig(potential="chgnet"))
    ShortlistConfig(sort="-density").check(EvalConfig())


def test_only_a_shortlist_is_overwritten(tmp_path):
    best = tmp_path / "best"
    check_shortlist(best, ["a.cif"], False)
    check_shortlist(None, ["a.cif", "b.cif"], False)
    with pytest.raises(UsageError, match="one file"):
        check_shortlist(best, ["a.cif", "b.cif"], False)
    best.mkdir()
    for name in ("01_KMgF3.cif", "shortlist.csv", "shortlist.html"):
        (best / name).touch()
    with pytest.raises(OutputError, match="exists"):
        check_shortlist(best, ["a.cif"], False)
    check_shortlist(best, ["a.cif"], True)
    with pytest.raises(UsageError, match="holds the crystals"):
        check_shortlist(best, [str(best / "01_KMgF3.cif")], True)
    (best / "notes.txt").touch()
    with pytest.raises(OutputError, match="not of a shortlist"):
        check_shortlist(best, ["a.cif"], True)
    with pytest.raises(OutputError, match="is a file"):
        check_shortlist(best / "notes.txt", ["a.cif"], True)
    with pytest.raises(OutputError, match="no directory"):
        check_shortlist(tmp_path / "no" / "best", ["a.cif"], True)
