"""cfx view and cfx doctor, as processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure

from cfx.errors import install
from cfx.io.files import sole_writer

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.69), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
PEROVSKITE = Structure.from_spacegroup(
    "Pm-3m", Lattice.cubic(3.9), ["Sr", "Ti", "O"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]
)


def content(page: Path) -> dict:
    """What the scripts of a page are given."""
    return json.loads(re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page.read_text(), re.S)[1])


@pytest.fixture
def crystals(tmp_path) -> Path:
    (tmp_path / "crystals").mkdir()
    for name, structure in (("a.cif", SALT), ("b.cif", PEROVSKITE)):
        structure.to(str(tmp_path / "crystals" / name))
    (tmp_path / "crystals" / "c.cif").write_text("data_broken\n")
    return tmp_path / "crystals"


def test_a_page_of_crystals(cfx, crystals, tmp_path):
    done = cfx("view", "crystals")
    assert done.returncode == 0, done.stderr
    assert "2 crystals: crystals.html" in done.stderr and "1 of 3 crystals cannot be read" in done.stderr
    gallery = content(tmp_path / "crystals.html")["gallery"]
    assert [(one["formula"], one["space_group"]) for one in gallery] == [("NaCl", 225), ("SrTiO3", 221)]
    assert len(gallery[0]["species"]) == len(SALT)

    again = cfx("view", "crystals")
    assert again.returncode == 8 and "crystals.html exists" in again.stderr
    first = cfx("view", "crystals", "-n", "1", "-o", "one.html")
    assert first.returncode == 0 and "the first of 3" in first.stderr
    assert len(content(tmp_path / "one.html")["gallery"]) == 1


def test_a_page_has_one_writer(cfx, crystals, tmp_path):
    with sole_writer(tmp_path / "page.html"):
        second = cfx("view", "crystals", "-o", "page.html")
    assert second.returncode == 8 and "page.html is being written by another process" in second.stderr
    assert not (tmp_path / "page.html").exists()
    assert cfx("view", "crystals", "-o", "page.html").returncode == 0


def test_pages_that_cannot_be(cfx, crystals, tmp_path):
    wrong = cfx("view", "crystals", "-o", "page.pdf")
    assert wrong.returncode == 2 and "name a file that ends in .html" in wrong.stderr
    missing = cfx("view", "nothing.cif")
    assert missing.returncode in (2, 3) and "nothing.cif" in missing.stderr
    broken = cfx("view", "crystals/c.cif", "-o", "c.html")
    assert broken.returncode == 3 and not (tmp_path / "c.html").exists()


def test_doctor_finds_what_is_here(cfx, own_cache):
    done = cfx("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    versions = {one["package"]: one["version"] for one in found["libraries"]}
    import jax

    assert versions["jax"] == jax.__version__ and found["models"][0] == "mini" and found["healthy"]
    assert found["cache"]["directory"] == str(own_cache) and found["devices"]["jax"]
    text = cfx("doctor").stdout
    assert jax.__version__ in text and "devices of jax: cpu" in text


def test_doctor_says_how_to_install_what_is_missing():
    hide = "import sys; sys.modules['chgnet'] = None; sys.modules['smact'] = None\n"
    code = hide + "sys.argv = ['cfx', 'doctor']\nfrom cfx.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install 'cfx-crystal[chgnet]'" in done.stdout and "pip install 'cfx-crystal[eval]'" in done.stdout


def test_an_extra_is_installed_as_cfx_was(tmp_path, monkeypatch):
    assert install("eval") == "pip install 'cfx-crystal[eval]'"
    (tmp_path / "cfx-crystal").mkdir()
    (tmp_path / "cfx-crystal" / "pipx_metadata.json").write_text("{}")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "cfx-crystal"))
    assert install("eval") == "pipx runpip cfx-crystal install 'cfx-crystal[eval]'"


def test_doctor_fails_where_nothing_can_be_cached(cfx, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CFX_CACHE", str(tmp_path / "file" / "cache"))
    done = cfx("doctor")
    assert done.returncode == 6 and "set CFX_CACHE" in done.stdout
