"""What all configurations share: checks of their fields, and how they are written as JSON and TOML."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
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


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dictionary of a configuration, for JSON."""
    return dataclasses.asdict(config)


def from_dict(cls: type, values: dict[str, Any], base: Any = None) -> Any:
    """Rebuilds a configuration, on top of `base` if there is one; an unknown field is an error rather than ignored.

    Raises:
        UsageError: on fields that `cls` does not have.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - known):
        raise UsageError(
            f"{cls.__name__} has no field {', '.join(unknown)}", f"its fields are: {', '.join(sorted(known))}"
        )
    return cls(**values) if base is None else dataclasses.replace(base, **values)


def without_none(value: Any) -> Any:
    """Without None, which TOML does not know, and with lists for tuples."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, (list, tuple)) else value


def whole_path(name: str | None) -> str | None:
    """A path that exists, from the root of the file system; names of other things stay as they are."""
    return str(Path(name).absolute()) if name is not None and Path(name).exists() else name
