"""Intervals and errors against known values."""

from __future__ import annotations

import pytest

from cfx.evaluation.summary import mean, mean_and_error, rate, wilson_interval


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_wilson_intervals(count, total, low, high):
    assert wilson_interval(count, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_symmetric_and_exact_at_the_ends():
    low, high = wilson_interval(7, 10)
    assert wilson_interval(3, 10) == pytest.approx((1 - high, 1 - low))
    assert wilson_interval(0, 5)[0] == 0 and wilson_interval(5, 5)[1] == 1
    # z^2 / (n + z^2) is the upper end of none of n.
    assert wilson_interval(0, 10)[1] == pytest.approx(1.959963984540054**2 / (10 + 1.959963984540054**2))


@pytest.mark.parametrize(("count", "total"), [(-1, 3), (4, 3), (0, 0)])
def test_what_is_no_rate(count, total):
    with pytest.raises(ValueError, match="not a rate"):
        wilson_interval(count, total)


def test_mean_and_standard_error():
    # Sample standard deviation of 2, 4, 4, 4, 5, 5, 7, 9 is sqrt(32 / 7).
    value, error = mean_and_error([2, 4, 4, 4, 5, 5, 7, 9])
    assert value == 5 and error == pytest.approx((32 / 7 / 8) ** 0.5)
    assert mean_and_error([3.0]) == (3.0, None)


def test_rates_count_missing_answers_as_failures():
    assert rate([True, False, None, True]) == {
        "value": 0.5,
        "count": 2,
        "of": 4,
        "low": pytest.approx(0.1500, abs=1e-4),
        "high": pytest.approx(0.8500, abs=1e-4),
    }
    assert rate([None, None]) is None and rate([]) is None


def test_means_are_over_what_is_there():
    assert mean([1.0, None, 3.0, float("nan")], "eV") == {"value": 2.0, "error": 1.0, "unit": "eV", "of": 2}
    assert mean([None], "eV") is None
