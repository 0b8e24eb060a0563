"""Writes the tables of options of the documentation from the program itself.

    python tools/make_command_pages.py            # writes them into docs/
    python tools/make_command_pages.py --check    # exit code 1 if one is out of date

A table stands between `<!-- options: cfx sample -->` and `<!-- end of options -->` on any page; the rest of the page is
written by hand.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from typer.main import get_command

from cfx.cli.app import app

DOCS = Path(__file__).parent.parent / "docs"
MARKED = re.compile(r"(<!-- options: cfx ([a-z ]+) -->\n).*?(<!-- end of options -->)", re.S)


def find(words: str) -> Any:
    """The command of `sample`, or `hull build`."""
    command = get_command(app)
    for word in words.split():
        command = command.commands[word]
    return command


def table(command: Any) -> str:
    """Arguments and options of a command as a Markdown table."""
    lines = ["| argument or option | | default |", "|---|---|---|"]
    for parameter in command.params:
        names = [name if name.startswith("-") else name.upper() for name in parameter.opts]
        if parameter.name == "help":
            continue
        text = (parameter.help or "").replace("|", "\\|")
        text, default = _default(text, parameter)
        lines.append(f"| {', '.join(f'`{name}`' for name in sorted(names, key=len))} | {text} | {default} |")
    return "\n".join(lines)


def _default(text: str, parameter: Any) -> tuple[str, str]:
    """The text without the default that it ends with, and the default."""
    if parameter.required:
        return text, "required"
    if match := re.fullmatch(r"(.*?)\.? \[default: ([^\]]+)\]", text):  # cfx names it where None stands for it
        return f"{match[1]}.", match[2] if match[2] == "none" else f"`{match[2]}`"
    value = parameter.default
    shown = value is not None and value != "" and not isinstance(value, bool)
    return text, f"`{value}`" if shown else ""


def updated(text: str) -> str:
    """A page with its tables as they should be."""
    return MARKED.sub(lambda match: f"{match[1]}\n{table(find(match[2]))}\n\n{match[3]}", text)


def main() -> int:
    """Writes, or checks; the exit code."""
    stale = []
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text()
        if (new := updated(text)) != text:
            stale.append(page)
            if "--check" not in sys.argv:
                page.write_text(new)
    for page in stale:
        print(f"{'out of date' if '--check' in sys.argv else 'written'}: {page}")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
