"""The shortlist of cfx eval as a user asks for it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure

from cfx.config.evaluation import SORTABLE

from .test_eval import AU3CU, CLOSE, COPPER, CU3AU, EMT, GOLD, fcc, l12, write

STRETCHED = l12("Au", "Cu", 3.9)


@pytest.fixture
def samples(cfx, tmp_path) -> Path:
    """Nine rows, of which five can be in a shortlist; and the hull h.npz."""
    write(tmp_path / "phases.jsonl", cu=COPPER, au=GOLD, cu3au=CU3AU)
    assert cfx("hull", "build", "phases.jsonl", "--potential", EMT, "-o", "h.npz").returncode == 0
    return write(
        tmp_path / "samples.jsonl",
        au3cu=AU3CU,
        stretched=STRETCHED,
        again=CU3AU * (2, 1, 1),
        close=CLOSE,
        nonsense="x",
        copper=fcc("Cu", 3.7),
        silver=fcc("Ag", 4.06),
        gold=GOLD,
        **{"cu <b>fcc</b>": Structure(Lattice.cubic(2.87), ["Cu", "Cu"], [[0, 0, 0], [0.5, 0.5, 0.5]])},
    )


def arguments(samples: Path) -> list[object]:
    return ["eval", samples, "--potential", EMT, "--hull", "h.npz", "--workers", 1]


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as table:
        return list(csv.DictReader(table))


def test_relaxed_crystals_by_energy_above_the_hull(cfx, samples, tmp_path):
    result = cfx(*arguments(samples), "--relax", "--top", 3, "--sort", "e_above_hull", "--shortlist", "best/", "--json")
    assert result.returncode == 0, result.stderr
    content = json.loads(result.stdout)
    [file], best = content["files"], content["shortlist"]
    records = {row["name"]: row for row in file["records"]}
    numbers = {key for row in file["records"] for key, one in row.items() if isinstance(one, int | float)}
    flags = {key for row in file["records"] for key, one in row.items() if isinstance(one, bool)}
    here = {column for column, needs in SORTABLE.items() if {"hull", "potential", "relax"}.issuperset(needs)}
    assert numbers - flags <= here <= set(file["records"][0])
    rows = read(tmp_path / "best" / "shortlist.csv")
    fit = [row for row in file["records"] if row["valid"] and row["unique"] and row["e_above_hull"] is not None]
    expected = sorted(fit, key=lambda row: row["e_above_hull"])[:3]
    assert [row["name"] for row in rows] == [row["name"] for row in expected]
    assert [row["rank"] for row in rows] == ["1", "2", "3"] and len(fit) > 3
    files = [row["cif_file"] for row in rows]
    assert {path.name for path in (tmp_path / "best").iterdir()} == {*files, "shortlist.csv", "shortlist.html"}
    assert best["crystals"] == {row["cif_file"]: row["name"] for row in rows} and best["directory"] == "best"
    assert best["left_out"] == {
        "not valid": 1,
        "could not be read": 1,
        "without e_above_hull": 1,
        "duplicates": 1 + (not records["cu <b>fcc</b>"]["unique"]),
        "ranked lower": len(fit) - 3,
    }
    assert "best: 3 of 9 crystals by e_above_hull; left out: " in result.stderr
    [name] = [row["cif_file"] for row in rows if row["name"] == "stretched"]
    assert name.endswith("_Cu3Au.cif")
    relaxed = Structure.from_file(tmp_path / "best" / name)
    assert relaxed.volume < 0.95 * STRETCHED.volume and relaxed.composition.reduced_formula == "Cu3Au"
    text = (tmp_path / "best" / name).read_text()
    assert "_space_group_IT_number 221" in text and f"data_{name.removesuffix('.cif')}\n" in text
    assert f"_cfx_e_above_hull {records['stretched']['e_above_hull']:.6g}\n" in text and "_cfx_converged True" in text
    page = (tmp_path / "best" / "shortlist.html").read_text()
    assert "Shortlist of samples.jsonl" in page and "<b>fcc</b>" not in page


def test_without_energies_into_a_directory_of_that_name(cfx, samples, tmp_path):
    result = cfx("eval", samples, "--sort", "-density", "--workers", 1)
    assert result.returncode == 0, result.stderr
    rows = read(tmp_path / "shortlist" / "shortlist.csv")
    found = [float(row["density"]) for row in rows]
    assert rows[0]["name"] == "gold" and found == sorted(found, reverse=True)
    assert "by density, the largest first; left out: " in result.stderr
    text = (tmp_path / "shortlist" / "1_Au.cif").read_text()
    assert "_cfx_" not in text  # nothing is known of it
    again = ["eval", samples, "--top", 1, "--sort", "density", "--workers", 1]
    assert cfx(*again).returncode == 8 and len(read(tmp_path / "shortlist" / "shortlist.csv")) == len(rows)
    assert cfx(*again, "--force").returncode == 0
    assert sorted(path.suffix for path in (tmp_path / "shortlist").iterdir()) == [".cif", ".csv", ".html"]
    assert not list(tmp_path.glob("shortlist.*"))


def test_below_the_floor_is_in_no_shortlist(cfx, samples, tmp_path):
    entries = [{"composition": {symbol: 1}, "energy": energy, "correction": 0.0}
               for symbol, energy in (("Cu", 0.0), ("Au", 5.0))]  # fmt: skip
    (tmp_path / "entries.json").write_text(json.dumps(entries))
    hull = ["--hull", "entries.json", "--hull-scale", "raw", "--potential", EMT]
    result = cfx("eval", samples, *hull, "--workers", 1, "--shortlist", "best", "--json")
    assert result.returncode == 0, result.stderr
    assert set(json.loads(result.stdout)["shortlist"]["crystals"].values()) <= {"copper", "cu <b>fcc</b>"}
    assert "below the floor (in a gap of the hull, or the potential is wrong)" in result.stderr
    result = cfx("eval", samples, *hull, "--workers", 1, "--e-hull-floor", -9, "--shortlist", "deep", "--top", 1)
    assert [row["name"] for row in read(tmp_path / "deep" / "shortlist.csv")] == ["gold"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--sort", "magic"], 2, "there is no column of numbers 'magic'"),
        (["--sort", "e_above_hull"], 2, "e_above_hull is only known with --hull"),
        (["--shortlist", "best", "--sort", "steps"], 2, "steps is only known with --relax"),
        (["--top", 0], 2, "--top must be at least 1"),
        (["--sort", "density", "--shortlist", "mine"], 8, "mine exists"),
        (["--sort", "density", "--shortlist", "mine", "--force"], 8, "not of a shortlist"),
        (["--sort", "density", "--shortlist", "no/best"], 8, "no directory no"),
        (["other.jsonl", "--sort", "density"], 2, "a shortlist is of one file"),
    ],
)
def test_errors_come_before_the_work(cfx, tmp_path, words, code, message):
    write(tmp_path / "good.jsonl", cu=COPPER)
    write(tmp_path / "other.jsonl", cu=COPPER)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    result = cfx("eval", "good.jsonl", *words)
    assert result.returncode == code and result.stdout == "", result.stderr
    assert result.stderr.splitlines()[0].startswith("error: ") and message in result.stderr.splitlines()[0]
    assert len(result.stderr.splitlines()) <= 2
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"good.jsonl", "other.jsonl", "mine"}
