"""What a call in Python says: warnings at its end, bars where they are wanted."""

from __future__ import annotations

import warnings

import pytest

from cfx.progress import Collecting, in_notebook, reporting
from cfx.reporter import Silent


def call(progress: bool | None = None) -> None:
    with reporting(progress) as reporter, warnings.catch_warnings(action="ignore"):
        reporter.message("begun")
        reporter.warning("mind the gap")
        reporter.warning("mind the gap")
        with reporter.progress("work [red]", 3) as bar:
            bar.update(2, "so far [1]")


def test_warnings_survive_what_silences_libraries_and_point_at_the_call(capsys):
    with pytest.warns(UserWarning, match="mind the gap") as caught:
        call()
    [one] = caught
    assert one.filename == __file__
    assert capsys.readouterr() == ("", "")


def test_progress_on_request(capsys):
    with pytest.warns(UserWarning, match="mind the gap"):
        call(progress=True)
    said = capsys.readouterr()
    assert "begun" in said.err and not said.out


def test_warnings_are_given_where_the_call_fails():
    with pytest.warns(UserWarning, match="first"), pytest.raises(ValueError), reporting(None) as reporter:
        reporter.warning("first")
        raise ValueError


def test_a_reporter_of_ones_own_hears_everything():
    own = Silent()
    with reporting(True, own) as reporter:
        assert reporter is own


def test_here_is_no_notebook():
    assert not in_notebook()
    with reporting(None) as reporter:
        assert type(reporter) is Collecting
