"""How a run says what it does, and how it is told to stop."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any, ClassVar, Protocol, Self

from cfx.errors import CfxError


def counted(number: int, word: str) -> str:
    """A number of things: 1 crystal, 1,234 crystals."""
    return f"{number:,} {word}{'s' * (number != 1)}"


def speed(per_second: float) -> str:
    """Crystals a second as a person reads them: 153 crystals/s, 0.21 crystals/s."""
    return f"{per_second:.0f} crystals/s" if per_second >= 10 else f"{per_second:.2g} crystals/s"


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


class Noting:
    """A reporter that passes everything on, and keeps the warnings.

    Attributes:
        warnings: in the order in which they came.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.warnings: list[str] = []

    def message(self, text: str) -> None:
        self._reporter.message(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)
        self._reporter.warning(text)

    def progress(self, title: str, total: float | None, unit: str = "") -> AbstractContextManager[Progress]:
        return self._reporter.progress(title, total, unit)


class StopRequest:
    """Context in which the first signal only sets `signum`; a second one acts as usual.

    Of contexts in one another, all are told: a part of the work may end as if nothing had happened, the whole must not.

    Attributes:
        signum: of the signal that asked to stop, or None.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    _open: ClassVar[list["StopRequest"]] = []

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    @classmethod
    def heard(cls) -> int | None:
        """The signal that has asked any of the contexts around this line to stop, or None; for what is deep inside."""
        return next((one.signum for one in cls._open if one.signum is not None), None)

    def __enter__(self) -> Self:
        self._open.append(self)
        if threading.current_thread() is threading.main_thread():
            self._previous = _handle(self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.remove(self)
        _restore(self._previous)

    def __bool__(self) -> bool:
        return self.signum is not None

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        _restore(self._previous)
        outer = getattr(self._previous.get(signum), "__self__", None)
        if isinstance(outer, StopRequest):
            outer._request(signum, frame)


class Interrupted(CfxError):
    """A run stopped by a signal after saving its work; the exit code is 130, 143 or 129."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum, self.exit_code = signum, 128 + signum


class _Signalled(BaseException):
    """A signal, on its way up from wherever it arrived; nothing that catches errors catches it."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


@contextmanager
def interrupted_by_signals(message: str) -> Iterator[None]:
    """A block that a signal ends at once, with `Interrupted`: for work that waits for others and keeps what it has.

    A signal that arrives where Python ignores exceptions, as in what is called when an object is freed, ends it late.
    """
    heard: int | None = None

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal heard
        heard = signum
        raise _Signalled(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = _handle(stop)
    try:
        yield
    except _Signalled as signalled:
        raise Interrupted(signalled.signum, message) from None
    finally:
        _restore(previous)
    if heard is not None:
        raise Interrupted(heard, message)


def _handle(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Installs a handler, and gives those before it, by signal. A hangup that is ignored, as under nohup, stays so."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [number for number in StopRequest.SIGNALS if not (ignored and number == signal.SIGHUP)]
    return {number: signal.signal(number, handler) for number in numbers}


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def end_at_once_on_interrupt() -> None:
    """Lets the system end this process on SIGINT, without a traceback, unless a `StopRequest` is there to hear it.

    Python's own handler raises KeyboardInterrupt wherever the program is, and only once a compilation has ended.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
