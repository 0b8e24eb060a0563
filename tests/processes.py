"""Starts `cfx` and `python` as processes that have their imports already: what takes seconds is done once.

A nursery is a process that imports what most commands need and forks a child for each command line. The child has
arguments, environment, working directory, standard streams, signals and an exit code of its own, as any process; only
its modules are loaded. JAX is imported there and not used, so that it has no threads yet that a fork would lose, and
torch and the hub's client are not imported at all: what they print and read when imported belongs to the command.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

EARLY = (
    *(
        "jax",
        "haiku",
        "optax",
        "scipy.optimize",
        "scipy.stats",
        "safetensors.numpy",
        "rich.progress",
        "typer.rich_utils",
    ),
    *("pymatgen.core", "pymatgen.io.cif", "pymatgen.analysis.structure_matcher", "pymatgen.symmetry.analyzer"),
    *("spglib", "moyopy", "ase", "ase.io", "matplotlib.pyplot", "joblib", "lmdb"),
)
READ_AT_START = ("JAX_", "PYTHON", "MPL", "LD_")
"""Variables beginning so are read when Python or a library starts: with others, a process is started from nothing."""

PATIENCE = 600
"""Seconds after which a process hangs. A busy machine needs many times what an idle one does."""


class Forked:
    """A process forked by the nursery; what tests use of subprocess.Popen, under the same names."""

    def __init__(self, home: Nursery, words: Sequence[str], cwd: Path, env: dict[str, str], streams: dict[str, bool]):
        self.args, self.returncode = list(words), None
        ends = {name: os.pipe() if wanted else None for name, wanted in streams.items()}
        with open(os.devnull, "r+b") as nothing:
            outputs = [ends[name][1] if ends[name] else nothing.fileno() for name in ("stdout", "stderr")]
            self._connection = home.fork([nothing.fileno(), *outputs], words, cwd, env)
        for end in filter(None, ends.values()):
            os.close(end[1])
        self.stdout, self.stderr = (end and os.fdopen(end[0], encoding="utf-8") for end in ends.values())
        self._answers = self._connection.makefile()
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit code, once there is one."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._connection, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._answers.readline())
        return self.returncode

    def communicate(self, timeout: float = PATIENCE) -> tuple[str | None, str | None]:
        """The rest of both streams, when the process has ended."""
        texts: dict[str, str] = {}

        def read(name: str) -> None:
            texts[name] = getattr(self, name).read()

        readers = [threading.Thread(target=read, args=[name]) for name in ("stdout", "stderr") if getattr(self, name)]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        return texts.get("stdout"), texts.get("stderr")

    def send_signal(self, signum: int) -> None:
        """Sends a signal to a process that still runs."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """Ends it."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The process that forks others. It ends with the one that started it.

    Attributes:
        environment: in which libraries were imported.
    """

    def __init__(self, environment: dict[str, str]):
        self._socket, other = socket.socketpair()
        self.environment = environment
        command = [sys.executable, __file__, str(other.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[other.fileno()], env=environment)
        other.close()
        atexit.register(self.close)

    def close(self) -> None:
        """Ends it."""
        self._socket.close()
        self._process.wait()

    def fork(self, streams: list[int], words: Sequence[str], cwd: Path, env: dict[str, str]) -> socket.socket:
        """Where the process id and later the exit code of a new process can be read, a line each."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._socket, [b"."], [*streams, theirs.fileno()])
        ours.sendall(json.dumps({"words": list(words), "cwd": str(cwd), "env": env}).encode() + b"\n")
        return ours


@functools.cache
def nursery() -> Nursery:
    """The nursery of this process, for its own environment."""
    return Nursery(dict(os.environ))


def differs(one: dict[str, str], other: dict[str, str]) -> bool:
    """Whether environments differ in what is read once."""
    return any(one.get(key) != other.get(key) for key in one.keys() | other.keys() if key.startswith(READ_AT_START))


def start(
    words: Sequence[str],
    cwd: Path,
    env: dict[str, str] | None = None,
    stdout: bool = True,
    fresh: bool = False,
    home: Nursery | None = None,
) -> Forked | subprocess.Popen:
    """Starts ["cfx", ...] or ["python", ...]; stderr is captured, stdout if asked.

    Args:
        words: the command line.
        cwd: its working directory.
        env: its whole environment; this process's by default.
        stdout: whether stdout is captured too.
        fresh: start from nothing instead of forking.
        home: the nursery to fork from, if not that of this process.
    """
    env = dict(os.environ) if env is None else env
    if not fresh and not differs((home or nursery()).environment, env):
        return Forked(home or nursery(), words, cwd, env, {"stdout": stdout, "stderr": True})
    # The installed script: `python -c` would import what lies in `cwd` before cfx has a say.
    script = str(Path(sys.executable).with_name("cfx"))
    program = {"cfx": [sys.executable, script], "python": [sys.executable]}[words[0]]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*program, *words[1:]], cwd=cwd, env=env, stdout=pipe if stdout else None, stderr=pipe, text=True
    )


def run(
    words: Sequence[str],
    cwd: Path,
    env: dict[str, str] | None = None,
    fresh: bool = False,
    home: Nursery | None = None,
) -> subprocess.CompletedProcess:
    """Runs a command line to its end; see start."""
    process = start(words, cwd, env, fresh=fresh, home=home)
    try:
        stdout, stderr = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(list(words), process.returncode, stdout, stderr)


# What follows runs in the nursery.


def import_early() -> None:
    """Imports what commands need, and cfx but for what loads potentials or the hub's client."""
    for name in EARLY:
        importlib.import_module(name)
    import cfx

    for module in pkgutil.walk_packages(cfx.__path__, "cfx."):
        if not module.name.startswith(("cfx.resources", "cfx.predictors.", "cfx.fetch.download")):
            importlib.import_module(module.name)
    gc.freeze()


def serve(requests: socket.socket) -> dict | None:
    """Forks at each request; the request in the new process, None in the nursery at its end."""
    running: dict[int, socket.socket] = {}
    woken, waker = socket.socketpair()
    for end in (woken, waker):
        end.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if woken in ready:
                woken.recv(1000)
                report_ended(running)
            if requests not in ready:
                continue
            message, descriptors, _, _ = socket.recv_fds(requests, 1, 4)
            if not message:
                return None
            connection = socket.socket(fileno=descriptors.pop())
            child = os.fork()
            if not child:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return become(connection, descriptors, [requests, woken, waker, *running.values()])
            running[child] = connection
            connection.sendall(b"%d\n" % child)
            for descriptor in descriptors:
                os.close(descriptor)


def report_ended(running: dict[int, socket.socket]) -> None:
    """Sends the exit codes of those that have ended to those who wait for them."""
    for child in list(running):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            with running.pop(child) as connection, contextlib.suppress(BrokenPipeError):
                connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def become(connection: socket.socket, streams: list[int], others: list[socket.socket]) -> dict:
    """Takes over the streams, directory and environment of a request; returns it."""
    with connection, connection.makefile() as lines:
        request = json.loads(lines.readline())
    for other in others:
        other.close()
    for target, descriptor in enumerate(streams):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    return request


def obey(words: list[str]) -> None:
    """Does what a command line says."""
    sys.modules["__main__"] = types.ModuleType("__main__")  # what worker processes would import again
    sys.path.insert(0, "")  # as with python -c
    if words[0] == "cfx":
        sys.argv = words
        from cfx.cli import main

        main()
    else:
        sys.argv = words[1:]
        runpy.run_path(words[1], run_name="__main__")


def leave(function: Callable[[list[str]], None], words: list[str]) -> NoReturn:
    """Ends this process with what a function ends with, without taking its many modules apart, which takes time."""
    code = 1
    try:
        function(words)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # waits for threads, as Python does at the end
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = 120  # as Python's own
    os._exit(code)


if __name__ == "__main__":
    sys.path.pop(0)  # this directory
    import_early()
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        asked = serve(requests)
    if asked is not None:
        leave(obey, asked["words"])
