"""cfx sample with the bundled model, as a process."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from pymatgen.io.cif import CifParser
from pymatgen.symmetry.groups import SpaceGroup

import cfx as library


def blocks_of(text: str) -> list[str]:
    return ["data_" + block for block in text.split("data_")[1:]]


def field(block: str, key: str) -> str:
    return re.search(rf"^{key} +(.*)$", block, re.M).group(1)


@pytest.fixture(scope="module")
def model():
    return library.load_model("mini")


@pytest.mark.parametrize("group", [194, 62])
def test_cif_blocks_hold_the_space_group(cfx, tmp_path, group, model):
    result = cfx("sample", "--sg", group, "--n", 8, "--model", "mini", "--seed", 5, "-o", "out.cif")
    assert result.returncode == 0, result.stderr
    blocks = blocks_of((tmp_path / "out.cif").read_text())
    assert len(blocks) == 8 and not (tmp_path / "out.cif.partial").exists()
    crystals = model.sample(space_group=group, n=8, seed=5)
    log_prob = model.log_prob(crystals)
    for i, block in enumerate(blocks):
        assert int(field(block, "_space_group_IT_number")) == group
        assert len(re.findall(r"^\d+ '.*'$", block, re.M)) == SpaceGroup.from_int_number(group).order
        assert field(block, "_cfx_model") == "mini" and int(field(block, "_cfx_seed")) == 5
        assert float(field(block, "_cfx_log_prob")) == pytest.approx(float(log_prob.total[i]), abs=2e-3)
        assert all(
            len(number.split(".")[1]) >= 8 for number in re.findall(r"\d\.\d+(?= )", block.split("occupancy")[1])
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structure = CifParser.from_str(block).parse_structures(primitive=False)[0]
        expected = crystals[i : i + 1].to_structures()[0]
        assert structure.composition.reduced_formula == expected.composition.reduced_formula
        np.testing.assert_allclose(structure.lattice.parameters, expected.lattice.parameters, atol=1e-4)
    assert "8 crystals" in result.stderr and "draws" in result.stderr


def test_stdout_holds_the_crystals_and_nothing_else(cfx):
    result = cfx("sample", "--sg", 225, "-n", 3, "--model", "mini")
    assert result.stdout.startswith("data_") and len(blocks_of(result.stdout)) == 3
    assert result.stdout == cfx("sample", "--sg", 225, "-n", 3, "--model", "mini").stdout
    assert result.stdout != cfx("sample", "--sg", 225, "-n", 3, "--model", "mini", "--seed", 1).stdout


def test_the_batch_size_changes_no_crystal(cfx):
    """Equal up to the rounding of sums in another order."""
    outputs = [cfx("sample", "--sg", 62, "-n", 9, "--model", "mini", "--batch-size", size).stdout for size in (7, 128)]
    words = [re.split(r"[\s']+", output) for output in outputs]
    for one, other in zip(*words, strict=True):
        assert one == other or float(one) == pytest.approx(float(other), abs=2e-3)


def test_unseen_space_group_is_a_warning(cfx, model):
    unseen = next(group for group in range(1, 231) if model.trained_on(group) == 0)
    result = cfx("sample", "--sg", unseen, "-n", 1, "--model", "mini")
    assert result.returncode == 0 and f"never saw space group {unseen}" in result.stderr


def test_auto_is_a_named_model(cfx):
    assert "by model mini" in cfx("sample", "--sg", 221, "-n", 1).stderr


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_the_work_so_far(tmp_path, signum, code):
    command = [sys.executable, "-c", "from cfx.cli import main; main()", "sample", "--sg", "225", "-n", "100000"]
    process = subprocess.Popen(
        [*command, "--model", "mini", "-o", "out.cif"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    partial, deadline = tmp_path / "out.cif.partial", time.monotonic() + 200
    while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == code, stderr
    assert "stopped after" in stderr and "Traceback" not in stderr
    kept = blocks_of(partial.read_text())
    assert len(kept) == int(re.search(r"stopped after (\d+) crystals", stderr).group(1)) > 0
    assert kept[-1].endswith("\n\n") and not (tmp_path / "out.cif").exists()
