"""stdout and stderr as commands use them: no traceback when they cannot be written, no control characters of others."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

from cfx.errors import OutputError

CLOSED_PIPE = 128 + 13
"""The exit code where nobody reads any more, as a shell gives it for SIGPIPE."""


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
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._descriptor)
            if isinstance(error, BrokenPipeError):
                raise SystemExit(CLOSED_PIPE) from None
            name = {1: "stdout", 2: "stderr"}[self._descriptor]
            raise OutputError(f"cannot write to {name}: {error.strerror}") from error


def printable(text: object) -> str:
    """A text that came from elsewhere, in one line that no terminal takes for a command: \\x1b for an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))
