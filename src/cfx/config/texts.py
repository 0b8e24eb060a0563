"""What the texts of options stand for, on the command line and in Python: La,Ni,O and SrTiO3, Fe:2 and Pm-3m."""

import re
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from cfx.config.symbols import ALL_SPACE_GROUPS, CLASSES, SYMBOLS, space_group_number
from cfx.errors import UsageError


def words(text: str) -> tuple[str, ...]:
    """The parts of a,b,c.

    Raises:
        UsageError: for an empty text, which a forgotten shell variable leaves behind.
    """
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise UsageError("an option was given an empty value", "leave it out, or write a,b,c")
    return parts


def space_groups(text: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Space groups and weights: 194, or P6_3/mmc, or 2,14,Pm-3m, or 1-230, or uniform.

    With uniform, each crystal's group is drawn; those of ranges and lists take turns.
    """
    if text == "uniform":
        return ALL_SPACE_GROUPS, (1.0,) * len(ALL_SPACE_GROUPS)
    return tuple(group for part in words(text) for group in _groups(part)), ()


def given_space_groups(value: Any) -> tuple[Any, tuple[float, ...]]:
    """Numbers and weights of space groups: a number, a text of --sg, or several of both in turn."""
    if isinstance(value, str):
        return space_groups(value)
    several = value if isinstance(value, Iterable) else (value,)
    return tuple(n for one in several for n in (space_groups(one)[0] if isinstance(one, str) else (one,))), ()


def _groups(part: str) -> range:
    """The space groups of a number, a range or a symbol."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
    if not match:
        number = space_group_number(part)
        return range(number, number + 1)
    first, last = int(match[1]), int(match[2] or match[1])
    for group in (first, last):
        if not 1 <= group <= 230:
            raise UsageError(f"there is no space group {group}", "space groups run from 1 to 230")
    if last < first:
        raise UsageError(f"the range {part} is empty", f"write {last}-{first}")
    return range(first, last + 1)


_TOKEN = re.compile(r"\s*(?:([A-Z][a-z]?)|([(\[{])|([)\]}]))\s*(\d+(?:\.\d*)?|\.\d+)?")
"""An element or a bracket, and the count behind it."""

_EXAMPLES = "write it as SrTiO3 or Cs2ZnFe(CN)6"


def formula(text: str) -> tuple[tuple[str, int], ...]:
    """Symbols and counts of a formula, in the order of their first mention; parentheses are allowed.

    Raises:
        UsageError: if it is none, or its counts are not whole.
    """
    levels, position, wrong = [Counter[str]()], 0, UsageError(f"{text!r} is not a formula", _EXAMPLES)
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise wrong
        symbol, opening, closing, count = token.groups()
        position = token.end()
        if opening:
            if count:
                raise wrong
            levels.append(Counter())
            continue
        if symbol and symbol not in SYMBOLS[1:]:
            raise UsageError(f"{text!r} is not a formula: there is no element {symbol!r}", _EXAMPLES)
        if closing and len(levels) == 1:
            raise wrong
        inside = levels.pop() if closing else Counter({symbol: 1})
        for element, atoms in inside.items():
            levels[-1][element] += atoms * Fraction(count or 1)  # pyright: ignore[reportArgumentType]  (summed as fractions)
    [counts, *unclosed] = levels
    if unclosed:
        raise wrong
    if not counts or any(atoms != int(atoms) for atoms in counts.values()):
        raise UsageError(f"{text!r} does not have whole numbers of atoms", _EXAMPLES)
    return tuple((symbol, int(atoms)) for symbol, atoms in counts.items() if atoms)


def classes(text: str) -> tuple[str, ...]:
    """The classes of charge-neutral,other; or all but those of not:element,other.

    Raises:
        UsageError: if one is not a class, or none is left.
    """
    listed = words(text.removeprefix("not:"))
    named = ["charge-neutral" if name == "neutral" else name for name in listed]
    if wrong := [name for name in named if name not in CLASSES]:
        raise UsageError(
            f"there is no class of compositions {wrong[0]!r}",
            f"choose among: {', '.join(CLASSES)}; not:element,other: all but these",
        )
    if not text.startswith("not:"):
        return tuple(named)
    if not (left := tuple(name for name in CLASSES if name not in named)):
        raise UsageError(f"{text!r} leaves no class of compositions", "name those that are wanted")
    return left


def bias(text: str) -> tuple[tuple[str, float], ...]:
    """Fe:2.0,S:1.5 as pairs."""
    pairs = []
    for part in words(text):
        match = re.fullmatch(r"([A-Z][a-z]?):([+-]?\d+(?:\.\d+)?)", part)
        if not match:
            raise UsageError(f"{part!r} is not a bias", "write `bias=Fe:2.0,S:1.5`")
        pairs.append((match[1], float(match[2])))
    return tuple(pairs)


def shard(text: str) -> tuple[int, int]:
    """3/16 as (3, 16)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match:
        raise UsageError(f"{text!r} is not a shard", "write `shard=3/16`")
    return int(match[1]), int(match[2])


def limits(text: str) -> tuple[float, float]:
    """LOWEST,HIGHEST as numbers."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise UsageError(f"{text!r} is not a pair of numbers", "write LOWEST,HIGHEST: `clip=0,1`") from None
    return low, high


SECONDS = {"s": 1, "min": 60, "h": 3600}
"""Units of a budget of time."""


def budget(text: str | int) -> tuple[int | None, float | None]:
    """What a run may cost: 2000 as (2000, None), evaluations; 10min as (None, 600.0), seconds.

    Raises:
        UsageError: if it is no budget.
    """
    match = re.fullmatch(rf"(\d+)|(\d+(?:\.\d+)?)\s*({'|'.join(SECONDS)})", str(text).strip())
    amount = float(match[1] or match[2]) if match else 0.0
    if match is None or not amount:
        raise UsageError(
            f"{text!r} is not a budget", "write a number of evaluations, as 2000, or a time: 90s, 10min, 2h"
        )
    return (None, amount * SECONDS[match[3]]) if match[3] else (int(amount), None)


def percentage(text: str) -> float:
    """10% as 0.1; above 0 and below 1."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+) ?%", text)
    if not match or not 0 < float(match[1]) < 100:
        raise UsageError(f"{text!r} is not a share of the data", "write it as 10%, above 0 and below 100")
    return float(match[1]) / 100
