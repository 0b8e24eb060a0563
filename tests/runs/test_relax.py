"""Relaxed crystals as they are written: energies and symmetry are those of the cell in the file."""

from __future__ import annotations

import json
import re

import ase.io
import numpy as np
import pytest
import spglib
from ase.calculators.emt import EMT
from pymatgen.core import Lattice, Structure

from cfx.config import RelaxConfig
from cfx.errors import DataError, UsageError
from cfx.predictors.base import to_atoms
from cfx.reporter import Mute
from cfx.runs.relax import relax_file

pytestmark = pytest.mark.integration


def primitive(group: str, lattice: Lattice, species: list[str], coords: list[list[float]]) -> Structure:
    return Structure.from_spacegroup(group, lattice, species, coords).get_primitive_structure()


CRYSTALS = {
    "fcc": (225, primitive("Fm-3m", Lattice.cubic(3.7), ["Cu"], [[0, 0, 0]])),
    "bcc": (229, primitive("Im-3m", Lattice.cubic(3.0), ["Ni"], [[0, 0, 0]])),
    "hcp": (194, primitive("P6_3/mmc", Lattice.hexagonal(2.6, 4.3), ["Cu"], [[1 / 3, 2 / 3, 0.25]])),
    "rhombohedral": (
        166,
        primitive("R-3m", Lattice.hexagonal(2.7, 20.0), ["Au", "Cu"], [[0, 0, 0], [0, 0, 0.23]]),
    ),
}
"""Space group and primitive cell: as many atoms as a quarter, a half, all, and a third of the conventional cell."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("relax") / "in.jsonl"
    rows = [{"name": name, "cif": crystal.to(fmt="cif")} for name, (_, crystal) in CRYSTALS.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def relaxed(source, path, reporter=None, resume=False) -> list[dict]:
    settings = RelaxConfig(
        source=str(source), potential="ase:ase.calculators.emt:EMT", fmax=0.05, steps=60, fix_symmetry=True
    )
    return relax_file(settings, path, "cpu", 1, reporter or Mute(), resume=resume)


def emt_energy(structure: Structure) -> float:
    atoms = to_atoms(structure)
    atoms.calc = EMT()
    return atoms.get_potential_energy()


def space_group(structure: Structure) -> int:
    cell = (structure.lattice.matrix, structure.frac_coords, [site.specie.Z for site in structure])
    return spglib.get_symmetry_dataset(cell, 0.01).number


def test_the_energy_in_a_cif_is_that_of_its_cell(source, tmp_path):
    rows = relaxed(source, tmp_path / "out.cif")
    blocks = ["data_" + block for block in (tmp_path / "out.cif").read_text().split("data_")[1:]]
    times = []
    for row, block in zip(rows, blocks, strict=True):
        written = Structure.from_str(block, fmt="cif")
        total, each = (
            float(re.search(rf"^_cfx_{key} (\S+)$", block, re.M)[1]) for key in ("energy", "energy_per_atom")
        )
        assert total == pytest.approx(emt_energy(written), abs=2e-4)
        assert each == pytest.approx(row["energy_per_atom"], abs=1e-5)
        times.append(round(total / row["energy"]))
    assert times == [4, 2, 1, 3]


def test_rows_keep_the_cell_their_energy_and_their_symmetry(source, tmp_path):
    relaxed(source, tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row, (group, before) in zip(rows, CRYSTALS.values(), strict=True):
        after = Structure.from_str(row["cif"], fmt="cif")
        assert len(after) == len(before) and row["steps"] > 0
        assert row["energy"] == pytest.approx(emt_energy(after), abs=1e-5)
        assert row["energy_per_atom"] == pytest.approx(row["energy"] / len(after))
        assert space_group(after) == group == row["space_group"]


def test_the_space_group_of_a_frame_is_the_one_found(source, tmp_path):
    relaxed(source, tmp_path / "out.extxyz")
    frames = ase.io.read(tmp_path / "out.extxyz", ":")
    assert [frame.info["space_group"] for frame in frames] == [group for group, _ in CRYSTALS.values()]
    for frame in frames:
        energy = frame.get_potential_energy()
        frame.calc = EMT()
        assert energy == pytest.approx(frame.get_potential_energy(), abs=1e-4)
        assert np.isfinite(frame.info["energy_per_atom"])


class Dying(Mute):
    """The power fails after two crystals."""

    def update(self, done: float, text: str = "") -> None:
        if done == 2:
            raise SystemExit


@pytest.fixture
def interrupted(source, tmp_path):
    """What an interrupted session left: settings and two rows."""
    with pytest.raises(SystemExit):
        relaxed(source, tmp_path / "out.jsonl", Dying())
    return tmp_path / "out.jsonl.partial"


def test_a_file_is_known_by_its_crystals(source, interrupted, tmp_path, monkeypatch):
    """Under another name it is continued, with other crystals it is not: rows would be of crystals that are gone."""
    kept, lines = interrupted.read_bytes(), source.read_text().splitlines(keepends=True)
    changes = (lines[::-1], lines[1:], [lines[0].replace("fcc", "other"), *lines[1:]], [*lines[:3], lines[2]])
    for changed in changes:
        (tmp_path / "in.jsonl").write_text("".join(changed))
        with pytest.raises(UsageError, match="source"):
            relaxed(tmp_path / "in.jsonl", tmp_path / "out.jsonl", resume=True)
        assert interrupted.read_bytes() == kept
    (tmp_path / "in.jsonl").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    assert [row["name"] for row in relaxed("in.jsonl", tmp_path / "out.jsonl", resume=True)] == list(CRYSTALS)


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "1",
        "{}",
        '{"row": 1}',
        lambda row: row | {"row": 4},
        lambda row: row | {"row": "1"},
        lambda row: row | {"x": 0},
    ],
)
def test_rows_that_are_none_are_not_continued(source, interrupted, tmp_path, line):
    header, first, second = interrupted.read_text().splitlines()
    text = line if isinstance(line, str) else json.dumps(line(json.loads(second)))
    interrupted.write_text("\n".join([header, first, text]) + "\n")
    with pytest.raises(DataError, match=r"line 3 of .*partial is damaged"):
        relaxed(source, tmp_path / "out.jsonl", resume=True)
