"""CrystalFormer's encoded data sets: an LMDB of pickled arrays, read without running anything in it."""

import os
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import lmdb
import numpy as np
import pytest

from cfx.core.lattice import to_model_frame
from cfx.data import dataset as module
from cfx.data import lmdb as reader
from cfx.data.dataset import load_dataset
from cfx.errors import DataError


def write(path: Path, values: list[bytes], subdir: bool = False) -> Path:
    with (
        lmdb.open(str(path), subdir=subdir, map_size=1 << 26) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in enumerate(values):
            transaction.put(str(key).encode(), value)
    return path


def arrays(golden, n: int | None = None) -> list[np.ndarray]:
    """The golden crystals as the public program writes them, with noise in the coordinates of pads."""
    batch = golden.batch[:n].numpy()
    noise = np.random.default_rng(0).random(batch.frac_coords.shape, np.float32)
    noise[::2] = np.nan
    coords = np.where(batch.wyckoff[..., None] > 0, batch.frac_coords, 5 * noise)
    lattice = to_model_frame(batch.lattice.astype(float), batch.num_atoms).astype(np.float32)
    return [batch.space_group, lattice, coords, batch.species, batch.wyckoff]


def pickled(content: list, protocol: int = 4) -> list[bytes]:
    return [pickle.dumps(array, protocol) for array in content]


def load(path: Path, **options):
    return load_dataset(path, num_workers=1, **options)


def assert_golden(data, golden, n: int):
    expected = golden.batch[:n].numpy()
    assert len(data) == n and data.num_failures == 0
    for name in ("space_group", "species", "wyckoff"):
        np.testing.assert_array_equal(getattr(data.batch, name), getattr(expected, name), name)
    np.testing.assert_allclose(data.batch.lattice, expected.lattice, rtol=1e-6)
    np.testing.assert_array_equal(data.batch.frac_coords, expected.frac_coords)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("make", [np.asarray, jnp.asarray, np.asfortranarray], ids=["numpy", "jax", "fortran"])
def test_round_trip(rotary, tmp_path, make, protocol):
    path = write(tmp_path / "data.lmdb", pickled([make(array) for array in arrays(rotary, 20)], protocol))
    data = load(path)
    assert_golden(data, rotary, 20)
    assert data.names == [f"row {i}" for i in range(1, 21)]
    assert data.source == "data.lmdb"


def test_all_golden_crystals_in_slices(rotary, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "SLICE", 32)
    data = load(write(tmp_path / "data.lmdb", pickled(arrays(rotary))))
    assert_golden(data, rotary, 150)
    assert data.names[149] == "row 150"


def test_resumed(rotary, tmp_path, monkeypatch):
    """After a stop in the middle it goes on there."""
    monkeypatch.setattr(reader, "SLICE", 32)
    monkeypatch.setattr(module, "COMMIT_SECONDS", 0)
    path = write(tmp_path / "data.lmdb", pickled(arrays(rotary)))
    progress: list[int] = []

    def stop(done):
        progress.append(done)
        if done == 64:
            raise InterruptedError

    for error in (InterruptedError, None):
        if error:
            with pytest.raises(error):
                load(path, on_progress=stop)
        else:
            data = load(path, on_progress=stop)
    assert progress == [32, 64, 96, 128, 150, 150]
    assert_golden(data, rotary, 150)
    assert data.names == [f"row {i}" for i in range(1, 151)]


def test_a_directory_and_wide_types(rotary, tmp_path):
    """int64, float64, big-endian; more slots than the model has; the files of LMDB's lock do not matter."""
    content = [array.astype(array.dtype.newbyteorder(">")) for array in arrays(rotary, 20)]
    content = [array.astype(">i8" if array.dtype.kind == "i" else ">f8") for array in content]
    content[2:] = [np.pad(array, [(0, 0), (0, 9)] + [(0, 0)] * (array.ndim - 2)) for array in content[2:]]
    path = write(tmp_path / "data.lmdb", pickled(content), subdir=True)
    first = load(path)
    assert_golden(first, rotary, 20)
    (path / "lock.mdb").write_bytes(b"of another process")
    assert load(path).digest == first.digest


def test_coordinates_are_wrapped(rotary, tmp_path):
    content = arrays(rotary, 20)
    content[2] = content[2] + np.random.default_rng(0).integers(-2, 3, content[2].shape)
    data = load(write(tmp_path / "data.lmdb", pickled(content)))
    difference = data.batch.frac_coords - rotary.batch[:20].frac_coords
    assert np.abs(difference - np.rint(difference)).max() < 1e-6
    assert (data.batch.frac_coords >= 0).all() and (data.batch.frac_coords < 1).all()
    assert not data.batch.frac_coords[data.batch.wyckoff == 0].any()


def test_bad_rows_are_failures(rotary, tmp_path):
    group, lattice, coords, species, wyckoff = content = [array.copy() for array in arrays(rotary, 20)]
    content[0] = group = group.astype(np.int64)
    group[0], group[1] = 0, 2**40
    wyckoff[2, 0] = 27 if group[2] != 47 else 28
    wyckoff[3] = species[3] = 0
    species[4, 0] = 119
    species[5, 0] = -1
    species[6, -1] = 8  # in a pad
    wyckoff[7, 0] = species[7, 0] = 0
    wyckoff[7, 1:3], species[7, 1:3] = 1, 8
    coords[8, 0, 0] = np.nan
    coords[9, 0, 0] = np.inf
    lattice[10, 0] = np.nan
    lattice[11, 0] = -1
    lattice[12, 3:] = 3
    group[13], species[13], wyckoff[13] = 1, 8, 1
    data = load(write(tmp_path / "data.lmdb", pickled(content)))
    reasons = [(row, reason) for row, _, reason in data.failures]
    assert reasons == [
        (1, "a space group outside 1..230"),
        (2, "a space group outside 1..230"),
        (3, "a letter that its space group lacks"),
        (4, "no sites"),
        (5, "an atomic number out of range"),
        (6, "an atomic number out of range"),
        (7, "an atomic number out of range"),
        (8, "a pad before a site"),
        (9, "coordinates outside [0, 1)"),
        (10, "coordinates outside [0, 1)"),
        (11, "a lattice that is not finite"),
        (12, "a lattice that closes no cell"),
        (13, "a lattice that closes no cell"),
        (14, "21 symmetry-inequivalent sites, more than 20"),
    ]
    assert data.names == [f"row {i}" for i in range(15, 21)]
    np.testing.assert_array_equal(data.batch.wyckoff, rotary.batch[14:20].wyckoff)


def test_more_sites_than_the_model_has(rotary, tmp_path):
    path = write(tmp_path / "data.lmdb", pickled(arrays(rotary)))
    data, sites = load(path, n_max=6), rotary.batch.numpy().num_sites
    assert len(data) == (sites <= 5).sum() > 0
    assert data.num_failures == (sites > 5).sum() > 0
    assert data.batch.num_slots == 6


# Files that are damaged, or something else.


def changed(rotary, key: int, value) -> list[bytes]:
    content = pickled(arrays(rotary, 20))
    content[key] = value
    return content


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (0, b"", "the space groups are not a readable pickle"),
        (1, b"\x80\x04.", "the lattices are not a readable pickle"),
        (3, pickle.dumps([1, 2]), "no array of atomic numbers under the key 3"),
        (0, pickle.dumps(np.ones(20)), "no array of space groups under the key 0"),
        (4, pickle.dumps(np.ones((20, 21), bool)), "no array of letters"),
        (4, pickle.dumps(np.ones((20, 20), int)), "shapes"),
        (4, pickle.dumps(np.ones(20, int)), "shapes"),
        (0, pickle.dumps(np.ones(19, int)), "shapes"),
    ],
)
def test_other_contents(rotary, tmp_path, own_cache, key, value, message):
    with pytest.raises(DataError, match=message) as error:
        load(write(tmp_path / "data.lmdb", changed(rotary, key, value)))
    assert "data.lmdb" in error.value.message and "\n" not in error.value.message
    assert not list((own_cache / "encoded").iterdir())


def test_a_missing_key(rotary, tmp_path):
    with pytest.raises(DataError, match="nothing under the key 4"):
        load(write(tmp_path / "data.lmdb", pickled(arrays(rotary, 20))[:4]))


def test_no_crystals(tmp_path, rotary):
    with pytest.raises(DataError, match="holds no crystals"):
        load(write(tmp_path / "data.lmdb", pickled([array[:0] for array in arrays(rotary, 1)])))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9])
def test_files_that_are_cut_short(rotary, tmp_path, share):
    """liblmdb would take the process down with a bus error."""
    path = write(tmp_path / "data.lmdb", pickled(arrays(rotary)))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataError, match=r"data\.lmdb is not a "):
        load(path)


@pytest.mark.parametrize("content", [b"hello", b"PK\x03\x04" * 5000])
def test_files_that_are_no_lmdb(tmp_path, content):
    (tmp_path / "data.lmdb").write_bytes(content)
    with pytest.raises(DataError, match="not a readable LMDB file"):
        load(tmp_path / "data.lmdb")


def test_no_such_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "data.lmdb")
    (tmp_path / "empty.lmdb").mkdir()
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "empty.lmdb")


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("key", range(5))
@pytest.mark.parametrize("protocol", [2, 5])
def test_hostile_pickles_run_nothing(rotary, tmp_path, key, protocol):
    marker = tmp_path / "marker"
    hostile = pickle.dumps([arrays(rotary, 20)[key], Call(os.system, f"touch {marker}")], protocol)
    with pytest.raises(
        DataError, match=r"refused a pickle that asks for posix\.system; nothing in it was run"
    ) as error:
        load(write(tmp_path / "data.lmdb", changed(rotary, key, hostile)))
    assert not marker.exists()
    assert error.value.hint


def test_text_becomes_bytes_of_one_encoding_only(rotary, tmp_path):
    """What protocol 2 calls for bytes is no way to other codecs."""
    import codecs

    hostile = pickle.dumps(Call(codecs.encode, "x", "rot13"), 2)
    with pytest.raises(DataError, match="not a readable pickle"):
        load(write(tmp_path / "data.lmdb", changed(rotary, 0, hostile)))


def test_jax_arrays_are_not_made(rotary, tmp_path, monkeypatch):
    """They are rebuilt as numpy arrays, without JAX."""
    path = write(tmp_path / "data.lmdb", pickled([jnp.asarray(array) for array in arrays(rotary, 20)]))
    monkeypatch.setattr(jax._src.array, "_reconstruct_array", None)
    assert_golden(load(path), rotary, 20)
