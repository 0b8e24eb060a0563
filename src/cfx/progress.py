"""How a run in Python says what it does: bars in a notebook or a terminal, warnings where the call stands.

rich and IPython are imported where a bar is drawn: a script that wants none does without.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cfx.reporter import Mute, Reporter

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

REDRAW_SECONDS = 0.2
"""Between two drawings of a bar in a notebook, where each is a message to the browser."""


@contextmanager
def reporting(progress: bool | None = None, reporter: Reporter | None = None) -> Iterator[Reporter]:
    """What a function of `import cfx` reports to.

    Warnings come at the end, as Python's own, for what computes silences those of the libraries that it uses.

    Args:
        progress: whether bars and messages are shown; None: where IPython runs a kernel, as in Jupyter and Colab.
        reporter: receives all of it instead.
    """
    if reporter is not None:
        yield reporter
        return
    own = Shown() if (in_notebook() if progress is None else progress) else Collecting()
    try:
        yield own
    finally:
        for text in dict.fromkeys(own.warnings):
            warnings.warn(text, stacklevel=4)  # this generator, contextlib, the function, whoever called it


def in_notebook() -> bool:
    """Whether IPython runs a kernel here: Jupyter, Colab, VS Code, but not IPython in a terminal."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    return getattr(get_ipython(), "kernel", None) is not None


class Collecting(Mute):
    """A reporter that keeps warnings and shows nothing.

    Attributes:
        warnings: in the order in which they came.
    """

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


class Shown(Collecting):
    """A reporter that prints messages and draws a bar for each step, which vanishes with the step."""

    def message(self, text: str) -> None:
        print(text, file=sys.stdout if in_notebook() else sys.stderr)  # notebooks show stderr as what went wrong

    @contextmanager
    def progress(self, title: str, total: float | None, unit: str = "") -> Iterator[Bar]:  # pyright: ignore[reportIncompatibleMethodOverride]
        from rich.console import Console
        from rich.markup import escape

        if not in_notebook():
            with bars(unit, Console(stderr=True)) as drawn:
                yield Bar(drawn, drawn.add_task(escape(title), total=total, text=""))
            return
        from IPython.display import display  # pyright: ignore[reportMissingImports]

        drawn = bars(unit)
        bar = NotebookBar(drawn, drawn.add_task(escape(title), total=total, text=""))
        bar.cell = display(drawn, display_id=True)
        try:
            yield bar
        finally:
            bar.cell.update({"text/plain": ""}, raw=True)


def bars(unit: str = "", console: Console | None = None) -> Progress:
    """rich's bars as cfx has them; the unit "B" means bytes."""
    from rich import progress as rich

    counts = (rich.DownloadColumn(), rich.TransferSpeedColumn()) if unit == "B" else (rich.MofNCompleteColumn(),)
    columns = (rich.SpinnerColumn(), rich.TextColumn("{task.description}"), rich.BarColumn(), *counts)
    rest = (rich.TimeRemainingColumn(), rich.TextColumn("{task.fields[text]}"))
    return rich.Progress(*columns, *rest, console=console, transient=True)


class Bar:
    """A task among rich's bars."""

    def __init__(self, drawn: Progress, task: Any):
        self.drawn, self.task = drawn, task

    def update(self, done: float, text: str = "") -> None:
        """See `cfx.reporter.Progress`."""
        from rich.markup import escape

        self.drawn.update(self.task, completed=done, text=escape(text))


class NotebookBar(Bar):
    """A bar in the output of a cell, which is drawn anew a few times a second; it needs no widgets.

    Attributes:
        cell: IPython's handle of the output.
    """

    cell: Any
    _drawn_at = 0.0

    def update(self, done: float, text: str = "") -> None:
        """See `cfx.reporter.Progress`."""
        super().update(done, text)
        if (now := time.monotonic()) - self._drawn_at >= REDRAW_SECONDS:
            self._drawn_at = now
            self.cell.update(self.drawn)
