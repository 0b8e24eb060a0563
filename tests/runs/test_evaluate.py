"""Which crystals of an evaluation are shown first."""

from pymatgen.core import Lattice, Structure

from cfx.report import GALLERY
from cfx.runs.evaluate import SHOWN, _gallery

CUBE = Structure(Lattice.cubic(3.0), ["Po"], [[0, 0, 0]])


def record(name: str, height: float | None, **changes) -> dict:
    row = dict.fromkeys(SHOWN) | {"name": name, "valid": True, "unique": True, "novel": True, "e_above_hull": height}
    return row | {"verdict": None if height is None else "below the floor" if height < -0.2 else "stable"} | changes


def order(*records: dict) -> list[str]:
    return [one["name"] for one in _gallery(records, [CUBE] * len(records))]


def test_galleries_go_by_energy_but_are_never_led_by_what_cannot_be():
    records = [
        record("gap", -0.9),
        record("unknown", None),
        record("far", 0.3),
        record("doubted", -0.15, second_verdict="below the floor"),
        record("invalid", -0.1, valid=False),
        record("near", 0.01),
    ]
    assert order(*records) == ["invalid", "near", "far", "unknown", "gap", "doubted"]


def test_without_energies_valid_and_new_ones_come_first():
    records = [record("invalid", None, valid=False), record("known", None, novel=False), record("good", None)]
    records += [record("again", None, unique=False), record("another", None)]
    assert order(*records) == ["good", "another", "known", "again", "invalid"]


def test_a_gallery_holds_so_many_and_what_the_symmetry_search_finds():
    gallery = _gallery([record(str(i), 0.1) for i in range(99)], [None, *[CUBE] * 98])
    assert len(gallery) == GALLERY and gallery[0]["name"] == "1"
    assert (gallery[0]["space_group"], gallery[0]["sites"], gallery[0]["standard"]) == (221, [[0, 1, "1a"]], True)
