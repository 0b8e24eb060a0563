"""Tests of core and sampling, with the shapes and types that their annotations state checked at every call."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


SAME_SHAPES_MANY_TIMES = "not distributed and not beside_any_others"
"""Statistics of many draws are of the functions that other tests call, too."""


@pytest.mark.slow
@pytest.mark.parametrize("package", ["core", "sampling"])
def test_shapes_are_those_of_the_annotations(package):
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", str(TESTS / package)),
        *("-k", SAME_SHAPES_MANY_TIMES, "--jaxtyping-packages=cfx.core,cfx.sampling,beartype.beartype"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent)
    assert result.returncode == 0, result.stdout[-5000:]
