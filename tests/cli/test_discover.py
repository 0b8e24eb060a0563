"""cfx discover as a user runs it."""

from __future__ import annotations

import csv
import json
import signal
import time
from pathlib import Path

import pytest
from pymatgen.core import Structure

from .test_errors import assert_one_error
from .test_eval import AU3CU, COPPER, CU3AU, EMT, GOLD, write


@pytest.fixture
def alloys(cfx, tmp_path) -> list[object]:
    """Options that draw alloys of copper and gold, and judge them by EMT."""
    write(tmp_path / "phases.jsonl", cu=COPPER, au=GOLD, cu3au=CU3AU, au3cu=AU3CU)
    assert cfx("hull", "build", "phases.jsonl", "--potential", EMT, "-o", "h.npz").returncode == 0
    drawn = ["discover", "--model", "mini", "--sg", "221,225,123", "--elements", "Cu,Au", "-n", 30]
    return [*drawn, "--potential", EMT, "--hull", "h.npz", "--workers", 1, "-o", "out"]


def files(directory: Path) -> dict[str, str]:
    """Texts by name, without what the time of day decides."""
    found = {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}
    told = json.loads(found.pop("discovery.json"))
    told.pop("seconds")
    return {**found, "discovery.json": json.dumps(told)}


def test_interrupted_resumed_and_whole(cfx, start_cfx, alloys, tmp_path):
    arguments = [*alloys, "--relax", 12, "--top", 5, "--fmax", 0.001, "--inputs", "vasp,qe"]
    process = start_cfx(*arguments)
    partial, end = tmp_path / "out.partial", time.monotonic() + 600
    while not (partial.exists() and '"sift"' in partial.read_text()):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130 and "continue with --resume" in stderr and not (tmp_path / "out").exists()
    assert_one_error(cfx(*arguments, "--seed", 1, "--resume"), 2, "different settings (seed)")
    result = cfx(*arguments, "--resume", "--json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    written = files(tmp_path / "out")
    assert not list(tmp_path.glob("out.*"))
    assert [row["stage"] for row in told["funnel"]][:3] == ["drawn", "valid", "distinct"]
    assert told["funnel"][0]["left"] == 30 and told["funnel"][-1]["left"] == len(told["crystals"]) == 5
    heights = [one["e_above_hull"] for one in told["crystals"]]
    assert heights == sorted(heights) and -0.05 < heights[0] < 0.1
    names = [one["cif_file"] for one in told["crystals"]]
    cases = [name.removesuffix(".cif") for name in names]
    inputs = [f"vasp/{case}/{name}" for case in cases for name in ("INCAR", "KPOINTS", "POSCAR", "POTCAR.spec")]
    tables = ["discovery.csv", "discovery.json", "discovery.html", "all.csv"]
    assert written.keys() == {*names, *tables, *inputs, *(f"qe/{case}/pw.in" for case in cases)}
    assert Structure.from_file(tmp_path / "out" / "vasp" / cases[0] / "POSCAR").matches(
        Structure.from_str(written[names[0]], fmt="cif")
    )
    for one in told["crystals"]:
        assert written[one["cif_file"]] == one["cif"]
        read = Structure.from_str(one["cif"], fmt="cif")
        assert read.composition.reduced_formula == one["formula"] and one["cif_file"].startswith(f"{one['rank']}_")
    rows = list(csv.DictReader(written["all.csv"].splitlines()))
    assert len(rows) == 30 and sum(not row["left_out"] for row in rows) == 5
    assert cfx(*arguments, "--force").returncode == 0
    assert files(tmp_path / "out") == written


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["-o", "out"], 2, ["--sg"]),
        (["--sg", "0", "-o", "out"], 2, ["space group 0"]),
        (["--sg", "221", "--sort", "beauty", "-o", "out"], 2, ["beauty"]),
        (["--sg", "221", "--budget", "much", "-o", "out"], 2, ["much", "budget"]),
        (["--sg", "221", "--hull", "none", "-o", "out"], 2, ["above a hull"]),
        (["--sg", "221", "--resume", "-o", "out"], 8, ["nothing to continue"]),
    ],
)
def test_bad_input(cfx, arguments, exit_code, words):
    assert_one_error(cfx("discover", "--model", "mini", *arguments), exit_code, *words)
