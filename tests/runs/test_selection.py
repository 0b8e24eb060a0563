"""Which of a model's own crystals are kept."""

from __future__ import annotations

import pytest
from pymatgen.core import Lattice, Structure

from cfx.config import SelfTrainConfig
from cfx.errors import UsageError
from cfx.evaluation.summary import Thresholds
from cfx.runs import selection
from cfx.runs.selection import AFTER, BEFORE, check_classes, funnel, why_not_kept, why_not_relaxed

CONFIG = SelfTrainConfig(max_e_hull_unrelaxed=1.0, max_e_hull=0.1)
GOOD = {
    "formula": "NaCl",
    "class": "charge-neutral",
    "valid_structure": True,
    "e_above_hull": 0.05,
    "novel": False,
    "space_group": 225,
    "volume_change": 0.1,
}


def salt(length: float = 5.64, species: tuple[str, str] = ("Na", "Cl")) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(length), species, [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, ""),
        ({"formula": None, "class": None, "valid_structure": False, "e_above_hull": None}, selection.UNREADABLE),
        ({"valid_structure": False, "class": "other"}, selection.INVALID),
        ({"class": "intermetallic", "e_above_hull": 5.0}, selection.OTHER_CLASS),
        ({"e_above_hull": None}, selection.NO_ENERGY),
        ({"e_above_hull": -0.21}, selection.TOO_LOW),
        ({"e_above_hull": -0.19}, ""),
        ({"e_above_hull": 1.0}, ""),
        ({"e_above_hull": 1.01}, selection.TOO_HIGH),
    ],
)
def test_filters_before_relaxation(changes, expected):
    found = why_not_relaxed(GOOD | changes, CONFIG, Thresholds(floor=-0.2))
    assert found == expected and (not found or found in BEFORE)


@pytest.mark.parametrize(
    "changes, fmax, expected",
    [
        ({}, 0.05, ""),
        ({}, 0.1, ""),
        ({}, 0.11, selection.NOT_RELAXED),
        ({}, None, selection.NOT_RELAXED),
        ({"valid_structure": False}, 0.05, selection.INVALID),
        ({"e_above_hull": None}, 0.05, selection.NO_ENERGY),
        ({"e_above_hull": -0.3}, 0.05, selection.TOO_LOW),
        ({"e_above_hull": 0.11}, 0.05, selection.HIGH),
    ],
)
def test_filters_after_relaxation(changes, fmax, expected):
    found = why_not_kept(GOOD | changes, fmax, CONFIG, Thresholds(floor=-0.2), goal=0.05)
    assert found == expected and (not found or found in AFTER)


@pytest.mark.parametrize("novel, expected", [(True, ""), (False, selection.KNOWN)])
def test_known_crystals_are_left_out_if_that_is_wanted(novel, expected):
    config = SelfTrainConfig(novel=True)
    record = GOOD | {"novel": novel}
    assert why_not_relaxed(record, config, Thresholds()) == expected
    assert why_not_kept(record, 0.05, config, Thresholds(), goal=0.05) == expected


def test_repeats_are_sought_among_what_passes():
    """The first of three alike fails another filter: the second is no repeat of it."""
    structures = [salt(), salt(5.7), salt(5.6), None, salt(species=("K", "Cl")), salt(species=("Li", "F"))]
    reasons = [selection.HIGH, "", "", selection.UNREADABLE, "", ""]
    selection.mark_repeats(reasons, structures, earlier=[salt(6.3, ("K", "Cl"))], workers=1)
    assert reasons == [selection.HIGH, "", selection.REPEAT, selection.UNREADABLE, selection.REPEAT, ""]


def test_what_was_drawn_twice_can_be_left_out_altogether():
    structures = [salt(), salt(species=("Li", "F")), salt(5.7), salt(species=("K", "Cl"))]
    reasons = [""] * 4
    selection.mark_repeats(reasons, structures, earlier=[salt(6.3, ("K", "Cl"))], workers=1, once=True)
    assert reasons == [selection.REPEAT, "", selection.REPEAT, selection.REPEAT]


def test_crystals_with_more_sites_than_a_model_has_slots_are_left_out():
    many = Structure(Lattice.orthorhombic(4, 5, 6), ["Na", "Cl", "K"], [[0, 0, 0], [0.1, 0.2, 0.4], [0.5, 0.6, 0.1]])
    reasons = ["", "", selection.HIGH]
    selection.mark_unencoded(reasons, [salt(), many, many], n_max=3)
    assert reasons == ["", selection.NOT_ENCODED, selection.HIGH]


def test_a_funnel_ends_with_what_is_left():
    steps = funnel(["", selection.INVALID, "", selection.REPEAT, selection.INVALID], BEFORE)
    assert [step["filter"] for step in steps] == list(BEFORE)
    assert [step["left"] for step in steps] == [5, 3, 3, 3, 3, 3, 3, 2]


def test_a_class_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match="no class of compositions 'neutral'"):
        check_classes(SelfTrainConfig(classes=("element", "neutral")))


class Data:
    """Of four crystals, all have chlorine, two sodium, none potassium."""

    def __len__(self):
        return 4

    def element_counts(self):
        import numpy as np

        counts = np.zeros(119, int)
        counts[[11, 17]] = 2, 4
        return counts


def test_what_is_kept_is_told_beside_the_data():
    kept = [GOOD, GOOD | {"formula": "KCl", "novel": True, "volume_change": -0.3}]
    told = selection.describe_kept(kept, Data())
    assert (told["crystals"], told["compositions"], told["novel"]["count"]) == (2, 2, 1)
    assert told["volume_change"] == pytest.approx(-0.1)
    assert told["elements"][0] == {"element": "K", "kept": 0.5, "data": 0.0}
    assert {one["element"]: one["kept"] - one["data"] for one in told["elements"]} == {"K": 0.5, "Na": 0, "Cl": 0}
    assert selection.describe_kept([], Data())["crystals"] == 0


def test_only_sun_crystals_that_match_kept_ones_are_learned():
    """A kept crystal drawn again is; one that is known, too high, a repeat, or another crystal is not."""
    sun = GOOD | {"unique": True, "novel": True}
    records = [
        dict(sun),
        dict(sun),
        sun | {"novel": False},
        sun | {"unique": False},
        sun | {"e_above_hull": 0.11},
        sun | {"e_above_hull": None},
    ]
    structures = [salt(5.5), salt(species=("Na", "Br")), *[salt()] * 4]
    selection.mark_learned(records, structures, [salt(5.7), salt(5.9, ("K", "Cl"))], Thresholds(), 1)
    assert [record["learned"] for record in records] == [True, False, False, False, False, False]
    selection.mark_learned(records, structures, [], Thresholds(), 1)
    assert not any(record["learned"] for record in records)
