"""The command line: parse, call a run, print. Commands import what they need when they run."""

import contextlib
import os
import sys


def main() -> None:
    """Entry point of `cfx`: runs a command, turns every expected failure into one line and an exit code."""
    _leave_the_working_directory_out()
    _stand_in_for_an_account()
    from cfx.cli.app import run
    from cfx.reporter import end_at_once_on_interrupt

    end_at_once_on_interrupt()
    run()


def _stand_in_for_an_account() -> None:
    """Libraries ask for a home directory and a user's name; a container may run under a number that has neither.

    What they keep under `~` then goes where cfx keeps its own, if that was said, and not into a directory named `~`.
    """
    cache = os.environ.get("CFX_CACHE") or os.environ.get("XDG_CACHE_HOME")
    if os.path.expanduser("~") == "~" and cache:
        os.environ["HOME"] = os.path.realpath(cache)
    try:
        import pwd

        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("USER", str(os.getuid()))


def _leave_the_working_directory_out() -> None:
    """Nothing that lies where the user stands is imported, here or in a process that we start (joblib's, among them).

    `python -m` and `python -c` put that directory first.
    """
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    with contextlib.suppress(OSError):  # of a directory that was deleted
        if not sys.flags.safe_path and sys.path[:1] in ([""], [os.getcwd()]):
            del sys.path[0]
