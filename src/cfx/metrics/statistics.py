"""How certain a rate or a mean is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

Z95 = 1.959963984540054
"""Standard normal quantile of a two-sided interval of 95 %."""


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """Wilson's score interval of 95 % of a rate: of `total` trials, `count` succeeded.

    E. B. Wilson, Journal of the American Statistical Association 22 (1927) 209.
    Unlike the interval of a normal distribution it stays within 0..1, and has a width where all trials agree.

    Args:
        count: successes, 0..total.
        total: trials, at least 1.

    Raises:
        ValueError: if there are no trials, or more successes than trials.
    """
    if not 0 <= count <= total or total < 1:
        raise ValueError(f"{count} of {total} is no rate")
    rate, weight = count / total, Z95 * Z95 / total
    centre = (rate + weight / 2) / (1 + weight)
    half = Z95 / (1 + weight) * math.sqrt(rate * (1 - rate) / total + weight / (4 * total))
    low = 0.0 if count == 0 else centre - half
    high = 1.0 if count == total else centre + half
    return max(0.0, low), min(1.0, high)


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error (sample standard deviation over the root of n); one value has no error.

    Raises:
        ValueError: if there are no values.
    """
    if not values:
        raise ValueError("no values, no mean")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def rate(flags: Iterable[bool | None]) -> dict[str, float | int] | None:
    """The rate of True among all flags, with its interval of 95 %; None if nothing was evaluated (all are None).

    A single None among others is a failure: something was asked there, and no answer came.
    """
    flags = list(flags)
    if all(flag is None for flag in flags):
        return None
    count = sum(flag is not None and bool(flag) for flag in flags)
    low, high = wilson_interval(count, len(flags))
    return {"value": count / len(flags), "low": low, "high": high, "count": count, "of": len(flags)}


def mean(values: Iterable[float | None], unit: str) -> dict[str, float | int | str | None] | None:
    """The mean of the values that are there, with its standard error; None if none is."""
    there = [float(value) for value in values if value is not None and math.isfinite(value)]
    if not there:
        return None
    value, error = mean_and_error(there)
    return {"value": value, "error": error, "unit": unit, "of": len(there)}
