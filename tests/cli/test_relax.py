"""cfx relax as a user runs it."""

from __future__ import annotations

import json
import signal
import time

import pytest
from pymatgen.core import Lattice, Structure

from .test_eval import CLOSE, COPPER, CU3AU, EMT, fcc, l12, write

STRETCHED = l12("Au", "Cu", 3.9)


@pytest.fixture
def samples(tmp_path):
    shaken = (CU3AU * (2, 1, 1)).perturb(0.1)
    return write(tmp_path / "samples.jsonl", stretched=STRETCHED, shaken=shaken, close=CLOSE, nonsense="x", cu=COPPER)


def test_json_lines_have_everything(cfx, samples, tmp_path):
    result = cfx("relax", samples, "--potential", EMT, "--fmax", 0.01, "-o", "out.jsonl", "--workers", 1)
    assert result.returncode == 0, result.stderr
    assert "3 of 5 crystals converged, 2 without an energy" in result.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == ["stretched", "shaken", "close", "nonsense", "cu"]
    stretched, shaken, close, nonsense, _ = rows
    assert stretched["converged"] and stretched["fmax"] <= 0.01 and stretched["steps"] > 0
    assert stretched["energy_per_atom"] == pytest.approx(shaken["energy_per_atom"], abs=0.005)
    relaxed = Structure.from_str(stretched["cif"], fmt="cif")
    assert relaxed.volume < 0.95 * STRETCHED.volume
    assert stretched["energy"] == pytest.approx(4 * stretched["energy_per_atom"])
    assert stretched["rmsd"] == pytest.approx(0, abs=1e-3) and shaken["rmsd"] > 0.02
    assert stretched["space_group"] == 221
    assert close["energy"] is None and close["reason"] and nonsense["reason"]
    assert not list(tmp_path.glob("*.partial"))
    assert cfx("relax", samples, "--potential", EMT, "-o", "out.jsonl").returncode == 8


@pytest.mark.parametrize("name", ["out.cif", "out.extxyz"])
def test_other_formats_can_be_read_again(cfx, samples, tmp_path, name):
    result = cfx("relax", samples, "--potential", EMT, "--fix-symmetry", "-o", name, "--workers", 1)
    assert result.returncode == 0, result.stderr
    result = cfx("eval", name, "--json", "--workers", 1)
    [file] = json.loads(result.stdout)["files"]
    assert [row["formula"] for row in file["records"]] == ["Cu3Au", "Cu3Au", "Cu"]
    assert file["records"][0]["space_group"] == 221
    if name == "out.cif":
        assert "_space_group_IT_number 221" in (tmp_path / name).read_text()


def test_an_evaluation_of_relaxed_crystals(cfx, tmp_path):
    write(tmp_path / "samples.jsonl", one=STRETCHED, two=CU3AU, bad="x")
    result = cfx("eval", "samples.jsonl", "--potential", EMT, "--relax", "--json", "--workers", 1)
    assert result.returncode == 0, result.stderr
    [file] = json.loads(result.stdout)["files"]
    one, two, bad = file["records"]
    assert one["energy_per_atom"] == pytest.approx(two["energy_per_atom"], abs=1e-3)
    assert not two["unique"]  # both relax to one crystal
    assert one["rmsd_to_relaxed"] == pytest.approx(0, abs=1e-3) and bad["rmsd_to_relaxed"] is None
    assert file["summary"]["avg_rmsd_from_relaxation"]["of"] == 2


def test_an_evaluation_keeps_what_it_relaxed(cfx, samples, tmp_path):
    """Crystals, energies and space groups before and after, as cfx relax and an evaluation without it have them."""
    write(tmp_path / "phases.jsonl", cu=COPPER, au=fcc("Au", 4.06), cu3au=CU3AU)
    judging = ["--potential", EMT, "--workers", 1]
    assert cfx("hull", "build", "phases.jsonl", *judging, "-o", "h.npz").returncode == 0
    arguments = ["eval", samples, *judging, "--hull", "h.npz", "--json"]
    result = cfx(*arguments, "--relax", "-o", "table.csv", "--structures", "kept.jsonl")
    assert result.returncode == 0, result.stderr
    [file], [before] = json.loads(result.stdout)["files"], json.loads(cfx(*arguments).stdout)["files"]
    assert cfx("relax", samples, *judging, "-o", "alone.jsonl").returncode == 0
    texts = ((tmp_path / f"{name}.jsonl").read_text() for name in ("alone", "kept"))
    alone, kept = (list(map(json.loads, text.splitlines())) for text in texts)
    assert len(kept) == 5
    for record, row, one, start in zip(file["records"], kept, alone, before["records"], strict=True):
        assert {key: row[key] for key in one if key not in ("fmax", "reason", "rmsd", "potential")} == {
            key: one[key] if key != "steps" or one["energy"] is not None else None
            for key in one if key not in ("fmax", "reason", "rmsd", "potential")
        }  # fmt: skip
        assert bool(row["reason"]) == bool(one["reason"])
        assert record["energy_per_atom_unrelaxed"] == pytest.approx(start["energy_per_atom"], nan_ok=True)
        assert record["e_above_hull_unrelaxed"] == row["e_above_hull_unrelaxed"] == pytest.approx(start["e_above_hull"])
        assert record["space_group"] == start["space_group"]
        assert (row["space_group_unrelaxed"], row["space_group"]) == (start["space_group"], one["space_group"])
        assert record["space_group_relaxed"] == one["space_group"]
    stretched, shaken, close, nonsense, copper = file["records"]
    assert (stretched["space_group"], stretched["space_group_relaxed"]) == (221, 221)
    assert stretched["e_above_hull_unrelaxed"] > 0.1 > 0.01 > stretched["e_above_hull"]
    assert shaken["converged"] and shaken["steps"] > 0 and copper["steps"] == 0
    assert {close["converged"], nonsense["converged"], close["e_above_hull_unrelaxed"]} == {None}
    summary = file["summary"]
    assert summary["frac_relaxation_converged"]["count"] == 3 and summary["frac_relaxation_converged"]["of"] == 5
    assert summary["frac_space_group_changed"]["of"] == 3
    changes = [row["e_above_hull"] - row["e_above_hull_unrelaxed"] for row in (stretched, shaken, copper)]
    assert summary["avg_energy_above_hull_change_per_atom"]["value"] == pytest.approx(sum(changes) / 3)
    assert before["summary"]["frac_relaxation_converged"] is None and before["records"][0]["steps"] is None


@pytest.mark.parametrize("name", ["kept.cif", "kept.extxyz"])
def test_relaxed_crystals_keep_their_symmetry_if_told(cfx, tmp_path, name):
    """A distorted cell in a tetragonal group, which becomes cubic where it may."""
    tetragonal = Structure(Lattice.tetragonal(3.70, 3.85), ["Au", "Cu", "Cu", "Cu"], CU3AU.frac_coords)
    write(tmp_path / "one.jsonl", one=tetragonal, bad="x")
    arguments = ["eval", "one.jsonl", "--potential", EMT, "--relax", "--steps", 3, "--workers", 1, "--json"]
    result = cfx(*arguments, "--fix-symmetry", "--structures", name)
    assert result.returncode == 0, result.stderr
    [file] = json.loads(result.stdout)["files"]
    assert file["settings"]["relaxed"].startswith("to 0.05 eV/angstrom, at most 3 steps, space groups kept")
    assert (file["records"][0]["space_group"], file["records"][0]["space_group_relaxed"]) == (123, 123)
    [again] = json.loads(cfx("eval", name, "--workers", 1, "--json").stdout)["files"]
    assert [row["space_group"] for row in again["records"]] == [123]
    assert cfx(*arguments, "--structures", name).returncode == 8
    assert cfx(*arguments, "--structures", name, "--force").returncode == 0


@pytest.mark.slow
def test_an_interrupted_run_is_continued(cfx, start_cfx, tmp_path):
    crystals = {f"c{i}": (l12("Cu", "Au", 3.9 + i / 1000) * (2, 2, 1)).perturb(0.05) for i in range(90)}
    write(tmp_path / "many.jsonl", **crystals)
    arguments = ["relax", "many.jsonl", "--potential", EMT, "--steps", 30, "-o", "out.jsonl", "--workers", 1]
    process = start_cfx(*arguments)
    partial = tmp_path / "out.jsonl.partial"
    end = time.monotonic() + 600
    while not (partial.exists() and len(partial.read_text().splitlines()) > 5):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate()
    assert process.returncode == 143 and "continue with --resume" in stderr
    done = len(partial.read_text().splitlines()) - 1
    assert 0 < done < 90 and not (tmp_path / "out.jsonl").exists()
    assert cfx(*arguments).returncode == 8  # an unfinished run is not lost
    assert cfx(*arguments, "--fmax", 0.2, "--resume").returncode == 2
    with open(partial, "a") as file:
        file.write('{"row": 89, "na')  # as a kill leaves it
    result = cfx(*arguments, "--resume")
    assert result.returncode == 0, result.stderr
    resumed = (tmp_path / "out.jsonl").read_text()
    assert [json.loads(line)["name"] for line in resumed.splitlines()] == list(crystals)
    assert cfx(*arguments, "--force").returncode == 0
    whole = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    for one, other in zip(map(json.loads, resumed.splitlines()), whole, strict=True):
        assert one["energy"] == pytest.approx(other["energy"], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["nowhere.cif", "-o", "x.jsonl"], 3, "nowhere.cif"),
        (["bad.jsonl", "-o", "x.jsonl"], 3, "can be read"),
        (["good.jsonl", "-o", "x.xyz"], 2, "x.xyz"),
        (["good.jsonl", "-o", "x.jsonl", "--fmax", "0"], 2, "fmax must be positive"),
        (["good.jsonl", "-o", "x.jsonl", "--resume"], 8, "nothing to continue"),
    ],
)
def test_errors_are_one_line(cfx, tmp_path, arguments, code, word):
    write(tmp_path / "good.jsonl", cu=COPPER)
    write(tmp_path / "bad.jsonl", nonsense="x")
    result = cfx("relax", *arguments, "--potential", EMT)
    assert result.returncode == code and "Traceback" not in result.stderr, result.stderr
    assert word in result.stderr.splitlines()[0]
