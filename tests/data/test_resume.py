"""An encoding that is interrupted goes on, and ends with the very bytes of one that was not."""

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure

from cfx.data import dataset as module
from cfx.data import workers
from cfx.data.dataset import load_dataset
from cfx.data.store import FILES, exclusive
from cfx.errors import CfxError, DataError, OutputError

HCP = Structure.from_spacegroup("P6_3/mmc", Lattice.hexagonal(3.21, 5.21), ["Mg"], [[1 / 3, 2 / 3, 0.25]])
ROCK_SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
TEXTS = {"m": HCP.to(fmt="cif"), "s": ROCK_SALT.to(fmt="cif"), "x": "no cif"}


class Stop(Exception):
    """What a progress callback raises to stop."""


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Every two rows are committed."""
    monkeypatch.setattr(workers, "CHUNK", 2)
    monkeypatch.setattr(module, "COMMIT_SECONDS", 0)


@pytest.fixture
def data(tmp_path) -> Path:
    """Eleven rows: crystals of one and two sites, and no crystals."""
    rows = [f'{kind}{i},"{TEXTS[kind]}"\n' for i, kind in enumerate("msxmmxxsmxs")]
    (tmp_path / "data.csv").write_text("id,cif\n" + "".join(rows))
    return tmp_path / "data.csv"


def content(directory: Path) -> dict[str, bytes]:
    """Every file under a directory."""
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


@pytest.fixture
def expected(data, tmp_path, monkeypatch) -> dict[str, bytes]:
    """The cache after an encoding that nothing disturbed."""
    with monkeypatch.context() as patch:
        patch.setenv("CFX_CACHE", str(tmp_path / "undisturbed"))
        load_dataset(data, num_workers=1)
    files = content(tmp_path / "undisturbed" / "encoded")
    assert {Path(name).name for name in files} == {*FILES, "dataset.json", "lock"}
    return files


def stop_after(rows: int):
    def on_progress(done: int) -> None:
        if done >= rows:
            raise Stop

    return on_progress


def interrupt(data: Path, own_cache: Path, rows: int) -> Path:
    """Encodes until so many rows are committed; returns what is left."""
    with pytest.raises(Stop):
        load_dataset(data, num_workers=1, on_progress=stop_after(rows))
    (partial,) = (own_cache / "encoded").iterdir()
    assert partial.suffix == ".partial"
    return partial


@pytest.fixture
def read_rows(monkeypatch) -> list[str]:
    """Names of the rows that were encoded."""
    names, encode_part = [], workers.encode_part

    def spy(records, *rest):
        names.extend(record.name for record in records)
        return encode_part(records, *rest)

    monkeypatch.setattr(workers, "encode_part", spy)
    return names


@pytest.mark.parametrize("rows", [2, 6, 10, 11])
def test_resumed_equals_uninterrupted(data, own_cache, expected, read_rows, rows):
    """After the last commit only the name of the directory is missing."""
    interrupt(data, own_cache, rows)
    read_rows.clear()
    progress: list[int] = []
    loaded = load_dataset(data, num_workers=1, on_progress=progress.append)
    assert content(own_cache / "encoded") == expected
    assert len(read_rows) == 11 - rows
    assert progress == [*(done for done in (4, 6, 8, 10, 11) if done > rows), 11]
    assert loaded.names == ["m0", "s1", "m3", "m4", "s7", "m8", "s10"]
    assert [failure[:2] for failure in loaded.failures] == [(3, "x2"), (6, "x5"), (7, "x6"), (10, "x9")]


def test_stopped_again_and_again(data, own_cache, expected):
    for rows in (1, 3, 5, 7, 9, 11):
        interrupt(data, own_cache, rows)
    load_dataset(data, num_workers=1)
    assert content(own_cache / "encoded") == expected


@pytest.mark.parametrize("tail", [b"\x00", b"garbage" * 1000])
def test_what_was_not_committed_is_cut_off(data, own_cache, expected, tail):
    partial = interrupt(data, own_cache, 4)
    for name in ("crystals.bin", "sites.bin", "names.jsonl", "failures.csv"):
        with open(partial / name, "ab") as file:
            file.write(tail)
    (partial / "dataset.json.new").write_bytes(b'{"rows": 6')  # killed while it committed
    load_dataset(data, num_workers=1)
    assert content(own_cache / "encoded") == expected


@pytest.mark.parametrize("name", ["crystals.bin", "names.jsonl", "dataset.json"])
def test_a_damaged_partial_store_is_begun_anew(data, own_cache, expected, read_rows, name):
    partial = interrupt(data, own_cache, 4)
    file = partial / name
    file.write_bytes(file.read_bytes()[:-2])
    read_rows.clear()
    load_dataset(data, num_workers=1)
    assert content(own_cache / "encoded") == expected
    assert len(read_rows) == 11


def test_a_file_that_breaks_off_is_read_to_its_end(tmp_path, own_cache):
    """The fault is in the data, so the next try would meet it too: a row that failed; and no work is left open."""
    (tmp_path / "data.jsonl").write_text('{"cif": "x"}\n' * 5 + "{\n")
    for num_workers in (1, 2):
        with pytest.raises(DataError, match="line 6 is not JSON"):
            load_dataset(tmp_path / "data.jsonl", num_workers=num_workers)
        [store] = (own_cache / "encoded").iterdir()
        assert "line 6 is not JSON" in (store / "failures.csv").read_text()
        shutil.rmtree(store)


def test_a_full_disk(data, own_cache, expected, monkeypatch):
    """Said in one line; what was committed is kept."""
    fsync, calls = os.fsync, itertools.count()

    def full(handle):
        if next(calls) > 9:
            raise OSError(28, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left on device") as error:
            load_dataset(data, num_workers=1)
    assert "CFX_CACHE" in error.value.hint
    load_dataset(data, num_workers=1)
    assert content(own_cache / "encoded") == expected


@pytest.fixture
def much_data(tmp_path) -> Path:
    """So many rows that workers are still at it when the first are committed."""
    rows = "".join(json.dumps({"cif": TEXTS["m"]}) + "\n" for _ in range(400))
    (tmp_path / "data.jsonl").write_text(rows)
    return tmp_path / "data.jsonl"


@pytest.mark.integration
def test_workers_end_when_the_callback_raises(much_data, own_cache, monkeypatch):
    """At once, not when they were idle for long."""
    monkeypatch.setattr(workers, "IDLE_SECONDS", 10_000)
    with pytest.raises(Stop), warnings.catch_warnings(action="error"):
        load_dataset(much_data, num_workers=2, on_progress=stop_after(2))
    deadline = time.monotonic() + 600
    while children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not children()
    assert len(load_dataset(much_data, num_workers=2)) == 400


@pytest.mark.slow
def test_a_worker_that_is_killed(much_data, own_cache):
    """One line and a hint; what was committed is kept."""

    def kill(done: int) -> None:
        for pid in children():
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(CfxError, match="an encoding process was killed") as error:
        load_dataset(much_data, num_workers=2, on_progress=kill)
    assert "again" in error.value.hint
    progress: list[int] = []
    assert len(load_dataset(much_data, num_workers=1, on_progress=progress.append)) == 400
    assert progress[0] > 2


def children() -> list[int]:
    """This process's children that encode."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
            command = (stat.parent / "cmdline").read_text()
        except OSError:
            continue
        if parent == str(os.getpid()) and "popen_loky" in command:
            found.append(int(stat.parent.name))
    return found


# Real processes.

SCRIPT = """
import sys, time
from pathlib import Path
from cfx.data import dataset
from cfx.data import workers
workers.CHUNK, dataset.COMMIT_SECONDS = 2, 0
def on_progress(done):
    print(done, flush=True)
    sys.stdin.readline()  # until a test lets it go on
data = dataset.load_dataset(Path(sys.argv[1]), num_workers=int(sys.argv[2]), on_progress=on_progress)
print(len(data), "crystals", flush=True)
"""


def start(data: Path, num_workers: int = 1) -> subprocess.Popen:
    """Encodes in a process that waits for a line after every commit."""
    command, pipe = [sys.executable, "-c", SCRIPT, data, str(num_workers)], subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.slow
def test_killed(data, own_cache, expected, num_workers):
    with start(data, num_workers) as process:
        assert process.stdout.readline() == "2\n"
        process.send_signal(signal.SIGKILL)
    with pytest.raises(ProcessLookupError):  # workers end too
        for _ in range(10_000):
            os.killpg(process.pid, 0)
            time.sleep(0.05)
    progress: list[int] = []
    load_dataset(data, num_workers=1, on_progress=progress.append)
    assert progress == [4, 6, 8, 10, 11, 11]
    assert content(own_cache / "encoded") == expected


@pytest.mark.integration
def test_two_processes_at_once(data, own_cache, expected):
    """The second waits for the first, tells how far that is, and encodes nothing itself."""
    progress: list[int] = []
    with start(data) as process:
        assert process.stdout.readline() == "2\n"

        def look(done: int) -> None:
            progress.append(done)
            with contextlib.suppress(BrokenPipeError):  # of one that has just ended
                process.stdin.write("go on\n")
                process.stdin.flush()

        assert len(load_dataset(data, num_workers=1, on_progress=look)) == 7
        assert process.stdout.read().splitlines() == ["4", "6", "8", "10", "11", "11", "7 crystals"]
    assert progress and progress == sorted(progress) and 2 <= progress[0] < 11
    assert len(progress) > 6  # looks, not commits
    assert content(own_cache / "encoded") == expected


def test_the_second_process_takes_over(data, own_cache, expected):
    """When the first is killed while the second waits."""
    progress: list[int] = []
    with start(data) as process:
        assert process.stdout.readline() == "2\n"

        def look(done: int) -> None:
            progress.append(done)
            process.kill()

        load_dataset(data, num_workers=1, on_progress=look)
    assert progress[0] == 2 and progress[-6:] == [4, 6, 8, 10, 11, 11][-6:]
    assert content(own_cache / "encoded") == expected


def test_the_other_process_finished_between_two_looks(data, own_cache, expected, read_rows, monkeypatch):
    """Between our finding nothing and our locking: then there is nothing left to do."""
    load_dataset(data, num_workers=1)
    read_rows.clear()
    read_state, looks = module.store.read_state, itertools.count()
    monkeypatch.setattr(module.store, "read_state", lambda *where: read_state(*where) if next(looks) else None)
    assert len(load_dataset(data, num_workers=1)) == 7
    assert not read_rows
    assert content(own_cache / "encoded") == expected
    assert len(list((own_cache / "encoded").iterdir())) == 1


def test_waiting_can_be_stopped(data, own_cache):
    partial = interrupt(data, own_cache, 4)
    handle = os.open(partial, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(Stop):
        load_dataset(data, num_workers=1, on_progress=stop_after(4))
    os.close(handle)


def test_a_lock_on_a_directory_that_was_renamed_is_none(tmp_path, monkeypatch):
    """Another process finished between our opening the directory and our locking it."""
    partial, flock = tmp_path / "data.partial", fcntl.flock

    def rename_first(handle, how):
        partial.rename(tmp_path / "data")
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", rename_first)
    with exclusive(partial) as ours:
        assert not ours
    monkeypatch.undo()
    with exclusive(partial) as ours:
        assert ours
        with exclusive(partial) as also:
            assert not also
