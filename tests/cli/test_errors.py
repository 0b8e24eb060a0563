"""Bad input: one clear line, the right exit code, nothing half-written under the final name."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "from cfx.cli import main; main()"]
GOLDEN = Path(__file__).parents[1] / "golden"


class Hostile:
    """Unpickling this runs a shell command."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def assert_one_error(result, exit_code: int, *words: str) -> None:
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    assert result.returncode == exit_code, result.stderr
    assert len(errors) == 1 and all(word in errors[0] for word in words), result.stderr
    assert all(line.startswith(("error: ", "hint: ")) for line in lines), result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["sample", "--sg", "0"], 2, ["space group 0"]),
        (["sample", "--sg", "231"], 2, ["space group 231"]),
        (["sample", "--sg", "194", "-n", "0"], 2, ["n must be at least 1"]),
        (["sample", "--sg", "194", "--temperature", "0"], 2, ["temperature"]),
        (["sample", "--sg", "194", "--top-p", "1.5"], 2, ["top-p"]),
        (["sample", "--sg", "194", "--model", "nowhere"], 4, ["nowhere"]),
        (["sample", "--sg", "194", "-o", "out.docx"], 2, ["out.docx"]),
        (["sample", "--sg", "194", "-o", "no/such/directory/out.cif"], 8, ["no/such/directory"]),
        (["sample"], 2, ["--sg"]),
        (["sample", "--sg", "20-10"], 2, ["20-10"]),
        (["sample", "--sg", "194", "--shard", "4/3"], 2, ["shard 4 of 3"]),
        (["sample", "--sg", "hexagonal"], 2, ["hexagonal"]),
        (["sample", "--sg", "194", "--redraw", "coords"], 2, ["--redraw"]),
        (["sample", "--model", "mini", "--sg", "194", "--elements", "La,Xx"], 2, ["Xx"]),
        (["sample", "--model", "mini", "--sg", "194", "--formula", "what"], 2, ["what"]),
        (["sample", "--sg", "194", "--bias", "Fe=2"], 2, ["Fe=2"]),
        (["sample", "--model", "mini", "--sg", "data:missing.csv"], 3, ["missing.csv"]),
        (["sample", "--sg", "194", "--keep-invalid", "-o", "out.extxyz"], 2, ["unphysical lattices"]),
        (["train", "missing.csv", "-o", "run"], 3, ["missing.csv"]),
        (["train", "missing.csv", "-o", "run", "--preset", "huge"], 2, ["huge"]),
        (["train", "-o", "run"], 2, ["the data to train on is missing"]),
        (["train", "missing.csv", "-o", "run", "--config", "missing.toml"], 2, ["missing.toml"]),
        (["train", "missing.csv", "-o", "run", "--optimizer", "adam", "--weight-decay", "0.1"], 2, ["adam"]),
        (["train", "missing.csv", "-o", "run", "--schedule", "linear"], 2, ["linear"]),
        (["train", "missing.csv", "-o", "run", "--from", "nowhere"], 4, ["nowhere"]),
        (["train", "missing.csv", "-o", "run", "--epochs", "0"], 2, ["epochs"]),
        (["train", "missing.csv", "-o", "run", "--resume"], 2, ["run"]),
    ],
)
def test_bad_arguments(cfx, arguments, exit_code, words):
    assert_one_error(cfx(*arguments), exit_code, *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sg", "221", "--formula", "Sr2Ti7O3"], ["composition", "221"]),
        (["--sg", "221", "--formula", "SrTiO3", "--exclude", "Ti"], ["Ti"]),
        (["--formula", "SrTiO3", "--max-atoms", "3"], ["the formula has 5", "229 other space groups"]),
        (["--sg", "221", "--elements", "Tc,U", "--no-radioactive"], ["no element"]),
        (["--sg", "2", "--wyckoff", "a,z"], ["no Wyckoff letter z"]),
        (["--sg", "221", "--wyckoff", "a,a"], ["letter a", "only once"]),
        (["--sg", "225-230", "--max-atoms", "1"], ["more than 1"]),
        (["--sg", "221", "--max-sites", "1", "--require", "Na,Cl"], ["2 required elements"]),
    ],
)
def test_requests_that_no_crystal_can_meet(cfx, tmp_path, options, words):
    assert_one_error(cfx("sample", "--model", "mini", *options, "-o", "out.cif"), 2, *words)
    assert not list(tmp_path.glob("out.cif*"))


@pytest.mark.parametrize("content", ["{", "[]", '{"constraints": [["a"]]}', '{"atom_mask": 3}'])
def test_sites_that_cannot_be_read(cfx, tmp_path, content):
    (tmp_path / "sites.json").write_text(content)
    assert_one_error(cfx("sample", "--sg", "62", "--sites", "sites.json"), 3, "sites.json")


@pytest.mark.parametrize("content", [None, "", "data_x\n_nothing 1\n"])
def test_prototypes_that_cannot_be_read(cfx, tmp_path, content):
    if content is not None:
        (tmp_path / "prototype.cif").write_text(content)
    assert_one_error(cfx("sample", "--from", "prototype.cif"), 3, "prototype.cif")


def test_parser_errors_are_usage_errors(cfx):
    result = cfx("sample", "--sg", "194", "-n", "many")
    assert result.returncode == 2 and "'--n'" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "empty"),
        ("formula,energy\nNaCl,-3.4\n", "no column with structures"),
        ("id,cif\na,\nb,nonsense\n", "none of 2 rows"),
    ],
)
def test_useless_tables(cfx, tmp_path, content, word):
    (tmp_path / "data.csv").write_text(content)
    assert_one_error(cfx("train", "data.csv", "-o", "run"), 3, "data.csv", word)
    assert not (tmp_path / "run").exists()


def test_truncated_pickle(cfx, tmp_path):
    whole = (GOLDEN / "v042_dev_epoch_005500.pkl").read_bytes()
    (tmp_path / "cut.pkl").write_bytes(whole[: len(whole) // 2])
    result = cfx("sample", "--sg", "194", "--model", "cut.pkl", "-o", "out.cif")
    assert_one_error(result, 4, "cut.pkl")
    assert not list(tmp_path.glob("out.cif*"))


def test_hostile_pickle_is_refused_and_does_nothing(cfx, tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"params": Hostile(f"touch {marker}")}))
    result = cfx("sample", "--sg", "194", "--model", "evil.pkl")
    assert_one_error(result, 4, "evil.pkl", f"{os.name}.system")
    assert not marker.exists()


def test_existing_output_is_kept(cfx, tmp_path):
    (tmp_path / "out.cif").write_text("precious")
    assert_one_error(cfx("sample", "--sg", "194", "-o", "out.cif"), 8, "out.cif")
    assert (tmp_path / "out.cif").read_text() == "precious"


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); from cfx.cli import main; main()"


def test_a_file_that_cannot_grow_leaves_nothing_under_the_final_name(cfx, tmp_path):
    """As on a full disk: the first blocks need more than the limit."""
    warm = cfx("sample", "--sg", "225", "-n", "2", "--batch-size", "16")
    assert len(warm.stdout) > 4096, warm.stderr
    command = [sys.executable, "-c", LIMITED, "sample", "--sg", "225", "-n", "2", "--batch-size", "16", "-o", "out.cif"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 8 and "cannot write out.cif: File too large" in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "out.cif").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_stdout_that_is_full(tmp_path):
    command = [*COMMAND, "sample", "--sg", "225", "-n", "2", "--batch-size", "16"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 8 and "No space left" in result.stderr and "Traceback" not in result.stderr


def test_output_directory_that_is_a_file(cfx, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "data.csv").write_text("id,cif\n")
    assert_one_error(cfx("sample", "--sg", "225", "-o", "file/out.cif"), 8, "file/out.cif")
