"""Crystals from files: every format, and what happens to the bad ones."""

import contextlib
import csv
import gzip
import io
import itertools
import json
import re
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor

from cfx.data.read import Record, encode_records, parse_structure, read_records
from cfx.errors import DataError, DependencyError

ROCK_SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
CAESIUM = Structure.from_spacegroup("Pm-3m", Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
CHARGED = Structure(
    Lattice.tetragonal(4.1, 4.4),
    ["Fe3+", "O2-"],
    [[0, 0, 0], [0.5, 0.5, 0.5]],
    charge=1,
    site_properties={"magmom": [4.2, None], "fixed": [True, False]},
)


def cif(structure: Structure = ROCK_SALT) -> str:
    return structure.to(fmt="cif")


def table(rows: list[dict[str, str]], **options) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), **options)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def extxyz(*structures: Structure) -> str:
    from ase.io import write

    text = io.StringIO()
    write(text, [AseAtomsAdaptor.get_atoms(structure) for structure in structures], format="extxyz")
    return text.getvalue()


def formulas(path) -> list[str]:
    """Reduced formulas of everything in a file."""
    return [parse_structure(record).composition.reduced_formula for record in read_records(path)]


def names(path) -> list[str]:
    return [record.name for record in read_records(path)]


def as_json(structure: Structure) -> str:
    return json.dumps(structure.as_dict())


def printed(structure: Structure) -> str:
    return str(structure.as_dict())


def assert_same(one: Structure, other: Structure):
    """But for properties and charge, which are not read."""
    bare = other.copy()
    for name in other.site_properties:
        bare.remove_site_property(name)
    assert one == bare
    assert one.site_properties == {}


@pytest.mark.parametrize(
    ("column", "text"),
    [("cif", cif), ("cif_string", cif), ("structure", as_json)],
)
def test_csv(tmp_path, column, text):
    rows = [{"material_id": "mp-1", column: text(ROCK_SALT)}, {"material_id": "mp-2", column: text(CAESIUM)}]
    (tmp_path / "data.csv").write_text(table(rows))
    assert formulas(tmp_path / "data.csv") == ["NaCl", "CsCl"]
    assert names(tmp_path / "data.csv") == ["mp-1", "mp-2"]


def test_csv_in_gzip(tmp_path):
    (tmp_path / "data.csv.gz").write_bytes(gzip.compress(table([{"cif": cif()}, {"cif": cif(CAESIUM)}]).encode()))
    assert formulas(tmp_path / "data.csv.gz") == ["NaCl", "CsCl"]
    assert names(tmp_path / "data.csv.gz") == ["row 1", "row 2"]


@pytest.mark.parametrize("options", [{}, {"lineterminator": "\n"}, {"quoting": csv.QUOTE_ALL}])
def test_csv_dialects(tmp_path, options):
    text = table([{"": "0", "id": "a", "cif": cif()}, {"": "1", "id": "", "cif": cif(CAESIUM)}], **options)
    (tmp_path / "data.csv").write_text(text)
    assert formulas(tmp_path / "data.csv") == ["NaCl", "CsCl"]
    assert names(tmp_path / "data.csv") == ["a", "row 2"]


def test_csv_with_a_byte_order_mark(tmp_path):
    """Spreadsheets write one."""
    (tmp_path / "data.csv").write_text(table([{"cif": cif(), "id": "a"}]), encoding="utf-8-sig")
    assert formulas(tmp_path / "data.csv") == ["NaCl"]


def test_csv_with_a_cell_longer_than_the_limit_of_the_module(tmp_path):
    (tmp_path / "data.csv").write_text(table([{"cif": cif() + "#" * 200_000}]))
    assert formulas(tmp_path / "data.csv") == ["NaCl"]


def test_cif_of_one_block(tmp_path):
    (tmp_path / "salt.cif").write_text("# a comment\n" + cif())
    assert formulas(tmp_path / "salt.cif") == ["NaCl"]
    assert names(tmp_path / "salt.cif") == ["salt.cif"]


def test_cif_of_many_blocks(tmp_path):
    (tmp_path / "all.cif").write_text("# from data_mining\n" + cif() + "\n# and data_mining\n" + cif(CAESIUM))
    assert formulas(tmp_path / "all.cif") == ["NaCl", "CsCl"]
    assert names(tmp_path / "all.cif") == ["all.cif#1", "all.cif#2"]


def test_cif_in_gzip(tmp_path):
    (tmp_path / "salt.cif.gz").write_bytes(gzip.compress(cif().encode()))
    assert formulas(tmp_path / "salt.cif.gz") == ["NaCl"]


@pytest.mark.parametrize("suffix", ["extxyz", "xyz"])
def test_extxyz_of_many_frames(tmp_path, suffix):
    path = tmp_path / f"frames.{suffix}"
    path.write_text(extxyz(ROCK_SALT, CAESIUM))
    assert formulas(path) == ["NaCl", "CsCl"]
    assert names(path) == [f"frames.{suffix}#1", f"frames.{suffix}#2"]
    salt = parse_structure(next(iter(read_records(path))))
    np.testing.assert_allclose(salt.lattice.parameters, [5.64] * 3 + [90] * 3)


@pytest.mark.parametrize("name", ["POSCAR", "CONTCAR", "salt.vasp", "POSCAR.salt", "POSCAR.gz"])
def test_poscar(tmp_path, name):
    content = ROCK_SALT.to(fmt="poscar").encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert formulas(tmp_path / name) == ["NaCl"]


MIXED = {
    "b.cif": cif(CAESIUM),
    "a.cif": cif(),
    "deep/POSCAR": ROCK_SALT.to(fmt="poscar"),
    "frames.extxyz": extxyz(ROCK_SALT, CAESIUM),
    "notes.txt": "not a structure",
    "._a.cif": "what some archivers leave behind",
}


def test_directory(tmp_path):
    for name, text in MIXED.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert names(tmp_path) == ["a.cif", "b.cif", "deep/POSCAR", "frames.extxyz#1", "frames.extxyz#2"]
    assert formulas(tmp_path) == ["NaCl", "CsCl", "NaCl", "NaCl", "CsCl"]


def test_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in MIXED.items():
            archive.writestr(name, text)
    assert names(tmp_path / "all.zip") == ["a.cif", "b.cif", "deep/POSCAR", "frames.extxyz#1", "frames.extxyz#2"]
    assert formulas(tmp_path / "all.zip") == ["NaCl", "CsCl", "NaCl", "NaCl", "CsCl"]


def read(path) -> list[Record]:
    """At most a few records: a reader that loops must not hang the tests."""
    return list(itertools.islice(read_records(path), 10))


def corrupt(content: bytes) -> bytes:
    """Flips bits in the middle of compressed data."""
    middle = len(content) // 2
    return content[:middle] + bytes(255 - byte for byte in content[middle : middle + 20]) + content[middle + 20 :]


def zip_of(text: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.cif", text)
    return buffer.getvalue()


NOISE = "data_x\n" + "".join(np.random.default_rng(0).choice(list("abcdefgh"), 2000))
UNREADABLE = {
    "empty.csv": (b"", "is empty"),
    "other.csv": (b"formula,energy\nNaCl,-3.4\n", "no column with structures.*formula, energy"),
    "data.pkl": (b"", "unknown format"),
    "data.json": (b"{}", "unknown format"),
    "no_suffix": (b"data", "unknown format"),
    "short.csv.gz": (gzip.compress(b"cif\n" + NOISE.encode())[:-100], "cannot read"),
    "plain.csv.gz": (b"cif\nx\n", "cannot read"),
    "corrupt.csv.gz": (corrupt(gzip.compress(b"cif\n" + NOISE.encode())), "cannot read"),
    "short.zip": (zip_of(NOISE)[:-30], "cannot read"),
    "plain.zip": (b"no zip", "cannot read"),
    "words.extxyz": (b"two atoms\n\nNa 0 0 0\nCl 1 1 1\n", "line 1 is not a number of atoms"),
    "negative.extxyz": (b"-2\ncomment\n", "number of atoms"),
    "text.jsonl": (b'"a cif"\n', "line 1 is not JSON with a `cif`"),
    "old_mac.csv": (b"id,cif\r1,x\r2,y\r", "cannot read"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_files(tmp_path, name):
    content, message = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path / name)
    assert name in error.value.message


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "nowhere.csv")


def test_hints_say_what_would_be_read(tmp_path):
    (tmp_path / "other.csv").write_text("formula\nNaCl\n")
    with pytest.raises(DataError) as error:
        read(tmp_path / "other.csv")
    assert "`cif`" in error.value.hint
    (tmp_path / "data.json").write_text("")
    with pytest.raises(DataError) as error:
        read(tmp_path / "data.json")
    assert ".csv" in error.value.hint
    assert ".parquet" in error.value.hint


def test_a_bad_row_is_a_reason_and_not_an_end():
    bad = {
        "empty": Record("empty", "cif", ""),
        "no cif": Record("no cif", "cif", "data_x\n_nothing 1\n"),
        "printed dict": Record("printed dict", "cif", "{'cif': __import__('os').system('false')}"),
        "json": Record("json", "json", "{"),
        "json of something else": Record("json of something else", "json", '{"a": 1}'),
        "poscar": Record("poscar", "poscar", "1\n2\n3\n"),
        "extxyz": Record("extxyz", "extxyz", "2\n\nNa 0 0 0\n"),
        "no lattice": Record("no lattice", "extxyz", "1\nProperties=species:S:1:pos:R:3\nNa 0 0 0\n"),
        "disorder": Record("disorder", "json", json.dumps(
            Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]]).as_dict())),
        "overlap": Record("overlap", "json", json.dumps(
            Structure(Lattice.cubic(4), ["Na", "Na"], [[0, 0, 0], [0, 0, 0]]).as_dict())),
    }  # fmt: skip
    good = Record("good", "cif", cif())
    records = [good]
    for record in bad.values():
        records += [record, good]
    results = encode_records(records, 0.01, 20)
    assert len(results) == len(records)
    assert all(result.space_group == 225 for result in results[::2])
    for record, reason in zip(records[1::2], results[1::2], strict=True):
        assert isinstance(reason, str), record.name
        assert reason
        assert "\n" not in reason
        assert len(reason) <= 200
    reasons = dict(zip(bad, results[1::2], strict=True))
    assert reasons["empty"] == "no structure in the row"
    assert "occupancy" in reasons["disorder"]
    assert "too close" in reasons["overlap"]


def test_data_is_never_evaluated(tmp_path):
    marker = tmp_path / "marker"
    text = f"{{'cif': open({str(marker)!r}, 'w').close()}}"
    for kind in ("cif", "json", "extxyz", "poscar"):
        encode_records([Record("hostile", kind, text)], 0.01, 20)
    assert not marker.exists()


# Dicts of pymatgen, as JSON and as Python prints them.


@pytest.mark.parametrize("column", ["structure", "cif"])
@pytest.mark.parametrize("space", ["", "\n "])
def test_a_printed_dict_is_as_good_as_json(tmp_path, column, space):
    rows = [{column: space + text(CHARGED) + space} for text in (as_json, printed)]
    assert "'charge': 1" in rows[1][column] and "None" in rows[1][column] and "True" in rows[1][column]
    (tmp_path / "data.csv").write_text(table(rows))
    for record in read(tmp_path / "data.csv"):
        assert_same(parse_structure(record), CHARGED)


def test_dicts_in_json_lines(tmp_path):
    values = [("structure", CHARGED.as_dict()), ("structure", printed(CHARGED)), ("cif", CHARGED.as_dict())]
    lines = [json.dumps({"id": None, column: value}) + "\n" for column, value in values]
    (tmp_path / "data.jsonl").write_text("".join(lines) + '{"structure": null}\n')
    *records, nothing = read(tmp_path / "data.jsonl")
    for record in records:
        assert_same(parse_structure(record), CHARGED)
    assert names(tmp_path / "data.jsonl") == ["row 1", "row 2", "row 3", "row 4"]
    assert reason(nothing.text, "json") == "no structure in the row"


def reason(text: str, kind: str) -> str:
    """Why a text is not a crystal."""
    [result] = encode_records([Record("row", kind, text)], 0.01, 20)
    assert isinstance(result, str)
    return result


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json", "{call}"),
        ("json", "{{'lattice': {call}, 'sites': []}}"),
        ("cif", "{{'lattice': {call}, 'sites': []}}"),
        ("cif", '{{"lattice": [f"{{{call}}}"]}}'),
    ],
)
def test_a_printed_dict_is_never_evaluated(tmp_path, monkeypatch, kind, text):
    monkeypatch.chdir(tmp_path)
    text = text.format(call="__import__('os').system('touch marker')")
    assert reason(text, kind).startswith("neither JSON nor a printed dict")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "text",
    [
        "words",
        "{",
        "{'lattice': [[1, 0,",
        "{'sites': nan}",
        "{[]: 1}",
        "{'null': '\0'}",
        "[" * 100_000,
        "-" * 100_000 + "1",
        "1+" * 100_000 + "1",
    ],
    ids=lambda text: text[:6],
)
def test_text_that_is_neither_json_nor_a_printed_dict(text):
    expected = "neither JSON nor a printed dict (nan, inf and np.float64(...) are not read)"
    assert reason(text, "json") == expected
    with pytest.raises(ValueError, match="neither JSON"):
        parse_structure(Record("row", "json", text))


@pytest.mark.parametrize(
    "text", ["[1, 2]", "3", "null", "None", '"text"', "'text'", "{1, 2}", "{}", '{"sites": []}', "{'lattice': None}"]
)
def test_json_and_python_that_are_no_structure(text):
    for kind in ("json", "cif") if text.startswith("{") else ("json",):
        assert reason(text, kind) == "not a pymatgen Structure dictionary with a lattice and sites"


# Parquet.


def parquet(rows: list[dict], **options) -> bytes:
    """Such a table in Parquet."""
    return parquet_of(pytest.importorskip("pyarrow").Table.from_pylist(rows), **options)


def parquet_of(table, **options) -> bytes:
    from pyarrow.parquet import write_table

    buffer = io.BytesIO()
    write_table(table, buffer, **options)
    return buffer.getvalue()


def nested(structure: Structure) -> dict:
    """Parquet has no empty structs."""
    content = structure.as_dict()
    return {key: value for key, value in content.items() if value != {}}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("cif", printed),
        ("cif", nested),
        ("cif_string", as_json),
        ("structure", as_json),
        ("structure", printed),
        ("structure", nested),
    ],
)
def test_dicts_in_parquet(tmp_path, column, value):
    (tmp_path / "data.parquet").write_bytes(parquet([{"energy": -3.4, column: value(CHARGED)}]))
    [record] = read(tmp_path / "data.parquet")
    assert_same(parse_structure(record), CHARGED)


def test_numbers_that_are_none_in_parquet(tmp_path):
    crystal = CHARGED.copy(site_properties={"magmom": [float("nan"), float("inf")]})
    (tmp_path / "data.parquet").write_bytes(parquet([{"structure": nested(crystal)}]))
    [record] = read(tmp_path / "data.parquet")
    assert_same(parse_structure(record), CHARGED)


@pytest.mark.parametrize("place", ["properties", "label", "species"])
def test_a_dict_imports_nothing(tmp_path, monkeypatch, place):
    """pymatgen decodes what says "@module" and "@class" by importing and calling it."""
    (tmp_path / "evil.py").write_text("open('marker', 'w')\nclass A:\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    evil, content = {"@module": "evil", "@class": "A"}, CHARGED.as_dict()
    if place == "species":
        content["sites"][0]["species"][0]["element"] = evil
    else:
        content["sites"][0][place] = {"magmom": evil} if place == "properties" else evil
    content["properties"] = {"x": evil}
    for text in (json.dumps(content), str(content)):
        with contextlib.suppress(ValueError):
            parse_structure(Record("", "json", text))
    assert not (tmp_path / "marker").exists() and "evil" not in sys.modules


def test_parquet_of_several_row_groups(tmp_path):
    crystals = {"a": ROCK_SALT, "": CAESIUM, None: ROCK_SALT, "d": ROCK_SALT, "e": CAESIUM}
    rows = [{"id": name, "cif": cif(crystal)} for name, crystal in crystals.items()]
    (tmp_path / "data.parquet").write_bytes(parquet(rows, row_group_size=2))
    assert formulas(tmp_path / "data.parquet") == ["NaCl", "CsCl", "NaCl", "NaCl", "CsCl"]
    assert names(tmp_path / "data.parquet") == ["a", "row 2", "row 3", "d", "e"]


def test_parquet_names_that_are_numbers(tmp_path):
    (tmp_path / "data.parquet").write_bytes(parquet([{"material_id": n, "id": "x", "cif": cif()} for n in (0, 17)]))
    assert names(tmp_path / "data.parquet") == ["0", "17"]


def test_parquet_beside_a_csv(tmp_path):
    (tmp_path / "b.csv").write_text(table([{"cif": cif()}]))
    (tmp_path / "a.parquet").write_bytes(parquet([{"cif": cif(CAESIUM)}]))
    assert formulas(tmp_path) == ["CsCl", "NaCl"]


@pytest.mark.parametrize("name", ["all.zip", "data.parquet.gz"])
def test_parquet_that_is_compressed_is_read_through_once(tmp_path, monkeypatch, name):
    """To go back in compressed data is to start over, for every page of every column."""
    content = parquet([{"id": "a", "cif": cif()}, {"id": "b", "cif": cif(CAESIUM)}], row_group_size=1)
    if name == "all.zip":
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("deep/data.parquet", content)
    else:
        (tmp_path / name).write_bytes(gzip.compress(content))
    for kind in (zipfile.ZipExtFile, gzip.GzipFile):
        monkeypatch.setattr(kind, "seek", lambda *_: pytest.fail("seeks in compressed data"))
    assert formulas(tmp_path / name) == ["NaCl", "CsCl"]
    assert names(tmp_path / name) == ["a", "b"]


def test_parquet_is_read_piece_by_piece(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    one = cif()
    count = 12_000_000 // len(one)
    content = parquet(
        [{"id": "a", "cif": one}] * count, row_group_size=count // 2, compression="none", use_dictionary=False
    )
    assert len(content) > 12_000_000
    (tmp_path / "data.parquet").write_bytes(content)
    del content
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    found, most = 0, 0
    for _ in read_records(tmp_path / "data.parquet"):
        found, most = found + 1, max(most, pyarrow.total_allocated_bytes() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == count
    assert peak < 2_000_000  # a page has one
    assert most < 5_000_000


def test_parquet_columns_that_are_not_needed_are_not_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    columns = ["cif", "energy", "energy", "id", "name", "name"]
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * len(columns), columns)
    (tmp_path / "data.parquet").write_bytes(parquet_of(twice))
    assert names(tmp_path / "data.parquet") == ["a"]


def test_parquet_without_structures(tmp_path):
    (tmp_path / "data.parquet").write_bytes(parquet([{"formula": "NaCl", "energy": -3.4}]))
    with pytest.raises(DataError, match=r"data\.parquet has no column with structures.*formula, energy") as error:
        read(tmp_path / "data.parquet")
    assert "`structure`" in error.value.hint


def test_parquet_cells_that_are_no_text(tmp_path):
    """Each is a reason, and none is an end."""
    import datetime

    for value in (None, 3, 0.5, b"bytes", datetime.datetime(2024, 1, 1), [1, 2], {"lattice": datetime.date.min}):
        for column in ("cif", "structure"):
            (tmp_path / "data.parquet").write_bytes(parquet([{"name": "one", column: value}]))
            [record] = read(tmp_path / "data.parquet")
            assert record.name == "one"
            assert (reason(record.text, record.format) == "no structure in the row") == (value is None)


def damaged_parquet(damage: str) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    whole = parquet([{"cif": NOISE}], compression="gzip", use_dictionary=False, write_statistics=False)
    texts = pyarrow.array([b"data_\xe9"]).view(pyarrow.string())
    return {
        "empty": b"",
        "text": b"cif\nx\n",
        "short": whole[:-30],
        "without its head": whole[100:],
        "corrupt": corrupt(whole[: len(NOISE) // 2]) + whole[len(NOISE) // 2 :],
        "not utf-8": parquet_of(pyarrow.table({"cif": texts})),
        "two columns of one name": parquet_of(pyarrow.Table.from_arrays([texts, texts], ["cif", "cif"])),
    }[damage]


@pytest.mark.parametrize(
    "damage", ["empty", "text", "short", "without its head", "corrupt", "not utf-8", "two columns of one name"]
)
def test_damaged_parquet(tmp_path, damage):
    (tmp_path / "data.parquet").write_bytes(damaged_parquet(damage))
    with pytest.raises(DataError, match=r"^cannot read .*data\.parquet: .") as error:
        read(tmp_path / "data.parquet")
    assert "\n" not in error.value.message


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    with pytest.raises(DependencyError, match="Parquet needs pyarrow") as error:
        read(tmp_path / "data.parquet")
    assert error.value.hint == "pip install 'cfx-crystal[parquet]'"


# Large files: records come one at a time.


def lines_of(kind: str) -> tuple[str, str]:
    """A header, and the text of one crystal."""
    return {
        "csv": ("id,cif\n", 'salt,"' + cif() + '"\n'),
        "jsonl": ("", json.dumps({"cif": cif()}) + "\n"),
        "cif": ("# a comment\n", cif()),
        "extxyz": ("", extxyz(ROCK_SALT)),
    }[kind]


def write_large(path, kind: str) -> int:
    """Writes 6 MB of crystals in the way the suffix says; returns how many."""
    header, one = lines_of(kind)
    count = 6_000_000 // len(one)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(f"data.{kind}", "w") as file:
            file.write((header + one * count).encode())
    else:
        with gzip.open(path, "wb", 1) if path.suffix == ".gz" else open(path, "wb") as file:
            file.write((header + one * count).encode())
    return count


@pytest.mark.parametrize(
    "name", ["data.csv", "data.csv.gz", "data.csv.zip", "data.jsonl", "data.cif.gz", "data.extxyz"]
)
def test_files_are_read_line_by_line(tmp_path, name):
    count = write_large(tmp_path / name, name.split(".")[1])
    tracemalloc.start()
    found = sum(1 for _ in read_records(tmp_path / name))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == count
    assert peak < 1_000_000


def test_members_of_a_zip_that_cannot_be_read(tmp_path):
    """Each is a row that fails, and the others are read."""
    content = bytearray(zip_of(cif()))
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(header) + flags] |= 1
    (tmp_path / "secret.zip").write_bytes(content)
    (tmp_path / "corrupt.zip").write_bytes(corrupt(zip_of(NOISE)))
    for name, words in {"secret.zip": "encrypted", "corrupt.zip": "."}.items():
        [record] = read(tmp_path / name)
        assert (record.name, record.format) == ("a.cif", "unreadable")
        assert re.search(words, reason(record.text, "unreadable"))


def test_line_ends(tmp_path):
    """Of Windows and in text that JSON does not escape."""
    (tmp_path / "all.cif").write_bytes((cif() + cif(CAESIUM)).replace("\n", "\r\n").encode())
    (tmp_path / "data.extxyz").write_bytes(extxyz(ROCK_SALT, CAESIUM).replace("\n", "\r\n").encode())
    (tmp_path / "data.csv").write_bytes(table([{"cif": cif().replace("\n", "\r\n")}]).encode())
    row = {"id": "line\u2028end", "cif": cif()}
    (tmp_path / "data.jsonl").write_bytes((json.dumps(row, ensure_ascii=False) + "\r\n").encode())
    assert formulas(tmp_path) == ["NaCl", "CsCl", "NaCl", "NaCl", "CsCl", "NaCl"]
    assert names(tmp_path)[-1] == "line\u2028end"


def sites_table(*rows: dict) -> str:
    salt = {
        "L": [5.64, 5.64, 5.64, 90, 90, 90],
        "X": [[0, 0, 0], [0.5, 0.5, 0.5], [0, 0, 0]],
        "A": [11, 17, 0],
        "W": [1, 2, 0],
        "M": [4, 4, 0],
        "G": 225,
    }
    return table([{key: json.dumps(value) for key, value in (salt | row).items()} for row in rows])


def test_the_public_layout_of_sites(tmp_path):
    """As CrystalFormer writes its samples, and cfx its .csv."""
    (tmp_path / "out.csv").write_text(
        sites_table({}, {"A": [55, 17, 0], "W": [1, 2, 0], "G": 221, "L": [4.1] * 3 + [90] * 3})
    )
    salt, caesium = (parse_structure(record) for record in read(tmp_path / "out.csv"))
    assert StructureMatcher().fit(salt, ROCK_SALT) and len(salt) == 8
    assert StructureMatcher().fit(caesium, CAESIUM) and len(caesium) == 2
    assert names(tmp_path / "out.csv") == ["row 1", "row 2"]


@pytest.mark.parametrize(
    "row",
    [{"G": 231}, {"G": 0}, {"G": None}, {"W": [1, 28, 0]}, {"W": [-1, 2, 0]}, {"A": [11, 500, 0]}, {"A": "x"},
     {"L": [1]}, {"X": [[0, 0, 0]]}, {"W": [0, 0, 0]}, {"X": [["a", 0, 0]] * 3}],
)  # fmt: skip
def test_sites_that_are_no_crystal(tmp_path, row):
    (tmp_path / "out.csv").write_text(sites_table(row))
    [record] = read(tmp_path / "out.csv")
    with pytest.raises(ValueError, match="not a crystal in the columns L, X, A, W, G"):
        parse_structure(record)


def test_the_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "good.cif").write_text(cif())
    (tmp_path / "data" / "bad.csv.gz").write_bytes(b"no gzip")
    (tmp_path / "data" / "other.csv").write_text("formula\nNaCl\n")
    (tmp_path / "data" / "link.cif").symlink_to("nowhere.cif")
    kinds = {record.name: record.format for record in read(tmp_path / "data")}
    assert kinds == dict.fromkeys(("bad.csv.gz", "link.cif", "other.csv"), "unreadable") | {"good.cif": "cif"}
    with pytest.raises(DataError, match=r"data/bad\.csv\.gz: ") as error:
        list(read_records(tmp_path / "data" / "bad.csv.gz"))
    assert error.value.hint.startswith("it may be cut short")


def test_a_file_that_is_damaged_further_on(tmp_path):
    """Beside others it fails for one row more; by itself it is not the data that was meant."""
    (tmp_path / "data").mkdir()
    noise = "".join(np.random.default_rng(0).choice(list("abcdefgh"), 50_000))
    content = gzip.compress((table([{"cif": cif()}]) + noise).encode())[:-5000]
    (tmp_path / "data" / "a.csv.gz").write_bytes(content)
    (tmp_path / "data" / "b.cif").write_text(cif())
    assert [record.format for record in read(tmp_path / "data")] == ["cif", "unreadable", "cif"]
    with pytest.raises(DataError, match="cannot read"):
        read(tmp_path / "data" / "a.csv.gz")


def test_lines_without_a_structure_are_rows_that_fail(tmp_path):
    (tmp_path / "data.jsonl").write_text(
        '{"other": 1}\n{"cif": "x"}\n\n[]\n{"cif": "y"}\n{"a":\n' + "[" * 99_999 + "\n"
    )
    found = read(tmp_path / "data.jsonl")
    assert [record.format for record in found] == ["unreadable", "cif", "unreadable", "cif", "unreadable", "unreadable"]
    assert found[2].text == "line 4 is not JSON with a `cif` or `structure`"
