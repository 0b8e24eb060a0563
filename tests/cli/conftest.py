"""Commands as a user runs them: real processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def cfx(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `cfx` with arguments in a temporary directory; text output captured."""

    def run(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", "from cfx.cli import main; main()", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=timeout)

    return run
