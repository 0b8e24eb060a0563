"""Crystals to files, batch by batch: an interrupted run keeps what it has and goes on from there.

NAME grows as NAME.partial, a journal, and takes its name when it is complete. Beside it, until then, lies
NAME.partial.json, which says what was asked and how much of the file counts, and, where no crystal may repeat,
NAME.partial.kept, the crystals as numbers.
"""

import re
import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cfx.core.crystal import CrystalBatch
from cfx.errors import OutputError, UsageError
from cfx.io.files import check_directory, parse_json, writing
from cfx.io.formats import FORMATS, OutputRecord, render_cif
from cfx.io.journal import Journal, check_same_run, check_unfinished, partial_of, remove_partial, write_state

_POSCAR = re.compile(r"gen_\d+\.vasp")

STATE = {"request": dict, "count": int, "size": int, "crc": int, "kept": int, "kept_crc": int, "progress": dict}
"""What NAME.partial.json holds, and of which type."""


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
        raise UsageError("this format cannot hold unphysical lattices", "use .cif, .csv or .jsonl")
    check_unfinished(path, force, resume)
    if path.exists() and path.is_dir() != (path.suffix == ""):
        kinds = ("a directory", "a file") if path.is_dir() else ("a file", "a directory")
        raise OutputError(f"{path} is {kinds[0]}, but the result is {kinds[1]}", "choose another name")
    if path.is_dir() and not all(_POSCAR.fullmatch(entry.name) for entry in path.iterdir()):
        raise OutputError(
            f"{path} contains files that cfx did not write, and is not overwritten", "choose another name"
        )
    check_directory(path)


class StandardOutput:
    """CIF blocks on stdout."""

    def write(self, records: list[OutputRecord], progress: dict[str, Any]) -> None:
        """Prints crystals."""
        with writing("stdout"):
            sys.stdout.write("".join(map(render_cif, records)))
            sys.stdout.flush()

    def close(self) -> None:
        """Nothing is left to do."""


class GrowingOutput:
    """A file or directory that can be continued; see `sole_writer` for keeping others away."""

    def __init__(self, path: Path, request: dict[str, Any], keep: bool = False):
        """Prepares an output; nothing is written yet.

        Args:
            path: of the result; its suffix decides the format.
            request: what was asked, as JSON can hold it; an output is only continued with the same.
            keep: also store the crystals as numbers, for `kept`.
        """
        self.path, self.request, self.format = path, request, FORMATS[path.suffix]
        self.partial, self.count = partial_of(path), 0
        self._state = self.partial.with_name(f"{self.partial.name}.json")
        self._blocks = Journal(self.partial, path)
        self._kept = Journal(self.partial.with_name(f"{self.partial.name}.kept"), path)
        self._keep = keep

    def begin(self) -> None:
        """Starts anew."""
        remove_partial(self.path)
        self._save({})  # first: a partial output without it could not be resumed
        self._start()

    def _start(self) -> None:
        self._blocks.begin(self.format.header.encode())
        if self._keep:
            self._kept.begin()

    def resume(self) -> dict[str, Any]:
        """Goes back to what counts, and returns its progress; {} where there is nothing to continue.

        Raises:
            UsageError: if something else was asked then.
            OutputError: if what is there is damaged, or cannot be written.
        """
        if not (self._state.exists() or self.partial.exists()):
            self.begin()
            return {}
        state = self._read_state()
        request, size, count = (state[key] for key in ("request", "size", "count"))
        check_same_run(self.partial, request, self.request, "repeat the first command with `resume`")
        if not count:
            self._start()
            return state["progress"]
        self._blocks.resume(size, crc=state["crc"])
        if self._keep:
            self._kept.resume(state["kept"], crc=state["kept_crc"])
        self.count = count
        self._check_count()
        return state["progress"]

    def _read_state(self) -> dict[str, Any]:
        """What `_save` has written."""
        try:
            state = parse_json(self._state.read_text())
            if wrong := [key for key, kind in STATE.items() if not isinstance(state[key], kind)]:
                raise ValueError(f"{self._state} does not tell its {wrong[0]}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"cannot continue {self.partial}: {error}", "start again with `force`") from error
        return state

    def earlier_request(self) -> dict[str, Any] | None:
        """What was asked when the output that can be continued was begun; None if there is none.

        Raises:
            OutputError: if it is damaged.
        """
        return self._read_state()["request"] if self._state.exists() or self.partial.exists() else None

    def write(self, records: list[OutputRecord], progress: dict[str, Any]) -> None:
        """Adds crystals to the partial output."""
        self._blocks.append("".join(map(self.format.render, records)).encode())
        self._blocks.commit()
        if self._keep:
            self._kept.append(b"".join(_as_numbers(record.crystals).tobytes() for record in records))
            self._kept.commit()
        self.count += len(records)
        self._save(progress)

    def kept(self, num: int, num_slots: int) -> CrystalBatch:
        """The first `num` crystals written."""
        width = 7 + 5 * num_slots
        try:
            numbers = np.fromfile(self._kept.path, np.float32, num * width).reshape(num, width)
        except (OSError, ValueError) as error:
            raise OutputError(f"cannot continue from {self._kept.path}: {error}", "start again with `force`") from error
        sites = numbers[:, 7:].reshape(num, num_slots, 5)
        return CrystalBatch(
            numbers[:, 0].astype(np.int32),
            numbers[:, 1:7],
            sites[..., 2:],
            sites[..., 1].astype(np.int32),
            sites[..., 0].astype(np.int32),
        )

    def close(self) -> None:
        """Counts the crystals, gives the partial output its name, and removes what lay beside it.

        Raises:
            OutputError: if there are not as many as were written.
        """
        with writing(self.path):
            self._check_count()
            self.format.complete(self.partial, self.path)
        remove_partial(self.path)

    def _check_count(self) -> None:
        """Counts the crystals in the partial output."""
        with open(self.partial, "rb") as file:
            found = sum(line.startswith(self.format.start) for line in file)
        if found != self.count:
            raise OutputError(
                f"{self.partial} holds {found} crystals, but {self.count} were written", "start again with `force`"
            )

    def _save(self, progress: dict[str, Any]) -> None:
        """Says what counts: crystals, and bytes of the files."""
        blocks = {"size": self._blocks.size or 0, "crc": self._blocks.crc}
        kept = {"kept": self._kept.size or 0, "kept_crc": self._kept.crc}
        state = {"request": self.request, "count": self.count, **blocks, **kept, "progress": progress}
        write_state(self._state, state)


def _as_numbers(crystals: CrystalBatch) -> np.ndarray:
    """A batch of one as float32 [7 + 5 N]; all its integers are exact in float32."""
    sites = np.concatenate(
        [crystals.wyckoff[0, :, None], crystals.species[0, :, None], crystals.frac_coords[0]], axis=1
    )
    return np.concatenate([crystals.space_group, crystals.lattice[0], sites.ravel()]).astype(np.float32)
