"""The best crystals of a run, when the policy has collapsed onto one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cfx.core.crystal import CrystalBatch
from cfx.rl.crystal_log import CrystalLog
from cfx.rl.rollout import Rollout, fingerprint

COPIES = 300


@pytest.fixture
def collapsed() -> Rollout:
    """Simple cubic sodium, cell by cell a little larger and better; among so many, three others that are worse."""
    n = COPIES + 3
    species = np.zeros((n, 3), np.int32)
    species[:, 0] = 11
    species[[50, 150, 250], 0] = 19, 37, 55
    letters = np.zeros((n, 3), np.int32)
    letters[:, 0] = 1
    cell = 3 + 0.02 * np.arange(n)
    lattice = np.column_stack([cell, cell, cell, *[np.full(n, 90.0)] * 3]).astype(np.float32)
    crystals = CrystalBatch(np.full(n, 221, np.int32), lattice, np.zeros((n, 3, 3), np.float32), species, letters)
    value = np.where(species[:, 0] == 11, 10 + cell, -species[:, 0].astype(float))
    keys = [fingerprint(crystals, row) for row in range(n)]
    return Rollout(crystals, keys, value, value, [""] * n, {}, {}, 0, {})


def rewards(log: CrystalLog) -> list[float]:
    return [record.remarks["reward"] for record in log.best()]


def test_the_best_are_no_copies(collapsed, tmp_path):
    log = CrystalLog(tmp_path, keep=4)
    log.append(1, collapsed)
    assert rewards(log) == [pytest.approx(collapsed.value.max()), -19.0, -37.0, -55.0]


def test_read_back(collapsed, tmp_path):
    log = CrystalLog(tmp_path, keep=4)
    log.append(1, collapsed)
    again = CrystalLog(tmp_path, keep=4)
    again.restore(1, num_slots=3)
    assert rewards(again) == rewards(log)


def test_crystals_of_steps_that_are_made_again(collapsed, tmp_path):
    """Their rewards are known, their lines stay until others come, and are no repeats."""
    CrystalLog(tmp_path, keep=4).append(1, collapsed)
    before = (tmp_path / "crystals.jsonl").read_bytes()
    log = CrystalLog(tmp_path, keep=4)
    log.restore(0, num_slots=3)
    assert not log.cache.known and log.cache.ahead.keys() == set(collapsed.keys) and log.best() == []
    value, _, _, cached = log.cache.evaluate(None, collapsed.keys, [None] * len(collapsed.keys))
    np.testing.assert_array_equal(value, collapsed.value)
    assert cached == 0
    assert (tmp_path / "crystals.jsonl").read_bytes() == before
    log.append(1, collapsed)
    assert (tmp_path / "crystals.jsonl").read_bytes() == before
    log = CrystalLog(tmp_path, keep=4)
    log.restore(0, num_slots=3)
    log.append(1, dataclasses.replace(collapsed, reasons=["other"] * len(collapsed.keys)))
    lines = (tmp_path / "crystals.jsonl").read_text().splitlines()
    assert len(lines) == len(collapsed.keys) and all('"reason": "other"' in line for line in lines)


def test_the_best_of_many_kinds(collapsed, tmp_path):
    """Only so many kinds are remembered, and the best of them."""
    collapsed.crystals.species[:, 0] = 1 + np.arange(COPIES + 3) % 90
    keys = [fingerprint(collapsed.crystals, row) for row in range(COPIES + 3)]
    log = CrystalLog(tmp_path, keep=2)
    log.append(1, Rollout(collapsed.crystals, keys, *[collapsed.value] * 2, [""] * len(keys), {}, {}, 0, {}))
    assert rewards(log) == sorted(collapsed.value, reverse=True)[:2]


def test_compositions_of_the_last_steps(collapsed, tmp_path):
    """Different ones, and how many in effect; a log that is read back knows them too."""
    log, logs = CrystalLog(tmp_path, keep=4, window=2), []
    for step, elements in enumerate(([11] * 4, [11, 11, 19, 19], [19, 19, 19, 37]), start=1):
        crystals = dataclasses.replace(collapsed.crystals[:4], species=np.zeros((4, 3), np.int32))
        crystals.species[:, 0] = elements
        keys, value = [fingerprint(crystals, row) for row in range(4)], collapsed.value[:4]
        log.append(step, Rollout(crystals, keys, value, value, [""] * 4, {}, {}, 0, {}))
        logs.append(log.diversity())
    shares = np.array([2, 5, 1]) / 8
    assert logs[0] == pytest.approx({"compositions": 1 / 4, "vendi_compositions": 1})
    effective = float(np.exp(-(shares * np.log(shares)).sum()))
    assert logs[2] == pytest.approx({"compositions": 3 / 8, "vendi_compositions": effective})
    again = CrystalLog(tmp_path, keep=4, window=2)
    again.restore(3, num_slots=3)
    assert again.diversity() == logs[2]
