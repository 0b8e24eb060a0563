"""cfx rl as a command: what it refuses, and a short run end to end."""

from __future__ import annotations

import json
import tomllib

import pytest
from typer.testing import CliRunner

from cfx.cli.app import app
from cfx.errors import CfxError
from cfx.runs.curves import read_run

from ..density_reward import DENSITY

CONSTANT = f"""{DENSITY}
class Broken(Density):
    def evaluate(self, structures):
        return make_batch(np.full(len(structures), np.nan), [""] * len(structures))
"""


def run(*arguments: str, command: str = "rl"):
    result = CliRunner().invoke(app, [command, *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        ([], 2, "--reward is required"),
        (["--reward", "hardness", "--model", "mini"], 2, "there is no reward called hardness"),
        (["--reward", "ehull", "--preset", "large"], 2, "no preset 'large'"),
        (["--reward", "ehull", "--algorithm", "a2c"], 2, "algorithm must be one of ppo, grpo, not 'a2c'"),
        (["--reward", "ehull", "--clip-reward", "1"], 2, "not a pair of numbers"),
        (["--reward", "ehull", "--novelty-bonus", "1"], 2, "bonus for novelty needs known crystals"),
        (["--reward", "ehull", "--algorithm", "dpo"], 2, "dpo is a command of its own"),
        (["--reward", "ehull", "--algorithm", "grpo", "--batch-size", "10"], 2, "does not divide into groups"),
        (["--resume"], 2, "--resume needs the directory of a run"),
        (["--resume", "-o", "run", "--steps", "5"], 2, "--resume continues with the options of the first run"),
        (["--reward", "ehull", "--model", "mini", "--hull", "nowhere.npz"], 3, "no such file: "),
        (["--reward", "no_such_package:Reward", "--model", "mini"], 6, "cannot be imported"),
        (["--reward", "ehull", "--model", "mini", "--sg", "231"], 2, "no space group 231"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CfxError, match=words) as caught:
        run(*arguments)
    assert caught.value.exit_code == code
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_a_reward_of_one_s_own(tmp_path, monkeypatch):
    (tmp_path / "own_rl_reward.py").write_text(CONSTANT)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    options = ["--model", "mini", "--sg", "221", "--max-sites", "2", "--batch-size", "16", "--inner-epochs", "1"]
    run("--reward", "own_rl_reward:Density", "--steps", "2", "-o", "run", *options)
    lines = [json.loads(line)["rl"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert lines[0]["parts"] == {}
    titles = [panel.title for panel in read_run(tmp_path / "run").panels]
    assert titles[0] == "Reward"
    assert "KL from the reference" in titles
    with pytest.raises(CfxError, match="have no reward: 16 x the reward is not a finite number") as caught:
        run("--reward", "own_rl_reward:Broken", "--steps", "2", "-o", "broken", *options)
    assert caught.value.exit_code == 7


FAILING = """
class Fails:
    name, about, unit, kl_coef, failure = "fails", "nothing", "", 0.5, 0.0
    def evaluate(self, structures):
        return self.look_up(structures)
    def look_up(self, structures):
        raise KeyError("density of states")
"""


@pytest.mark.parametrize("debug", [False, True])
def test_the_traceback_of_a_failing_reward_is_shown_under_debug(cfx_after, tmp_path, debug):
    (tmp_path / "own_failing.py").write_text(FAILING)
    options = ["--model", "mini", "--sg", 221, "--max-sites", 2, "--batch-size", 16, "--inner-epochs", 1, "-o", "run"]
    words = ["rl", "--reward", "own_failing:Fails", "--steps", 2, *options]
    result = cfx_after("import sys\nsys.path.insert(0, '.')", *["--debug"][: int(debug)], *words)
    assert result.returncode == 9 and "step 1: the reward fails raised KeyError" in result.stderr
    assert ("Traceback" in result.stderr) == debug
    assert ('own_failing.py", line 7, in look_up' in result.stderr) == debug


def test_a_run_on_a_prototype_keeps_its_sites(tmp_path, monkeypatch):
    """Species and lattice are drawn, sites are given; log-probabilities are of what is drawn."""
    from pymatgen.core import Lattice, Structure

    (tmp_path / "own_rl_reward.py").write_text(CONSTANT)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]
    Structure.from_spacegroup("Pm-3m", Lattice.cubic(3.9), ["Sr", "Ti", "O"], sites).to("perovskite.cif")
    options = [
        "--model",
        "mini",
        "--from",
        "perovskite.cif",
        "--redraw",
        "lattice",
        "--batch-size",
        "16",
        "--minibatches",
        "1",
    ]
    run("--reward", "own_rl_reward:Density", "--steps", "1", "--inner-epochs", "1", "-o", "run", *options)
    drawn = [json.loads(line) for line in (tmp_path / "run" / "crystals.jsonl").read_text().splitlines()]
    assert {(one["space_group"], len(one["species"])) for one in drawn} == {(221, 3)}
    assert len({tuple(one["wyckoff"]) for one in drawn}) == 1 and len({tuple(one["species"]) for one in drawn}) > 8
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["rl"]
    assert abs(line["kl_reference"]) < 1e-3 and line["clipped"] == 0, "the policy is the reference, the ratio is 1"
    with pytest.raises(CfxError, match="uses the space group of its structure"):
        run("--reward", "own_rl_reward:Density", "--sg", "221", *options)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--model", "mini"], "dpo needs pairs"),
        (["--pairs", "pairs.jsonl", "--beta", "0"], "`beta` must be positive, not 0"),
        (["--resume"], "--resume needs the directory of a run"),
        (["--resume", "-o", "run", "--lr", "1e-3"], "continues with the options of the first run"),
    ],
)
def test_what_dpo_refuses(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CfxError, match=words) as caught:
        run(*arguments, command="dpo")
    assert caught.value.exit_code == 2 and list(tmp_path.iterdir()) == []


def test_pairs_are_learned_and_the_run_is_continued_by_either_command(tmp_path, monkeypatch):
    from pymatgen.core import Lattice, Structure

    def salt(length: float) -> dict:
        return Structure.from_spacegroup(
            "Fm-3m", Lattice.cubic(length), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
        ).as_dict()

    monkeypatch.chdir(tmp_path)
    pairs = [{"chosen": salt(5.6 + step / 100), "rejected": salt(7 + step / 100)} for step in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    run("--pairs", "pairs.jsonl", "--model", "mini", "--epochs", "2", "--batch-size", "2", "-o", "run", command="dpo")
    written = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (written["dpo"]["epochs"], written["dpo"]["batch_size"], written["dpo"]["beta"]) == (2, 2, 0.1)
    margins = [json.loads(line)["dpo"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(margins) == 2, "a line for each pass over the pairs"
    # Half of the first pass is judged by the model as it was, where rounding decides; the rest has been learned.
    assert 0.5 <= margins[0]["right"] <= 1 == margins[1]["right"]
    final = (tmp_path / "run" / "final" / "params.safetensors").read_bytes()
    for command in ("dpo", "rl"):  # the run is over: continuing it changes nothing
        run("--resume", "-o", "run", command=command)
        assert (tmp_path / "run" / "final" / "params.safetensors").read_bytes() == final
