"""The command line: parse, call a run, print. Commands import what they need when they run."""

from __future__ import annotations


def main() -> None:
    """Entry point of `cfx`: runs a command, turns every expected failure into one line and an exit code."""
    from cfx.cli.app import run

    run()
