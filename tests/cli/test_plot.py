"""cfx plot, as a process: pictures in files and in the terminal, numbers as JSON."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from cfx.cli.look import draw_panel
from cfx.core.elements import SYMBOLS
from cfx.model import load_model
from cfx.runs.curves import Panel, Series, round_ticks

PARTS = ("wyckoff", "species", "coords", "lattice")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 30 epochs that is writing its next line."""
    lines = []
    for epoch in range(1, 31):
        loss = 20 + 20 / epoch
        train = {"loss": loss, **dict.fromkeys(PARTS, loss / 4), "grad_norm": 5 / epoch}
        held_out = loss + 0.1 * epoch
        validation = {"loss": held_out, **dict.fromkeys(PARTS, held_out / 4)}
        lines.append(json.dumps({"epoch": epoch, "step": 100 * epoch, "train": train, "validation": validation}) + "\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines) + '{"epoch": 31, "st')
    return tmp_path / "run"


def test_a_pipe_gets_plain_text(cfx, run):
    result = cfx("plot", "run")
    assert result.returncode == 0 and result.stderr == ""
    assert "\x1b" not in result.stdout
    lines = result.stdout.splitlines()
    assert {len(line) for line in lines if line.endswith(("┐", "│", "┘"))} == {80} and max(map(len, lines)) == 80
    best = min(range(1, 31), key=lambda epoch: 20 / epoch + 0.1 * epoch)
    assert lines[0].startswith("run: lowest validation loss") and f"at epoch {best};" in lines[0]
    for title in ("Loss, nats per crystal", "Validation loss by part, nats per crystal", "Norm of the gradient"):
        assert any(line.startswith(title) for line in lines)
    assert "Learning rate" not in result.stdout, "old runs do not have it"
    assert "o training   + validation   best: 22.83, epoch 14" in lines
    assert sum(line.strip() == "epoch" for line in lines) == 3


def test_a_terminal_gets_its_width_and_colours():
    panel = Panel("Loss", "nats", (Series("one", [0, 1, 2], [3, 2, 1]), Series("other", [0, 2], [3, 3])))
    coloured, plain = draw_panel(panel, "epoch", 100, 12, True), draw_panel(panel, "epoch", 100, 12, False)
    assert "\x1b[" in coloured and "\x1b" not in plain
    assert max(map(len, plain.splitlines())) == 100
    lines = plain.splitlines()
    assert lines[1] == "o one   + other" and lines[3].count("+") > 90 and "o" in lines[-4]


def test_ticks_are_round_and_evenly_spaced():
    """In numbers, and in rows: of a loss, of a rate, of a norm on a logarithmic axis."""
    losses, rates, norms = [14.3, 12.1, 10.65], [2.7e-4, 1e-4, 2.7e-5], [52.0, 3.0, 0.4]
    for values, log, expected in (
        (losses, False, ["15", "14", "13", "12", "11", "10"]),
        (rates, False, ["0.0003", "0.00025", "0.0002", "0.00015", "0.0001", "5e-05", "0"]),
        (norms, True, ["100", "10", "1", "0.1"]),
    ):
        panel = Panel("Loss", "nats", (Series("one", [1, 5, 14], values),), log=log)
        lines = draw_panel(panel, "epoch", 80, 18, False).splitlines()
        ticks = [(row, line.split("┤")[0].strip()) for row, line in enumerate(lines) if "┤" in line]
        assert [label for _, label in ticks] == expected
        assert len({below - above for (above, _), (below, _) in itertools.pairwise(ticks)}) == 1
        assert lines[-2].split() == ["0", "2", "4", "6", "8", "10", "12", "14"]


@pytest.mark.parametrize(
    ("low", "high"), [(10.65, 14.23), (-3.6, 7.1), (5.0, 5.0), (0.0, 0.0), (3.0, 3.0001), (-9, -8)]
)
def test_ticks_enclose_what_is_drawn(low, high):
    ticks = round_ticks(low, high, 6)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 7
    assert np.ptp(np.diff(ticks)) < 1e-9 and ticks[1] > ticks[0]


def test_a_figure_is_written_and_kept_without_force(cfx, run, tmp_path):
    first = cfx("plot", "run", "-o", "run.png")
    assert first.returncode == 0 and first.stdout == "" and "run.png" in first.stderr
    picture = (tmp_path / "run.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000
    again = cfx("plot", "run", "-o", "run.png")
    assert again.returncode == 8 and "--force" in again.stderr
    forced = cfx("plot", run / "metrics.jsonl", "-o", "run.png", "--force")
    assert forced.returncode == 0, forced.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["run.png"]


def test_embeddings_as_json_and_picture(cfx, tmp_path):
    result = cfx("plot", "embeddings", "mini", "--json", "-o", "map.svg")
    assert result.returncode == 0, result.stderr
    content = json.loads(result.stdout)
    rows = np.asarray(load_model("mini").params["~"]["species"], float)[[SYMBOLS.index(s) for s in content["elements"]]]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(content["matrix"], unit @ unit.T, atol=2e-6)
    families = {row["family"]: row for row in content["families"]}
    assert families["lanthanides"]["elements"] == 15
    inside = np.array([symbol in SYMBOLS[57:72] for symbol in content["elements"]])
    block = (unit @ unit.T)[inside]
    assert families["lanthanides"]["within"] == pytest.approx((block[:, inside].sum() - 15) / (15 * 14), abs=2e-6)
    assert families["lanthanides"]["outside"] == pytest.approx(block[:, ~inside].mean(), abs=2e-6)
    assert {name: [other["element"] for other in content["nearest"][name]] for name in ("K", "La")} == {
        "K": ["Rb", "Cs", "Na"],
        "La": ["Pr", "Nd", "Ce"],
    }
    assert (tmp_path / "map.svg").read_text().lstrip().startswith("<?xml")
    assert "Po, At" in result.stderr and "map.svg" in result.stderr


def test_embeddings_in_a_pipe_are_a_table(cfx):
    result = cfx("plot", "embeddings")
    assert result.returncode == 0 and "\x1b" not in result.stdout and max(map(len, result.stdout.splitlines())) <= 80
    halogens = next(line for line in result.stdout.splitlines() if line.startswith("halogens"))
    assert halogens.split() == ["halogens", "4", "0.41", "-0.04"]
    assert "  K   Rb 0.77  Cs 0.67  Na 0.63" in result.stdout.splitlines()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 3, ["there is no run nowhere"]),
        (["run", "-o", "run.jpg"], 2, ["run.jpg", "suffix"]),
        (["run", "-o", "no/run.png"], 8, ["no directory no"]),
        (["run", "mini"], 2, ["a model", "embeddings"]),
        (["run", "--json"], 2, ["--json", "embeddings"]),
        (["embeddings", "nowhere"], 4, ["nowhere"]),
        (["broken.jsonl"], 3, ["line 1 of broken.jsonl"]),
    ],
)
def test_what_cannot_be_drawn_is_one_line_with_a_hint(cfx, run, tmp_path, arguments, code, words):
    (tmp_path / "broken.jsonl").write_text("loss 3\nloss 2\n")
    result = cfx("plot", *arguments)
    error, hint = result.stderr.splitlines()
    assert result.returncode == code and result.stdout == "" and error.startswith("error: ")
    assert all(word in error for word in words) and hint.startswith("hint: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jsonl", "run"]
