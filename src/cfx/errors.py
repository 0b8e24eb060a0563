"""Everything cfx can say went wrong: a message, a hint with the way out, and an exit code."""

import sys
from pathlib import Path


class CfxError(Exception):
    """Base of all expected failures.

    Attributes:
        message: one line that says what is wrong.
        hint: one line that says what to do next, or None.
        exit_code: process exit code of the command that fails with it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None):
        # `args` stays what the error was made from: it is from these that worker processes rebuild it, hint included.
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(CfxError):
    """A value on the command line or in a configuration that cannot be meant."""

    exit_code = 2


class DataError(CfxError):
    """Input data that is missing, empty or unreadable."""

    exit_code = 3


class CheckpointError(CfxError):
    """A model file that is missing, damaged, unsafe or of another family."""

    exit_code = 4


class UnsafeError(CheckpointError):
    """A model file that asks for something other than numbers."""


class NetworkError(CfxError):
    """A download that failed."""

    exit_code = 5


class DependencyError(CfxError):
    """A package or a device that the command needs and the machine lacks."""

    exit_code = 6


class NumericsError(CfxError):
    """A computation that left the finite numbers."""

    exit_code = 7


class RewardError(CfxError):
    """A reward of somebody else's that fails, or answers something else than rewards."""

    exit_code = 9


class OutputError(CfxError):
    """A result that cannot be written."""

    exit_code = 8


def install(extra: str) -> str:
    """The command that adds an extra to cfx, as cfx itself was installed: by pipx, or by pip.

    Neither needs cfx from an index: its version is there already.
    """
    environment = Path(sys.prefix)
    by_pipx = (environment / "pipx_metadata.json").exists()
    return f"{f'pipx runpip {environment.name}' if by_pipx else 'pip'} install 'cfx-crystal[{extra}]'"
