"""Sampling into a file: requests that end early, and those that take long."""

from __future__ import annotations

import itertools
import json
import signal
from dataclasses import replace

import pytest

from cfx.config import SampleConfig
from cfx.errors import NumericsError, UsageError
from cfx.model import load_model
from cfx.reporter import Interrupted, Mute
from cfx.runs.sample import sample
from cfx.sampling import posterior

pytestmark = pytest.mark.integration

TWO_SITES = SampleConfig(
    space_groups=(221, 225, 216),
    formula=(("Na", 1), ("Cl", 1)),
    max_sites=2,
    n=12,
    unique=True,
    max_attempts=60,
    batch_size=16,
)
"""There are four such crystals: CsCl, rock salt, and two of zinc blende."""


class Said(Mute):
    """Keeps what is said."""

    def __init__(self):
        self.messages, self.warnings = [], []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="module")
def mini():
    return load_model("mini")


def drawn(path) -> list[tuple[int, int, int]]:
    """Number, attempt and space group of the crystals of a file."""
    lines = map(json.loads, path.read_text().splitlines())
    return [(line["draw"], line["attempt"], line["space_group"]) for line in lines]


@pytest.mark.parametrize(
    ("options", "strange"),
    [
        ({"elements": ("Fe", "Og", "O", "Po"), "exclude": ("Og", "Po")}, "Og, Po"),
        ({"elements": ("Og", "O"), "bias": (("Og", -100.0),)}, "Og"),
        ({"elements": ("Fe", "O")}, ""),
    ],
)
def test_elements_that_the_model_does_not_know_are_named(mini, tmp_path, options, strange):
    said = Said()
    sample(mini, SampleConfig(space_groups=(225,), **options), tmp_path / "a.cif", said)
    expected = [f"model mini never saw {strange} in training; leave out with `exclude`"] if strange else []
    assert said.warnings == expected


@pytest.fixture(scope="module")
def whole(mini, tmp_path_factory):
    """What comes of TWO_SITES undisturbed, what is said meanwhile, and the file."""
    said, path = Said(), tmp_path_factory.mktemp("whole") / "whole.jsonl"
    return sample(mini, TWO_SITES, path, said), said, path


def test_exhausted_groups_end_and_the_request_with_the_last(whole):
    result, said, path = whole
    crystals = drawn(path)
    assert result.num_crystals == len(crystals) == 4 < TWO_SITES.n
    assert [number for number, _, _ in crystals] == [0, 1, 2, 3]
    assert [group for _, _, group in crystals[:3]] == [221, 225, 216]
    ended = [text for text in said.warnings if "is exhausted" in text]
    assert sorted(result.exhausted) == [216, 221, 225] and len(ended) == 3
    assert all(f"space group {group} " in text for group, text in zip(result.exhausted, ended, strict=True))
    assert "60 draws of crystal 3 gave nothing new (60 duplicate)" in ended[0]
    assert said.warnings[-1].startswith("4 of 12 crystals")
    assert result.rejected.total() == sum(attempt for _, attempt, _ in crystals) + 3 * 60


def test_an_exhausted_request_that_is_stopped_goes_on_as_if_it_had_not_been(mini, whole, tmp_path):
    """Stopped when the first group has ended, and when it has not."""
    for stop_after in (1, 4):

        class Stops(Said):
            def update(self, done: float, text: str = "", at: int = stop_after) -> None:
                if done >= at:
                    signal.raise_signal(signal.SIGTERM)

        path = tmp_path / f"{stop_after}.jsonl"
        with pytest.raises(Interrupted):
            sample(mini, TWO_SITES, path, Stops())
        sample(mini, TWO_SITES, path, Said(), resume=True)
        assert path.read_text() == whole[2].read_text()


def test_groups_by_probability_end_and_are_taken_up_again(mini, tmp_path, monkeypatch):
    """As before with groups that were found: resumed, they are not found again, which here would give others."""
    said = Said()
    result = sample(mini, TWO_SITES, tmp_path / "whole.jsonl", said, by_probability=True)
    [line] = (text for text in said.messages if text.startswith("space groups"))
    expected = mini.posterior(TWO_SITES)
    likeliest, share = expected.ranked[0]
    assert f"by their probability: {likeliest} {100 * share:.1f} %" in line
    assert f"effective sample size {expected.effective_sample_size:.0f} of {expected.draws.sum()} draws" in line
    assert result.num_crystals == 4 and sorted(result.exhausted) == [216, 221, 225]
    assert said.warnings[-1].startswith("4 of 12 crystals")

    class Stops(Said):
        def update(self, done: float, text: str = "") -> None:
            if text.endswith("crystals/s") and done >= 1:
                signal.raise_signal(signal.SIGTERM)

    path = tmp_path / "part.jsonl"
    with pytest.raises(Interrupted, match="stopped after"):
        sample(mini, TWO_SITES, path, Stops(), by_probability=True)
    monkeypatch.setattr(posterior, "APART", 7)
    with pytest.raises(UsageError, match=r"different settings \(space_groups, weights, by_probability\)"):
        sample(mini, replace(TWO_SITES, space_groups=(225,)), path, Said(), resume=True)
    with pytest.raises(UsageError, match=r"different settings \(n\)"):
        sample(mini, replace(TWO_SITES, n=13), path, Said(), resume=True, by_probability=True)
    said = Said()
    sample(mini, TWO_SITES, path, said, resume=True, by_probability=True)
    assert not any(text.startswith("space groups") for text in said.messages)
    assert path.read_text() == (tmp_path / "whole.jsonl").read_text()


def test_a_signal_ends_the_search_for_groups(mini, tmp_path):
    class Stops(Said):
        def update(self, done: float, text: str = "") -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match="before the first crystal"):
        sample(mini, TWO_SITES, tmp_path / "a.jsonl", Stops(), by_probability=True)
    assert list(tmp_path.glob("*.partial*")) == []


def test_a_long_wait_is_told_every_ten_seconds(mini, tmp_path):
    """By a clock that goes on by four seconds at every look; the first group that gives nothing is told of, too."""
    said, seconds = Said(), itertools.count(0, 4)
    request = SampleConfig(space_groups=(225, 221), n=2, min_distance=50.0, max_attempts=150, batch_size=16)
    with pytest.raises(NumericsError, match="atoms too close"):
        sample(mini, request, tmp_path / "none.jsonl", said, clock=lambda: next(seconds))
    assert len(said.messages) > 2
    [warning] = said.warnings
    assert warning.startswith("space group 225 is exhausted: 150 draws of crystal 0 gave nothing acceptable (")
    assert said.messages[0].startswith("crystal 0 has been awaited for 12 s; ")
    assert said.messages[1].startswith("crystal 0 has been awaited for 24 s; ")
    assert "draws rejected so far: " in said.messages[-1] and "atoms too close" in said.messages[-1]


def test_nothing_is_said_of_a_request_that_moves_on(mini, tmp_path):
    said, seconds = Said(), itertools.count(0, 0.01)
    request = SampleConfig(space_groups=(225,), n=4, batch_size=16)
    sample(mini, request, None, said, clock=lambda: next(seconds))
    sample(mini, request, None, said, clock=lambda: 10_000 * next(seconds))  # nor of one that compiles
    assert said.messages == [] and not any("exhausted" in text for text in said.warnings)
