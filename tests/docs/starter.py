"""Starts `cfx` and `python` as processes that have their imports already: what takes seconds is done once.

Reads command lines from stdin, each a JSON list of words; answers with the exit code of each. What a process prints
is in output.txt. JAX is imported here and not used, so that it has no threads yet that a fork would lose.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import traceback

EARLY = (
    "jax",
    "haiku",
    "optax",
    "scipy.optimize",
    "pymatgen.core",
    "pymatgen.io.cif",
    "spglib",
    "matplotlib.pyplot",
    "ase",
)


def run(words: list[str]) -> None:
    """Does what a command line says, in this process."""
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = words
    if words[0] == "cfx":
        from cfx.cli import main

        main()
    else:
        sys.argv = words[1:]
        sys.path[0] = ""
        runpy.run_path(words[1], run_name="__main__")


def start(words: list[str]) -> int:
    """The exit code of a process that runs a command line."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        run(words)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    for name in EARLY:
        importlib.import_module(name)
    for line in sys.stdin:
        print(start(json.loads(line)), flush=True)
