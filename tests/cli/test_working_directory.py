"""What lies in the directory where cfx is started is data, and never run."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from ..data.test_lmdb import write

MODULES = ("joblib", "lmdb", "numpy", "spglib", "pymatgen", "multiprocessing", "warnings", "typer", "json")


@pytest.fixture
def trapped(tmp_path):
    """Modules that leave a mark when they are imported, in the directory in which commands run."""
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'MARK')!r}, 'a').write('{name} ')\nraise SystemExit"
        )
    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    (tmp_path / "salt.cif").write_text(salt.to(fmt="cif") * 100)
    return tmp_path


def test_encoding_in_processes(cfx, trapped):
    result = cfx("data", "salt.cif", "--workers", 2)
    assert not (trapped / "MARK").exists(), (trapped / "MARK").read_text()
    assert result.returncode == 0, result.stderr


def test_evaluation_in_processes(cfx, trapped):
    result = cfx("eval", "salt.cif", "--workers", 2)
    assert not (trapped / "MARK").exists(), (trapped / "MARK").read_text()
    assert result.returncode == 0, result.stderr


def test_the_probe_of_lmdb_files(cfx, trapped):
    salt = [
        np.array([225]),
        np.array([[1.7755, 1.7755, 1.7755, np.pi / 2, np.pi / 2, np.pi / 2]]),
        np.array([[[0.0] * 3, [0.5] * 3]]),
        np.array([[11, 17]]),
        np.array([[1, 2]]),
    ]
    write(trapped / "salt.lmdb", [pickle.dumps(array) for array in salt])
    result = cfx("data", "salt.lmdb")
    assert not (trapped / "MARK").exists(), (trapped / "MARK").read_text()
    assert result.returncode == 0, result.stderr
