"""Completion in an interactive bash, as a user types."""

import os
import pty
import select
import subprocess
import sys
import time

import pytest

PATIENCE = 300
"""Seconds; a completion starts Python."""


def read_until(terminal: int, wanted: str) -> str:
    """What a terminal shows, without bells, until it shows what is wanted."""
    shown, end = "", time.monotonic() + PATIENCE
    while wanted not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 4096).decode(errors="replace").replace("\a", "")
    return shown


@pytest.mark.slow
def test_bash_completes_commands_options_and_values(tmp_path):
    program = tmp_path / "bin" / "cfx"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom cfx.cli import main\nmain()\n")
    program.chmod(0o755)
    env = {**os.environ, "HOME": str(tmp_path), "PATH": f"{program.parent}:{os.environ['PATH']}", "TERM": "dumb"}
    # Not the last command, which bash would turn into: the shell is the parent that the program finds.
    subprocess.run(["bash", "-c", "cfx --install-completion && true"], env=env, check=True, capture_output=True)
    child, terminal = pty.fork()
    if not child:
        os.execvpe("bash", ["bash", "-i"], env)
    try:
        for typed, completed in (
            ("cfx sam", "sample "),
            ("cfx sample --mod", "--model "),
            ("cfx score --model min", "mini"),
        ):
            os.write(terminal, b"\x15" + typed.encode() + b"\t")
            assert completed in read_until(terminal, completed)
    finally:
        os.close(terminal)
        os.waitpid(child, 0)
