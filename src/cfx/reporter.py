"""How a run tells what it is doing, without knowing who listens."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """A task under way."""

    def update(self, done: float, text: str = "") -> None:
        """Sets how much is done, and a short text beside it."""


class Reporter(Protocol):
    """Receives what a person should see; `cfx.cli.console` prints it."""

    def message(self, text: str) -> None:
        """Says something worth a line."""

    def warning(self, text: str) -> None:
        """Says something that may not be what was meant."""

    def progress(self, title: str, total: float | None, unit: str = "") -> AbstractContextManager[Progress]:
        """Opens a task of `total` units, or of unknown length; the unit "B" means bytes."""
        ...


class Mute:
    """A reporter that says nothing at all: that of every process but the first of a run."""

    def message(self, text: str) -> None:
        pass

    def warning(self, text: str) -> None:
        pass

    def progress(self, title: str, total: float | None, unit: str = "") -> AbstractContextManager[Progress]:
        return nullcontext(self)

    def update(self, done: float, text: str = "") -> None:
        pass


class Silent(Mute):
    """A reporter that says nothing; warnings go to Python's own machinery."""

    def warning(self, text: str) -> None:
        import warnings

        warnings.warn(text, stacklevel=2)
