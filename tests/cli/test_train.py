"""cfx train as a process: a CSV in, a run directory out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from cfx.model import load_model

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Twenty crystals of one site, and two rows that are none."""
    num_sites = (np.load(GOLDEN / "v042_dev_expected.npz")["W"] > 0).sum(1)
    entries = json.loads((GOLDEN / "v042_dev_cifs.json").read_text())
    path = tmp_path / "crystals.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["material_id", "cif"])
        writer.writerows([f"crystal-{i}", entries[i]["cif"]] for i in np.flatnonzero(num_sites == 1))
        writer.writerows([["broken-1", "data_x"], ["broken-2", ""]])
    return path


def test_train_then_resume(cfx, tmp_path, table):
    options = ["--validation", table, "--epochs", 2, "--batch-size", 8, "--workers", 1]
    first = cfx("train", table, "-o", "run", *options)
    assert first.returncode == 0, first.stderr
    assert "2 rows skipped" in first.stderr and "broken-1" in first.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert load_model(tmp_path / "run" / "best").info["run"]["data"]["crystals"] == 12
    again = cfx("train", table, "-o", "run", "--validation", table)
    assert again.returncode == 2 and "--resume" in again.stderr
    resumed = cfx("train", table, "-o", "run", "--validation", table, "--resume")
    assert resumed.returncode == 0 and "resuming" in resumed.stderr
