"""cfx selftrain as a command: what it refuses, and a short run end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from cfx.cli.app import app
from cfx.errors import CfxError

from ..needs import needs


def run(*arguments: str):
    result = CliRunner().invoke(app, ["selftrain", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch) -> Path:
    """Three rock salts, in the working directory."""
    monkeypatch.chdir(tmp_path)
    coords = [[0, 0, 0], [0.5, 0.5, 0.5]]
    salts = [Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), [one, "Cl"], coords) for one in ("Na", "K", "Li")]
    rows = [{"name": f"salt {i}", "cif": salt.to(fmt="cif")} for i, salt in enumerate(salts)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data.jsonl"


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["--model", "mini"], 2, "the data to train on are missing"),
        (["data.jsonl", "--model", "mini", "--class", "metallic"], 2, "no class of compositions 'metallic'"),
        (["data.jsonl", "--model", "mini", "--hull", "none"], 2, "what is kept is said by a hull"),
        (["data.jsonl", "--model", "mini", "--take", "best"], 2, "need crystals held out"),
        (["data.jsonl", "--model", "mini", "--share", "1"], 2, "`share` must be between 0 and 1"),
        (["data.jsonl", "--model", "mini", "--sg", "231"], 2, "no space group 231"),
        (["data.jsonl", "--model", "nowhere"], 4, "there is no model 'nowhere'"),
        (["--resume"], 2, "is not a run of cfx selftrain"),
        (
            ["data.jsonl", "--resume", "-o", "run", "--rounds", "3"],
            2,
            "--resume continues with the options of the first",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(tmp_path, arguments, code, words):
    with pytest.raises(CfxError, match=words) as caught:
        run(*arguments)
    assert caught.value.exit_code == code
    assert [path.name for path in tmp_path.iterdir() if path.name != "data.jsonl"] == []


def test_a_round_of_two_crystals_and_what_is_told_of_it(tmp_path):
    needs("chgnet")
    options = ["--model", "mini", "--sg", "221", "--max-sites", "2", "-n", "4", "--rounds", "1", "--epochs", "1"]
    loose = [
        "--class",
        "element,intermetallic,charge-neutral,other",
        "--max-e-hull",
        "1",
        "--fmax",
        "1",
        "--steps",
        "2",
    ]
    result = run("data.jsonl", *options, *loose, "-o", "run", "--workers", "1")
    assert "round 1" in result.stdout and "metastable as drawn" in result.stdout
    report = json.loads((tmp_path / "run" / "round-01" / "report.json").read_text())
    assert report["settings"]["reference"] == f"{tmp_path}/data.jsonl (3 crystals)"
    final = (tmp_path / "run" / "final" / "params.safetensors").read_bytes()
    again = run("-o", "run", "--resume")
    assert again.stdout == result.stdout
    assert (tmp_path / "run" / "final" / "params.safetensors").read_bytes() == final
    with pytest.raises(CfxError, match="is not empty"):
        run("data.jsonl", *options, "-o", "run")
