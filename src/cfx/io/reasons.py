"""Why rows of a data set were left out, counted: reasons that differ only in numbers are one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from cfx.io.store import Failure

_NUMBER = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)(?![\w.]*\w)")


class Reason(NamedTuple):
    """Rows that were left out for one reason.

    Attributes:
        text: the reason; numbers that differ between rows are given as a range ("21 to 25 sites").
        rows: how many.
        example: name of the first.
    """

    text: str
    rows: int
    example: str


def count_reasons(failures: Iterable[Failure]) -> list[Reason]:
    """The reasons of all failures, the most frequent first."""
    groups: dict[tuple[str, ...], list] = {}
    for failure in failures:
        pieces = _NUMBER.split(failure.reason)
        numbers = pieces[1::2]
        group = groups.setdefault(tuple(pieces[::2]), [0, failure.name, numbers, numbers])
        group[0] += 1
        group[2] = [min(pair, key=float) for pair in zip(group[2], numbers, strict=True)]
        group[3] = [max(pair, key=float) for pair in zip(group[3], numbers, strict=True)]
    reasons = [Reason(_text(words, low, high), rows, name) for words, (rows, name, low, high) in groups.items()]
    return sorted(reasons, key=lambda reason: -reason.rows)


def describe(reasons: list[Reason], most: int = 5) -> str:
    """The most frequent reasons with their counts, on one line."""
    parts = [f"{one.rows} x {one.text} ({one.example}{', ...' * (one.rows > 1)})" for one in reasons[:most]]
    if rest := sum(reason.rows for reason in reasons[most:]):
        parts.append(f"{rest} for other reasons")
    return "; ".join(parts)


def _text(words: tuple[str, ...], lowest: list[str], highest: list[str]) -> str:
    ranges = [low if low == high else f"{low} to {high}" for low, high in zip(lowest, highest, strict=True)]
    return "".join(part for pair in zip(words, [*ranges, ""], strict=True) for part in pair)
