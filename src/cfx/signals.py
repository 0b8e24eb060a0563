"""SIGINT and SIGTERM as a request to stop at the next good moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cfx.errors import CfxError


class StopRequest:
    """Context in which the first signal only sets `signum`; a second one acts as usual.

    Attributes:
        signum: of the signal that asked to stop, or None.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._request) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def __bool__(self) -> bool:
        return self.signum is not None

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class Interrupted(CfxError):
    """A run stopped by a signal after saving its work; the exit code is 130 or 143."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signum

    def __reduce__(self):
        return type(self), (self.exit_code - 128, self.message)


class _Signalled(BaseException):
    """A signal, on its way up from wherever it arrived; nothing that catches errors catches it."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


@contextmanager
def interrupted_by_signals(message: str) -> Iterator[None]:
    """A block that a signal ends at once, with `Interrupted`: for work that waits for others and keeps what it has."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise _Signalled(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, stop) for number in StopRequest.SIGNALS}
    try:
        yield
    except _Signalled as signalled:
        raise Interrupted(signalled.signum, message) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
