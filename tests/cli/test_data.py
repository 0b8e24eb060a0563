"""cfx data as a user runs it: what is printed, and what an interrupt leaves."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure

from .conftest import COMMAND

ROCK_SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
HCP = Structure.from_spacegroup("P6_3/mmc", Lattice.hexagonal(3.21, 5.21), ["Mg"], [[1 / 3, 2 / 3, 0.25]])
MIXED = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])


def write(path: Path, *texts: str) -> Path:
    rows = ({"id": f"c{i}", "cif": text} for i, text in enumerate(texts, start=1))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three crystals, two disordered ones and an empty row."""
    salt, magnesium, mixed = (structure.to(fmt="cif") for structure in (ROCK_SALT, HCP, MIXED))
    return write(tmp_path / "data.jsonl", salt, mixed, magnesium, "", mixed, salt)


def test_text_and_failures(cfx, data, tmp_path):
    result = cfx("data", data, "--workers", 1, "--failures", "skipped.csv")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "data.jsonl: 3 crystals of 6 rows"
    assert "skipped 2 x sites with partial or mixed occupancy (first: c2)" in lines
    assert "skipped 1 x no structure in the row (first: c4)" in lines
    bar = "#" * 40
    for title, *counts in [
        ("2 space groups", f"Fm-3m 225 2 {bar}", f"P6_3/mmc 194 1 {bar[:20]}"),
        ("crystal systems", "triclinic 0", "monoclinic 0", "orthorhombic 0", "tetragonal 0", "trigonal 0",
         f"hexagonal 1 {bar[:20]}", f"cubic 2 {bar}"),
        ("symmetry-inequivalent sites", f"1 1 {bar[:20]}", f"2 2 {bar}"),
        ("3 elements, crystals that hold them", f"Na 2 {bar}", f"Cl 2 {bar}", f"Mg 1 {bar[:20]}"),
    ]:  # fmt: skip
        start = lines.index(title) + 1
        assert [" ".join(line.split()) for line in lines[start : start + len(counts)]] == counts
    with open(tmp_path / "skipped.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["row"], row["name"]) for row in rows] == [("2", "c2"), ("4", "c4"), ("5", "c5")]
    assert rows[1]["reason"] == "no structure in the row"
    again = cfx("data", data, "--failures", "skipped.csv")
    assert again.returncode == 8 and "--force" in again.stderr


def test_json(cfx, data):
    result = cfx("data", data, "--workers", 1, "--json")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["crystals"], summary["rows"], summary["skipped"]) == (3, 6, 3)
    assert summary["space_groups"] == {"194": 1, "225": 2}
    assert summary["sites"] == {"1": 1, "2": 2}
    assert summary["elements"] == {"Na": 2, "Cl": 2, "Mg": 1}
    assert summary["reasons"][0] == {
        "reason": "sites with partial or mixed occupancy",
        "rows": 2,
        "example": "c2",
    }
    assert Path(summary["cache"]).name == summary["digest"]


def test_settings_reach_the_encoder(cfx, tmp_path):
    distorted = Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.505]]).to(fmt="cif")
    path = write(tmp_path / "data.jsonl", HCP.to(fmt="cif"), distorted)
    fine = cfx("data", path, "--workers", 1, "--json", "--symprec", 0.1, "--n-max", 3)
    assert json.loads(fine.stdout)["space_groups"] == {"194": 1, "221": 1}
    narrow = cfx("data", path, "--workers", 1, "--json", "--symprec", 0.001, "--n-max", 2)
    assert json.loads(narrow.stdout)["space_groups"] == {"194": 1}
    assert json.loads(narrow.stdout)["reasons"][0]["reason"] == "2 symmetry-inequivalent sites, more than 1"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["nowhere.csv"], 3, "error: no such file or directory: nowhere.csv"),
        (["bad.jsonl"], 3, "error: bad.jsonl: none of 2 rows can be used: 2 x no structure in the row (c1, ...)"),
        (["bad.jsonl", "--n-max", 1], 2, "error: --n-max 1 is not a number of slots"),
        (["bad.jsonl", "--failures", "no/such/place.csv"], 8, "error: "),
    ],
)
def test_errors_are_one_line_and_a_hint(cfx, tmp_path, arguments, exit_code, message):
    write(tmp_path / "bad.jsonl", "", " ")
    result = cfx("data", *arguments)
    assert result.returncode == exit_code
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0].startswith(message)
    assert all(line.startswith("hint: ") for line in lines[1:]) and len(lines) <= 2


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_an_interrupt_keeps_the_work(tmp_path, monkeypatch, signum):
    """A terminal sends the signal to the workers too: they neither stop the encoding nor print."""
    cell = Structure(Lattice.cubic(9), ["O"] * 12, [[i / 20, i * i % 7 / 9, i * i % 11 / 17] for i in range(12)])
    data = write(tmp_path / "data.jsonl", *[cell.to(fmt="cif")] * 3000)
    monkeypatch.setenv("CFX_CACHE", str(tmp_path / "cache"))
    process = subprocess.Popen(
        [*COMMAND, "data", str(data), "--workers", "2"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (found := list(tmp_path.glob("cache/encoded/*.partial/dataset.json"))):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    os.killpg(process.pid, signum)
    stderr = process.communicate()[1]
    assert process.returncode == 128 + signum
    done = json.loads(found[0].read_text())["rows"]
    assert 0 < done < 3000
    assert stderr == f"error: encoding stopped after {done:,} rows; run the same command again to continue\n"
    with pytest.raises(ProcessLookupError):  # no worker is left
        for _ in range(10_000):
            os.killpg(process.pid, 0)
            time.sleep(0.05)
