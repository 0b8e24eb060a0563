"""What all configurations share: one declaration for each field, checks of the values, and the way to JSON and TOML.

A field is declared by `option`: its help is its documentation and that of its flag, its bound is checked wherever the
configuration is made, and `cfx.cli.options` makes the flag from it. A text stands for the same wherever it is given, on
the command line or in Python: elements="La,Ni,O".
"""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import starmap
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from cfx.config import texts
from cfx.errors import UsageError

NUMBERS: dict[Any, type] = {int: Integral, float: Real}
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


class Bound(NamedTuple):
    """Which values a field may have, and how that is said: NAME must be..."""

    holds: Callable[[Any], bool]
    rule: str


POSITIVE = Bound(lambda value: 0 < value < math.inf, "be positive")
NEGATIVE = Bound(lambda value: -math.inf < value < 0, "be negative")
NOT_NEGATIVE = Bound(lambda value: 0 <= value < math.inf, "not be negative")
BELOW_ONE = Bound(lambda value: 0 <= value < 1, "be at least 0 and below 1")
SHARE = Bound(lambda value: 0 < value <= 1, "be above 0 and at most 1")


def at_least(least: int) -> Bound:
    """No smaller values."""
    return Bound(lambda value: value >= least, f"be at least {least}")


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    bound: Bound | None = None,
    flag: str = "",
    text: Callable[[str], Any] | None = None,
) -> Any:
    """A field of a configuration.

    Args:
        default: its value where none is given; without one, a value is required.
        help: what it means, for the documentation and for the help of commands.
        bound: which values it may have; None is let through.
        flag: its names on the command line, separated by spaces, if they are not its own: "-n --n".
        text: what a text given for it stands for; tuples of texts are written a,b,c.
    """
    return dataclasses.field(default=default, metadata={"help": help, "bound": bound, "flag": flag, "text": text})


def seed(bits: int = 63) -> Any:
    """The field `seed`."""
    bound = Bound(lambda value: 0 <= value < 2**bits, f"be a non-negative {bits}-bit integer")
    return option(0, "Seed of all random numbers: the same seed gives the same result.", bound)


# What `option` takes for fields that several configurations have; of checkpoint_steps, the default differs.
CLIP_NORM = (1.0, "Largest global norm of the gradient.", POSITIVE)
CHECKPOINT_STEPS = ("Steps between checkpoints.", at_least(1), "--checkpoint-every")
KEEP_CHECKPOINTS = (2, "How many of the latest checkpoints stay on disk; the best stays apart from them.", at_least(1))


class Config:
    """Base of the configurations: their fields are in their docstrings, and checked when one is made.

    Beside a tuple, a field takes what is the same as a list, a mapping, or a text of the command line.
    """

    def __init_subclass__(cls) -> None:
        # This runs before the decorator `dataclass`, which would leave defaults in the place of the fields.
        fields = {name: field for name, field in vars(cls).items() if isinstance(field, dataclasses.Field)}
        cls.__doc__ = "\n    ".join([f"{cls.__doc__}\n\n    Attributes:", *starmap(_described, fields.items()), ""])

    def __post_init__(self) -> None:
        for name in kinds_of(type(self)):
            value = converted(type(self), name, getattr(self, name))
            object.__setattr__(self, name, value)  # configurations are frozen
            check_value(type(self), name, value)


def _described(name: str, field: dataclasses.Field[Any]) -> str:
    """A line of a docstring; what a flag --no-NAME means holds where the field is False."""
    text, flag = field.metadata["help"], field.metadata["flag"]
    return f"    {name}: {f'if False: {text}' if flag.startswith('--no-') else text}"


def converted(cls: Any, name: str, value: Any) -> Any:
    """What a value given for a field stands for: a text as on the command line, a list or mapping as a tuple."""
    if isinstance(value, str) and (parse := text_parser(cls, name)):
        return parse(value)
    return _as_tuple(value) if takes_tuple(cls, name) else value


def text_parser(cls: Any, name: str) -> Callable[[str], Any] | None:
    """What reads a text given for a field, or None where the text itself is meant."""
    own = cls.__dataclass_fields__[name].metadata["text"]
    return own or (texts.words if takes_tuple(cls, name) else None)


def takes_tuple(cls: type, name: str) -> bool:
    """Whether a field may be a tuple."""
    return any(get_origin(kind) is tuple for kind in kinds_of(cls)[name])


def _as_tuple(value: Any) -> Any:
    """A tuple, of tuples all the way down, for what can be gone through; anything else as it is."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value
    return tuple(_as_tuple(item) for item in (value.items() if isinstance(value, Mapping) else value))


def check_value(cls: Any, name: str, value: Any) -> None:
    """Refuses a value that a field's annotation and bound do not allow; a whole number will do for a float.

    Raises:
        UsageError: if it is of another type, or out of bounds.
    """
    kinds, bound = kinds_of(cls)[name], cls.__dataclass_fields__[name].metadata["bound"]
    if not any(_fits(value, kind) for kind in kinds):
        wanted = " or ".join(_word(kind) for kind in kinds if kind is not NoneType)
        raise UsageError(f"{name} must be {wanted}, not {value!r}")
    if bound is not None and value is not None and not bound.holds(value):
        raise UsageError(f"`{name}` must {bound.rule}, not {value}")


@functools.cache
def kinds_of(cls: type) -> dict[str, tuple[Any, ...]]:
    """What each field may be, from its annotation."""
    hints = get_type_hints(cls)
    return {name: get_args(hint) if get_origin(hint) is UnionType else (hint,) for name, hint in hints.items()}


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        parts = parts[:1] * len(value) if parts[1:] == (...,) and isinstance(value, tuple) else parts
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, NUMBERS.get(kind, kind))


def _word(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        first, *others = [_word(part) for part in get_args(kind) if part is not ...] or ["nothing"]
        return f"({', '.join([first, *others])})" if ... not in get_args(kind) else f"a list, each {first}"
    return WORDS.get(kind, f"a {kind.__name__}")


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


def sorted_out(
    function: str, given: Mapping[str, Any], *classes: type, own: Collection[str] = (), without: Collection[str] = ()
) -> list[dict[str, Any]]:
    """The settings that a function was given, by the configuration that they belong to.

    Args:
        function: that was called, as whoever called it wrote it.
        given: values by name.
        classes: configurations; of several that have a field, the first is meant.
        own: the parameters that it has besides, which may be what was meant.
        without: fields that it does not take.

    Raises:
        TypeError: for a name that is no field of any, with the closest one that is.
    """
    names = [{field.name for field in dataclasses.fields(one)} - {*own, *without} for one in classes]
    owner = {name: number for number, several in reversed(list(enumerate(names))) for name in several}
    for name in given:
        if name not in owner:
            every = sorted({*owner, *own})
            close = difflib.get_close_matches(name, every, 1)
            other = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(every)}"
            raise TypeError(f"{function}() has no setting {name!r}: {other}")
    return [{name: value for name, value in given.items() if owner[name] == i} for i in range(len(classes))]


LONGEST_TOML = 1_000_000
"""Characters of a TOML text, at most."""

MOST_DOTS = 64
"""Dots in a line of a TOML text, at most."""


def parse_toml(text: str) -> dict[str, Any]:
    """What a TOML text of a user says.

    Raises:
        ValueError: if it is not TOML, or nested too deeply.
    """
    import tomllib

    # A key of n parts costs n * n: tomllib keeps every beginning of it.
    if len(text) > LONGEST_TOML or any(line.count(".") > MOST_DOTS for line in text.splitlines()):
        raise ValueError(f"more than {LONGEST_TOML:,} characters, or more than {MOST_DOTS} dots in a line")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def without_none(value: Any) -> Any:
    """A copy of a value that TOML can hold: without None, and with lists for tuples."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, (list, tuple)) else value


def whole_path(name: str | None) -> str | None:
    """A path that exists, from the root of the file system; names of other things stay as they are."""
    return str(Path(name).absolute()) if name is not None and Path(name).exists() else name


def as_tuples(value: Any) -> Any:
    """Tuples for the lists that TOML holds. None needs no inverse: it is the default of every field that allows it."""
    if isinstance(value, dict):
        return {key: as_tuples(item) for key, item in value.items()}
    return tuple(as_tuples(item) for item in value) if isinstance(value, list) else value
