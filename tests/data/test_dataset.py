"""Encoded data sets and their cache."""

import json
import os

import jax
import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cfx.data import dataset as module
from cfx.data import workers
from cfx.data.dataset import encode, load_dataset
from cfx.data.store import Failure
from cfx.errors import DataError
from cfx.io.files import content_digest

ROCK_SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
HCP = Structure.from_spacegroup("P6_3/mmc", Lattice.hexagonal(3.21, 5.21), ["Mg"], [[1 / 3, 2 / 3, 0.25]])
DISORDERED = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])


def write_csv(path, *rows: tuple[str, str]):
    quoted = (name + ',"' + text.replace('"', '""') + '"\n' for name, text in rows)
    path.write_text("id,cif\n" + "".join(quoted))
    return path


@pytest.fixture
def data(tmp_path):
    """Rock salt, a row that is not a crystal, magnesium, a disordered crystal."""
    rows = [("salt", ROCK_SALT.to(fmt="cif")), ("broken", "no cif"), ("magnesium", HCP.to(fmt="cif"))]
    return write_csv(tmp_path / "data.csv", *rows, ("mixed", DISORDERED.to(fmt="cif")))


@pytest.fixture
def encodings(monkeypatch):
    """Names of the files that were encoded, rather than read from the cache."""
    made, encode_into = [], module._encode_into

    def spy(partial, path, *rest):
        made.append(path.name)
        encode_into(partial, path, *rest)

    monkeypatch.setattr(module, "_encode_into", spy)
    return made


def load(path, **options):
    return load_dataset(path, num_workers=1, **options)


def assert_equal(one, other):
    for name in ("names", "failures", "num_failures", "digest", "source", "n_max"):
        assert getattr(one, name) == getattr(other, name), name
    for ours, theirs in zip(jax.tree.leaves(one.batch), jax.tree.leaves(other.batch), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


def test_rows_become_crystals_or_failures(data):
    loaded = load(data)
    assert len(loaded) == 2
    assert loaded.names == ["salt", "magnesium"]
    assert [failure[:2] for failure in loaded.failures] == [(2, "broken"), (4, "mixed")]
    assert loaded.failures[1].reason == "sites with partial or mixed occupancy"
    assert loaded.num_failures == 2
    assert loaded.failures_path.read_text().splitlines()[0] == "row,name,reason"
    assert loaded.space_group.tolist() == [225, 194]
    assert loaded.num_sites.tolist() == [2, 1]
    assert loaded.n_max == 21
    assert loaded.source == "data.csv"
    assert len(loaded.digest) == 64
    counts = loaded.space_group_counts()
    assert counts.shape == (230,)
    assert (counts[224], counts[193], counts.sum()) == (1, 1, 2)
    elements = loaded.element_counts()
    assert elements.shape == (119,)
    assert {z: n for z, n in enumerate(elements) if n} == {11: 1, 12: 1, 17: 1}


def test_elements_are_counted_once_a_crystal(tmp_path):
    """Two sites of one element are one crystal that holds it."""
    perovskite = Structure.from_spacegroup(
        "Pm-3m", Lattice.cubic(3.9), ["Sr", "Ti", "O", "O"], [[0, 0, 0], [0.5] * 3, [0, 0.5, 0.5], [0.5, 0, 0]]
    )
    path = write_csv(tmp_path / "data.csv", ("one", perovskite.to(fmt="cif")), ("two", HCP.to(fmt="cif")))
    counts = load(path).element_counts()
    assert {z: n for z, n in enumerate(counts) if n} == {8: 1, 12: 1, 22: 1, 38: 1}


def test_batches_are_as_the_encoder_made_them(data):
    loaded, encoded = load(data), encode([ROCK_SALT, HCP])
    for ours, theirs in zip(jax.tree.leaves(loaded.batch), jax.tree.leaves(encoded.batch), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert ours.dtype == theirs.dtype


def test_take_is_that_of_a_batch(tmp_path, golden_structures):
    texts = [(f"{i}", structure.to(fmt="cif")) for i, structure in enumerate(golden_structures[:12])]
    loaded = load(write_csv(tmp_path / "data.csv", *texts))
    for rows, slots in (([3, 0, 3], 21), ([5], 30), ([], 4), (range(12), int(loaded.num_sites.max()))):
        rows = np.array(rows, int)
        ours, theirs = loaded.take(rows, slots), loaded.batch.take(rows, slots)
        for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype and one.shape == other.shape
    for crystals in (loaded, loaded.batch):
        with pytest.raises(DataError, match="do not fit 1 slots"):
            crystals.take(np.arange(12), 1)


def test_cache_hit_is_the_same_data_set(data, own_cache, encodings):
    """Names and failures included."""
    first = load(data)
    (cached,) = (own_cache / "encoded").iterdir()
    assert cached.name == first.digest
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
        with pytest.raises(DataError, match=r"none of 2 rows can be used: 1 x .*; 1 x sites with partial") as error:
            load(path)
        assert "failures.csv" in error.value.hint


def test_no_rows(tmp_path):
    (tmp_path / "data.csv").write_text("id,cif\n")
    with pytest.raises(DataError, match="holds no crystals"):
        load(tmp_path / "data.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no crystals"):
        load(tmp_path / "empty")


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "nowhere.csv")


def test_an_unreadable_file_is_not_cached(tmp_path, own_cache):
    (tmp_path / "data.csv").write_text("formula\nNaCl\n")
    with pytest.raises(DataError, match="no column with structures"):
        load(tmp_path / "data.csv")
    assert not list((own_cache / "encoded").iterdir())


def test_a_file_under_its_right_name_is_read_anew(tmp_path):
    """The format follows the name: what was nothing as a CIF is a crystal as a POSCAR."""
    path = tmp_path / "salt.cif"
    path.write_text(ROCK_SALT.to(fmt="poscar"))
    with pytest.raises(DataError):
        load(path)
    assert load(path.rename(tmp_path / "salt.vasp")).batch.space_group.tolist() == [225]


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


def other_format(path):
    path.write_text(path.read_text().replace('"format": 1', '"format": 0'))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("crystals.bin", shorten),
        ("sites.bin", shorten),
        ("names.jsonl", shorten),
        ("failures.csv", shorten),
        ("sites.bin", os.remove),
        ("dataset.json", os.remove),
        ("dataset.json", shorten),
        ("dataset.json", other_format),
        ("dataset.json", lambda path: path.write_text("[]")),
    ],
)
def test_a_damaged_or_older_cache_is_made_again(data, own_cache, encodings, name, damage):
    first = load(data)
    first_names, first_failures = first.names, first.failures
    damage(own_cache / "encoded" / first.digest / name)
    again = load(data)
    assert again.names == first_names and again.failures == first_failures
    assert again.batch.space_group.tolist() == [225, 194]
    assert [entry.name for entry in (own_cache / "encoded").iterdir()] == [first.digest]
    assert len(encodings) == (1 if (name, damage) == ("dataset.json", shorten) else 2)  # that was the last line end


def test_old_caches_do_not_matter(data, own_cache):
    digest = load(data).digest
    (own_cache / "encoded" / f"{digest}.npz").write_bytes(b"of an earlier version")
    assert load(data).names == ["salt", "magnesium"]


CESIUM_CHLORIDE = """data_salt
_symmetry_space_group_name_H-M 'P 1'
_cell_length_a 4.1
_cell_length_b 4.1
_cell_length_c 4.1
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
loop_
_symmetry_equiv_pos_as_xyz
'x, y, z'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Cs Cs 0 0 0
Cl Cl 0.5 0.5 0.5
"""


def test_what_an_earlier_version_encoded_is_known_by_its_files(tmp_path):
    """The digest is the one that the second version of the encoder gave this file."""
    (tmp_path / "salt.cif").write_text(CESIUM_CHLORIDE)
    loaded = load(tmp_path / "salt.cif")
    sha256 = "11953080bec3caefe716bab8e8d2b1d68527b717d8f8c0b21fa2ecae56314271"
    earlier = {"source": "salt.cif", "sha256": sha256, "crystals": 1}
    assert loaded.continues(earlier) and not loaded.continues(loaded.provenance)
    for other in ({"crystals": 2}, {"source": "other.cif"}, {"sha256": 64 * "0"}):
        assert not loaded.continues({**earlier, **other})
    (tmp_path / "salt.cif").write_text(CESIUM_CHLORIDE.replace("4.1", "4.2"))
    assert not load(tmp_path / "salt.cif").continues(earlier)


def test_names_of_all_kinds(tmp_path):
    """Names with commas, quotes and no encoding come back as they were, on one line, of crystals and failures."""
    odd = ["two\nlines", 'a "quoted, name"', " spaces ", "\u2028", "\r", "Å\ud800"]
    rows = [{"id": name, "cif": text} for text in (HCP.to(fmt="cif"), "none") for name in odd]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load(path)
    odd[0], odd[4] = "two lines", " "
    assert loaded.names == odd
    assert [failure.name for failure in loaded.failures] == [*odd[:-1], "Å\\ud800"]
    assert [failure.row for failure in loaded.failures] == list(range(7, 13))


def test_reasons_and_counts(tmp_path):
    """Too many sites, an unknown element, disorder: each row with its reason, and only these."""
    rng = np.random.default_rng(0)
    many = {f"many{n}": Structure(Lattice.cubic(20), ["O"] * n, rng.random((n, 3))).to(fmt="cif") for n in (22, 25)}
    unknown = {"unknown": HCP.to(fmt="cif").replace("Mg", "Xx"), "dummy": HCP.to(fmt="cif").replace("Mg", "D")}
    texts = {"good": HCP.to(fmt="cif"), **many, **unknown, "mixed": DISORDERED.to(fmt="cif")}
    loaded = load(write_csv(tmp_path / "data.csv", *texts.items()))
    reasons = {name: reason for _, name, reason in loaded.failures}
    assert {"many22", "many25", "unknown", "mixed"} <= reasons.keys() <= texts.keys() - {"good"}
    assert reasons["many22"] == "22 symmetry-inequivalent sites, more than 20"
    assert reasons["mixed"] == "sites with partial or mixed occupancy"
    assert Failure(2, "many22", reasons["many22"]) in loaded.failures


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
    monkeypatch.setattr(workers, "CHUNK", 2)
    monkeypatch.setattr(module, "COMMIT_SECONDS", 0)
    texts = {"s": ROCK_SALT.to(fmt="cif"), "m": HCP.to(fmt="cif"), "x": "no cif"}
    rows = [(f"{kind}{i}", texts[kind]) for i, kind in enumerate("smxmsxsm")]
    path = write_csv(tmp_path / "data.csv", *rows)
    progress: list[int] = []
    alone = load_dataset(path, num_workers=1, on_progress=progress.append)
    assert progress == [2, 4, 6, 8, 8]
    monkeypatch.setenv("CFX_CACHE", str(tmp_path / "other-cache"))
    assert_equal(load_dataset(path, num_workers=2), alone)
    assert alone.names == ["s0", "m1", "m3", "s4", "s6", "m7"]
    assert [failure[:2] for failure in alone.failures] == [(3, "x2"), (6, "x5")]
