"""Any crystals, shown."""

from __future__ import annotations

import pytest
from pymatgen.core import Lattice, Structure

import cfx
from cfx.errors import DataError

CUBE = Structure(Lattice.cubic(3.35), ["Po"], [[0, 0, 0]])


def test_a_view_is_a_cell_and_a_page(tmp_path):
    shown = cfx.view([CUBE, None, CUBE.to_ase_atoms(), CUBE], n=2)
    assert repr(shown) == "View(2 crystals)" and [name for name, _ in shown.crystals] == ["Po_0", "Po_2"]
    assert repr(cfx.view(CUBE)) == "View(1 crystal)"
    assert shown._repr_html_().count("Po_2") == 1 and shown._repr_html_().startswith("<iframe")
    page = shown.write(tmp_path / "x.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and page.count('"frac_coords"') == 2


def test_nothing_to_show():
    with pytest.raises(DataError, match="none of the crystals has a structure"):
        cfx.view([None])
