"""Every command of the documentation is run, or at least parsed by the program.

The tour of the README is run exactly as printed, in a directory that has examples/ as a clone has it. The tutorial is
run from its first line to its last, by real processes in one directory, with the smaller numbers of SMALLER, or exactly
as printed where CFX_AS_PRINTED is set (`make tutorial`); then it must print what the page shows, seconds aside. Lines
of other pages that need nothing a fresh clone lacks are run too. All others are parsed up to the point where the
command would be called: an option that does not exist, a value of the wrong type, a space group, formula, bias or name
that is none fails. REASONS says why such a line is not run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.main import get_command

from cfx import catalog
from cfx.cli.app import app
from cfx.config import texts
from cfx.io.files import resource_directory

from .. import processes
from .pages import PAGES, ROOT, Block, Line, blocks, cfx_lines, command_lines

TUTORIAL = "docs/tutorial.md"
SMALLER = {
    "--n 100": "--n 4",
    "-n 20": "-n 2",
    "--n 20": "--n 2",
    "--epochs 10": "--epochs 1",
    "--steps 3 --batch-size 32": "--steps 1 --batch-size 8 --inner-epochs 1 --max-sites 1 --max-failures 1",
    "--model mini": "--model small",
    "--from mini": "--from small",
    'load_model("mini")': 'load_model("small")',
    "n=20": "n=2",
    "n=100": "n=2",
    "n=60": "n=4",
    "relax=8, top=5": "relax=2, top=1",
    "len(structure) <= 8": "len(structure) <= 1",
}
"""What the tests run instead of what the pages say, so that they take seconds; small is mini with a single layer."""

RUN = (
    "cfx fetch --list",
    "cfx plot embeddings mini",
    "cfx hull show chgnet-mp",
)
"""Lines of other pages that need no file and little time."""

PUBLISHED = {name for name, entry in catalog.CATALOG.items() if entry.files}
FILES = re.compile(r"[^-].*\.(csv|jsonl|cif|zip|a?extxyz|json|npz|pkl|parquet|lmdb|toml)")
DIRECTORIES = ("flywheel", "run", "tuned", "fom", "light", "stable", "rl-", "stick", "grpo")
REASONS = (
    ("continues a run of the user's", lambda line: "--resume" in line.words),
    (
        "cfx doctor is run in the tutorial, and with --json by tests/cli/test_view.py",
        lambda line: line.words[1] == "doctor",
    ),
    ("a download", lambda line: line.words[1] == "fetch"),
    ("needs a published file", lambda line: any(re.split("[/:]", word)[0] in PUBLISHED for word in line.words[2:])),
    ("needs a file of the hub", lambda line: any(word.startswith("hf:") for word in line.words)),
    ("reads a file of the user's", lambda line: any(map(FILES.fullmatch, inputs(line)))),
    ("reads a run of the user's", lambda line: any(word.startswith(DIRECTORIES) for word in inputs(line))),
    ("hours of fine-tuning", lambda line: line.words[1] in ("rl", "dpo")),
    (
        "draws many crystals: tests/cli/test_sample.py draws few with each option",
        lambda line: line.words[1] == "sample",
    ),
    ("relaxes for minutes: tests/cli/test_predict.py does so briefly", lambda line: line.words[1] == "predict"),
    ("relaxes for minutes: tests/cli/test_discover.py does so briefly", lambda line: line.words[1] == "discover"),
    ("written elsewhere: tests/cli/test_plot.py", lambda line: line.words[1] == "plot" and "-o" in line.words),
)
"""Why a line is not run; the first that holds."""


def inputs(line: Line) -> list[str]:
    """Words of a line without the outputs, which it makes itself."""
    words = line.words[2:]
    return [word for before, word in zip(("", *words), words, strict=False) if before not in ("-o", "--html", "--plot")]


def tour() -> list[Line]:
    """The command lines of the tour of the README."""
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition("## A tour\n")
    start = before.count("\n") + 1
    end = start + rest.partition("\n## ")[0].count("\n")
    return [line for block in blocks(readme) if start < block.line < end for line in command_lines(block)]


def is_run(line: Line) -> bool:
    """Whether a test runs a line."""
    return line.page == TUTORIAL or " ".join(line.words) in RUN or line in tour()


def why_not(line: Line) -> str | None:
    """Why a line is not run, None if it is."""
    if is_run(line):
        return None
    return next((reason for reason, holds in REASONS if holds(line)), None)


AS_PRINTED = bool(os.environ.get("CFX_AS_PRINTED"))


def smaller(text: str) -> str:
    """With the numbers of SMALLER, unless CFX_AS_PRINTED is set."""
    if AS_PRINTED:
        return text
    for words, fewer in SMALLER.items():
        text = re.sub(rf"{re.escape(words)}(?!\d)", fewer, text)
    return text


def parse(line: Line) -> dict[str, object]:
    """The parameters that the command of a line would be called with."""
    command, words = get_command(app), list(line.words[1:])
    while words and words[0].startswith("-"):
        words.pop(0)
    if not words:
        return {}
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    return command.make_context(command.name, words).params


VALUES = {
    "space_group": lambda text: text.startswith("data:") or texts.space_groups(text),
    "formula": texts.formula,
    "bias": texts.bias,
    "shard": texts.shard,
    "elements": texts.words,
    "require": texts.words,
    "exclude": texts.words,
    "redraw": texts.words,
}
"""What commands do with the text of these options before anything else."""


@pytest.mark.parametrize("line", cfx_lines(), ids=str)
def test_a_line_is_parsed(line):
    if "--help" in line.words or "--version" in line.words:
        return
    given = parse(line)
    for name, read in VALUES.items():
        if isinstance(given.get(name), str):
            read(given[name])
    if isinstance(model := given.get("model"), str) and not Path(model).suffix and "/" not in model:
        assert model in {"auto", *DIRECTORIES} or catalog.CATALOG[model].kind == catalog.MODEL
    assert is_run(line) or why_not(line), "run it, or say in REASONS why not"


def test_an_option_that_does_not_exist_is_noticed():
    wrong = Line("page.md", 1, (), ("cfx", "sample", "--sg", "194", "--number", "3"))
    with pytest.raises(Exception, match="--number"):
        parse(wrong)
    with pytest.raises(Exception, match="valid integer"):
        parse(Line("page.md", 1, (), ("cfx", "sample", "--n", "many")))


def option_names(command) -> set[str]:
    """Of a command and of those below it."""
    own = {name for parameter in command.params for name in parameter.opts if name.startswith("--")}
    return own.union(*map(option_names, getattr(command, "commands", {}).values()), {"--help", "--version", "--debug"})


FOREIGN = {"--ideas", "--looks", "--check", "--no-index", "--find-links"}
"""Options of other programs that the pages name in passing: benchmarks/, tools/, pip."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_in_the_text_exist(page):
    command = get_command(app)
    for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page.read_text()):
        words = re.match(r"cfx ([a-z]+)(?: (build|show))?\b", code)
        assert not words or words[1] in command.commands, code
        known = option_names(command.commands[words[1]] if words else command) | FOREIGN
        assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code)) <= known, code


def write_small(target: Path) -> None:
    """Writes the bundled model without most of its layers, which compiles faster."""
    bundled = resource_directory(catalog.CATALOG["mini"])
    described = json.loads((bundled / "checkpoint.json").read_text())
    described["model"]["num_layers"] = 1
    params = load_file(bundled / "params.safetensors")
    few = {
        name: np.ascontiguousarray(leaf[:1]) if name.startswith("blocks/") else leaf for name, leaf in params.items()
    }
    target.mkdir()
    (target / "checkpoint.json").write_text(json.dumps(described))
    save_file(few, target / "params.safetensors")


class Desk:
    """A directory in which the lines of pages are run."""

    def __init__(self, directory: Path):
        self.directory, self.environment = directory, dict(os.environ)
        self.environment |= {"CFX_CACHE": str(directory / "cache"), "HF_HUB_OFFLINE": "1"}
        # Scripts find the compiled programs of cfx, which has this precision.
        self.environment["JAX_DEFAULT_MATMUL_PRECISION"] = "float32"
        if AS_PRINTED:  # as a reader's process, and not as those of tests
            self.environment.pop("XLA_FLAGS", None)
        write_small(directory / "small")
        self.nursery = processes.Nursery(self.environment)

    def run(self, *words: str, directory: str = ".") -> str:
        """Runs a program as a process of its own; all that it prints, and if it fails the failure of the test."""
        done = processes.run(words, self.directory / directory, self.environment, home=self.nursery)
        assert done.returncode == 0, done
        return done.stderr + done.stdout


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    return Desk(tmp_path_factory.mktemp("desk"))


def script_name(text: str) -> str | None:
    """Of a script that says in its first line where it is saved."""
    match = re.match(r"# (\w+\.py)\b", text)
    return match and match[1]


VARYING = re.compile(r"(?<=in )[\d.]+(?= s\b)|-?[\d.]+(?= in the last)|\d+(?= crystals of highest)")
"""Numbers that no run repeats: seconds, and what fine-tuning ends with, which magnifies the rounding of a processor."""
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
CLOSE = 0.02
"""How far a number may be from a printed one, and by what share of it: processors round in ways of their own."""


def not_shown(printed: str, output: str) -> list[str]:
    """Lines of a page that an output does not have, in their order, but for seconds and last digits of numbers."""
    rest, missing = iter(output.splitlines()), []
    for line in printed.splitlines():
        if line.strip() != "..." and not any(is_like(line, other) for other in rest):
            missing.append(line)
            rest = iter(output.splitlines())
    return missing


def is_like(line: str, other: str) -> bool:
    """Whether two lines have the same words and nearly the same numbers."""
    line, other = (VARYING.sub("some", one.rstrip()) for one in (line, other))
    if NUMBER.sub("0", re.sub(" +", " ", line)) != NUMBER.sub("0", re.sub(" +", " ", other)):
        return False
    numbers, others = ([float(one.replace(",", "")) for one in NUMBER.findall(text)] for text in (line, other))
    return numbers == pytest.approx(others, rel=CLOSE, abs=CLOSE)


def test_what_a_page_shows_is_compared_line_by_line():
    output = "compiling\n100 crystals in 71.2 s: a.cif\nloss 1.234 nats\nrows  1,005\nend\n"
    assert not_shown("100 crystals in 11 s: a.cif\n...\nrows    1,000\n", output) == []
    assert not_shown("99 draws in 11 s: a.cif\nloss 1.334 nats\nend\n", output) == [
        "99 draws in 11 s: a.cif",
        "loss 1.334 nats",
    ]
    ended = "reward -0.118 eV/atom in the first step, -0.106 in the last\n94 crystals of highest reward: a.cif"
    assert not_shown(ended.replace("0.106", "0.054").replace("94", "95"), ended) == []
    assert not_shown(ended.replace("0.118", "0.218"), ended) == [ended.splitlines()[0].replace("0.118", "0.218")]
    assert not_shown("end\nloss 1.234 nats\n", output) == ["loss 1.234 nats"], "in another order"


@pytest.mark.slow
def test_the_tour_of_the_readme_as_printed(desk):
    pytest.importorskip("chgnet")
    pytest.importorskip("smact")
    clone = desk.directory / "clone"
    shutil.copytree(ROOT / "examples", clone / "examples")
    for line in tour():
        desk.run(*line.words, directory=clone.name)
    made = {path.name for path in clone.iterdir()}
    assert made >= {"out.html", "report.html", "records.csv", "all.zip", "lno.extxyz", "sto.jsonl", "new.cif", "run"}


@pytest.mark.slow
def test_the_tutorial_from_top_to_bottom(desk):
    pytest.importorskip("chgnet")
    pytest.importorskip("smact")
    output = ""
    for block in blocks(ROOT / TUTORIAL):
        if block.language == "text" and AS_PRINTED:
            assert not_shown(block.text, output) == [], output
        if block.language == "python":
            name = script_name(block.text)
            (desk.directory / (name or "snippet.py")).write_text(smaller(block.text))
            if not name:
                desk.run("python", "snippet.py")
        for line in command_lines(block):
            if line.words[0] == "pipx":  # cfx is installed where the tests run
                continue
            output += desk.run(*smaller(" ".join(line.words)).split())
    made = {path.name for path in desk.directory.iterdir()}
    assert made >= {"first.html", "report.html", "records.csv", "scores.csv", "nickelates.jsonl", "tuned.cif", "stable"}


@pytest.mark.parametrize("text", [text for text in RUN if text in {" ".join(line.words) for line in cfx_lines()}])
def test_lines_that_need_nothing(desk, text):
    assert desk.run(*text.split())


def scripts() -> list[Block]:
    """Python of other pages that is not a class of a reward and is not saved under a name."""
    found = [block for page in PAGES for block in blocks(page) if block.language == "python" and block.page != TUTORIAL]
    return [block for block in found if "def evaluate" not in block.text and script_name(block.text) is None]


@pytest.mark.parametrize("block", scripts(), ids=lambda block: f"{block.page}:{block.line}")
def test_scripts(desk, block):
    (desk.directory / "snippet.py").write_text(smaller(block.text))
    desk.run("python", "snippet.py")
