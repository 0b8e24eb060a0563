"""CrystalFormer's encoded data sets: an LMDB file with five pickled arrays of all crystals, none of it run.

Under the keys "0" to "4": space groups [n], lattices [n, 6] in the model frame, coordinates [n, N, 3], atomic numbers
[n, N] and Wyckoff letters [n, N], with zeros in pads.
"""

import io
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import numpy as np

from cfx.core.crystal import CrystalBatch, row_checks
from cfx.core.lattice import is_physical, to_physical_frame
from cfx.core.symmetry import symmetry_table, wrap
from cfx.data.encode import EncodedCrystal
from cfx.data.store import Part, pack
from cfx.errors import DataError
from cfx.io import pickles

SLICE = 4096
"""Crystals that are converted at once."""

ARRAYS = {"space groups": "iu", "lattices": "f", "coordinates": "f", "atomic numbers": "iu", "letters": "iu"}
"""What the keys hold, and the kinds of numpy types that can hold it."""

_PROBE = """
import sys, lmdb
with lmdb.open(sys.argv[1], subdir=sys.argv[2] == "True", readonly=True, lock=False) as environment:
    with environment.begin(buffers=True) as transaction:
        for key in (b"0", b"1", b"2", b"3", b"4"):
            value = transaction.get(key, b"-")
            sum(value[::512]), sum(value[-1:])
"""


def data_file(path: Path) -> Path:
    """The file that holds the data: LMDB makes files, and directories with such a file."""
    return path / "data.mdb" if path.is_dir() else path


def read_parts(path: Path, n_max: int, first: int = 0) -> Generator[Part, None, None]:
    """The crystals of a file or directory after the first `first`, part by part; `n_max` as in `load_dataset`.

    Raises:
        DataError: if the file is damaged, hostile, or holds something else.
    """
    arrays = _read_arrays(path)
    for start in range(first, len(arrays[0]), SLICE):
        yield _part([array[start : start + SLICE] for array in arrays], n_max, start)


def _read_arrays(path: Path) -> list[np.ndarray]:
    values = _read_values(path)
    arrays = []
    for key, (meaning, kinds) in enumerate(ARRAYS.items()):
        try:
            array = pickles.array_of(pickles.load(io.BytesIO(values.pop(0))))
        except pickles.Refused as error:
            raise DataError(f"{path}: {error}", "CrystalFormer's data sets hold only arrays of numbers") from None
        except pickles.Damaged as error:
            raise DataError(f"{path}: the {meaning} are not a readable pickle ({error})") from error
        if array is None or array.dtype.kind not in kinds:
            raise DataError(f"{path} is not a CrystalFormer data set: no array of {meaning} under the key {key}")
        arrays.append(array)
    n, slots = arrays[-1].shape if arrays[-1].ndim == 2 else (0, 0)
    if [array.shape for array in arrays] != [(n,), (n, 6), (n, slots, 3), (n, slots), (n, slots)]:
        shapes = ", ".join(str(list(array.shape)) for array in arrays)
        raise DataError(f"{path} is not a CrystalFormer data set: arrays of shapes {shapes}")
    return arrays


def _read_values(path: Path) -> list[bytes]:
    import lmdb

    # liblmdb follows the offsets of a file wherever they lead, and a damaged file ends the process that reads it:
    # another process goes first.
    probe = [sys.executable, "-P", "-c", _PROBE, str(path), str(path.is_dir())]
    if subprocess.run(probe, capture_output=True, start_new_session=True, check=False).returncode:
        raise DataError(f"{path} is not a readable LMDB file, or is cut short")
    with (
        lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False) as environment,
        environment.begin() as transaction,
    ):
        found = [transaction.get(str(key).encode()) for key in range(len(ARRAYS))]
    values = [value for value in found if value is not None]
    if len(values) < len(found):
        raise DataError(f"{path} is not a CrystalFormer data set: nothing under the key {found.index(None)}")
    return values


def _part(arrays: list[np.ndarray], n_max: int, first: int) -> Part:
    """A slice of the arrays, whose first crystal is number `first` of the file."""
    batch = _batch(*arrays)
    num_sites = batch.num_sites
    checks = {**row_checks(batch), "a lattice that closes no cell": is_physical(batch.lattice)}
    reasons = np.full(len(batch), "", object)
    for fault, fine in reversed(checks.items()):
        reasons[~fine] = fault
    for row in np.flatnonzero(num_sites > n_max - 1):
        reasons[row] = f"{num_sites[row]} symmetry-inequivalent sites, more than {n_max - 1}"
    columns = (batch.space_group, batch.lattice, batch.wyckoff, batch.species, batch.frac_coords)
    results = [
        reason or EncodedCrystal(group, lattice, *(sites[:num] for sites in rest))
        for reason, num, group, lattice, *rest in zip(reasons, num_sites, *columns, strict=True)
    ]
    return pack([f"row {first + i}" for i in range(1, len(batch) + 1)], results)


def _batch(space_group, lattice, frac_coords, species, wyckoff) -> CrystalBatch:
    """A slice of the arrays in the physical frame, with one more slot; numbers out of range stay so."""
    group, species, wyckoff = (np.clip(array, -1, 255).astype(np.int32) for array in (space_group, species, wyckoff))
    filled = wyckoff > 0
    table = symmetry_table().multiplicity
    num_atoms = table[np.clip(group, 1, 230)[:, None] - 1, np.clip(wyckoff, 0, table.shape[1] - 1)].sum(1)
    with np.errstate(invalid="ignore", over="ignore"):
        lattice = to_physical_frame(lattice.astype(float), num_atoms).astype(np.float32)
        coords = np.where(filled[..., None], wrap(frac_coords.astype(np.float32)), 0)
    return CrystalBatch(group, lattice, coords, species, wyckoff).with_slots(wyckoff.shape[1] + 1)
