"""Rewards, scripts and configurations of the pages; test_commands.py runs those that draw crystals."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cfx.config.training import TrainRun
from cfx.rl.named_rewards import _checked

from .pages import PAGES, ROOT, blocks
from .test_commands import TUTORIAL, script_name

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.69), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
PYTHON = [block for page in PAGES for block in blocks(page) if block.language == "python" and block.page != TUTORIAL]
TOML = [block for page in PAGES for block in blocks(page) if block.language == "toml"]


def where(block) -> str:
    return f"{block.page}:{block.line}"


@pytest.mark.parametrize("block", [one for one in PYTHON if "def evaluate" in one.text], ids=where)
def test_rewards(block):
    content: dict = {}
    exec(block.text, content)
    [cls] = [one for one in content.values() if isinstance(one, type)]
    reward = _checked("reward", cls)
    batch = reward.evaluate([SALT, None])
    assert batch.ok.tolist() == [True, False] and np.isfinite(batch.value[0]) and batch.reasons[1]
    assert all(len(values) == 2 for values in batch.metrics.values())


def test_what_is_good_is_kept(tmp_path, monkeypatch):
    [block] = [one for one in PYTHON if script_name(one.text) == "keep.py"]
    monkeypatch.chdir(tmp_path)
    rows = [("True", "0.05"), ("True", "0.3"), ("False", "0.0"), ("True", "")]
    (tmp_path / "samples.jsonl").write_text("".join(f'{{"row": {i}}}\n' for i in range(len(rows))))
    lines = ["valid,e_above_hull", *map(",".join, rows)]
    (tmp_path / "records.csv").write_text("\n".join(lines) + "\n")
    exec(block.text, {})
    assert (tmp_path / "kept.jsonl").read_text() == '{"row": 0}\n'


@pytest.mark.parametrize("block", TOML, ids=where)
def test_configurations(block):
    content = tomllib.loads(block.text)
    if "project" not in content:
        TrainRun.layered(content)


def test_no_block_is_forgotten():
    assert {block.page for block in PYTHON} >= {"README.md", "docs/finetuning.md", "docs/howto/own-reward.md"}
    assert (ROOT / TUTORIAL).is_file() and TOML
