"""A short run of benchmarks/fuzz.py: mutated files of every format hang, crash and run nothing."""

import importlib.util
from pathlib import Path

import pytest

SPECIFICATION = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[2] / "benchmarks" / "fuzz.py")
fuzz = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(fuzz)


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz.FORMATS)
def test_mutated_files(kind):
    faults, lines = fuzz.fuzz(kind, 100 if kind == "pkl" else 20)
    assert not lines
    assert faults["file"] == (100 if kind == "pkl" else 20)
