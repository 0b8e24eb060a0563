"""Files of hulls: what is written is read, what others publish too, and what is damaged is refused."""

from __future__ import annotations

import bz2
import functools
import gzip
import json
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedEntry, ComputedStructureEntry

from cfx.core import elements
from cfx.errors import DataError, OutputError, UsageError
from cfx.evaluation import entries
from cfx.evaluation.hull import Hull, HullInfo, build_table
from cfx.evaluation.hull_files import read_hull, write_hull
from cfx.evaluation.phases import Phases, reduce_counts

ROCK_SALT = {"Mg-O": (4.21, -12.0), "Na-Cl": (5.64, -6.8), "Li-F": (4.03, -9.7), "Fe-O": (4.33, -14.0)}
ELEMENTS = {"Mg": -1.5, "O": -5.0, "Na": -1.3, "Cl": -1.8, "Li": -1.9, "F": -1.9, "Fe": -8.3}


@functools.cache
def structures() -> list[tuple[Structure, float]]:
    """The crystals of a small hull with raw energies of all atoms, eV."""
    found = [(Structure(Lattice.cubic(3), [symbol], [[0] * 3]), energy) for symbol, energy in ELEMENTS.items()]
    for formula, (a, energy) in ROCK_SALT.items():
        crystal = Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), formula.split("-"), [[0] * 3, [0.5] * 3])
        found.append((crystal, 4 * energy))
    return found


def alexandria(corrected: bool = True) -> list[dict]:
    """The small hull in the form of Alexandria's convex_hull files."""
    return json.loads(alexandria_text(corrected))


@functools.cache
def alexandria_text(corrected: bool) -> str:
    scheme = MaterialsProject2020Compatibility(check_potcar=False)
    values = []
    for i, (structure, energy) in enumerate(structures()):
        hubbards = {"Fe": 5.3} if structure.reduced_formula == "FeO" else {}
        parameters = {"run_type": "GGA+U" if hubbards else "GGA", "hubbards": hubbards}
        data = {"mat_id": f"agm{i:09d}", "elements": [element.symbol for element in structure.elements]}
        entry = ComputedStructureEntry(structure, energy, parameters=parameters, data=data)
        if corrected:
            scheme.process_entry(entry, on_error="raise")
        values.append(entry.as_dict())
    return json.dumps(values)


@functools.cache
def small_hull(scale: str = "mp2020") -> Hull:
    crystals, energies = zip(*structures(), strict=True)
    names = [f"mp-{i}" for i in range(len(crystals))]
    info = HullInfo("small", scale, "chgnet 0.3.0", "2026-01", "computed for a test")
    return build_table(crystals, energies, names, info)


def put(path: Path, value, opener=open) -> Path:
    text = value if isinstance(value, str) else json.dumps(value)
    with opener(path, "wb") as file:
        file.write(text.encode())
    return path


def formula_of(hull: Hull, row: int) -> str:
    return elements.formula(dict(hull.phases.composition(row)))


def energy_of(hull: Hull, formula: str) -> float:
    formulas = [formula_of(hull, row) for row in range(len(hull.phases))]
    return float(hull.phases.energies[formulas.index(formula)])


def same(one: Hull, other: Hull) -> None:
    assert one.info == other.info and one.phases.ids == other.phases.ids
    assert one.phases.origins == other.phases.origins
    for name in ("sizes", "species", "counts", "energies"):
        np.testing.assert_array_equal(getattr(one.phases, name), getattr(other.phases, name), name, strict=True)


# tables


def test_a_table_comes_back(tmp_path):
    hull = small_hull()
    write_hull(tmp_path / "small.hull.npz", hull)
    back = read_hull(tmp_path / "small.hull.npz")
    same(hull, back)
    crystals, energies = zip(*structures(), strict=True)
    batch = back.evaluate(crystals, energies, "mp2020")
    np.testing.assert_allclose(batch.e_above_hull, 0, atol=1e-6)
    assert batch.ok.all()


def test_the_same_hull_makes_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_hull(tmp_path / name, small_hull())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one", "two"]


def test_a_table_says_its_scale(tmp_path):
    write_hull(tmp_path / "raw.hull.npz", small_hull("raw"))
    assert read_hull(tmp_path / "raw.hull.npz").scale == "raw"
    assert read_hull(tmp_path / "raw.hull.npz", "raw").scale == "raw"
    with pytest.raises(UsageError, match="on the scale raw, not mp2020"):
        read_hull(tmp_path / "raw.hull.npz", "mp2020")
    with pytest.raises(UsageError, match="unknown scale"):
        read_hull(tmp_path / "raw.hull.npz", "pbe")


def test_40000_phases_take_less_than_a_megabyte(tmp_path):
    rng = np.random.default_rng(0)
    compositions = []
    for size in rng.choice([2, 3, 4, 5], 41_000, p=[0.2, 0.5, 0.25, 0.05]):
        numbers = rng.choice(np.arange(1, 95), size, replace=False).tolist()
        compositions.append(reduce_counts(dict(zip(numbers, rng.integers(1, 9, size).tolist(), strict=True))))
    names = [f"mp-{i}" for i in rng.integers(1, 3_000_000, len(compositions))]
    origins = rng.choice(["structure", "relaxed", "composition"], len(compositions)).tolist()
    phases = Phases.lowest(compositions, rng.uniform(-10, -1, len(compositions)), names, origins)
    assert len(phases) > 40_000
    hull = Hull(phases, HullInfo("large", "mp2020"))
    write_hull(tmp_path / "large.hull.npz", hull)
    assert (tmp_path / "large.hull.npz").stat().st_size < 1_000_000
    same(hull, read_hull(tmp_path / "large.hull.npz"))


def test_a_table_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_hull(tmp_path / "file" / "small.hull.npz", small_hull())


def change_table(path: Path, **arrays) -> Path:
    """A good table with some arrays replaced, or left out where None."""
    write_hull(path, small_hull())
    with np.load(path) as file:
        content = {name: arrays.get(name, file[name]) for name in file.files}
    np.savez_compressed(path, **{name: array for name, array in content.items() if array is not None})
    return path


def test_tables_without_origins_are_of_structures(tmp_path):
    """As cfx 0.1 wrote them."""
    hull = small_hull()
    header = {"format": "cfx hull 1", **asdict(hull.info)}
    path = change_table(tmp_path / "old.hull.npz", header=as_bytes(header), origins=None)
    same(hull, read_hull(path))
    assert set(read_hull(path).phases.origins) == {"structure"}


def as_bytes(value) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def test_arrays_larger_than_their_file_are_not_read(tmp_path, monkeypatch):
    path = change_table(tmp_path / "bomb.hull.npz", energies=np.zeros(2_000_000))
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(DataError, match=r"declares 160\d+ bytes in a file of \d{5}"):
        read_hull(path)


DAMAGE = {
    "no energies": {"energies": None},
    "pickles": {"ids": np.array([{"a": 1}] * 11, dtype=object)},
    "another type": {"energies": np.zeros(11, np.float32)},
    "another shape": {"energies": np.zeros((11, 1))},
    "fewer energies": {"energies": np.zeros(10)},
    "NaN": {"energies": np.full(11, np.nan)},
    "no element": {"species": np.zeros(15, np.uint8)},
    "unknown element": {"species": np.full(15, 119, np.uint8)},
    "no atoms": {"counts": np.zeros(15, np.int32)},
    "cut off": {"counts": np.ones(14, np.int32)},
    "empty phase": {"sizes": np.array([0, 2, *[1] * 5, 2, 2, 2, 2], np.uint8)},
    "fewer names": {"ids": as_bytes(["a"] * 10)},
    "names that are none": {"ids": as_bytes({"a": 1})},
    "another format": {"header": as_bytes({"format": "cfx hull 3"})},
    "fewer origins": {"origins": np.zeros(10, np.uint8)},
    "no origins": {"origins": None},
    "unknown origin": {"origins": np.full(11, 1, np.uint8)},
    "no header": {"header": as_bytes(None)},
    "no JSON": {"header": np.frombuffer(b"{", np.uint8)},
    "scale": {"header": as_bytes({"format": "cfx hull 1", **dict.fromkeys(["name", "scale", "potential"], "x")})},
    "unknown scale": {
        "header": as_bytes(
            {"format": "cfx hull 1", **dict.fromkeys(["name", "scale", "potential", "version", "provenance"], "x")}
        )
    },
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_tables_are_refused(tmp_path, name):
    path = change_table(tmp_path / "bad.hull.npz", **DAMAGE[name])
    with pytest.raises(DataError, match="is not a hull that cfx can read"):
        read_hull(path)


def test_a_change_of_nothing_is_no_damage(tmp_path):
    same(read_hull(change_table(tmp_path / "good.hull.npz")), small_hull())


def test_half_a_table_is_refused(tmp_path):
    write_hull(tmp_path / "small.hull.npz", small_hull())
    content = (tmp_path / "small.hull.npz").read_bytes()
    for end in (10, len(content) // 2, len(content) - 5):
        (tmp_path / "half").write_bytes(content[:end])
        with pytest.raises(DataError, match="is not a hull that cfx can read"):
            read_hull(tmp_path / "half")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(DataError, match="is not a hull"):
        read_hull(tmp_path / "other.zip")


# computed entries


@pytest.mark.parametrize(("opener", "end"), [(open, ""), (gzip.open, ".gz"), (bz2.open, ".bz2")])
@pytest.mark.parametrize("wrap", [lambda values: values, lambda values: {"entries": values}], ids=["list", "object"])
def test_alexandria(tmp_path, opener, end, wrap):
    hull = read_hull(put(tmp_path / f"convex_hull_pbe.json{end}", wrap(alexandria()), opener))
    assert hull.scale == "mp2020" and hull.name == f"convex_hull_pbe.json{end}"
    assert len(hull.phases) == 11 and set(hull.phases.ids) == {f"agm{i:09d}" for i in range(11)}
    assert energy_of(hull, "MgO") == pytest.approx(-6 - 0.687 / 2)
    assert energy_of(hull, "FeO") == pytest.approx(-7.0 - (0.687 + 2.256) / 2)
    assert energy_of(hull, "NaCl") == pytest.approx(-3.4 - 0.614 / 2)
    assert energy_of(hull, "O") == -5.0


def test_a_raw_crystal_against_corrected_entries_is_corrected_alike(tmp_path):
    hull = read_hull(put(tmp_path / "hull.json", alexandria()))
    crystals, energies = zip(*structures(), strict=True)
    batch = hull.evaluate(crystals, energies, "raw")
    np.testing.assert_allclose(batch.e_above_hull, 0, atol=1e-6)


def test_corrections_are_left_out_where_raw_is_asked_for(tmp_path):
    hull = read_hull(put(tmp_path / "hull.json", alexandria()), "raw")
    assert hull.scale == "raw"
    assert energy_of(hull, "FeO") == pytest.approx(-7.0)


def test_entries_without_corrections_leave_the_scale_open(tmp_path):
    path = put(tmp_path / "hull.json", alexandria(corrected=False))
    with pytest.raises(DataError, match="have no corrections") as caught:
        read_hull(path)
    assert "state the scale: raw" in caught.value.hint
    for scale in ("raw", "mp2020"):
        hull = read_hull(path, scale)
        assert hull.scale == scale and energy_of(hull, "FeO") == pytest.approx(-7.0)


def test_corrections_of_another_scheme_are_not_taken_for_mp2020(tmp_path):
    values = alexandria()
    adjusted = next(value for value in values if value["energy_adjustments"])
    adjusted["energy_adjustments"][0]["name"] = "MP Anion Correction"
    path = put(tmp_path / "hull.json", values)
    with pytest.raises(DataError, match=r"other than MP2020's: MP Anion Correction"):
        read_hull(path)
    assert read_hull(path, "mp2020").scale == "mp2020"


def test_entries_as_pymatgen_writes_them(tmp_path):
    """Without structures; formulas several times; corrections by hand; only their parts, as old files have them."""
    entries = [ComputedEntry("Li4", -8.0, entry_id="mp-1"), ComputedEntry("O2", -10.0, entry_id="mp-2")]
    entries += [ComputedEntry("Li2O", -14.0, -0.5, entry_id="mp-3"), ComputedEntry("Li4O2", -31.0, entry_id="mp-4")]
    hull = read_hull(put(tmp_path / "hull.json", [entry.as_dict() for entry in entries]))
    assert energy_of(hull, "Li2O") == pytest.approx(-31 / 6)
    assert hull.phases.ids[[formula_of(hull, row) for row in range(3)].index("Li2O")] == "mp-4"

    values = alexandria()
    for value in values:
        del value["correction"]
    assert energy_of(read_hull(put(tmp_path / "parts.json", values)), "FeO") == pytest.approx(-7.0 - 2.943 / 2)
    for value in values:
        del value["composition"]  # the structure has it
    assert energy_of(read_hull(put(tmp_path / "sites.json", values)), "FeO") == pytest.approx(-7.0 - 2.943 / 2)


def test_charges_and_isotopes_are_elements(tmp_path):
    values = [{"composition": {"Fe3+": 2, "O2-": 3, "D": 1}, "energy": -9.0, "correction": -0.6}]
    hull = read_hull(put(tmp_path / "hull.json", values))
    assert hull.phases.composition(0) == ((1, 1), (8, 3), (26, 2))
    assert hull.phases.energies.tolist() == pytest.approx([-1.6])
    assert hull.phases.ids == ["entry 0"]


def test_classes_that_entries_name_are_not_imported(tmp_path, monkeypatch):
    (tmp_path / "hostile_module.py").write_text("class Entry:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    value = {"@module": "hostile_module", "@class": "Entry", "composition": {"Li": 1}, "energy": -2.0, "correction": 1}
    read_hull(put(tmp_path / "hull.json", {"@module": "hostile_module", "@class": "Entry", "entries": [value]}))
    assert "hostile_module" not in sys.modules


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_pieces_of_any_size_make_the_same(tmp_path, monkeypatch, chunk):
    before = {"a": [1, {"entries": []}], "b": "text [", "c": -12.5e3}
    path = put(tmp_path / "hull.json", "\n " + json.dumps(before | {"entries": alexandria()}, indent=1) + "\n")
    whole = read_hull(path)
    monkeypatch.setattr(entries, "CHUNK", chunk)
    same(whole, read_hull(path))


def test_progress_is_told(tmp_path):
    values = [{"composition": {"Li": 1}, "energy": -2.0, "correction": 0.1}] * 2500
    told = []
    read_hull(put(tmp_path / "hull.json", values), on_progress=told.append)
    assert told == [1000, 2000]


GOOD = {"composition": {"Li": 1}, "energy": -2.0, "correction": 0.1, "entry_id": "mp-7"}
WRONG = {
    "no energy": (GOOD | {"energy": None}, "mp-7 .* None is not an energy"),
    "lacking energy": ({"composition": {"Li": 1}}, "no 'energy'"),
    "NaN": (GOOD | {"energy": float("nan")}, "nan is not an energy"),
    "a bad correction": (GOOD | {"correction": "x"}, "'x' is not an energy"),
    "no element": (GOOD | {"composition": {"Qq": 1}}, "'Qq' is not an element"),
    "no composition": ({"energy": 1.0}, "no 'structure'"),
    "a formula": (GOOD | {"composition": "Li"}, "not a computed entry"),
    "half an atom": (GOOD | {"composition": {"Li": 0.5}}, "mp-7 has fractions of atoms"),
    "a number": (5, "item 1 is not a computed entry"),
    "an unknown adjustment": (
        {"composition": {"Li": 1}, "energy": 1.0, "energy_adjustments": [{"@class": "Odd"}]},
        "unknown kind: Odd",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_entries_are_named(tmp_path, name):
    value, message = WRONG[name]
    with pytest.raises(DataError, match=message):
        read_hull(put(tmp_path / "hull.json", [GOOD, value]))


TEXTS = {
    "empty": "",
    "cut off": json.dumps([GOOD, GOOD])[:-20],
    "end lost": json.dumps([GOOD])[:-1],
    "no list": '{"entries": 5}',
    "other key": '{"other": [1]}',
    "an empty object": "{}",
    "no comma": json.dumps([GOOD]).replace("]", " 5]"),
    "a word": "hello",
    "depth": "[" * 100_000,
    "no phases": "[]",
}


@pytest.mark.parametrize("name", TEXTS)
def test_other_text_is_refused(tmp_path, name):
    with pytest.raises(DataError) as caught:
        read_hull(put(tmp_path / "hull.json", TEXTS[name]), "raw")
    assert "hull.json" in caught.value.message


def test_damaged_archives_are_refused(tmp_path):
    for opener in (gzip.open, bz2.open):
        content = put(tmp_path / "whole", alexandria(), opener).read_bytes()
        (tmp_path / "half").write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match="half"):
            read_hull(tmp_path / "half")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(DataError, match="cannot read"):
        read_hull(tmp_path / "bytes")
    with pytest.raises(DataError, match="no such file"):
        read_hull(tmp_path / "nothing")


@pytest.mark.parametrize("header", ["(" * 5000, "{'descr': '<f8', 'shape': (", "'''", "\\", "{" * 200, "0xg"])
def test_headers_of_arrays_that_are_no_python(tmp_path, header):
    path, damaged = tmp_path / "x.npz", tmp_path / "y.npz"
    write_hull(path, small_hull())
    array = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header.encode() + b"\n"
    with zipfile.ZipFile(path) as good, zipfile.ZipFile(damaged, "w") as bad:
        for name in good.namelist():
            bad.writestr(name, array if name == "sizes.npy" else good.read(name))
    with pytest.raises(DataError, match="not a hull that cfx can read"):
        read_hull(damaged)
