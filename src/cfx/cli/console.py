"""rich on stderr: progress bars for a terminal, plain lines for anything else."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from cfx.cli.options import in_flags
from cfx.cli.streams import printable

PLAIN_SECONDS = 10.0
"""Seconds between two progress lines where stderr is not a terminal."""


@functools.cache
def stderr() -> Console:
    """The console that messages go to; results go to stdout."""
    return Console(stderr=True)


def shown(text: object) -> str:
    """A text that came from elsewhere, as rich prints it: no markup, no control characters."""
    return escape(printable(text))


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Prints rows of equal keys as a table on stdout."""
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(shown(value) for value in row.values()))
    Console().print(table)


class ConsoleReporter:
    """The Reporter of the command line."""

    def message(self, text: str) -> None:
        """Prints a line."""
        stderr().print(shown(in_flags(text)), soft_wrap=True, highlight=False)

    def warning(self, text: str) -> None:
        """Prints a line that stands out."""
        stderr().print(f"[yellow]warning:[/] {shown(in_flags(text))}", soft_wrap=True, highlight=False)

    @contextmanager
    def progress(self, title: str, total: float | None, unit: str = "") -> Iterator[_Bar | _Lines]:
        """A bar on a terminal, a line every few seconds elsewhere."""
        if not stderr().is_terminal:
            yield _Lines(title, total, unit)
            return
        counts = (DownloadColumn(), TransferSpeedColumn()) if unit == "B" else (MofNCompleteColumn(),)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), *counts)
        with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[text]}"), console=stderr()) as bars:
            stderr().show_cursor()  # which a process that is ended at once could not bring back
            yield _Bar(bars, bars.add_task(shown(title), total=total, text=""))


class _Bar:
    def __init__(self, bars: Progress, task):
        self.bars, self.task = bars, task

    def update(self, done: float, text: str = "") -> None:
        self.bars.update(self.task, completed=done, text=shown(text))


class _Lines:
    def __init__(self, title: str, total: float | None, unit: str):
        self.title, self.total, self.unit, self.last = title, total, unit, time.monotonic()
        self.silent = True

    def update(self, done: float, text: str = "") -> None:
        # What comes before anything is done, as compiling, may take long.
        if (self.silent and text) or time.monotonic() - self.last >= PLAIN_SECONDS:
            self.last, self.silent = time.monotonic(), False
            of = f"/{self._count(self.total)}" if self.total is not None else ""
            line = f"{self.title} {self._count(done)}{of}  {text}".rstrip()
            stderr().print(shown(line), soft_wrap=True, highlight=False)

    def _count(self, number: float) -> str:
        return size(int(number)) if self.unit == "B" else f"{number:g}"


def size(num_bytes: int) -> str:
    """Bytes as a person reads them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= factor / 10:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"
