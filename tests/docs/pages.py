"""Pages of the documentation, their blocks of code, and the command lines in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```([\w-]*)[^\n]*\n(.*?)^```", re.M | re.S)
SHELL = ("", "bash", "console", "sh", "shell")
"""Languages of blocks that hold commands; what commands print stands in blocks of `text`."""

PROGRAMS = re.compile(r"\s*(\$ )?((srun|[A-Z_]+=\S+) )*(cfx|python|pip|pipx) ")
"""What a command line of these pages begins with; blocks without a language hold other text as well."""

VARIABLES = {"$SLURM_ARRAY_TASK_ID": "3", "$SCRATCH": "scratch", "$SLURM_JOB_ID": "1"}


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Line:
    """A command line: where it stands, the words of its environment, and its own, the program first."""

    page: str
    line: int
    environment: tuple[str, ...]
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {' '.join(self.words)}"


def blocks(page: Path) -> list[Block]:
    """All blocks of code of a page."""
    text = page.read_text()
    name = str(page.relative_to(ROOT))
    return [Block(name, text[: match.start(2)].count("\n") + 1, match[1], match[2]) for match in FENCE.finditer(text)]


def command_lines(block: Block) -> Iterator[Line]:
    """The command lines of a block of shell; of one with prompts, those after a prompt."""
    if block.language not in SHELL:
        return
    prompted = re.search(r"^\$ ", block.text, re.M) is not None
    lines = block.text.split("\n")
    while lines:
        number = block.line + block.text.count("\n") + 1 - len(lines)
        text = lines.pop(0)
        while text.endswith("\\") and lines:
            text = text[:-1] + " " + lines.pop(0).strip()
        if not PROGRAMS.match(text) or (prompted and not text.startswith("$ ")):
            continue
        for variable, value in VARIABLES.items():
            text = text.replace(variable, value)
        words = shlex.split(text.removeprefix("$ "), comments=True)
        if words and words[0] == "srun":
            words.pop(0)
        environment = []
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            environment.append(words.pop(0))
        if words:
            yield Line(block.page, number, tuple(environment), tuple(words))


def cfx_lines() -> list[Line]:
    """Every line of all pages that runs cfx."""
    lines = (line for page in PAGES for block in blocks(page) for line in command_lines(block))
    return [line for line in lines if line.words[0] == "cfx"]
