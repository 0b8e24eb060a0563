"""Where what comes with cfx lies."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from cfx.catalog import Entry


def resource_directory(entry: Entry) -> Path:
    """The directory of an entry that comes with cfx."""
    return Path(str(files("cfx.resources"))) / str(entry.resource)
