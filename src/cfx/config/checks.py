"""What configurations refuse, in the same words for all of them."""

from __future__ import annotations

import functools
import math
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cfx.errors import UsageError

WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def check_fields(config: Any) -> None:
    """Refuses values that are not what the fields' annotations say; a whole number will do for a float.

    Raises:
        UsageError: for the first such value.
    """
    for name, kinds in _kinds(type(config)).items():
        value = getattr(config, name)
        if not any(_fits(value, kind) for kind in kinds):
            wanted = " or ".join(_word(kind) for kind in kinds if kind is not NoneType)
            raise UsageError(f"{name} must be {wanted}, not {value!r}")


def at_least(config: Any, least: int, *names: str) -> None:
    """Refuses smaller values; None is let through."""
    _check(config, names, lambda value: value >= least, f"must be at least {least}")


def positive(config: Any, *names: str) -> None:
    """Refuses zero, negative and infinite values."""
    _check(config, names, lambda value: 0 < value < math.inf, "must be positive")


def not_negative(config: Any, *names: str) -> None:
    """Refuses negative and infinite values; None is let through."""
    _check(config, names, lambda value: 0 <= value < math.inf, "must not be negative")


def below_one(config: Any, *names: str) -> None:
    """Refuses what is no share of something: negative values, and 1 or more."""
    _check(config, names, lambda value: 0 <= value < 1, "must be at least 0 and below 1")


def check_seed(seed: int, bits: int) -> None:
    """Refuses what is no seed of so many bits."""
    if not 0 <= seed < 2**bits:
        raise UsageError(f"the seed must be a non-negative {bits}-bit integer, not {seed}")


def _check(config: Any, names: tuple[str, ...], fits: Any, rule: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not fits(value):
            raise UsageError(f"{name} {rule}, not {value}")


@functools.cache
def _kinds(cls: type) -> dict[str, tuple[Any, ...]]:
    """What each field may be, from its annotation."""
    hints = get_type_hints(cls)
    return {name: get_args(hint) if get_origin(hint) is UnionType else (hint,) for name, hint in hints.items()}


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def _word(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return WORDS.get(kind, f"a {kind.__name__}")
