"""Imports go one way, see ORDER, and nowhere in a circle.

`import cfx` and the help of a command import nothing heavy.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cfx

ROOT = Path(cfx.__file__).parent
ORDER = (
    *("errors", "reporter", "config", "catalog", "progress"),
    *("core", "io", "fetch", "data", "predictors", "evaluation", "report"),
    *("sampling", "model", "training", "rl", "runs", "api", "cli"),
)
"""Every package and top-level module, each importing only from those before it."""

STANDARD_LIBRARY_ONLY = {"errors", "reporter", "config", "catalog"}
WITHOUT_JAX = {"fetch", "predictors", "evaluation", "report"}
HOMES = {
    "typer": {"cli"},
    "rich": {"progress", "cli"},
    "torch": {"predictors"},
    "huggingface_hub": {"fetch"},
}
"""Packages that only these parts may import."""
HEAVY = ["jax", "numpy", "torch", "pymatgen", "pandas", "haiku", "optax", "scipy", "ase", "matplotlib", "plotext"]
FILES = sorted(ROOT.rglob("*.py"))
MODULES = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}


def part(file: Path) -> str:
    """The top-level package or module of cfx that a file belongs to."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[str]:
    """All modules that a file imports anywhere, in functions and for type checkers too."""
    package = ("cfx", *file.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                full = f"{module}.{alias.name}"
                yield full if full.removeprefix("cfx.") in MODULES else module


def place(name: str) -> int:
    """Where a part stands in ORDER; what is not in it stands above everything."""
    return ORDER.index(name) if name in ORDER else len(ORDER)


def modules_imported(file: Path) -> set[str]:
    """Modules of cfx that a file imports anywhere, without the leading `cfx.`."""
    names = {name.removeprefix("cfx.") for name in imports(file) if name.startswith("cfx.")}
    return {name for name in names if name in MODULES}


def test_every_part_has_a_place():
    assert {part(file) for file in FILES} == set(ORDER) | {"__init__"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_never_go_upwards(file):
    own = part(file)
    if own == "__init__":
        return
    for name in modules_imported(file):
        top = name.split(".")[0]
        assert place(top) <= place(own), f"{file.relative_to(ROOT)} imports {name}"


def test_no_modules_import_each_other():
    """Imports inside functions count: a circle that runs late is a circle all the same."""
    graph = {name: modules_imported(file) for name, file in MODULES.items()}
    while leaves := {name for name, targets in graph.items() if not targets & graph.keys() - {name}}:
        graph = {name: targets for name, targets in graph.items() if name not in leaves}
    assert not graph, f"in or above a circle of imports: {sorted(graph)}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_packages_stay_where_they_belong(file):
    own, names = part(file), {name.split(".")[0] for name in imports(file)}
    for package, homes in HOMES.items():
        assert package not in names or own in homes, f"{file.relative_to(ROOT)} imports {package}"
    if own in STANDARD_LIBRARY_ONLY | {"__init__"}:
        foreign = names - set(sys.stdlib_module_names) - {"cfx"}
        assert not foreign, f"{file.relative_to(ROOT)} is for the standard library only: {foreign}"
    if own in WITHOUT_JAX:
        assert "jax" not in names, f"{file.relative_to(ROOT)} takes structures and knows nothing of JAX"


def loaded_after(code: str) -> set[str]:
    """Which of the heavy packages are in sys.modules of a fresh process after some code."""
    script = f"import sys\n{code}\nprint('LOADED', *(name for name in {HEAVY!r} if name in sys.modules))\n"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return set(process.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["sample", "--help"],
        ["train", "--help"],
        ["data", "--help"],
        ["plot", "--help"],
        ["fetch", "--help"],
        ["eval", "--help"],
        ["rl", "--help"],
        ["dpo", "--help"],
        ["relax", "--help"],
        ["retrieve", "--help"],
        ["view", "--help"],
        ["doctor", "--help"],
        ["hull", "build", "--help"],
        ["--version"],
    ],
    ids=" ".join,
)
def test_help_is_instant(arguments):
    code = f"""
sys.argv = ["cfx", *{arguments!r}]
from cfx.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
    assert loaded_after(code) == set()


def test_importing_cfx_is_instant():
    assert loaded_after("import cfx, cfx.config, cfx.errors; dir(cfx)") == set()


def test_workers_that_encode_stay_small():
    """Encoding runs in processes of its own, without JAX."""
    assert loaded_after("import cfx.data.workers") <= {"numpy"}


def test_public_names_exist():
    for name in cfx.__all__:
        assert getattr(cfx, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cfx.nothing  # noqa: B018
