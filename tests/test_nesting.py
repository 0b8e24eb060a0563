"""JSON and TOML that are nested too deeply for Python are one error like all else that is wrong with a file."""

import re
from pathlib import Path

import pytest

from cfx.config.finetuning import read_run
from cfx.config.training import read_toml
from cfx.errors import CfxError
from cfx.io.files import parse_json

DEEP = "[" * 100_000


def sites(path: Path) -> None:
    from cfx.cli.values import template

    template({"sites": path})


def reference_column(path: Path) -> None:
    from cfx.data.formats.tables import read_column

    read_column(path, "energy")


def pairs(path: Path) -> None:
    from cfx.rl.preferences import read_pairs

    read_pairs(path, 21)


def metrics(path: Path) -> None:
    from cfx.runs.curves import read_lines

    read_lines(path)


def records(path: Path) -> None:
    from cfx.fetch.record import read_records

    read_records(path)


def journal(path: Path) -> None:
    from cfx.io.journal import JsonLines

    list(JsonLines(path).read())


def checkpoint(path: Path) -> None:
    from cfx.io.checkpoint import load_checkpoint

    load_checkpoint(path.parent)


def growing_output(path: Path) -> None:
    from cfx.io.outputs import GrowingOutput

    (path.parent / "out.csv.partial.json").write_text(DEEP)
    GrowingOutput(path.parent / "out.csv", {}).resume()


def model_of_matgl(path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    from cfx.predictors.matgl_files import _check_classes

    _check_classes(path.parent, "matgl:model")


READERS = {
    "config.toml": (read_toml, f"train = {DEEP}"),
    "run/config.toml": (lambda path: read_run(path.parent), f"rl = {DEEP}"),
    "sites.json": (sites, DEEP),
    "energies.jsonl": (reference_column, f'{{"energy": 1.0}}\n{DEEP}\n'),
    "pairs.jsonl": (pairs, f"{DEEP}\n"),
    "metrics.jsonl": (metrics, f'{DEEP}\n{{"step": 1, "train": {{}}}}\n'),
    "fetched.json": (records, DEEP),
    "crystals.jsonl": (journal, f"{DEEP}\n"),
    "checkpoint.json": (checkpoint, DEEP),
    "state": (growing_output, DEEP),
    "model.json": (model_of_matgl, DEEP),
}


@pytest.mark.parametrize("name", READERS)
def test_deep_nesting_is_one_error_that_names_the_file(name, tmp_path):
    read, text = READERS[name]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(CfxError) as caught:
        read(path)
    assert re.search(r"nested too deeply|line 1 .* is not a line of metrics", caught.value.message)
    assert len(caught.value.message) < 500 and "\n" not in caught.value.message


def test_other_json_is_read_and_other_mistakes_are_told_as_before():
    assert parse_json(b'{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    with pytest.raises(ValueError, match="Expecting"):
        parse_json("[1,")
