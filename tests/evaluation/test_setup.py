"""Energies of many crystals: what is told while they come, and how that stops them."""

from __future__ import annotations

import json
import math

import pytest
from pymatgen.core import Lattice, Structure

from cfx.evaluation import setup
from cfx.evaluation.setup import energies_as_they_are, energies_of_relaxed, next_chunk, read_reference
from cfx.predictors.load import load_potential
from cfx.reporter import Mute


class Enough(Exception):
    """Somebody has seen enough."""


def copper(a: float) -> Structure:
    return Structure(Lattice.cubic(a), ["Cu"] * 4, [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


@pytest.fixture(scope="module")
def emt():
    return load_potential("ase:ase.calculators.emt:EMT")


def test_unreadable_known_crystals_are_told_whenever_they_are_used(tmp_path):
    """The second time, the reference comes from the cache."""

    class Told(Mute):
        def __init__(self):
            self.warnings = []

        def warning(self, text):
            self.warnings.append(text)

    rows = [{"name": "cu", "cif": copper(3.6).to(fmt="cif")}, {"name": "bad", "cif": "data_x\n"}]
    path = tmp_path / "known.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for _ in range(2):
        told = Told()
        assert len(read_reference(str(path), 1, told)) == 1
        [line] = told.warnings
        assert line.startswith(f"{path}: 1 of 2 known crystals could not be read (bad: ")
    path.write_text(json.dumps(rows[0]) + "\n")
    told = Told()
    assert len(read_reference(str(path), 1, told)) == 1 and not told.warnings


def test_chunks_grow_while_they_are_fast():
    assert next_chunk(64, 0.1) == 128
    assert next_chunk(64, 30.0) == 64
    assert next_chunk(setup.CHUNKS[1], 0.1) == setup.CHUNKS[1]


def test_chunks_change_no_energy(emt, monkeypatch):
    crystals = [copper(3.5 + i / 100) for i in range(7)]
    crystals[3] = None
    expected = emt.evaluate(crystals, forces=False)
    monkeypatch.setattr(setup, "CHUNKS", (2, 4))
    told = []
    found = list(energies_as_they_are(emt, crystals, told.append))
    assert told[0] == 2 and told[-1] == 7
    assert [one.structure for one in found] == crystals
    assert [one.energy for one in found] == pytest.approx(expected.energy, nan_ok=True)
    assert math.isnan(found[3].energy) and not found[3].reason  # why there is no structure was said when it was read


def test_relaxed_ones_come_in_order_with_reasons(emt):
    close = Structure(Lattice.cubic(4), ["Cu", "Cu"], [[0, 0, 0], [0, 0, 0.001]])
    told = []
    moved, failed, lacking, slow = energies_of_relaxed(
        emt, [copper(3.62), close, None, copper(5.0)], 0.1, 8, told.append
    )
    assert moved.structure.volume < copper(3.62).volume and moved.reason == ""
    assert math.isnan(failed.energy) and failed.structure is close and "apart" in failed.reason
    assert math.isnan(lacking.energy) and lacking.structure is None and not lacking.reason
    assert slow.reason == "the relaxation did not converge" and math.isfinite(slow.energy)
    assert told[0] == 0 and told[-1] == 4 and told == sorted(told)


def test_a_relaxation_stops_between_steps(emt):
    """Long before the first crystal is finished."""

    def look(done: int) -> None:
        looks.append(done)
        if len(looks) == 3:
            raise Enough

    looks: list[int] = []
    with pytest.raises(Enough):
        list(energies_of_relaxed(emt, [copper(4.2)], 1e-6, 500, look))
    assert looks == [0, 0, 0]
