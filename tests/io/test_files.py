"""Where things are kept, and files that appear whole or not at all."""

from pathlib import Path

import pytest

from cfx.errors import OutputError
from cfx.io.files import cache_directory, replace_atomically


def test_cache_is_where_the_environment_says(own_cache):
    assert cache_directory("encoded", "deep") == own_cache / "encoded" / "deep"
    assert (own_cache / "encoded" / "deep").is_dir()


def test_cache_follows_xdg(tmp_path, monkeypatch):
    monkeypatch.delenv("CFX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory("encoded") == tmp_path / "xdg" / "cfx" / "encoded"


def test_cache_falls_back_to_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("CFX_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "cfx"


def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CFX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OutputError, match="cannot create the cache directory") as error:
        cache_directory("encoded")
    assert "CFX_CACHE" in error.value.hint


def write_file(path: Path) -> None:
    path.write_text("new")


def write_directory(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("new")


@pytest.mark.parametrize("write", [write_file, write_directory])
def test_the_target_appears_only_when_complete(tmp_path, write):
    target = tmp_path / "target"

    def watch(partial):
        write(partial)
        assert partial.parent == tmp_path
        assert not target.exists()

    replace_atomically(target, watch)
    assert list(tmp_path.iterdir()) == [target]


def test_an_older_file_is_replaced(tmp_path):
    (tmp_path / "target").write_text("old")
    replace_atomically(tmp_path / "target", write_file)
    assert (tmp_path / "target").read_text() == "new"


def test_an_older_directory_is_replaced_whole(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "stale").write_text("old")
    replace_atomically(tmp_path / "target", write_directory)
    assert [entry.name for entry in (tmp_path / "target").iterdir()] == ["inside"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a fault"), KeyboardInterrupt()])
@pytest.mark.parametrize("write", [write_file, write_directory])
def test_a_failure_leaves_the_old_one(tmp_path, write, error):
    (tmp_path / "target").write_text("old")

    def fail(partial):
        write(partial)
        raise error

    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        replace_atomically(tmp_path / "target", fail)
    assert [entry.name for entry in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target").read_text() == "old"


@pytest.mark.parametrize("write", [write_file, write_directory])
def test_a_place_that_cannot_be_written(tmp_path, write):
    """The parent is a file."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="cannot write"):
        replace_atomically(tmp_path / "file" / "target", write)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_directory_does_not_replace_a_file(tmp_path):
    (tmp_path / "target").write_text("mine")
    with pytest.raises(OutputError):
        replace_atomically(tmp_path / "target", write_directory)
    assert [entry.name for entry in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target").read_text() == "mine"
