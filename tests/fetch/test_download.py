"""Downloads: what is tried again, how often, and from which speed on."""

import httpx
import pytest

from cfx.errors import NetworkError, OutputError
from cfx.fetch import download, failures
from cfx.fetch.download import ATTEMPTS, PIECE, SLOWEST, WINDOW, TooSlow, with_retries
from cfx.fetch.failures import CLASSES, FAILURES, PASSING, Unreachable, failure

URL = "https://host/x"


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """How long was waited, had there been time."""
    seconds: list[float] = []
    monkeypatch.setattr(download.time, "sleep", seconds.append)
    return seconds


def failing(*errors: Exception):
    """An action that fails, each time it is called, with the next error, and then returns "done"."""
    left = list(errors)

    def action() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return action


def test_what_passes_is_tried_again(waits):
    said: list[str] = []
    assert with_retries(failing(httpx.ReadError("x"), TooSlow(), TooSlow()), URL, say=said.append) == "done"
    assert waits == [1, 2, 4]
    assert said[0] == "the connection was lost; trying again in 1 s"


def test_not_for_ever(waits):
    with pytest.raises(Unreachable, match="host sends almost no data"):
        with_retries(failing(*[TooSlow()] * ATTEMPTS), URL)
    assert len(waits) == ATTEMPTS - 1


def test_what_goes_on_is_given_new_attempts(waits):
    sizes = iter([0, *[PIECE] * 2, *[2 * PIECE] * 3, *[3 * PIECE] * 9])
    assert with_retries(failing(*[TooSlow()] * 7), URL, done=lambda: next(sizes)) == "done"
    assert waits == [1, 2, 1, 2, 4, 1, 2]


@pytest.mark.parametrize(
    ("error", "match"),
    [(httpx.ConnectError("x"), "cannot reach host"), (httpx.ConnectTimeout("x"), "cannot reach host"),
     (httpx.ReadTimeout("x"), "does not respond"), (httpx.ProxyError("x"), "proxy"),
     (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED]"), "certificate"), (httpx.InvalidURL("x"), "an address")],
)  # fmt: skip
def test_what_does_not_pass_is_told_at_once(error, match, waits):
    with pytest.raises(NetworkError, match=match):
        with_retries(failing(error), URL)
    assert waits == []


def test_the_table_of_failures(tmp_path):
    """Every kind can be told, and only kinds that exist are named elsewhere."""
    facts = dict.fromkeys(("address", "url", "host", "error", "status", "reason", "folder", "size", "digest"), "x")
    facts |= dict.fromkeys(("what", "name", "before", "now"), "x") | {"target": tmp_path / "x"}
    for kind in FAILURES:
        error = failure(kind, **facts)
        assert "\n" not in error.message and "{" not in f"{error.message}{error.hint}"
    assert {*CLASSES, *PASSING, *failures.PASSING_IN_TRANSFER, *download.STATUSES.values()} <= set(FAILURES)
    assert isinstance(failure("no room", **facts), OutputError) and str(tmp_path) in str(
        failure("no room", **facts).hint
    )


class Clock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(download.time, "monotonic", lambda: self.now)

    def arrivals(self, *sizes: int, every: float):
        """Parts of these sizes, one each so many seconds."""
        for size in sizes:
            self.now += every
            yield bytes(size)


def watched(parts, limit: int | None = None) -> int:
    """How many bytes are handed on, with a time-out of a second."""
    return sum(map(len, download._watched(parts, limit, timeout=1)))


def test_a_byte_a_second_is_too_slow(monkeypatch):
    clock = Clock(monkeypatch)
    with pytest.raises(TooSlow):
        watched(clock.arrivals(*[1] * 100, every=1))
    assert clock.now <= WINDOW + 1


def test_what_becomes_slow_is_noticed(monkeypatch):
    clock = Clock(monkeypatch)
    with pytest.raises(TooSlow):
        watched(clock.arrivals(PIECE, PIECE, *[1] * 100, every=1))
    assert clock.now <= 2 + 2 * (WINDOW + 1)


def test_slow_is_not_too_slow(monkeypatch):
    assert watched(Clock(monkeypatch).arrivals(*[SLOWEST] * 100, every=1)) == 100 * SLOWEST


def test_no_more_than_announced(monkeypatch):
    assert watched(Clock(monkeypatch).arrivals(*[10] * 100, every=0), limit=25) == 30


def test_pieces():
    sizes = [len(piece) for piece in download._pieces(iter([bytes(PIECE - 1), bytes(2), bytes(2 * PIECE)]))]
    assert sizes == [PIECE, PIECE, PIECE, 1]
