"""Crystals to files: every format says the same crystals, and an interrupted file goes on where it was whole."""

import csv
import dataclasses
import itertools
import json
import os
import re
import shutil
import warnings
import zipfile
from pathlib import Path

import ase.io
import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from cfx.core.crystal import CrystalBatch
from cfx.core.elements import PLACES_IN_FORMULAS, SYMBOLS
from cfx.core.symmetry import LETTERS
from cfx.data.read import parse_structure, read_records
from cfx.errors import OutputError, UsageError
from cfx.io.formats import FORMATS, OutputRecord
from cfx.io.outputs import GrowingOutput, StandardOutput, check_output

REQUEST = {"space_groups": [1, 2], "n": 6, "seed": 0, "template": {"letters": []}}
NAMES = ["out.cif", "out.zip", "out.extxyz", "out.jsonl", "out.csv", "out"]
STRICT = StructureMatcher(ltol=1e-4, stol=1e-4, angle_tol=0.01, primitive_cell=False, scale=False)
PARTS = ("log_prob_wyckoff", "log_prob_species", "log_prob_coords", "log_prob_lattice", "log_prob")


@pytest.fixture(scope="module")
def crystals(rotary) -> CrystalBatch:
    """Twelve small crystals of several space groups."""
    batch = rotary.batch.numpy()
    rows = np.flatnonzero(batch.num_atoms <= 16)
    return batch[rows[:: len(rows) // 12][:12]]


@pytest.fixture(scope="module")
def records(crystals) -> list[OutputRecord]:
    """Those crystals with remarks of every type."""
    return [
        OutputRecord(
            i,
            crystals[i : i + 1],
            {"model": "a model", "seed": 7, "draw": 3 * i, "space_group_found": "none"}
            | {part: -1.5 * i - j for j, part in enumerate(PARTS)},
        )
        for i in range(len(crystals))
    ]


def write(path: Path, records: list[OutputRecord], **options) -> Path:
    """A whole output, in batches of five."""
    output = GrowingOutput(path, REQUEST, **options)
    output.begin()
    for first in range(0, len(records), 5):
        output.write(records[first : first + 5], {"num_crystals": first})
    output.close()
    return path


def content(path: Path) -> dict[str, bytes]:
    """The bytes of a file, of a zip's members, or of a directory's files, by name."""
    if path.is_dir():
        return {file.name: file.read_bytes() for file in sorted(path.iterdir())}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    return {path.name: path.read_bytes()}


def structures(path: Path) -> list[Structure]:
    """All crystals of a file in order; the files of a zip or a directory in the order of their numbers."""
    found = list(read_records(path))
    if path.suffix in (".zip", ""):
        found.sort(key=lambda record: int(re.search(r"gen_(\d+)", record.name)[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [parse_structure(record) for record in found]


def test_the_crystals_of_these_tests_differ(crystals):
    assert len(crystals) == 12 and len(set(crystals.space_group.tolist())) >= 4
    expected = crystals.to_structures()
    assert not any(STRICT.fit(one, other) for one, other in itertools.pairwise(expected))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "out.csv"])
def test_what_is_written_reads_back_as_the_same_crystals(tmp_path, records, crystals, name):
    found = structures(write(tmp_path / name, records))
    expected = crystals.to_structures()
    assert len(found) == len(expected) == 12
    for one, other in zip(found, expected, strict=True):
        assert one.composition == other.composition
        np.testing.assert_allclose(one.lattice.parameters, other.lattice.parameters, atol=1e-4)
        assert STRICT.fit(one, other)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith("out")] == [name]


def test_csv_has_the_columns_of_the_public_program(tmp_path, records, crystals):
    with open(write(tmp_path / "out.csv", records), newline="") as file:
        assert file.readline() == "L,X,A,W,M,G,logp_w,logp_a,logp_xyz,logp_l,logp\n"
        file.seek(0)
        rows = list(csv.DictReader(file))
    assert len(rows) == 12

    def column(name: str, dtype: type) -> np.ndarray:
        return np.array([json.loads(row[name]) for row in rows], dtype)

    found = CrystalBatch(
        space_group=column("G", np.int32),
        lattice=column("L", np.float32),
        frac_coords=column("X", np.float32),
        species=column("A", np.int32),
        wyckoff=column("W", np.int32),
    )
    for field in ("space_group", "lattice", "frac_coords", "species", "wyckoff"):
        np.testing.assert_array_equal(getattr(found, field), getattr(crystals, field))
    np.testing.assert_array_equal(column("M", np.int32), crystals.multiplicity)
    for i, row in enumerate(rows):
        logps = [float(row[key]) for key in ("logp_w", "logp_a", "logp_xyz", "logp_l", "logp")]
        assert logps == [records[i].remarks[part] for part in PARTS]


def test_cif_blocks_carry_names_and_remarks(tmp_path, records):
    text = write(tmp_path / "out.cif", records).read_text()
    assert re.findall(r"^data_(\S+)", text, re.M) == [record.name for record in records]
    assert [int(draw) for draw in re.findall(r"^_cfx_draw (\d+)$", text, re.M)] == [3 * i for i in range(12)]
    assert text.count("\n_cfx_model 'a model'\n") == 12 and text.count("\n_cfx_space_group_found none\n") == 12


def test_names_are_reduced_formulas_and_numbers(records):
    for record in records:
        [structure] = record.crystals.to_structures()
        formula, index = record.name.split("_")
        assert int(index) == record.index
        counts = {symbol: int(n or 1) for symbol, n in re.findall(r"([A-Z][a-z]?)(\d*)", formula)}
        assert counts == structure.composition.reduced_composition.get_el_amt_dict() or len(counts) == 1
        assert list(counts) == sorted(counts, key=lambda symbol: PLACES_IN_FORMULAS.get(symbol, len(SYMBOLS)))


def test_zip_holds_one_cif_a_crystal(tmp_path, records):
    blocks = content(write(tmp_path / "out.zip", records))
    assert list(blocks) == [f"gen_{i}.cif" for i in range(12)]
    together = write(tmp_path / "out.cif", records).read_bytes()
    assert b"".join(blocks.values()) == together
    assert all(
        block.startswith(f"data_{record.name}\n".encode())
        for block, record in zip(blocks.values(), records, strict=True)
    )


def test_directory_holds_one_poscar_a_crystal(tmp_path, records):
    files = content(write(tmp_path / "out", records))
    assert set(files) == {f"gen_{i}.vasp" for i in range(12)}
    assert [files[f"gen_{i}.vasp"].decode().splitlines()[0] for i in range(12)] == [record.name for record in records]


def test_json_lines_hold_the_asymmetric_unit(tmp_path, records, crystals):
    lines = [json.loads(line) for line in write(tmp_path / "out.jsonl", records).read_text().splitlines()]
    cifs = write(tmp_path / "out.cif", records).read_text()
    assert "".join(line["cif"] for line in lines) == cifs
    for i, line in enumerate(lines):
        n = int(crystals.num_sites[i])
        assert line["name"] == records[i].name and line["space_group"] == crystals.space_group[i]
        assert line["wyckoff"] == [LETTERS[letter] for letter in crystals.wyckoff[i, :n]]
        assert line["species"] == [SYMBOLS[number] for number in crystals.species[i, :n]]
        np.testing.assert_allclose(line["lattice"], crystals.lattice[i], rtol=1e-7)
        np.testing.assert_allclose(line["frac_coords"], crystals.frac_coords[i, :n], rtol=1e-7)
        assert records[i].remarks.items() <= line.items()


def test_frames_carry_names_and_remarks(tmp_path, records, crystals):
    frames = ase.io.read(write(tmp_path / "out.extxyz", records), index=":")
    for i, frame in enumerate(frames):
        remarks = dict(records[i].remarks)
        groups = {"space_group": remarks.pop("space_group_found"), "space_group_asked": crystals.space_group[i]}
        assert frame.info == {"name": records[i].name, **groups, **remarks}
        assert set(frame.arrays) == {"numbers", "positions"} and frame.pbc.all()


def test_a_lattice_that_closes_no_cell_can_be_kept(tmp_path, records):
    lattice = np.array([[3, 4, 5, 20, 20, 170]], np.float32)
    broken = dataclasses.replace(records[0], crystals=dataclasses.replace(records[0].crystals, lattice=lattice))
    for suffix in [suffix for suffix, form in FORMATS.items() if form.any_cell]:
        assert content(write(tmp_path / f"out{suffix}", [broken]))


def test_stdout_gets_the_blocks_of_a_cif(tmp_path, records, capsys):
    output = StandardOutput()
    output.write(records[:2], {})
    output.write(records[2:], {})
    output.close()
    assert capsys.readouterr().out == write(tmp_path / "out.cif", records).read_text()


@pytest.mark.parametrize("name", ["out.docx", "out.cif.gz", "out.CIF"])
def test_unknown_suffixes_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="unknown suffix") as error:
        check_output(tmp_path / name, force=True)
    assert all(suffix in error.value.hint for suffix in FORMATS)


@pytest.mark.parametrize("name", NAMES)
def test_targets_that_can_be_written(tmp_path, name):
    check_output(tmp_path / name, force=False)
    check_output(None, force=False, keep_invalid=True)
    if name == "out":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("")
    check_output(tmp_path / name, force=True)
    with pytest.raises(OutputError, match="exists") as error:
        check_output(tmp_path / name, force=False)
    assert "`force`" in error.value.hint


@pytest.mark.parametrize("name", NAMES)
def test_lattices_that_close_no_cell_need_a_format_that_can_hold_them(tmp_path, name):
    if FORMATS[Path(name).suffix].any_cell:
        check_output(tmp_path / name, force=False, keep_invalid=True)
    else:
        with pytest.raises(UsageError, match="unphysical lattices"):
            check_output(tmp_path / name, force=False, keep_invalid=True)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(OutputError, match="no directory") as error:
        check_output(tmp_path / "no" / "such" / "out.cif", force=False)
    assert f"mkdir -p {tmp_path / 'no' / 'such'}" in error.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission_is_named(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError, match=r"no permission to write in .*locked"):
        check_output(tmp_path / "locked" / "out.cif", force=False)


@pytest.mark.parametrize("name", ["out", "out.cif"])
def test_a_file_is_no_directory_and_the_other_way_round(tmp_path, name):
    """Found before the work, with --force too: the result could not take the name, or would erase a directory."""
    (tmp_path / "out").write_text("precious")
    (tmp_path / "out.cif").mkdir()
    with pytest.raises((OutputError, UsageError), match=re.escape(name)):
        check_output(tmp_path / name, force=True)


def test_an_older_result_stays_until_the_new_one_is_complete(tmp_path, records):
    for name in NAMES:
        path = write(tmp_path / name, records[:3])
        before = content(path)
        output = GrowingOutput(path, REQUEST)
        output.begin()
        output.write(records[:2], {})
        assert content(path) == before
        output.close()
        assert content(path) != before and len(content(path)) == (2 if name in ("out.zip", "out") else 1)


def garble(path: Path) -> None:
    """What a crash leaves behind the last state: half a batch, written and not accounted for."""
    with open(path, "a") as file:
        file.write("data_half\n_cfx_mod")


@pytest.mark.parametrize("cut", [0, 5, 12])
@pytest.mark.parametrize("name", NAMES)
def test_a_killed_session_is_continued_to_the_same_bytes(tmp_path, records, name, cut):
    (tmp_path / "whole").mkdir()
    whole = content(write(tmp_path / "whole" / name, records))
    first = GrowingOutput(tmp_path / name, REQUEST, keep=True)
    first.begin()
    if cut:
        first.write(records[:cut], {"num_crystals": cut, "asked": [[2, 1]]})
    garble(first.partial)
    assert not (tmp_path / name).exists()

    second = GrowingOutput(tmp_path / name, REQUEST, keep=True)
    progress = second.resume()
    assert progress == ({"num_crystals": cut, "asked": [[2, 1]]} if cut else {})
    if cut < 12:
        second.write(records[cut:], {})
    second.close()
    assert content(tmp_path / name) == whole
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith("out")] == [name]


def die_at(call: int) -> None:
    """Ends this process at a call that changes what is on the disk: before an even one, after an odd one."""
    calls = itertools.count()

    def dying(function):
        def die(*arguments, **options):
            if next(calls) == call:
                os._exit(9)
            result = function(*arguments, **options)
            if next(calls) == call:
                os._exit(9)
            return result

        return die

    for name in ("fsync", "replace", "unlink", "truncate", "mkdir", "rmdir"):
        setattr(os, name, dying(getattr(os, name)))


@pytest.mark.integration
@pytest.mark.parametrize("name", NAMES)
def test_killed_at_every_step_and_resumed(tmp_path, records, name):
    """In a forked process that ends as by SIGKILL, at each call that changes the disk."""
    records = records[:4]

    def session(resume: bool) -> None:
        output = GrowingOutput(tmp_path / name, REQUEST, keep=True)
        progress = output.resume() if resume else output.begin()
        for first in range(progress["num"] if progress else 0, 4, 2):
            output.write(records[first : first + 2], {"num": first + 2})
        output.close()

    session(resume=False)
    whole = content(tmp_path / name)
    raw = whole if name == "out" else (tmp_path / name).read_bytes()
    for call in itertools.count():
        shutil.rmtree(tmp_path / name) if name == "out" else (tmp_path / name).unlink()
        if not (child := os.fork()):
            try:
                die_at(call)
                session(resume=False)
                os._exit(0)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        try:
            check_output(tmp_path / name, force=(tmp_path / f"{name}.partial").exists(), resume=True)
            session(resume=True)
        except OutputError as error:
            assert "is complete" in error.message
        assert (content(tmp_path / name) if name == "out" else (tmp_path / name).read_bytes()) == raw
        assert [entry.name for entry in tmp_path.iterdir()] == [name]
        if code == 0:
            break
    assert call > 20


def test_resuming_nothing_is_a_start(tmp_path, records):
    for name in NAMES:
        output = GrowingOutput(tmp_path / name, REQUEST)
        assert output.resume() == {}
        output.write(records[:2], {})
        output.close()
        assert len(content(tmp_path / name)) == (2 if name in ("out.zip", "out") else 1)


def test_a_start_forgets_an_interrupted_session(tmp_path, records):
    for name in NAMES:
        output = GrowingOutput(tmp_path / name, REQUEST, keep=True)
        output.begin()
        output.write(records, {})
        fresh = write(tmp_path / name, records[:2], keep=True)
        (tmp_path / "again").mkdir(exist_ok=True)
        assert content(fresh) == content(write(tmp_path / "again" / name, records[:2]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, r"different settings \(seed\)"),
        ({"template": {"letters": ["a"]}}, r"different settings \(template\)"),
        ({"n": 7, "seed": 1}, r"different settings \(n, seed\)"),
        ({"model": "0" * 64}, "another model"),
    ],
)
def test_another_request_is_not_continued(tmp_path, records, change, said):
    output = GrowingOutput(tmp_path / "out.cif", REQUEST)
    output.begin()
    output.write(records[:2], {})
    before = output.partial.read_bytes()
    with pytest.raises(UsageError, match=rf"{said}$") as error:
        GrowingOutput(tmp_path / "out.cif", {**REQUEST, **change}).resume()
    assert ("bundled models" if "model" in change else "`resume`") in error.value.hint
    assert output.partial.read_bytes() == before


def test_kept_crystals_come_back_exactly(tmp_path, records, crystals):
    output = GrowingOutput(tmp_path / "out.cif", REQUEST, keep=True)
    output.begin()
    output.write(records[:5], {})
    output.write(records[5:], {})
    again = GrowingOutput(tmp_path / "out.cif", REQUEST, keep=True)
    again.resume()
    for num in (5, 12):
        kept = again.kept(num, crystals.num_slots)
        for field in ("space_group", "lattice", "frac_coords", "species", "wyckoff"):
            value, expected = getattr(kept, field), getattr(crystals, field)[:num]
            np.testing.assert_array_equal(value, expected)
            assert value.dtype == expected.dtype


@pytest.mark.parametrize("garbage", [b"\0" * 10, b"\0" * 400, b"\0" * 4000])
def test_kept_crystals_of_half_a_batch_do_not_count(tmp_path, records, crystals, garbage):
    output = GrowingOutput(tmp_path / "out.cif", REQUEST, keep=True)
    output.begin()
    output.write(records[:5], {})
    with open(tmp_path / "out.cif.partial.kept", "ab") as file:
        file.write(garbage)
    again = GrowingOutput(tmp_path / "out.cif", REQUEST, keep=True)
    again.resume()
    np.testing.assert_array_equal(again.kept(5, crystals.num_slots).frac_coords, crystals.frac_coords[:5])
    again.write(records[5:], {})
    np.testing.assert_array_equal(again.kept(12, crystals.num_slots).frac_coords, crystals.frac_coords)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_full_disk_is_an_error_that_names_the_result(tmp_path, records):
    output = GrowingOutput(tmp_path / "out.cif", REQUEST)
    output.begin()
    output.partial.unlink()
    output.partial.symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"cannot write .*out\.cif: No space left"):
        output.write(records[:1], {})
    assert not (tmp_path / "out.cif").exists()


def test_an_unfinished_run_is_not_thrown_away(tmp_path):
    """A forgotten --resume, or two shards under one name."""
    (tmp_path / "out.cif.partial").write_text("data_1\n")
    with pytest.raises(OutputError, match="unfinished run"):
        check_output(tmp_path / "out.cif", force=False)
    check_output(tmp_path / "out.cif", force=False, resume=True)
    check_output(tmp_path / "out.cif", force=True)


def test_what_cannot_be_continued_is_said(tmp_path):
    output = GrowingOutput(tmp_path / "out.cif", {"n": 1})
    output.begin()
    state = tmp_path / "out.cif.partial.json"
    content = json.loads(state.read_text())
    state.write_text(json.dumps(content | {"count": 1, "size": 100}))
    with pytest.raises(OutputError, match="shorter than it was"):
        output.resume()
    foreign = [content | change for change in ({"size": "1"}, {"request": 3}, {"progress": []}, {"kept": None})]
    for damaged in ("{", "[]", "{}", *map(json.dumps, foreign)):
        state.write_text(damaged)
        with pytest.raises(OutputError, match="cannot continue"):
            output.resume()
    state.unlink()
    with pytest.raises(OutputError, match="cannot continue"):
        output.resume()


@pytest.mark.parametrize("ending", ["", ".kept"])
@pytest.mark.parametrize("name", ["out.cif", "out.jsonl", "out.csv", "out"])
def test_what_was_changed_since_is_not_continued(tmp_path, records, name, ending):
    """A byte of a crystal, and what is not of ours at all, in a file that is as long as it was."""
    output = GrowingOutput(tmp_path / name, REQUEST, keep=True)
    output.begin()
    output.write(records[:5], {})
    file = tmp_path / f"{name}.partial{ending}"
    before = file.read_bytes()
    for changed in (b"x" * len(before), before[:-9] + bytes([before[-9] ^ 1]) + before[-8:]):
        file.write_bytes(changed)
        with pytest.raises(OutputError, match="not as it was written") as error:
            GrowingOutput(tmp_path / name, REQUEST, keep=True).resume()
        assert "`force`" in error.value.hint and file.read_bytes() == changed
    file.write_bytes(before)
    again = GrowingOutput(tmp_path / name, REQUEST, keep=True)
    again.resume()
    assert again.count == 5


def test_a_poscar_that_is_missing_is_noticed(tmp_path, records):
    output = GrowingOutput(tmp_path / "out", REQUEST)
    output.begin()
    output.write(records[:5], {})
    lines = output.partial.read_bytes().splitlines(keepends=True)
    output.partial.write_bytes(b"".join(lines[:3] + lines[4:]))
    with pytest.raises(OutputError, match="holds 4 crystals, but 5 were written"):
        output.close()
    with pytest.raises(OutputError, match="shorter than it was"):
        GrowingOutput(tmp_path / "out", REQUEST).resume()
