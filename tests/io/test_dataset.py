"""Encoded data sets and their cache."""

from __future__ import annotations

import dataclasses
import os

import jax
import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cfx.errors import DataError
from cfx.io import dataset as module
from cfx.io.dataset import content_digest, load_dataset

ROCK_SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
HCP = Structure.from_spacegroup("P6_3/mmc", Lattice.hexagonal(3.21, 5.21), ["Mg"], [[1 / 3, 2 / 3, 0.25]])
DISORDERED = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])


def write_csv(path, *rows: tuple[str, str]):
    quoted = (name + ',"' + text.replace('"', '""') + '"\n' for name, text in rows)
    path.write_text("id,cif\n" + "".join(quoted))
    return path


@pytest.fixture
def data(tmp_path):
    """Rock salt, a row that is no crystal, magnesium, a disordered crystal."""
    rows = [("salt", ROCK_SALT.to(fmt="cif")), ("broken", "no cif"), ("magnesium", HCP.to(fmt="cif"))]
    return write_csv(tmp_path / "data.csv", *rows, ("mixed", DISORDERED.to(fmt="cif")))


@pytest.fixture
def encodings(monkeypatch):
    """Names of the files that were encoded, rather than read from the cache."""
    made, encode_file = [], module._encode_file
    monkeypatch.setattr(module, "_encode_file", lambda path, *rest: made.append(path.name) or encode_file(path, *rest))
    return made


def load(path, **options):
    return load_dataset(path, num_workers=1, **options)


def assert_equal(one, other):
    for field in dataclasses.fields(one):
        if field.name != "batch":
            assert getattr(one, field.name) == getattr(other, field.name), field.name
    for ours, theirs in zip(jax.tree.leaves(one.batch), jax.tree.leaves(other.batch), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


def test_rows_become_crystals_or_failures(data):
    loaded = load(data)
    assert loaded.names == ["salt", "magnesium"]
    assert [name for name, _ in loaded.failures] == ["broken", "mixed"]
    assert "occupancy" in dict(loaded.failures)["mixed"]
    assert loaded.batch.space_group.tolist() == [225, 194]
    assert loaded.source == "data.csv"
    assert len(loaded.digest) == 64
    counts = loaded.space_group_counts()
    assert counts.shape == (230,)
    assert (counts[224], counts[193], counts.sum()) == (1, 1, 2)


def test_cache_hit_is_the_same_data_set(data, own_cache, encodings):
    """Names and failures included."""
    first = load(data)
    (cached,) = (own_cache / "encoded").iterdir()
    assert cached.name == f"{first.digest}.npz"
    second = load(data)
    assert encodings == ["data.csv"]
    assert_equal(first, second)


def test_another_setting_or_content_misses(data, encodings):
    digests = {load(data).digest, load(data, symprec=0.1).digest, load(data, n_max=12).digest}
    assert len(encodings) == len(digests) == 3
    data.write_text(data.read_text() + "\n")
    digests.add(load(data).digest)
    assert len(encodings) == len(digests) == 4
    assert load(data, n_max=12).batch.num_slots == 12


def test_the_path_does_not_matter(data, tmp_path, encodings):
    first = load(data)
    moved = tmp_path / "elsewhere" / "data.csv"
    moved.parent.mkdir()
    os.rename(data, moved)
    assert_equal(load(moved), first)
    assert encodings == ["data.csv"]


def test_symprec_reaches_the_symmetry_search(tmp_path):
    distorted = Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.505]])
    path = write_csv(tmp_path / "data.csv", ("distorted", distorted.to(fmt="cif")))
    assert load(path, symprec=0.001).batch.space_group.tolist() == [99]
    assert load(path, symprec=0.1).batch.space_group.tolist() == [221]


def test_n_max_leaves_a_pad(tmp_path):
    """Three sites fit 4 slots and not 3."""
    structure = Structure(Lattice.cubic(9), ["O", "S", "N"], [[0, 0, 0], [0.1, 0.2, 0.3], [0.5, 0.1, 0.7]])
    path = write_csv(tmp_path / "data.csv", ("three", structure.to(fmt="cif")))
    assert load(path, n_max=4).batch.num_sites.tolist() == [3]
    with pytest.raises(DataError, match="3 symmetry-inequivalent sites, more than 2"):
        load(path, n_max=3)


def test_all_rows_failing(tmp_path):
    path = write_csv(tmp_path / "data.csv", ("one", "no cif"), ("two", DISORDERED.to(fmt="cif")))
    for _ in range(2):  # the second time from the cache
        with pytest.raises(DataError, match="none of 2 rows is a crystal; the first: "):
            load(path)


def test_no_rows(tmp_path):
    (tmp_path / "data.csv").write_text("id,cif\n")
    with pytest.raises(DataError, match="none of 0 rows"):
        load(tmp_path / "data.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="none of 0 rows"):
        load(tmp_path / "empty")


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "nowhere.csv")


def test_an_unreadable_file_is_not_cached(tmp_path, own_cache):
    (tmp_path / "data.csv").write_text("formula\nNaCl\n")
    with pytest.raises(DataError, match="no column of structures"):
        load(tmp_path / "data.csv")
    assert not list(own_cache.rglob("*.npz*"))


def test_a_file_under_its_right_name_is_read_anew(tmp_path):
    """The format follows the name: what was nothing as a CIF is a crystal as a POSCAR."""
    path = tmp_path / "salt.cif"
    path.write_text(ROCK_SALT.to(fmt="poscar"))
    with pytest.raises(DataError):
        load(path)
    assert load(path.rename(tmp_path / "salt.vasp")).batch.space_group.tolist() == [225]


def test_a_damaged_cache_is_made_again(data, own_cache):
    first = load(data)
    (cached,) = (own_cache / "encoded").iterdir()
    cached.write_bytes(cached.read_bytes()[:100])
    assert_equal(load(data), first)


def test_directory(tmp_path, encodings):
    directory = tmp_path / "crystals"
    directory.mkdir()
    (directory / "salt.cif").write_text(ROCK_SALT.to(fmt="cif"))
    first = load(directory)
    assert first.names == ["salt.cif"]
    (directory / "magnesium.cif").write_text(HCP.to(fmt="cif"))
    assert load(directory).names == ["magnesium.cif", "salt.cif"]
    (directory / "salt.cif").rename(directory / "halite.cif")
    assert load(directory).names == ["halite.cif", "magnesium.cif"]
    assert len(encodings) == 3


def test_digest_of_a_directory_tells_names_from_content(tmp_path):
    """Moving bytes between names, or between files, is another data set."""
    digests = set()
    for i, files in enumerate([{"a": "xy", "b": ""}, {"a": "x", "b": "y"}, {"a": "", "b": "xy"}, {"ab": "xy"}]):
        directory = tmp_path / str(i)
        directory.mkdir()
        for name, text in files.items():
            (directory / name).write_text(text)
        digests.add(content_digest(directory, []))
    assert len(digests) == 4


def test_workers_change_nothing(tmp_path, monkeypatch):
    """Chunks encoded in two processes, in order, with progress."""
    monkeypatch.setattr(module, "CHUNK", 2)
    texts = {"s": ROCK_SALT.to(fmt="cif"), "m": HCP.to(fmt="cif"), "x": "no cif"}
    rows = [(f"{kind}{i}", texts[kind]) for i, kind in enumerate("smxmsxsm")]
    path = write_csv(tmp_path / "data.csv", *rows)
    progress: list[int] = []
    alone = load_dataset(path, num_workers=1, on_progress=progress.append)
    assert progress == sorted(progress)
    assert progress[-1] == 8
    monkeypatch.setenv("CFX_CACHE", str(tmp_path / "other-cache"))
    assert_equal(load_dataset(path, num_workers=2), alone)
    assert alone.names == ["s0", "m1", "m3", "s4", "s6", "m7"]
    assert [name for name, _ in alone.failures] == ["x2", "x5"]
