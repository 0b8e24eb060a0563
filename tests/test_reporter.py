"""Signals ask a run to stop; they do not stop it."""

import os
import signal
import threading

import pytest

from cfx.errors import CfxError
from cfx.reporter import Interrupted, StopRequest, interrupted_by_signals


@pytest.fixture(autouse=True)
def usual_handlers():
    """Python's own, which it does not install in a process that a shell has started with signals ignored, by `&`."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signum == number
        assert signal.getsignal(number) is before  # a second one acts as usual
    assert signal.getsignal(number) is before


def test_a_second_signal_acts_as_usual():
    with pytest.raises(KeyboardInterrupt), StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_request_within_another_is_told_to_both():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as outer:
        with StopRequest() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert inner.signum == outer.signum == signal.SIGTERM
            assert signal.getsignal(signal.SIGTERM) is before  # a second one acts as usual
        with StopRequest() as later:
            assert not later
        assert outer
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_deep_inside_hears_of_the_request():
    assert StopRequest.heard() is None
    with StopRequest():
        with StopRequest():
            os.kill(os.getpid(), signal.SIGTERM)
        with StopRequest() as later:
            assert StopRequest.heard() == signal.SIGTERM and not later
    assert StopRequest.heard() is None


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hangup_is_a_request_unless_it_is_ignored(ignored):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signum == (None if ignored else signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_restored_after_an_exception():
    before = [signal.getsignal(number) for number in StopRequest.SIGNALS]
    with pytest.raises(ValueError, match="a fault"), StopRequest():
        raise ValueError("a fault")
    assert [signal.getsignal(number) for number in StopRequest.SIGNALS] == before


def test_a_thread_leaves_signals_alone():
    before, failures = signal.getsignal(signal.SIGINT), []

    def run():
        try:
            with StopRequest() as stop:
                assert not stop
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert not failures
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_exit_code_of_an_interrupted_run(number, code):
    error = Interrupted(number, "stopped at step 3")
    assert (error.exit_code, error.message) == (code, "stopped at step 3")
    assert isinstance(error, CfxError)
    assert str(error) == error.message


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_arrives_while_an_object_is_freed_is_not_lost():
    class Freed:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)  # Python prints what a destructor raises, and goes on

    went_on = False
    with pytest.raises(Interrupted, match="stopped") as stopped, interrupted_by_signals("stopped"):
        Freed()
        went_on = True
    assert went_on and stopped.value.signum == signal.SIGTERM
