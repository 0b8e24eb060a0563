"""The tiers of the tests are complete: every test is run by `make test` or by `make test-slow`, and CI runs all."""

from __future__ import annotations

import re
import tomllib
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TIERS = ("integration", "slow")
EXPRESSION = r"-m ([\"'])(?P<expression>[a-z ]+)\1"
DEFAULT = re.compile(r"^(?P<name>[A-Z]+) \?= (?P<value>.+)$", re.M)
"""A variable of the Makefile that a command line may give another value."""


def rules(**given: str) -> dict[str, str]:
    """What the targets of the Makefile run, with its variables, or those that are given."""
    text = (ROOT / "Makefile").read_text()
    values = {match["name"]: match["value"] for match in DEFAULT.finditer(text)} | given
    for name, value in values.items():
        text = text.replace(f"$({name})", value)
    return {match[1]: match[2] for match in re.finditer(r"^([\w-]+):.*\n((?:\t.*\n)+)", text, re.M)}


def selects(target: str, markers: set[str], **given: str) -> bool:
    """Whether a target runs tests with these markers."""
    expression = re.search(EXPRESSION, rules(**given)[target])["expression"]
    return eval(expression, {name: name in markers for name in TIERS})


@pytest.mark.parametrize("marked", [*product([False, True], repeat=len(TIERS))])
def test_every_test_has_exactly_one_tier(marked):
    markers = {name for name, there in zip(TIERS, marked, strict=True) if there}
    assert selects("test", markers) != selects("test-slow", markers)
    assert selects("check", markers) == (not markers)
    assert selects("test", markers) >= selects("check", markers)


def test_plain_pytest_is_make_test():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"]
    assert re.search(EXPRESSION, options)["expression"] == re.search(EXPRESSION, rules()["test"])["expression"]


def test_markers_are_those_of_the_tiers():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    assert tuple(line.split(":")[0] for line in declared) == TIERS


@pytest.mark.parametrize("marked", [*product([False, True], repeat=len(TIERS))])
@pytest.mark.parametrize("file", [".ci/run", ".github/workflows/ci.yml"])
def test_ci_runs_every_test_once(file, marked):
    markers = {name for name, there in zip(TIERS, marked, strict=True) if there}
    commands = re.findall(r"\bmake ([\w-]+)(?: TESTED=\"(.+?)\")?(?=$| [|>])", (ROOT / file).read_text(), re.M)
    given = {target: {"TESTED": value} if value else {} for target, value in commands}
    tiers = {target for target in given if re.search(EXPRESSION, rules()[target])}
    assert {"lint", "test"} <= given.keys()
    assert sum(selects(target, markers, **given[target]) for target in tiers) == 1


def test_checks_stand_in_make_check():
    assert re.search(r"^check: lint", (ROOT / "Makefile").read_text(), re.M)
    assert {"ruff format --check", "ruff check", "basedpyright"} <= set(
        re.findall(r"BIN\)/(.+?)(?: src.*)?$", rules()["lint"], re.M)
    )
