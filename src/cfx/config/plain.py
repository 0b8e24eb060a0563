"""Configurations as JSON and TOML can hold them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cfx.errors import UsageError


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
