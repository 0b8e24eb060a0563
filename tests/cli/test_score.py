"""cfx score, as a process, on crystals that cfx drew."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest

from cfx.core.elements import formula
from cfx.io.dataset import load_dataset
from cfx.io.outputs import FORMATS, Record
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
    blocks = [FORMATS[".cif"].render(Record(i, batch[row : row + 1], {})) for i, row in enumerate(rows)]
    path = tmp_path / "crystals.cif"
    path.write_text("".join([*blocks[:2], "data_nothing\n_cell_length_a 3\n\n", *blocks[2:]]))
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
    assert "6 crystals, 1 rows skipped" in result.stderr and "crystals.cif#3" in result.stderr
    mean = re.search(r"^6 crystals, (\S+) nats each on average by model mini$", result.stderr, re.M).group(1)
    assert float(mean) == pytest.approx(np.mean(expected.total), abs=1e-3)

    written = cfx("score", crystals.name, "--model", "mini", "--workers", 1, "-o", "scores.csv")
    assert written.returncode == 0 and written.stdout == ""
    assert (tmp_path / "scores.csv").read_text() == result.stdout


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
    ],
)
def test_what_cannot_be_scored_is_one_line(cfx, tmp_path, content, arguments, code, word):
    if content is not None:
        (tmp_path / "data.cif").write_text(content)
    result = cfx("score", "data.cif", "--model", "mini", "--workers", 1, *arguments)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == code and len(errors) == 1 and word in errors[0], result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""
