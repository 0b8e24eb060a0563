"""cfx score, as a process, on crystals that cfx drew."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from cfx.cli.score import _print_comparison, _print_rows, _print_summary
from cfx.core.elements import formula
from cfx.data.dataset import load_dataset
from cfx.data.split import split
from cfx.io.formats import FORMATS, OutputRecord
from cfx.model import load_model

COLUMNS = ["name", "formula", "space_group", "sites", "log_prob"]
PARTS = ["wyckoff", "species", "coords", "lattice"]


@pytest.fixture(scope="module")
def model():
    return load_model("mini")


@pytest.fixture
def crystals(tmp_path: Path, rotary) -> Path:
    """Six crystals as cfx writes them, and a block that is none."""
    batch = rotary.batch.numpy()
    rows = np.flatnonzero(batch.num_atoms <= 12)[:6]
    blocks = [FORMATS[".cif"].render(OutputRecord(i, batch[row : row + 1], {})) for i, row in enumerate(rows)]
    path = tmp_path / "crystals.cif"
    unreadable = "data_nothing\n_cell_length_a 3\nloop_\n_atom_site_label\nSi1\n\n"
    path.write_text("".join([*blocks[:2], unreadable, *blocks[2:]]))
    return path


def test_scores_are_log_probabilities_of_the_encoded_crystals(cfx, crystals, tmp_path, model):
    result = cfx("score", crystals.name, "--model", "mini", "--workers", 1)
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert list(rows[0]) == COLUMNS + [f"log_prob_{part}" for part in PARTS]
    data = load_dataset(crystals, num_workers=1)
    expected = model.log_prob(data.batch)
    assert len(rows) == len(data.batch) == 6
    for i, row in enumerate(rows):
        assert row["name"] == data.names[i] and row["formula"] == formula(data.batch.composition(i))
        assert int(row["space_group"]) == data.batch.space_group[i] and int(row["sites"]) == data.batch.num_sites[i]
        assert float(row["log_prob"]) == pytest.approx(expected.total[i], abs=1e-3)
        for part in PARTS:
            assert float(row[f"log_prob_{part}"]) == pytest.approx(getattr(expected, part)[i], abs=1e-3)
    assert len({row["log_prob"] for row in rows}) > 1
    assert "6 crystals, 1 row skipped" in result.stderr and "crystals.cif#3" in result.stderr
    mean = re.search(r"^6 crystals, (\S+) nats each on average by model mini$", result.stderr, re.M).group(1)
    assert float(mean) == pytest.approx(np.mean(expected.total), abs=1e-3)

    written = cfx("score", crystals.name, "--model", "mini", "--workers", 1, "-o", "scores.csv")
    assert written.returncode == 0 and written.stdout == ""
    assert (tmp_path / "scores.csv").read_text() == result.stdout


def test_a_summary_of_the_data(cfx, crystals, tmp_path, model):
    result = cfx("score", crystals.name, "--model", "mini", "--workers", 1, "--summary", "--json", "-o", "summary.csv")
    assert result.returncode == 0, result.stderr
    records = json.loads(result.stdout)
    data = load_dataset(crystals, num_workers=1)
    expected = model.log_prob(data.batch)
    assert [record["grouping"] for record in records[:2]] == ["all", "sites"]
    overall = records[0]
    assert overall["crystals"] == 6 and overall["nll"] == pytest.approx(-expected.total.mean(), rel=1e-4)
    assert overall["nll_error"] == pytest.approx(np.std(expected.total, ddof=1) / np.sqrt(6), rel=1e-4)
    for part in PARTS:
        assert overall[f"nll_{part}"] == pytest.approx(-getattr(expected, part).mean(), abs=1e-3)
    groups = [record for record in records if record["grouping"] == "space_group"]
    assert [record["value"] for record in groups] == sorted({int(group) for group in data.batch.space_group})
    assert f"6 crystals, nll {overall['nll']:.3f} nats each on average by model mini" in result.stderr

    rows = list(csv.DictReader(io.StringIO((tmp_path / "summary.csv").read_text())))
    columns = ["grouping", "value", "crystals", "nll", "nll_error", *(f"nll_{part}" for part in PARTS)]
    assert list(rows[0]) == columns and len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        assert (row["grouping"], row["value"], row["crystals"]) == tuple(str(record[name]) for name in columns[:3])
        assert float(row["nll"]) == pytest.approx(record["nll"], abs=1e-4)
        assert (row["nll_error"] == "") == (record["nll_error"] is None) == (record["crystals"] == 1)

    piped = cfx("score", crystals.name, "--model", "mini", "--workers", 1, "--summary")
    assert piped.returncode == 0 and piped.stdout == (tmp_path / "summary.csv").read_text()


def test_two_models_are_compared_on_the_same_crystals(cfx, crystals, tmp_path):
    models, share = ["--model", "mini", "--model", "mini-rl-ehull"], ["--held-out", "60%"]
    result = cfx("score", crystals.name, *models, *share, "--workers", 1, "--json", "-o", "difference.csv")
    assert result.returncode == 0, result.stderr
    records = json.loads(result.stdout)
    assert [record["part"] for record in records] == ["total", *PARTS]
    _, data = split(load_dataset(crystals, num_workers=1), 0.6)
    assert 1 < len(data) < 6
    first, other = (load_model(name).log_prob(data.batch) for name in models[1::2])
    difference = np.asarray(first.total, float) - np.asarray(other.total, float)
    total = records[0]
    assert total["crystals"] == len(data) and total["difference"] == pytest.approx(difference.mean(), abs=1e-4)
    assert total["low"] < total["difference"] < total["high"] and total["better"] == np.mean(difference < 0)
    assert sum(record["difference"] for record in records[1:]) == pytest.approx(total["difference"], abs=1e-4)
    side = "lower" if total["difference"] < 0 else "higher"
    told = f"nll {abs(total['difference']):.3f} nats {side} by mini-rl-ehull than by mini, 95 % interval "
    assert f"{len(data)} crystals: {told}" in result.stderr
    rows = list(csv.DictReader(io.StringIO((tmp_path / "difference.csv").read_text())))
    assert list(rows[0]) == list(total) and len(rows) == 5


def test_a_terminal_gets_differences_part_by_part(capsys):
    about = {"model": "tuned/best", "against": "mini", "crystals": 128, "better": 0.75}
    numbers = {"nll": 13.0, "nll_against": 14.0, "difference": -1.0, "low": -1.5, "high": -0.5}
    _print_comparison([{**about, "part": part, **numbers} for part in ("total", *PARTS)])
    lines = capsys.readouterr().out.splitlines()
    rows = [re.split(" {2,}", line.strip()) for line in lines[2:]]
    assert rows[0] == ["total", "14.000", "13.000", "-1.000", "-1.500 to -0.500", "75 %"]
    assert [row[0] for row in rows[1:]] == ["letters", "species", "coordinates", "lattice"] and len(lines[1]) <= 80


def test_a_terminal_gets_the_most_frequent_space_groups(capsys):
    """Tables of 80 columns; the groups in order of number, and a line that there are more."""
    part = dict.fromkeys((f"nll_{part}" for part in PARTS), -1.25)
    groups = [
        {"grouping": "space_group", "value": g, "crystals": 100 - g, "nll": 2.5, "nll_error": 0.25, **part}
        for g in range(20, 0, -1)
    ][::-1]
    _print_summary([{**groups[0], "grouping": "all", "value": "all", "nll_error": None}, *groups])
    lines = capsys.readouterr().out.splitlines()
    rows = [re.split(" {2,}", line.strip()) for line in lines if re.search(r"\d  -1\.25  ", line)]
    assert rows[0] == ["all", "99", "2.50", "-1.25", "-1.25", "-1.25", "-1.25"]
    assert [row[0] for row in rows[1:]] == [str(group) for group in range(1, 16)] and rows[1][2] == "2.50±0.25"
    assert lines[-1].startswith("the 15 most frequent of 20 space groups") and max(map(len, lines)) <= 90


def test_a_terminal_gets_rows_of_eighty_columns(capsys):
    about = {"name": "LaNi2O4_19", "formula": "LaNi2O4", "space_group": 225, "sites": 12}
    _print_rows([about | {"log_prob": -62.75, **{f"log_prob_{part}": -36.66 for part in PARTS}}])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["name", "formula", "group", "sites", "total", "letters", "species", "coords", "lattice"]
    assert lines[2] == ["LaNi2O4_19", "LaNi2O4", "225", "12", "-62.75", *["-36.66"] * 4]


def test_rows_as_json(cfx, crystals):
    result = cfx("score", crystals.name, "--model", "mini", "--workers", 1, "--json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert len(rows) == 6 and list(rows[0]) == COLUMNS + [f"log_prob_{part}" for part in PARTS]
    assert all(row["log_prob"] == pytest.approx(sum(row[f"log_prob_{p}"] for p in PARTS), abs=1e-3) for row in rows)


def test_an_older_file_is_kept_without_force(cfx, crystals, tmp_path):
    (tmp_path / "scores.csv").write_text("precious")
    result = cfx("score", crystals.name, "--model", "mini", "-o", "scores.csv")
    assert result.returncode == 8 and "scores.csv exists" in result.stderr and "--force" in result.stderr
    assert (tmp_path / "scores.csv").read_text() == "precious"
    forced = cfx("score", crystals.name, "--model", "mini", "--workers", 1, "-o", "scores.csv", "--force")
    assert forced.returncode == 0 and (tmp_path / "scores.csv").read_text().startswith("name,formula,")


@pytest.mark.parametrize(
    ("content", "arguments", "code", "word"),
    [
        (None, [], 3, "no such file"),
        ("", [], 3, "data.cif"),
        ("data_x\n_nothing 1\n", [], 3, "none of 1 rows"),
        ("", ["-o", "scores.txt"], 2, "scores.txt"),
        ("", ["--held-out", "0.1"], 2, "'0.1' is not a share"),
    ],
)
def test_what_cannot_be_scored_is_one_line(cfx, tmp_path, content, arguments, code, word):
    if content is not None:
        (tmp_path / "data.cif").write_text(content)
    result = cfx("score", "data.cif", "--model", "mini", "--workers", 1, *arguments)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == code and len(errors) == 1 and word in errors[0], result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""
