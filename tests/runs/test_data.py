"""Data sets read for a run, and what they hold."""

from __future__ import annotations

import json
import os
import signal
from contextlib import contextmanager

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.symmetry.groups import SpaceGroup

from cfx.core.lattice import CRYSTAL_SYSTEMS
from cfx.data import dataset, workers
from cfx.data.dataset import read, summarize
from cfx.errors import DataError
from cfx.reporter import Interrupted, Silent

ROCK_SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
HCP = Structure.from_spacegroup("P6_3/mmc", Lattice.hexagonal(3.21, 5.21), ["Mg"], [[1 / 3, 2 / 3, 0.25]])
MIXED = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])


class Recorder(Silent):
    """Keeps what it is told."""

    def __init__(self):
        self.messages, self.warnings, self.on_update = [], [], lambda done: None

    def message(self, text):
        self.messages.append(text)

    def warning(self, text):
        self.warnings.append(text)

    @contextmanager
    def progress(self, title, total):
        yield self

    def update(self, done, text=""):
        self.on_update(done)


def write(path, *structures: Structure | str):
    texts = (one if isinstance(one, str) else one.to(fmt="cif") for one in structures)
    path.write_text("".join(json.dumps({"id": f"c{i}", "cif": text}) + "\n" for i, text in enumerate(texts, start=1)))
    return path


def crowded(n: int) -> Structure:
    return Structure(Lattice.cubic(20), ["O"] * n, np.random.default_rng(0).random((n, 3)))


@pytest.fixture
def data(tmp_path):
    """Three crystals; two of too many sites, two disordered and one empty row."""
    return write(tmp_path / "data.jsonl", ROCK_SALT, MIXED, crowded(21), HCP, MIXED, crowded(30), "", ROCK_SALT)


def test_reading_says_what_was_skipped(data):
    reporter = Recorder()
    found = read(data, 21, reporter, 0.01, 1)
    assert len(found) == 3
    assert reporter.messages == ["data.jsonl: 3 crystals, 5 rows skipped"]
    assert reporter.warnings == [
        "skipped 5 rows: 2 x sites with partial or mixed occupancy (c2, ...); "
        "2 x 21 to 30 symmetry-inequivalent sites, more than 20 (c3, ...); "
        f"1 x no structure in the row (c7); all are listed in {found.failures_path}"
    ]


def test_nothing_skipped_nothing_warned(tmp_path):
    reporter = Recorder()
    read(write(tmp_path / "data.jsonl", HCP), 21, reporter, 0.01, 1)
    assert reporter.messages == ["data.jsonl: 1 crystal, 0 rows skipped"]
    assert not reporter.warnings


def test_every_row_failing(tmp_path):
    path = write(tmp_path / "data.jsonl", MIXED, crowded(21), MIXED)
    with pytest.raises(DataError, match=r"none of 3 rows can be used: 2 x sites with partial.*; 1 x 21 symm") as error:
        read(path, 21, Recorder(), 0.01, 1)
    assert "failures.csv" in error.value.hint


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_a_commit(data, monkeypatch, signum):
    """And the next call goes on from there."""
    monkeypatch.setattr(workers, "CHUNK", 2)
    monkeypatch.setattr(dataset, "COMMIT_SECONDS", 0)
    reporter = Recorder()
    reporter.on_update = lambda done: done == 4 and os.kill(os.getpid(), signum)
    with pytest.raises(Interrupted, match="encoding stopped after 4 rows; run the same command again to continue") as e:
        read(data, 21, reporter, 0.01, 1)
    assert e.value.exit_code == 128 + signum
    assert not reporter.messages
    progress: list[int] = []
    reporter.on_update = progress.append
    assert len(read(data, 21, reporter, 0.01, 1)) == 3
    assert progress == [6, 8, 8]


def test_summary(data):
    found = read(data, 21, Recorder(), 0.01, 1)
    summary = summarize(found)
    assert summary == json.loads(json.dumps(summary), object_hook=_integer_keys)
    assert {key: summary[key] for key in ("source", "n_max", "rows", "crystals", "skipped")} == {
        "source": "data.jsonl",
        "n_max": 21,
        "rows": 8,
        "crystals": 3,
        "skipped": 5,
    }
    assert [(reason["rows"], reason["example"]) for reason in summary["reasons"]] == [(2, "c2"), (2, "c3"), (1, "c7")]
    assert summary["space_groups"] == {194: 1, 225: 2}
    assert summary["sites"] == {1: 1, 2: 2}
    assert list(summary["elements"].items()) == [("Na", 2), ("Cl", 2), ("Mg", 1)]
    assert {name: count for name, count in summary["crystal_systems"].items() if count} == {"hexagonal": 1, "cubic": 2}
    assert len(summary["crystal_systems"]) == 7
    assert summary["digest"] == found.digest
    assert summary["cache_bytes"] == sum(file.stat().st_size for file in found.directory.iterdir()) > 100


def _integer_keys(content: dict) -> dict:
    return {int(key) if key.isdigit() else key: value for key, value in content.items()}


def test_crystal_systems_are_those_of_pymatgen():
    lasts, names = list(CRYSTAL_SYSTEMS.values()), list(CRYSTAL_SYSTEMS)
    ours = [names[np.searchsorted(lasts, group)] for group in range(1, 231)]
    assert ours == [SpaceGroup.from_int_number(group).crystal_system for group in range(1, 231)]
