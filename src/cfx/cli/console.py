"""What commands print: results on stdout, the rest through rich on stderr. Streams that fail end in an exit code.

rich is imported by what prints with it: the help of a command does without.
"""

from __future__ import annotations

import functools
import io
import json
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TextIO

from cfx.errors import OutputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

CLOSED_PIPE = 128 + 13
"""The exit code where nobody reads any more, as a shell gives it for SIGPIPE."""

UNBOUNDED = 10_000
"""Columns that no table needs."""

FIRST_LINE, LONGEST_SILENCE = 10.0, 600.0
"""Seconds to the first line of a step where stderr is no terminal; each later one takes twice as long, up to this."""

FLAGS: dict[str, str] = {}
"""Flags of the running command, by the names that the library has for what they say."""


def guard_streams() -> None:
    """Lets every way of printing end in an exit code: 141 for a closed pipe, OutputError for a full disk."""
    sys.stdout, sys.stderr = _Stream(sys.stdout, 1), _Stream(sys.stderr, 2)


class _Stream(io.TextIOWrapper):
    """Text to a file descriptor. What the encoding lacks is escaped; a terminal sees each line at once."""

    def __init__(self, stream: TextIO | None, descriptor: int):
        raw = _Descriptor(descriptor)
        super().__init__(
            io.BufferedWriter(raw),
            encoding=None if stream is None else stream.encoding,
            errors="backslashreplace",
            line_buffering=descriptor == 2 or raw.isatty(),
        )


class _Descriptor(io.RawIOBase):
    """A descriptor of this process. One that fails, fails once: what is flushed later goes nowhere."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        try:
            return os.write(self._descriptor, data)
        except OSError as error:
            # Python flushes again as it exits; on the broken descriptor that would fail a second time, loudly.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._descriptor)
            if isinstance(error, BrokenPipeError):
                raise SystemExit(CLOSED_PIPE) from None
            name = {1: "stdout", 2: "stderr"}[self._descriptor]
            raise OutputError(f"cannot write to {name}: {error.strerror}") from error


def printable(text: object) -> str:
    """A text that came from elsewhere, in one line that no terminal takes for a command: \\x1b for an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))


def shown(text: object) -> str:
    """A text that came from elsewhere, as rich prints it: no markup, no control characters."""
    from rich.markup import escape

    return escape(printable(text))


def in_flags(text: str) -> str:
    """A message of the library in the words of the command line: `kl_coef` as --kl-coef, `shard=3/16` as --shard 3/16.

    Names that the running command has no option for stay as they are.
    """

    def flag(match: re.Match[str]) -> str:
        name, equals, value = match[1].partition("=")
        return f"{FLAGS[name]}{' ' * bool(equals)}{value}" if name in FLAGS else match[0]

    return re.sub(r"`([a-z_]+(?:=[^`]*)?)`", flag, text)


@functools.cache
def stderr() -> Console:
    """The console that messages go to."""
    from rich.console import Console

    return Console(stderr=True)


def stdout() -> Console:
    """The console that results go to: as they are, however wide the terminal. A file or a pipe has no width at all."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=UNBOUNDED)


def say(text: str, label: str = "") -> None:
    """Prints a message of the library on stderr, after a label in rich's markup."""
    stderr().print(f"{label}{shown(in_flags(text))}", soft_wrap=True, highlight=False)


def print_json(content: Any) -> None:
    """Prints JSON on stdout."""
    print(json.dumps(content, indent=1))


def print_table(rows: Sequence[Mapping[str, object]], decimals: int | None = None) -> None:
    """Prints rows of equal keys as a table on stdout, floats with so many decimals."""

    def text(value: object) -> str:
        return f"{value:.{decimals}f}" if decimals and isinstance(value, float) else str(value)

    _print_table(rows[0], ([text(value) for value in row.values()] for row in rows))


def print_columns(titles: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """Prints a table on stdout: a title over each column, a name before each row."""
    _print_table(["", *titles], ([name, *cells] for name, cells in rows.items()))


def _print_table(titles: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    """Without lines, which take room; where a terminal is too narrow, words are broken and no character is left out."""
    from rich.table import Column, Table

    table = Table(*(Column(shown(title), overflow="fold") for title in titles), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(shown, row))
    stdout().print(table, soft_wrap=False)


def print_prose(text: str, style: str = "") -> None:
    """Prints a text on stdout that a terminal breaks between words."""
    stdout().print(shown(text), style=style, soft_wrap=False)


class ConsoleReporter:
    """The Reporter of the command line."""

    def message(self, text: str) -> None:
        """Prints a line."""
        say(text)

    def warning(self, text: str) -> None:
        """Prints a line that stands out."""
        say(text, "[yellow]warning:[/] ")

    @contextmanager
    def progress(self, title: str, total: float | None, unit: str = "") -> Iterator[_Bar | _Lines]:
        """A bar that vanishes with the step on a terminal; elsewhere a line now and then, if the step takes long."""
        if not stderr().is_terminal or stderr().is_dumb_terminal:
            with _Lines(title, total, unit) as lines:
                yield lines
            return
        from cfx.progress import bars

        with bars(unit, stderr()) as drawn:
            stderr().show_cursor()  # which a process that is ended at once could not bring back
            yield _Bar(drawn, drawn.add_task(shown(title), total=total, text=""))


REPORTER = ConsoleReporter()


class _Bar:
    def __init__(self, bars: Progress, task):
        self.bars, self.task = bars, task

    def update(self, done: float, text: str = "") -> None:
        self.bars.update(self.task, completed=done, text=shown(text))


class _Lines:
    """Says how far a step is when it has taken long, whether it is told anything meanwhile or not, as in compiling.

    A step that has said something says at its end how far it came.
    """

    def __init__(self, title: str, total: float | None, unit: str):
        self.title, self.total, self.unit = title, total, unit
        self._state, self._said = (0.0, ""), ""
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        self._clock = threading.Thread(target=self._speak, daemon=True)

    def __enter__(self) -> Self:
        self._clock.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._ended.set()
        self._clock.join()
        if kind is None:
            self._check()
            if self._said:
                self._say()

    def update(self, done: float, text: str = "") -> None:
        self._check()
        self._state = done, text

    def _speak(self) -> None:
        seconds = silences()
        try:
            while not self._ended.wait(next(seconds)):
                self._say()
        except (OutputError, SystemExit) as failure:  # stderr is closed or full: whoever does the work has to hear
            self._failure = failure

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _say(self) -> None:
        done, text = self._state
        of = f"/{self._count(self.total)}" if self.total is not None else ""
        line = f"{self.title} {self._count(done)}{of}  {text}".rstrip()
        if line != self._said:
            say(line)
        self._said = line

    def _count(self, number: float) -> str:
        return size(int(number)) if self.unit == "B" else f"{number:.0f}"


def silences() -> Iterator[float]:
    """Seconds between the lines of a step."""
    seconds = FIRST_LINE
    while True:
        yield seconds
        seconds = min(2 * seconds, LONGEST_SILENCE)


def size(num_bytes: int) -> str:
    """Bytes as a person reads them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= factor / 10:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"
