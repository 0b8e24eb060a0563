"""Commands as a user runs them: real processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "from cfx.cli import main; main()"]


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory) -> Path:
    """A cache directory for all commands of a session: they compile the same programs."""
    return tmp_path_factory.mktemp("cfx-cache")


@pytest.fixture(autouse=True)
def own_cache(shared_cache, monkeypatch) -> Path:
    """CFX_CACHE in a directory that no test leaves behind."""
    monkeypatch.setenv("CFX_CACHE", str(shared_cache))
    return shared_cache


@pytest.fixture
def cfx(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `cfx` with arguments in a temporary directory; text output captured."""

    def run(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess:
        command = [*COMMAND, *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=timeout)

    return run


@pytest.fixture
def start_cfx(tmp_path: Path):
    """Starts `cfx` with arguments in a temporary directory; what still runs at the end is killed."""
    started: list[subprocess.Popen] = []

    def start(*arguments: object) -> subprocess.Popen:
        command = [*COMMAND, *map(str, arguments)]
        started.append(subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
