"""tools/measure_code.py on a package of a few lines, counted by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

FILES = {
    "__init__.py": "",
    "one.py": '''"""A docstring of a module."""

from . import two
# why
import os, \\
    sys


def short():
    """One line."""
    raise ValueError("--epochs is too large")  # beside code


def long():
    text = """
    --no-flag: not raised
    """

    return two, os, sys, text
''',
    "two.py": "def late():\n    from pack.sub import three\n    return three\n",
    "four.py": "from .one import short\n",
    "sub/__init__.py": "",
    "sub/three.py": "from ..one import long\n",
    "cli/__init__.py": "raise SystemExit('--flag')\n",
}


@pytest.fixture(scope="module")
def tool():
    file = Path(__file__).parents[1] / "tools" / "measure_code.py"
    spec = importlib.util.spec_from_file_location("measure_code", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def figures(tool, tmp_path):
    for name, text in FILES.items():
        file = tmp_path / "pack" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tool.measure(tmp_path / "pack", "no-such-type-checker")


def test_figures(figures):
    assert figures["files"] == 7 and figures["lines"] == 19 + 3 + 1 + 1 + 1
    assert figures["import_lines"] == 3 + 1 + 1 + 1
    assert figures["comment_lines"] == 1 and figures["lines_of_code"] == 3 + 2 + 5 + 3 + 1 + 1 + 1
    assert figures["raise_sites_with_flags_outside_cli"] == 1
    assert figures["longest_functions"] == ["6 pack.one.long", "3 pack.two.late", "3 pack.one.short"]
    assert figures["import_circles"] == [["pack.one", "pack.sub.three", "pack.two"]]
    assert figures["type_errors"] == "no-such-type-checker is not installed"


def test_two_trees_side_by_side(tool, figures):
    rows = tool.table([figures, figures | {"files": 8}], ["before", "after"]).splitlines()
    assert [cell.strip() for cell in rows[2].split("|")] == ["", "files", "7", "8", ""]
    assert len({len(row) for row in rows}) == 1
