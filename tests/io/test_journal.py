"""Journals: what was committed counts, whatever happened next; locks: one writer, and no file left behind."""

import resource
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from cfx.errors import DataError, OutputError, UsageError
from cfx.io import files
from cfx.io.files import claimed, held, sole_writer, try_lock
from cfx.io.journal import Journal, JsonLines, check_unfinished, write_state
from cfx.io.outputs import check_output

HOLD = """
import sys
from pathlib import Path
from cfx.io.files import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def nearly_full(path: Path, more: int):
    """No file may grow beyond the size of this one and so many bytes, as on a disk that is nearly full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + more, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.fixture
def journal(tmp_path) -> Journal:
    """With a header and five bytes."""
    journal = Journal(tmp_path / "journal", hint="make room")
    journal.begin(b"header\n")
    journal.append(b"first")
    journal.commit()
    return journal


def test_what_follows_a_commit_is_cut_off(journal):
    size = journal.size
    journal.append(b"second")
    again = Journal(journal.path)
    again.resume(size)
    again.append(b"third")
    assert journal.path.read_bytes() == b"header\nfirstthird"


def test_a_full_disk_adds_nothing(journal):
    with nearly_full(journal.path, 3), pytest.raises(OutputError, match=r"cannot write .*journal") as error:
        journal.append(b"second")
    assert error.value.hint == "make room"
    assert journal.path.read_bytes() == b"header\nfirst"
    journal.append(b"third")
    assert journal.path.read_bytes() == b"header\nfirstthird"


def test_what_was_committed_cannot_be_missing(journal):
    with pytest.raises(OutputError, match="shorter than it was"):
        Journal(journal.path).resume(journal.size + 1)


def test_another_writer_is_noticed(journal):
    with open(journal.path, "ab") as file:
        file.write(b"mine")
    with pytest.raises(OutputError, match="was changed by another process"):
        journal.append(b"second")


def test_a_kept_tail_stays_as_long_as_it_is_repeated(journal):
    size = journal.size
    for part in (b"2nd", b"3rd", b"4t"):
        journal.append(part)
    again = Journal(journal.path)
    again.resume(size, keep=True)
    again.append(b"2nd")
    assert journal.path.read_bytes() == b"header\nfirst2nd3rd4t"
    again.append(b"other")
    assert journal.path.read_bytes() == b"header\nfirst2ndother"
    again.append(b"4th")
    assert journal.path.read_bytes() == b"header\nfirst2ndother4th"


def test_json_lines_end_at_the_last_whole_one(tmp_path):
    lines = JsonLines(tmp_path / "lines.jsonl")
    lines.begin()
    lines.add({"a": 1}, {"a": "\u00e4\n"})
    whole = lines.size
    with open(lines.path, "ab") as file:
        file.write(b'{"a": 3}')  # the number may have lost its last digits
    assert list(JsonLines(lines.path).read()) == [(9, {"a": 1}), (whole, {"a": "\u00e4\n"})]
    lines.path.write_bytes(b'{"a": 1}\n{"a"\n{"a": 3}\n')
    with pytest.raises(DataError, match=r"line 2 of .* is damaged"):
        list(lines.read())


def test_a_state_appears_whole(tmp_path):
    state = tmp_path / "state.json"
    write_state(state, {"size": 1})
    (tmp_path / "state.json.new").write_text("{")  # killed while it was written
    write_state(state, {"size": 2})
    assert '"size": 2' in state.read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]
    with nearly_full(tmp_path / "state.json", -10), pytest.raises(OutputError):
        write_state(state, {"size": 3})
    assert '"size": 2' in state.read_text()


def test_a_finished_result_is_never_continued(tmp_path):
    (tmp_path / "out.cif").write_text("data_1\n")
    (tmp_path / "out.cif.partial.json").write_text("{}")  # of a process that was killed just before its end
    for force in (False, True):
        with pytest.raises(OutputError, match="is complete"):
            check_unfinished(tmp_path / "out.cif", force, resume=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.cif"]


def hold(path: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_one_writer(tmp_path):
    """A second one is refused in one line, until the first has ended, or was killed."""
    for end in (lambda process: process.stdin.close(), lambda process: process.kill()):
        with hold(tmp_path / "out.cif") as process:
            words = r"out\.cif is being written by another process$"
            with pytest.raises(OutputError, match=words) as error, sole_writer(tmp_path / "out.cif"):
                pytest.fail("two writers")
            assert error.value.hint and error.value.exit_code == 8
            end(process)
            process.wait()
        with sole_writer(tmp_path / "out.cif"):
            assert (tmp_path / "out.cif.lock").exists()
        assert not list(tmp_path.iterdir())


def test_what_another_process_has_just_finished_is_not_overwritten(tmp_path, monkeypatch):
    """It had its name before we had the lock."""
    table = tmp_path / "table.csv"

    def finished_first(path, hint):
        table.write_text("theirs")
        return try_lock(path, hint)

    monkeypatch.setattr(files, "try_lock", finished_first)
    with pytest.raises(OutputError, match="exists"), claimed(table, [".csv"], force=False):
        pytest.fail("overwritten")
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
    with claimed(table, [".csv"], force=True):
        assert (tmp_path / "table.csv.lock").exists()


@pytest.mark.parametrize("name", ["", "."])
def test_names_that_are_none(tmp_path, monkeypatch, name):
    """They are refused by who knows why, and leave nothing behind."""
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    with pytest.raises(UsageError, match="unknown suffix"), sole_writer(Path(name)):
        check_output(Path(name), force=False)
    with pytest.raises(OutputError, match="exists"), sole_writer(Path(name)):
        check_unfinished(Path(name), force=False, resume=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["in"]


def test_a_lock_whose_file_was_removed_is_none(tmp_path, monkeypatch):
    """The other process ended between our opening its file and our locking it: a third one may lock a new file."""
    import fcntl

    flock = fcntl.flock
    lock = tmp_path / "lock"

    def remove_first(handle, how):
        lock.unlink()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with try_lock(lock, "") as ours:
        assert not ours
    monkeypatch.undo()
    with try_lock(lock, "") as ours, try_lock(lock, "") as also:
        assert ours and not also


def test_file_systems_that_cannot_lock_are_said(tmp_path, monkeypatch):
    import fcntl

    def refuse(handle, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    words = r"cannot lock .*: No locks available"
    with pytest.raises(OutputError, match=words) as error, sole_writer(tmp_path / "out.cif"):
        pytest.fail("no lock")
    assert "file system" in error.value.hint


def test_a_held_lock_is_waited_for(tmp_path):
    waited, order = [], []

    def second():
        with held(tmp_path / "locks" / "lock", "", lambda: waited.append(True)):
            order.append("second")

    thread = threading.Thread(target=second)
    with held(tmp_path / "locks" / "lock", ""):
        thread.start()
        while not waited:
            pass
        order.append("first")
    thread.join()
    assert order == ["first", "second"] and waited == [True]
