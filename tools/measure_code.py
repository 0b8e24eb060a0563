"""Measures a source tree: its size, its imports, its longest functions, import circles, type errors, comments.

    python tools/measure_code.py [TREE] [--pyright COMMAND] [--json FILE]
    python tools/measure_code.py BEFORE AFTER

TREE is a package (default src/cfx), or a JSON file written by --json. Two of them are printed side by side.

What is counted: import lines are physical lines of import statements, those in functions too. A module imports
another if any of its import statements, in functions and for type checkers too, names it or something in it; a circle
is a set of modules that all reach each other. Lines of code are lines with a token other than a comment or a docstring;
comment lines hold a comment and nothing else. A function's length runs from `def` to its last line, docstring included.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
FLAG = re.compile(r"(^|[\s`'\"(])--[a-z][a-z-]+")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def modules(tree: Path) -> dict[str, Path]:
    """Every module of a package by its dotted name, packages without `.__init__`."""
    names = {file: (tree.name, *file.relative_to(tree).with_suffix("").parts) for file in sorted(tree.rglob("*.py"))}
    return {".".join(name).removesuffix(".__init__"): file for file, name in names.items()}


def imported(name: str, file: Path, known: dict[str, Path]) -> set[str]:
    """The modules among `known` that a module imports anywhere."""
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            submodules = {f"{module}.{alias.name}" for alias in node.names}
            found |= submodules if submodules <= known.keys() else {module} | submodules
    return (found & known.keys()) - {name}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules that all reach each other, each sorted; the largest first."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        front = set(graph[start])
        while front:
            seen |= front
            front = {target for name in front for target in graph[name]} - seen
        return seen

    reached = {name: reach(name) for name in graph}
    found = {tuple(sorted(other for other in reached[name] if name in reached[other])) for name in graph}
    return [list(circle) for circle in sorted(found - {()}, key=lambda circle: (-len(circle), circle))]


def docstring_lines(tree: ast.AST) -> set[int]:
    """Lines of strings that stand as statements: docstrings, those of attributes too."""
    strings = (node for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    spans = (range(node.lineno, node.end_lineno + 1) for node in strings if isinstance(node.value.value, str))
    return {line for span in spans for line in span}


def flags_in_raises(tree: ast.AST) -> int:
    """Raise statements with a piece of text that names a flag of the command line."""

    def speaks(node: ast.Raise) -> bool:
        texts = (part.value for part in ast.walk(node) if isinstance(part, ast.Constant))
        return any(isinstance(text, str) and FLAG.search(text) for text in texts)

    return sum(speaks(node) for node in ast.walk(tree) if isinstance(node, ast.Raise))


def functions(name: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Length and name of every function."""
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            yield node.end_lineno - node.lineno + 1, f"{name}.{node.name}"


def type_errors(tree: Path, command: str) -> int | str:
    """Errors that basedpyright finds in a tree, under this project's settings; why there is no number otherwise."""
    program = shutil.which(command) or shutil.which(command, path=str(Path(sys.executable).parent))
    if program is None:
        return f"{command} is not installed"
    settings = tomllib.loads(PROJECT.read_text())["tool"]["basedpyright"]
    settings = {key: value for key, value in settings.items() if not key.startswith("venv")}
    settings |= {"include": [str(tree)], "extraPaths": [str(tree.parent)]}
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "pyrightconfig.json"
        file.write_text(json.dumps(settings))
        check = [program, "--outputjson", "--level", "error", "--pythonpath", sys.executable, "--project", str(file)]
        answer = subprocess.run(check, capture_output=True, text=True, check=False)
    return json.loads(answer.stdout)["summary"]["errorCount"]


def measure(tree: Path, pyright: str) -> dict[str, Any]:
    """The figures of a source tree, as written by --json."""
    known = modules(tree)
    lines = code = comments = import_lines = flags = 0
    lengths: list[tuple[int, str]] = []
    for name, file in known.items():
        text = file.read_text()
        syntax = ast.parse(text)
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        occupied = {
            line
            for token in tokens
            if token.type not in LAYOUT | {tokenize.COMMENT}
            for line in range(token.start[0], token.end[0] + 1)
        }
        lines += text.count("\n")
        code += len(occupied - docstring_lines(syntax))
        comments += len({token.start[0] for token in tokens if token.type == tokenize.COMMENT} - occupied)
        statements = [node for node in ast.walk(syntax) if isinstance(node, ast.Import | ast.ImportFrom)]
        import_lines += sum(node.end_lineno - node.lineno + 1 for node in statements)
        flags += 0 if name.startswith(f"{tree.name}.cli") else flags_in_raises(syntax)
        lengths += functions(name, syntax)
    return {
        "files": len(known),
        "lines": lines,
        "lines_of_code": code,
        "import_lines": import_lines,
        "import_share": round(import_lines / lines, 4),
        "comment_lines": comments,
        "comments_per_100_lines_of_code": round(100 * comments / code, 2),
        "raise_sites_with_flags_outside_cli": flags,
        "type_errors": type_errors(tree, pyright),
        "functions_above_60_lines": sum(length > 60 for length, _ in lengths),
        "longest_functions": [f"{length} {name}" for length, name in sorted(lengths, reverse=True)[:5]],
        "import_circles": circles({name: imported(name, file, known) for name, file in known.items()}),
    }


def table(columns: list[dict[str, Any]], heads: list[str]) -> str:
    """Figures as a Markdown table, a column for each tree."""
    rows = [["", *heads]]
    for key in columns[0]:
        title = key.replace("_", " ")
        if key == "longest_functions":
            listed = zip(*(column[key] for column in columns), strict=True)
            rows += [[f"longest functions, {place}", *entries] for place, entries in enumerate(listed, 1)]
        elif key == "import_circles":
            rows.append(["import circles", *(str(len(column[key])) for column in columns)])
            rows.append(["modules in them", *(str(sum(map(len, column[key]))) for column in columns)])
        elif key == "import_share":
            rows.append([title, *(f"{column[key]:.1%}" for column in columns)])
        else:
            numbers = (column[key] for column in columns)
            rows.append([title, *(number if isinstance(number, str) else f"{number:,}" for number in numbers)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("trees", nargs="*", type=Path, default=[Path("src/cfx")], metavar="TREE")
    arguments.add_argument("--pyright", default="basedpyright", metavar="COMMAND", help="the type checker")
    arguments.add_argument("--json", type=Path, metavar="FILE", help="write the figures of the last TREE")
    asked = arguments.parse_args()
    if len(asked.trees) > 2:
        arguments.error("one tree, or one before and one after")
    columns = [
        json.loads(tree.read_text()) if tree.suffix == ".json" else measure(tree.resolve(), asked.pyright)
        for tree in asked.trees
    ]
    if asked.json:
        asked.json.write_text(json.dumps(columns[-1], indent=1) + "\n")
    print(table(columns, ["before", "after"] if len(columns) == 2 else [asked.trees[0].name]))
    for circle in columns[-1]["import_circles"]:
        print("circle:", ", ".join(circle))


if __name__ == "__main__":
    main()
