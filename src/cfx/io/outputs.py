"""Crystals to files, format by suffix, batch by batch: an interrupted run keeps what it has and goes on from there.

NAME grows as NAME.partial and takes its name when it is complete. Beside it, until then, lies NAME.partial.json, which
says what was asked and how much of the file is whole, and, where no crystal may repeat, NAME.partial.kept, the crystals
as numbers.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from cfx.core.crystal import CrystalBatch
from cfx.core.elements import SYMBOLS, formula
from cfx.core.symmetry import LETTERS
from cfx.errors import OutputError, UsageError
from cfx.io.cif import cif_block, cif_blocks
from cfx.io.files import check_directory, replace_atomically


@dataclasses.dataclass(frozen=True)
class OutputRecord:
    """A crystal on its way out.

    Attributes:
        index: its place in the file, from 0.
        crystals: a batch of one (numpy).
        remarks: what else is known of it; log-probabilities in nats.
    """

    index: int
    crystals: CrystalBatch
    remarks: dict[str, str | int | float]

    @property
    def name(self) -> str:
        """Reduced formula and index."""
        counts = self.crystals.composition(0)
        divisor = int(np.gcd.reduce(list(counts.values())))
        return formula({number: count // divisor for number, count in counts.items()}) + f"_{self.index}"


def render_cif(record: OutputRecord) -> str:
    """A CIF block."""
    return cif_block(record.name, record.crystals, 0, record.remarks)


def render_extxyz(record: OutputRecord) -> str:
    """A frame of extended XYZ: all atoms of the conventional cell."""
    import ase.io
    from pymatgen.io.ase import AseAtomsAdaptor

    atoms = AseAtomsAdaptor.get_atoms(record.crystals.to_structures()[0], msonable=False)
    atoms.info = {"name": record.name, "space_group": int(record.crystals.space_group[0]), **record.remarks}
    for extra in [key for key in atoms.arrays if key not in ("numbers", "positions")]:
        del atoms.arrays[extra]
    text = io.StringIO()
    ase.io.write(text, atoms, format="extxyz")
    return text.getvalue()


def render_jsonl(record: OutputRecord) -> str:
    """A line of JSON: the asymmetric unit, what else is known, and the CIF block."""
    crystals, num = record.crystals, int(record.crystals.num_sites[0])
    line = {
        "name": record.name,
        "space_group": int(crystals.space_group[0]),
        "lattice": [float(f"{value:.8g}") for value in crystals.lattice[0]],
        "wyckoff": [LETTERS[letter] for letter in crystals.wyckoff[0, :num]],
        "species": [SYMBOLS[number] for number in crystals.species[0, :num]],
        "frac_coords": [[float(f"{x:.8g}") for x in point] for point in crystals.frac_coords[0, :num]],
        **record.remarks,
        "cif": render_cif(record),
    }
    return json.dumps(line) + "\n"


CSV_HEADER = "L,X,A,W,M,G,logp_w,logp_a,logp_xyz,logp_l,logp\n"


def render_csv(record: OutputRecord) -> str:
    """A row in the layout of the public CrystalFormer: arrays over all slots, lattice in angstrom and degree."""
    crystals, remarks = record.crystals, record.remarks
    arrays = [crystals.lattice, crystals.frac_coords, crystals.species, crystals.wyckoff, crystals.multiplicity]
    cells = [json.dumps(np.asarray(array[0], float if i < 2 else int).tolist()) for i, array in enumerate(arrays)]
    parts = ("log_prob_wyckoff", "log_prob_species", "log_prob_coords", "log_prob_lattice", "log_prob")
    numbers = [str(int(crystals.space_group[0])), *(f"{remarks[part]:.6f}" for part in parts)]
    return ",".join([*(f'"{cell}"' for cell in cells), *numbers]) + "\n"


def render_poscar(record: OutputRecord) -> str:
    """A POSCAR of the conventional cell."""
    from pymatgen.io.vasp import Poscar

    return Poscar(record.crystals.to_structures()[0].get_sorted_structure(), comment=record.name).get_str()


def _zip_blocks(partial: Path, final: Path) -> None:
    """A file of CIF blocks as a zip of files gen_0.cif, gen_1.cif, ..."""

    def write(target: Path) -> None:
        with open(partial) as blocks, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for i, block in enumerate(cif_blocks(blocks)):
                archive.writestr(f"gen_{i}.cif", block)

    replace_atomically(final, write)
    partial.unlink()


@dataclasses.dataclass(frozen=True)
class Format:
    """How crystals of a suffix are written.

    Attributes:
        render: the text of one.
        header: the text before the first.
        any_cell: lattices that close no cell can be written too.
        complete: makes the final file of the partial one.
    """

    render: Callable[[OutputRecord], str]
    header: str = ""
    any_cell: bool = True
    complete: Callable[[Path, Path], None] = os.replace


FORMATS = {
    ".cif": Format(render_cif),
    ".zip": Format(render_cif, complete=_zip_blocks),
    ".extxyz": Format(render_extxyz, any_cell=False),
    ".jsonl": Format(render_jsonl),
    ".csv": Format(render_csv, header=CSV_HEADER),
    "": Format(render_poscar, any_cell=False),
}
"""By suffix; a name without one is a directory of POSCAR files."""


_POSCAR = re.compile(r"gen_(\d+)\.vasp")


class Output(Protocol):
    """Where crystals go."""

    def write(self, records: list[OutputRecord], progress: dict[str, Any]) -> None:
        """Adds crystals and makes sure of them; `progress` is kept for an interrupted run."""

    def close(self) -> None:
        """Gives the complete output its name."""


def check_output(path: Path | None, force: bool, keep_invalid: bool = False, resume: bool = False) -> None:
    """Finds out before the work whether a result can be written, without loss of an earlier one.

    Raises:
        UsageError: for a suffix that cfx does not write.
        OutputError: if the file exists and `force` is False, or its directory cannot be written.
    """
    if path is None:
        return
    if path.suffix not in FORMATS or not path.name:
        raise UsageError(
            f"cannot write {path}: unknown suffix {path.suffix!r}",
            "name a .cif, .zip, .extxyz, .jsonl or .csv file, or a directory for POSCAR files",
        )
    if keep_invalid and not FORMATS[path.suffix].any_cell:
        raise UsageError("this format needs lattices that close a cell", "keep invalid ones in .cif, .csv or .jsonl")
    if path.exists() and not force:
        raise OutputError(f"{path} exists", "choose another name, or overwrite it with `force`")
    if path.exists() and path.is_dir() != (path.suffix == ""):
        kinds = ("a directory", "a file") if path.is_dir() else ("a file", "a directory")
        raise OutputError(f"{path} is {kinds[0]}, and the result is {kinds[1]}", "choose another name")
    if path.is_dir() and not all(_POSCAR.fullmatch(entry.name) for entry in path.iterdir()):
        raise OutputError(f"{path} holds other files than cfx writes, and is not overwritten", "choose another name")
    partial = path.with_name(path.name + ".partial")
    if partial.exists() and not (force or resume):
        raise OutputError(f"{partial} holds an unfinished run", "continue it with `resume`, or start anew with `force`")
    check_directory(path)


class StandardOutput:
    """CIF blocks on stdout."""

    def write(self, records: list[OutputRecord], progress: dict[str, Any]) -> None:
        """Prints crystals."""
        with _writing("stdout"):
            sys.stdout.write("".join(map(render_cif, records)))
            sys.stdout.flush()

    def close(self) -> None:
        """Nothing is left to do."""


class GrowingOutput:
    """A file, or a directory of POSCAR files, that can be continued."""

    def __init__(self, path: Path, request: dict[str, Any], keep: bool = False):
        """Prepares an output; nothing is written yet.

        Args:
            path: of the result; its suffix decides the format.
            request: what was asked, as JSON can hold it; an output is only continued with the same.
            keep: also store the crystals as numbers, for `kept`.
        """
        self.path, self.request, self.format = path, request, FORMATS[path.suffix]
        self.partial = path.with_name(path.name + ".partial")
        self._state, self._kept = (path.with_name(f"{path.name}.partial.{what}") for what in ("json", "kept"))
        self._keep, self._is_directory = keep, path.suffix == ""

    def begin(self) -> None:
        """Starts anew."""
        with _writing(self.path):
            self._remove()
            if self._is_directory:
                self.partial.mkdir()
            else:
                self.partial.write_text(self.format.header)
        self._save(len(self.format.header), {})

    def resume(self) -> dict[str, Any]:
        """Goes back to the last state that is whole, and returns its progress; {} where there is nothing to continue.

        Raises:
            UsageError: if something else was asked then.
            OutputError: if what is there is damaged, or cannot be written.
        """
        if not (self._state.exists() or self.partial.exists()):
            self.begin()
            return {}
        try:
            state = json.loads(self._state.read_text())
            request, size, progress = (state[key] for key in ("request", "size", "progress"))
            whole = self._is_directory or self.partial.stat().st_size >= size
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"cannot continue {self.partial}: {error}", "start anew with `force`") from error
        if not whole:
            raise OutputError(f"{self.partial} is shorter than it was", "start anew with `force`")
        if request != self.request:
            keys = sorted(self.request.keys() | request.keys())
            different = [key for key in keys if request.get(key) != self.request.get(key)]
            raise UsageError(
                f"{self.partial} was made with another {', '.join(different)}",
                "repeat the first command with `resume`, or start anew with `force`",
            )
        with _writing(self.path):
            if self._is_directory:
                for file in self.partial.iterdir():
                    if (match := _POSCAR.fullmatch(file.name)) and int(match[1]) >= size:
                        file.unlink()
            else:
                os.truncate(self.partial, size)
        return progress

    def write(self, records: list[OutputRecord], progress: dict[str, Any]) -> None:
        """Adds crystals to the partial output."""
        with _writing(self.path):
            if self._is_directory:
                for record in records:
                    (self.partial / f"gen_{record.index}.vasp").write_text(self.format.render(record))
                size = records[-1].index + 1
            else:
                with open(self.partial, "a") as file:
                    file.write("".join(map(self.format.render, records)))
                    _make_sure(file)
                size = self.partial.stat().st_size
            if self._keep:
                with open(self._kept, "r+b" if self._kept.exists() else "wb") as file:
                    rows = [_as_numbers(record.crystals) for record in records]
                    file.seek(records[0].index * rows[0].nbytes)
                    file.write(b"".join(row.tobytes() for row in rows))
                    _make_sure(file)
        self._save(size, progress)

    def kept(self, num: int, num_slots: int) -> CrystalBatch:
        """The first `num` crystals written."""
        width = 7 + 5 * num_slots
        try:
            numbers = np.fromfile(self._kept, np.float32, num * width).reshape(num, width)
        except (OSError, ValueError) as error:
            raise OutputError(f"cannot continue from {self._kept}: {error}", "start anew with `force`") from error
        sites = numbers[:, 7:].reshape(num, num_slots, 5)
        return CrystalBatch(
            numbers[:, 0].astype(np.int32),
            numbers[:, 1:7],
            sites[..., 2:],
            sites[..., 1].astype(np.int32),
            sites[..., 0].astype(np.int32),
        )

    def close(self) -> None:
        """Renames the partial output, and removes what lay beside it."""
        with _writing(self.path):
            if self.path.is_dir():
                shutil.rmtree(self.path)
            self.format.complete(self.partial, self.path)
            self._state.unlink()
            self._kept.unlink(missing_ok=True)

    def _remove(self) -> None:
        if self.partial.is_dir():
            shutil.rmtree(self.partial)
        for file in (self.partial, self._state, self._kept):
            file.unlink(missing_ok=True)

    def _save(self, size: int, progress: dict[str, Any]) -> None:
        state = {"request": self.request, "size": size, "progress": progress}
        replace_atomically(self._state, lambda path: path.write_text(json.dumps(state) + "\n"))


def _make_sure(file: IO) -> None:
    """Brings what was written to the disk itself."""
    file.flush()
    os.fsync(file.fileno())


def _as_numbers(crystals: CrystalBatch) -> np.ndarray:
    """A batch of one as float32 [7 + 5 N]; all its integers are exact in float32."""
    sites = np.concatenate(
        [crystals.wyckoff[0, :, None], crystals.species[0, :, None], crystals.frac_coords[0]], axis=1
    )
    return np.concatenate([crystals.space_group, crystals.lattice[0], sites.ravel()]).astype(np.float32)


@contextmanager
def _writing(path: Path | str) -> Iterator[None]:
    """Turns an OSError into an OutputError which names the result; a closed pipe stays what it is."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
