"""Where commands run: streams that cannot be written, no account, links, names that are made to deceive."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
from pathlib import Path

import pytest

from cfx.io.files import sole_writer

from .. import processes
from .test_eval import CU3AU, EMT, SALT, fcc, write

CLOSED = "import os\nreader, writer = os.pipe()\nos.close(reader)\nos.dup2(writer, {descriptor})\n"
FULL = "import os\nos.dup2(os.open('/dev/full', os.O_WRONLY), {descriptor})\n"
NOBODY = """
import os, pwd
def unknown(uid):
    raise KeyError(uid)
pwd.getpwuid = unknown
os.environ.pop("HOME", None)
for name in ("USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
"""
DRAW = ("sample", "--model", "mini", "--sg", 225, "-n", 8, "--batch-size", 4, "--max-sites", 2)
ESCAPE = "\x1b[31m"


def assert_one_line(result, exit_code: int, *words: str) -> None:
    lines = result.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert result.returncode == exit_code, result.stderr
    assert len(errors) == 1 and all(word in errors[0] for word in words), result.stderr
    assert "Traceback" not in result.stderr and "Exception ignored" not in result.stderr


PRINTING = {
    "sample": DRAW,
    "score": ("score", "crystals.jsonl", "--model", "mini", "--workers", 1),
    "score --json": ("score", "crystals.jsonl", "--model", "mini", "--workers", 1, "--json"),
    "hull show": ("hull", "show", "hull.npz"),
    "fetch --list": ("fetch", "--list"),
    "fetch --list --json": ("fetch", "--list", "--json"),
    "retrieve": ("retrieve", "--from", "crystals.jsonl", "--reference", "crystals.jsonl", "--workers", 1),
    "data": ("data", "crystals.jsonl", "--workers", 1),
    "data --json": ("data", "crystals.jsonl", "--workers", 1, "--json"),
    "eval": ("eval", "crystals.jsonl", "--workers", 1),
    "plot": ("plot", "embeddings", "mini"),
    "help": ("sample", "--help"),
}


@pytest.mark.parametrize("name", PRINTING)
def test_a_stdout_that_cannot_be_written(cfx, cfx_after, tmp_path, name):
    """Nobody reads any more: 141, as after `| head`, without a word. A full disk: 8, and one line."""
    write(tmp_path / "crystals.jsonl", cu3au=CU3AU, salt=SALT)
    if name == "hull show":
        write(tmp_path / "phases.jsonl", cu=fcc("Cu", 3.6), au=fcc("Au", 4.1))
        assert cfx("hull", "build", "phases.jsonl", "--potential", EMT, "-o", "hull.npz").returncode == 0
    result = cfx_after(CLOSED.format(descriptor=1), *PRINTING[name])
    assert result.returncode == 141, result.stderr
    assert not re.search("Traceback|Exception ignored|error", result.stderr), result.stderr
    assert_one_line(cfx_after(FULL.format(descriptor=1), *PRINTING[name]), 8, "stdout", "No space left")


@pytest.mark.parametrize(("lines", "exit_code"), [(CLOSED, 141), (FULL, 8)])
def test_a_stderr_that_cannot_be_written(cfx_after, tmp_path, lines, exit_code):
    result = cfx_after(lines.format(descriptor=2), *DRAW, "-o", "out.cif")
    assert result.returncode == exit_code


def test_a_reader_that_has_seen_enough(tmp_path):
    process = processes.start(["cfx", *map(str, DRAW), "-n", "10000"], tmp_path)
    assert process.stdout.readline().startswith("data_")
    process.stdout.close()
    stderr = process.stderr.read()
    assert process.wait() == 141
    assert "Traceback" not in stderr and "Exception ignored" not in stderr
    process.stderr.close()


def test_a_dash_is_stdout(cfx, tmp_path):
    drawn, dashed = cfx(*DRAW), cfx(*DRAW, "-o", "-")
    assert dashed.returncode == 0 and dashed.stdout == drawn.stdout and dashed.stdout.startswith("data_")
    (tmp_path / "drawn.cif").write_text(drawn.stdout)
    scores = cfx("score", "drawn.cif", "--model", "mini", "--workers", 1, "-o", "-")
    assert scores.returncode == 0 and len(list(csv.DictReader(io.StringIO(scores.stdout)))) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["drawn.cif"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("relax", "crystals.jsonl", "--potential", EMT, "-o", "-"),
        ("eval", "crystals.jsonl", "-o", "-"),
        ("eval", "crystals.jsonl", "--html", "-"),
        ("retrieve", "--from", "crystals.jsonl", "--reference", "crystals.jsonl", "-o", "-"),
        ("train", "crystals.jsonl", "-o", "-"),
        ("view", "crystals.jsonl", "-o", "-"),
        ("data", "crystals.jsonl", "--failures", "-"),
    ],
)
def test_what_cannot_go_to_stdout_says_so(cfx, tmp_path, arguments):
    write(tmp_path / "crystals.jsonl", cu3au=CU3AU)
    assert_one_line(cfx(*arguments), 2, "stdout", arguments[-2].replace("-o", "--output"))
    assert [path.name for path in tmp_path.iterdir()] == ["crystals.jsonl"]


@pytest.mark.parametrize("name", ["out.cif", "out.zip"])
@pytest.mark.parametrize("there", [False, True])
def test_links_are_followed(cfx, tmp_path, name, there):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / name
    if there:
        target.write_text("old")
    (tmp_path / name).symlink_to(Path("elsewhere") / name)
    result = cfx(*DRAW, "-o", name)
    if there:
        assert_one_line(result, 8, "exists")
        assert target.read_text() == "old"
        result = cfx(*DRAW, "-o", name, "--force")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / name).is_symlink() and not target.is_symlink() and target.stat().st_size > 1000
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == [name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", name]


def test_links_of_tables_and_pages_are_followed(cfx, tmp_path):
    write(tmp_path / "crystals.jsonl", cu3au=CU3AU, bad="x")
    links = {name: tmp_path / f"real-{name}" for name in ("records.csv", "page.html", "failures.csv", "view.html")}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    for words in (
        ("eval", "crystals.jsonl", "--workers", 1, "-o", "records.csv", "--html", "page.html"),
        ("data", "crystals.jsonl", "--workers", 1, "--failures", "failures.csv"),
        ("view", "crystals.jsonl", "-o", "view.html"),
    ):
        result = cfx(*words)
        assert result.returncode == 0, result.stderr
    for name, target in links.items():
        assert (tmp_path / name).is_symlink() and target.is_file() and not target.is_symlink()


def test_links_that_lead_nowhere_are_refused(cfx, tmp_path):
    (tmp_path / "out.cif").symlink_to("other.cif")
    (tmp_path / "other.cif").symlink_to("out.cif")
    assert_one_line(cfx(*DRAW, "-o", "out.cif", "--force"), 8, "out.cif", "link")
    (tmp_path / "lost.cif").symlink_to("missing/lost.cif")
    assert_one_line(cfx(*DRAW, "-o", "lost.cif", "--force"), 8, "missing")


def test_nothing_from_a_file_reaches_the_terminal_raw(cfx, tmp_path):
    """Names, formulas, reasons and file names; an escape, a bell, a carriage return, a line, a character of C1."""
    deceit = f"{ESCAPE}name\x07\rx\ny\x9b2Jz[bold]"
    write(tmp_path / "crystals.jsonl", **{deceit: CU3AU, f"bad{deceit}": "data_x\n" + ESCAPE})
    odd = tmp_path / f"odd{ESCAPE}.jsonl"
    odd.write_bytes((tmp_path / "crystals.jsonl").read_bytes())
    for words in (
        ("data", odd, "--workers", 1),
        ("eval", odd, "--workers", 1),
        ("score", odd, "--model", "mini", "--workers", 1),
        ("retrieve", "--from", odd, "--reference", odd, "--workers", 1),
        ("data", f"missing{deceit}.csv"),
        ("sample", "--sg", 225, "--model", f"missing{deceit}"),
        ("plot", f"missing{deceit}"),
    ):
        result = cfx(*words)
        stdout = "" if words[0] == "score" else result.stdout  # which is data
        assert "Traceback" not in result.stderr
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", stdout + result.stderr), (words, stdout, result.stderr)
        assert r"\x1b" in result.stdout + result.stderr, words


@pytest.mark.parametrize(
    "words",
    [
        ("sample", "--sg", ESCAPE),
        ("sample", "--n", ESCAPE),
        ("sample", f"--no{ESCAPE}such"),
        ("sample", f"--form{ESCAPE}", "NaCl"),
        ("sample", "--sg", "2", f"extra{ESCAPE}"),
        (f"samp{ESCAPE}",),
        ("hull", f"buil{ESCAPE}"),
        ("train", "x.csv", "-o", "run", "--schedule", ESCAPE),
        ("rl", "--reward", "ehull", "--preset", ESCAPE),
        ("eval", "x.cif", "-o", f"x{ESCAPE}"),
    ],
)
def test_arguments_of_usage_errors_do_not_reach_the_terminal_raw(cfx, words):
    result = cfx(*words)
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", result.stdout + result.stderr), result.stderr


@pytest.mark.parametrize("first", ["=", "+", "-", "@"])
def test_no_cell_is_a_formula(cfx, tmp_path, first):
    names = {f"{first}1+1": CU3AU, f"{first}cmd|' /C calc'!A0": "x"}
    write(tmp_path / "crystals.jsonl", **names)
    for words in (
        ("data", "crystals.jsonl", "--workers", 1, "--failures", "failures.csv"),
        ("eval", "crystals.jsonl", "--workers", 1, "-o", "records.csv"),
        ("score", "crystals.jsonl", "--model", "mini", "--workers", 1, "-o", "scores.csv"),
        ("retrieve", "--from", "crystals.jsonl", "--reference", "crystals.jsonl", "--workers", 1, "-o", "found.csv"),
    ):
        assert cfx(*words).returncode == 0
        with open(tmp_path / words[-1], newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows and {row["name"] for row in rows} <= {f"'{name}" for name in names}, words


@pytest.mark.parametrize(
    "words",
    [
        ("score", "crystals.jsonl", "--model", "mini", "--workers", 1, "-o"),
        ("retrieve", "--from", "crystals.jsonl", "--reference", "crystals.jsonl", "--workers", 1, "-o"),
        ("data", "crystals.jsonl", "--workers", 1, "--failures"),
        ("hull", "build", "crystals.jsonl", "--potential", EMT, "--workers", 1, "-o"),
        ("view", "crystals.jsonl", "-o"),
        ("plot", "embeddings", "mini", "-o"),
        ("eval", "crystals.jsonl", "--workers", 1, "--html"),
    ],
)
def test_two_writers_of_a_table(cfx, tmp_path, words):
    write(tmp_path / "crystals.jsonl", cu3au=CU3AU)
    name = "table" + {"hull": ".npz", "view": ".html", "plot": ".svg", "eval": ".html"}.get(words[0], ".csv")
    with sole_writer(tmp_path / name):
        assert_one_line(cfx(*words, name), 8, f"{name} is being written by another process")
    assert cfx(*words, name).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crystals.jsonl", name]


KILLED = """
import os, signal
import cfx.io.journal as journal
remove = journal.remove_partial
def killed(path):
    if path.exists():
        os.kill(os.getpid(), signal.SIGKILL)
    remove(path)
journal.remove_partial = killed
"""


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("relax", "crystals.jsonl", "--potential", EMT, "--workers", 1), "out.jsonl"),
        (("relax", "crystals.jsonl", "--potential", EMT, "--workers", 1), "out.cif"),
        (DRAW, "out.zip"),
    ],
)
def test_killed_when_the_result_had_its_name(cfx, cfx_after, tmp_path, words, name):
    """It is complete, though what it was made from is still there; another result of that name is not."""
    write(tmp_path / "crystals.jsonl", cu3au=CU3AU)
    assert cfx_after(KILLED, *words, "-o", name).returncode == -signal.SIGKILL
    left, result = tmp_path / f"{name}.partial", tmp_path / name
    written = result.read_bytes()
    assert left.exists()
    result.write_bytes(b"another")
    assert_one_line(cfx(*words, "-o", name, "--resume"), 8, "exists")
    assert left.exists() and result.read_bytes() == b"another"
    result.write_bytes(written)
    assert_one_line(cfx(*words, "-o", name, "--resume"), 8, "is complete")
    assert result.read_bytes() == written and not list(tmp_path.glob(f"{name}.*"))


def test_without_an_account_and_a_cache(cfx_after, tmp_path):
    """As under a foreign user number in a container."""
    write(tmp_path / "crystals.jsonl", cu3au=CU3AU)
    drawn = cfx_after(NOBODY, *DRAW, CFX_CACHE=None, JAX_COMPILATION_CACHE_DIR=None)
    assert drawn.returncode == 0 and drawn.stdout.startswith("data_") and "set CFX_CACHE" in drawn.stderr
    listed = cfx_after(NOBODY, "fetch", "--list", CFX_CACHE=None)
    assert listed.returncode == 0 and "mini" in listed.stdout and "set CFX_CACHE" in listed.stderr
    refused = cfx_after(NOBODY, "data", "crystals.jsonl", "--workers", 1, CFX_CACHE=None)
    assert_one_line(refused, 8, "no home directory")
    assert "set CFX_CACHE" in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crystals.jsonl", "start.py"]


def test_without_an_account_but_with_a_cache(cfx_after, tmp_path):
    """Libraries find a home there, and a name for the user."""
    write(tmp_path / "crystals.jsonl", cu3au=CU3AU)
    for words in (DRAW, ("data", "crystals.jsonl", "--workers", 1), ("eval", "crystals.jsonl", "--workers", 2)):
        result = cfx_after(NOBODY, *words, CFX_CACHE="cache")
        assert result.returncode == 0, result.stderr
    asks = "import atexit, getpass, pathlib\natexit.register(lambda: print(pathlib.Path.home(), getpass.getuser()))\n"
    result = cfx_after(NOBODY + asks, "--version", CFX_CACHE="cache")
    assert result.stdout.splitlines()[-1] == f"{tmp_path / 'cache'} {os.getuid()}"
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("cache", ["/dev/null/cache", "file/cache"])
def test_the_list_without_a_usable_cache(cfx_after, tmp_path, cache):
    (tmp_path / "file").touch()
    result = cfx_after("", "fetch", "--list", "--json", CFX_CACHE=cache)
    assert result.returncode == 0 and "set CFX_CACHE" in result.stderr
    assert "mini" in [one["name"] for one in json.loads(result.stdout)]


@pytest.mark.parametrize("arguments", [DRAW, ("data", "crystals.jsonl"), ("train", "x.csv", "-o", "run")])
def test_a_working_directory_that_was_deleted(cfx_after, arguments):
    lines = "import os\nos.mkdir('gone')\nos.chdir('gone')\nos.rmdir(os.getcwd())\n"
    assert_one_line(cfx_after(lines, *arguments), 8, "working directory")


@pytest.mark.parametrize(
    "words",
    [
        ("data", "in.csv", "--workers", 1, "--failures", "./in.csv"),
        ("eval", "other.jsonl", "in.csv", "--workers", 1, "-o", "in.csv"),
        ("eval", "other.jsonl", "--reference", "in.csv", "--workers", 1, "-o", "link.csv"),
        ("relax", "other.jsonl", "--potential", EMT, "-o", "other.jsonl"),
        ("retrieve", "--from", "in.csv", "--reference", "other.jsonl", "-o", "in.csv"),
        ("sample", "--model", "mini", "--from", "one.cif", "-o", "one.cif"),
    ],
)
def test_an_input_is_never_overwritten(cfx, tmp_path, words):
    """Not even if that is meant to happen to the output."""
    write(tmp_path / "other.jsonl", cu3au=CU3AU)
    CU3AU.to(tmp_path / "one.cif")
    (tmp_path / "in.csv").write_text(f'id,cif\na,"{CU3AU.to(fmt="cif")}"\n')
    (tmp_path / "link.csv").symlink_to("in.csv")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert_one_line(cfx(*words, "--force"), 2, "is an input")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_tables_lose_nothing_where_there_is_little_room(cfx_after, tmp_path):
    """A pipe has no width; a terminal that is narrow breaks words."""
    write(tmp_path / "crystals.jsonl", cu3au=CU3AU, salt=SALT)
    tables = [cfx_after("", *PRINTING["eval"], COLUMNS=columns).stdout for columns in ("1", "20", "200")]
    assert tables[0] == tables[1] == tables[2] and "2 of 2)" in tables[0]
    terminal = cfx_after("", *PRINTING["eval"], COLUMNS="24", FORCE_COLOR="1", NO_COLOR="1").stdout
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal).splitlines()
    assert "…" not in terminal and len(plain[0]) <= 24
    assert all(letter in "".join(plain) for letter in ("100.0 %", "crystals"))
    listed = cfx_after("", "fetch", "--list", COLUMNS="50", FORCE_COLOR="1", NO_COLOR="1").stdout
    assert "…" not in listed and "alex20" in listed


def test_the_help_says_what_each_command_does(cfx_after):
    """In a terminal of 80 columns, none is cut."""
    told = cfx_after("", "--help", COLUMNS="80").stdout.partition("\nCommands:\n")[2]
    assert "..." not in told and "doctor" in told
