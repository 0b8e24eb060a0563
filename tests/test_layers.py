"""Imports go one way: cli, runs, model, sampling, io (potentials, properties, rewards, metrics, report), core, config.

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
LEVELS = [
    {"config", "catalog", "errors", "reporter"},
    {"core"},
    {"io", "potentials", "properties", "rewards", "metrics", "report"},
    {"sampling"},
    {"model"},
    {"runs"},
    {"cli"},
]
HOMES = {
    "typer": {"cli"},
    "rich": {"cli"},
    "torch": {"potentials", "properties"},
    "huggingface_hub": {"io"},
}
"""Packages that only these parts may import."""
HEAVY = ["jax", "numpy", "torch", "pymatgen", "pandas", "haiku", "optax", "scipy", "ase", "matplotlib", "plotext"]
FILES = sorted(ROOT.rglob("*.py"))


def part(file: Path) -> str:
    """The top-level package or module of cfx that a file belongs to."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[str]:
    """Full names of all modules that a file imports anywhere, in functions and for type checkers too."""
    package = ("cfx", *file.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def level(name: str) -> int:
    """Lowest is 0; what is named neither here nor a module of cfx is above everything."""
    return next((i for i, names in enumerate(LEVELS) if name in names), len(LEVELS))


def test_every_part_has_a_level():
    known = set().union(*LEVELS) | {"__init__", "__main__", "resources"}
    assert {part(file) for file in FILES} <= known
    assert len(FILES) > 20


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_never_go_upwards(file):
    own = part(file)
    if own in ("__init__", "__main__"):
        return
    for name in imports(file):
        top, *rest = name.split(".")
        if top == "cfx" and rest:
            assert own != "resources", f"{file} holds data and imports {name}"
            if rest[0] != "resources":
                assert level(rest[0]) <= level(own), f"{file.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_packages_stay_where_they_belong(file):
    own, names = part(file), {name.split(".")[0] for name in imports(file)}
    for package, homes in HOMES.items():
        assert package not in names or own in homes, f"{file.relative_to(ROOT)} imports {package}"
    if own in LEVELS[0] | {"__init__"}:
        foreign = names - set(sys.stdlib_module_names) - {"cfx"}
        assert not foreign, f"{file.relative_to(ROOT)} is for the standard library only: {foreign}"
    if own in ("potentials", "rewards", "metrics", "report"):
        assert "jax" not in names, f"{file.relative_to(ROOT)} takes structures and knows nothing of JAX"


def loaded_after(code: str) -> set[str]:
    """Which of the heavy packages are in sys.modules of a fresh process after some code."""
    script = f"import sys\n{code}\nprint('LOADED', *(name for name in {HEAVY!r} if name in sys.modules))\n"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
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
    assert loaded_after("import cfx.io.workers") <= {"numpy"}


def test_public_names_exist():
    for name in cfx.__all__:
        assert getattr(cfx, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cfx.nothing  # noqa: B018
