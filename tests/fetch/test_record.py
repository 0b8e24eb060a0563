"""The record of what was fetched: entries are kept, agree, and survive several processes."""

import json
import subprocess
import sys

import pytest

from cfx.errors import DataError, NetworkError
from cfx.fetch.record import (
    FILE_NAME,
    Digest,
    Record,
    check_same,
    digest_of,
    forget,
    read_records,
    remember,
    write_records,
)
from cfx.io.files import cache_directory

FILE = Record({"a.csv": Digest("a" * 64, 3)}, commit="1" * 40)
MODEL = Record({"x/y.bin": Digest("b" * 64, 5)}, directory="models/m", source="hf:a/b/c", settings={"n_max": 21})


def test_records_come_back():
    assert read_records() == {}
    remember("hf:a/b/a.csv", FILE)
    remember("models/m", MODEL)
    assert read_records() == {"hf:a/b/a.csv": FILE, "models/m": MODEL}
    assert MODEL.size == 5
    forget("models/m")
    forget("nothing")
    assert read_records() == {"hf:a/b/a.csv": FILE}
    other = Record({"a.csv": Digest("c" * 64, 3)}, commit="2" * 40)
    remember("hf:a/b/a.csv", other)
    assert read_records() == {"hf:a/b/a.csv": other}


def test_what_was_recorded_must_agree():
    before = FILE.files
    check_same("x", {}, before)
    check_same("x", before, before)
    with pytest.raises(NetworkError, match=r"SHA-256 of a\.csv was aaaaaaaaaaaa\.\.\., and is cccccccccccc\.\.\. now"):
        check_same("x", before, {"a.csv": Digest("c" * 64, 3)})
    with pytest.raises(NetworkError, match=r"SHA-256 of b\.csv was missing"):
        check_same("x", before, {**before, "b.csv": Digest("d" * 64, 3)})
    with pytest.raises(NetworkError, match=r"SHA-256 of a\.csv was aaaaaaaaaaaa\.\.\., and is missing now"):
        check_same("x", before, {})


def test_processes_do_not_lose_each_other_s_records():
    code = """
import sys
from cfx.fetch.record import Digest, Record, remember
for i in range(20):
    remember(f"hf:a/b/{sys.argv[1]}{i}", Record({"x": Digest("a" * 64, i)}, directory="d"))
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, name]) for name in "abc"]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(read_records()) == 60


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": 2, "records": {}}', '{"format": 1}', '{"format": 1, "records": {"x": {"files": 3}}}',
     '{"format": 1, "records": {"hf:a/b/c": {"files": {}}}}', '{"format": 1, "records": {"hf:a/b/c": {"files": []}}}',
     '{"format": 1, "records": {"hf:a/b/c": {"files": {"c": {"sha256": "zz", "size": 1}}}}}',
     '{"format": 1, "records": {"hf:a/b/c": {"files": {"c": {"sha256": "' + "0" * 64 + '", "size": "1"}}}}}',
     '{"format": 1, "records": {"hf:bad": {"files": {"c": {"sha256": "' + "0" * 64 + '", "size": 1}}}}}'],
)  # fmt: skip
def test_damage_is_named(content):
    (cache_directory() / FILE_NAME).write_text(content)
    with pytest.raises(DataError, match=r"fetched\.json is damaged"):
        read_records()


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "", "a\\b"])
def test_records_stay_in_their_directory(path, tmp_path):
    digest = {"sha256": "a" * 64, "size": 1}
    for name, directory in ((path, "files"), ("x", path or "/")):
        content = {"format": 1, "records": {"hf:a/b/c": {"files": {name: digest}, "directory": directory}}}
        (tmp_path / "fetched.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match="is outside"):
            read_records(tmp_path / "fetched.json")


def test_another_lockfile(tmp_path):
    write_records({"hf:a/b/c": FILE}, tmp_path / "deep" / "fetched.json")
    assert read_records(tmp_path / "deep" / "fetched.json") == {"hf:a/b/c": FILE} and read_records() == {}


def test_digest(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest_of(tmp_path / "x") == Digest(sha256, 3)
    with pytest.raises(DataError, match="cannot read"):
        digest_of(tmp_path / "nothing")
