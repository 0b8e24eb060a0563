"""What progress leaves behind: nothing on a terminal, and in a log only lines of steps that took long."""

from __future__ import annotations

import contextlib
import itertools
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from cfx.cli import console
from cfx.errors import OutputError

NEVER = 1e6
"""Seconds that no test takes."""


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.005)


def test_quick_steps_say_nothing_in_a_log(monkeypatch, capsys):
    monkeypatch.setattr(console, "FIRST_LINE", NEVER)
    with console.ConsoleReporter().progress("energies", 3) as progress:
        for done in range(4):
            progress.update(done, "compiling")
    assert capsys.readouterr().err == ""


def test_long_steps_say_how_far_they_are_and_how_far_they_came(monkeypatch, capsys):
    """Whether they are told of anything meanwhile, or not."""
    said = []
    monkeypatch.setattr(console, "FIRST_LINE", 0.001)
    monkeypatch.setattr(console, "say", said.append)
    with console.ConsoleReporter().progress("crystals", 2_000_000) as progress:
        progress.update(0, "compiling")
        wait_for(lambda: "crystals 0/2000000  compiling" in said)
        progress.update(2_000_000, "9 crystals/s")
    assert said[-1] == "crystals 2000000/2000000  9 crystals/s"
    assert len(said) == len(set(said)), "a line that says nothing new is not said"


def test_a_step_that_fails_says_no_more(monkeypatch):
    said = []
    monkeypatch.setattr(console, "FIRST_LINE", 0.001)
    monkeypatch.setattr(console, "say", said.append)
    with pytest.raises(ValueError, match="a fault"), console.ConsoleReporter().progress("rows", None) as progress:
        wait_for(lambda: bool(said))
        progress._ended.set()
        progress._clock.join()
        progress.update(7)
        raise ValueError("a fault")
    assert said == ["rows 0"]


def test_a_line_that_cannot_be_written_ends_the_work(monkeypatch):
    def fail(text: str) -> None:
        raise OutputError("cannot write to stderr: no space")

    monkeypatch.setattr(console, "FIRST_LINE", 0.001)
    monkeypatch.setattr(console, "say", fail)
    with pytest.raises(OutputError), console.ConsoleReporter().progress("rows", None) as progress:
        progress._clock.join()
        progress.update(1)
        pytest.fail("went on")


def test_lines_become_rarer():
    seconds = list(itertools.islice(console.silences(), 9))
    assert seconds == [10, 20, 40, 80, 160, 320, 600, 600, 600]


def screen(output: str) -> list[str]:
    """What a terminal shows after some output of lines, returns, erased lines and steps up."""
    lines, row, place = [""], 0, 0
    for part in re.split(r"(\x1b\[[?\d;]*[A-Za-z]|\r|\n)", output):
        if part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part == "\r":
            place = 0
        elif match := re.fullmatch(r"\x1b\[([?\d;]*)([A-Za-z])", part):
            row -= (int(match[1] or 1)) if match[2] == "A" else 0
            lines[row] = "" if match[2] == "K" else lines[row]
            assert match[2] in "AKmhl", part
        else:
            lines[row] = lines[row][:place].ljust(place) + part + lines[row][place + len(part) :]
            place += len(part)
    return [line.rstrip() for line in lines if line.strip()]


def on_a_terminal(script: str, **variables: str) -> str:
    """What a Python script writes to a terminal that is its stderr."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", **variables}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    pieces = []
    with contextlib.suppress(OSError):  # which is how the end of a terminal is told
        while piece := os.read(ours, 1 << 16):
            pieces.append(piece)
    os.close(ours)
    assert process.wait() == 0
    return b"".join(pieces).decode()


STEPS = """
from cfx.cli.console import REPORTER
with REPORTER.progress("encoding", 3) as progress:
    progress.update(1)
    REPORTER.message("half of it")
    progress.bars.refresh()
    progress.update(3)
with REPORTER.progress("reading", None) as progress:
    progress.bars.refresh()
print("done")
"""


def test_bars_vanish_from_a_terminal():
    output = on_a_terminal(STEPS)
    assert "encoding" in output and "1/3" in output and "reading" in output, "they were there"
    assert screen(output) == ["half of it", "done"]


def test_a_terminal_that_erases_nothing_gets_no_bars():
    script = STEPS.replace("    progress.bars.refresh()\n", "    pass\n")
    assert screen(on_a_terminal(script, TERM="dumb")) == ["half of it", "done"]


def test_a_command_leaves_its_results(cfx, tmp_path):
    """Through a pipe, a quick command writes what it made and nothing else."""
    (tmp_path / "salt.cif").write_text(
        "data_salt\n_cell_length_a 5.64\n_cell_length_b 5.64\n_cell_length_c 5.64\n_cell_angle_alpha 90\n"
        "_cell_angle_beta 90\n_cell_angle_gamma 90\n_space_group_IT_number 225\nloop_\n_atom_site_label\n"
        "_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\nNa1 Na 0 0 0\n"
        "Cl1 Cl 0.5 0.5 0.5\n"
    )
    result = cfx("view", "salt.cif", "-o", "salt.html")
    assert result.returncode == 0, result.stderr
    assert result.stderr == "1 crystal: salt.html\n"
