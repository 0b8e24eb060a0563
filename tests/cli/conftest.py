"""Commands as a user runs them: real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .. import processes

COMMAND = [sys.executable, "-c", "from cfx.cli import main; main()"]


@pytest.fixture(scope="session")
def shared_cache(run_directory) -> Path:
    """A cache directory for all commands of a run of the tests: they compile the same programs."""
    return run_directory / "cfx-cache"


@pytest.fixture(autouse=True)
def own_cache(shared_cache, monkeypatch) -> Path:
    """CFX_CACHE in a directory that no test leaves behind."""
    monkeypatch.setenv("CFX_CACHE", str(shared_cache))
    return shared_cache


@pytest.fixture
def fresh(request) -> bool:
    """Whether processes are started from nothing: those of slow tests are, all others are forked."""
    return request.node.get_closest_marker("slow") is not None


@pytest.fixture
def cfx(tmp_path: Path, fresh: bool) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `cfx` with arguments in a temporary directory; text output captured."""

    def run(*arguments: object) -> subprocess.CompletedProcess:
        return processes.run(["cfx", *map(str, arguments)], tmp_path, fresh=fresh)

    return run


@pytest.fixture
def cfx_after(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `cfx` after some lines of Python that change what surrounds it; variables that are None are unset."""

    def run(lines: str, *arguments: object, **variables: str | None) -> subprocess.CompletedProcess:
        (tmp_path / "start.py").write_text(f"{lines}\nfrom cfx.cli import main\nmain()\n")
        env = {name: value for name, value in {**os.environ, **variables}.items() if value is not None}
        return processes.run(["python", "start.py", *map(str, arguments)], tmp_path, env)

    return run


@pytest.fixture
def start_cfx(tmp_path: Path, fresh: bool):
    """Starts `cfx` with arguments in a temporary directory; what still runs at the end is killed."""
    started = []

    def start(*arguments: object):
        started.append(processes.start(["cfx", *map(str, arguments)], tmp_path, stdout=False, fresh=fresh))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stderr.close()
