"""Self-training with CHGNet on the bundled model: rounds end to end, and runs that are stopped wherever they are."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure

from cfx.config import DataConfig, EvalConfig, SampleConfig, SelfTrainConfig, SelfTrainRun, TrainConfig, selftraining
from cfx.data.dataset import load_dataset
from cfx.errors import CfxError, DataError, UsageError
from cfx.io.files import content_digest
from cfx.model import load_model
from cfx.reporter import Interrupted, Mute
from cfx.runs import relax as relaxing
from cfx.runs.curves import read_run
from cfx.runs.selection import AFTER, BEFORE
from cfx.runs.selftrain import numbers, selftrain

from ..needs import needs

needs("chgnet")
needs("smact")
pytestmark = pytest.mark.integration

EVERYTHING = ("element", "intermetallic", "charge-neutral", "other")


def write_salts(path: Path, first: str, *others: str) -> str:
    """Rock salts of some metals."""
    coords = [[0, 0, 0], [0.5, 0.5, 0.5]]
    salts = {
        one: Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), [one, "Cl"], coords) for one in (first, *others)
    }
    path.write_text("".join(json.dumps({"name": name, "cif": one.to(fmt="cif")}) + "\n" for name, one in salts.items()))
    return str(path)


@pytest.fixture(scope="module")
def model():
    return load_model("mini")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> SelfTrainRun:
    """Two rounds that relax for a few steps only, and keep nearly everything."""
    tmp_path = tmp_path_factory.mktemp("data")
    return SelfTrainRun(
        model="mini",
        data=DataConfig(
            train=write_salts(tmp_path / "data.jsonl", "Na", "K", "Li", "Rb"),
            validation=write_salts(tmp_path / "held_out.jsonl", "Ag"),
        ),
        sample=SampleConfig(space_groups=(221,), n=12, max_sites=2),
        judge=dataclasses.replace(
            selftraining.JUDGE, reference=str(tmp_path / "data.jsonl"), fmax=0.5, steps=4, workers=1
        ),
        keep=SelfTrainConfig(classes=EVERYTHING, max_e_hull_unrelaxed=3.0, max_e_hull=0.5, share=0.5, seed=3),
        train=dataclasses.replace(selftraining.ROUND, epochs=2, batch_size=4),
    )


class Stopper(Mute):
    """A reporter that sends this process a signal in some task, at the first crystal that is done."""

    def __init__(self, title: str):
        self.title = title

    @contextmanager
    def progress(self, title: str, total: float | None, unit: str = ""):
        stopper = self

        class Progress:
            def update(self, done: float, text: str = "") -> None:
                if stopper.title and stopper.title in title and done >= 1:
                    stopper.title = ""
                    os.kill(os.getpid(), signal.SIGTERM)

        yield Progress()


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_records(place: Path) -> list[dict]:
    return json.loads((place / "draws.eval.json").read_text())["records"]


def content(run: Path) -> dict[str, str]:
    """Digests of what two runs must have in common, by name."""
    names = [f"round-{number:02d}/{name}" for number in (1, 2) for name in ("draws.jsonl", "kept.jsonl", "model")]
    return {name: content_digest(run / name, []) for name in [*names, "final/params.safetensors", "metrics.jsonl"]}


@pytest.fixture(scope="module")
def whole(config, model, tmp_path_factory) -> tuple[Path, list[dict]]:
    """An undisturbed run, and what it told."""
    run = tmp_path_factory.mktemp("whole") / "run"
    return run, selftrain(run, config, model, Mute())


@pytest.mark.slow
def test_stopped_in_every_stage(config, model, whole, tmp_path, monkeypatch):
    """The run gives what it gives undisturbed, and relaxes nothing twice."""
    undisturbed, reports = whole
    relaxed: list[int] = []
    relax = relaxing.relax

    def count(potential, structures, *rest):
        relaxed.append(len(structures))
        return relax(potential, structures, *rest)

    monkeypatch.setattr(relaxing, "relax", count)
    run, finished = tmp_path / "stopped", []
    for stage in ("crystals", "draws.jsonl: structures", "relaxing with", "relaxed.jsonl: energies", "training"):
        with pytest.raises(Interrupted, match="stopped in round 1; continue") as caught:
            selftrain(run, config, model, Stopper(stage), resume=bool(finished))
        assert caught.value.exit_code == 128 + signal.SIGTERM
        partial = run / "round-01" / "relaxed.jsonl.partial"
        finished.append(len(lines(partial)) - 1 if partial.exists() else 0)
    assert not (run / "final").exists()
    assert numbers_of(selftrain(run, config, model, Mute(), resume=True)) == numbers_of(reports)
    candidates = len(lines(run / "round-01" / "candidates.jsonl"))
    assert finished[2] > 0 and relaxed[:2] == [candidates, candidates - finished[2]], "none is relaxed twice"
    assert len(relaxed) == 3, "once more for the second round"
    assert content(run) == content(undisturbed)
    selftrain(run, config, model, Mute(), resume=True)  # nothing is left to do
    assert content(run) == content(undisturbed)
    with pytest.raises(UsageError, match="is not empty"):
        selftrain(run, config, model, Mute())


def numbers_of(reports: list[dict]) -> list[dict]:
    return [numbers(report) for report in reports]


def test_counts_add_up_and_are_those_of_the_files(config, whole):
    run, reports = whole
    assert len(reports) == 2
    for report in reports:
        place, steps = run / f"round-{report['round']:02d}", report["filters"]
        assert report == json.loads((place / "report.json").read_text())
        assert [step["filter"] for step in steps] == [*BEFORE, *AFTER]
        assert steps[0]["taken"] + steps[0]["left"] == config.sample.n == len(lines(place / "draws.jsonl"))
        assert steps[len(BEFORE) - 1]["left"] == len(lines(place / "candidates.jsonl"))
        assert steps[-1]["left"] == report["kept"]["crystals"] == len(lines(place / "kept.jsonl")) > 0
        assert sum(report["kept"]["classes"].values()) == report["kept"]["crystals"]
        assert report["training"]["share"] <= 0.5
        learned = [row for row, one in enumerate(read_records(place)) if one["learned"]]
        assert report["learned"]["count"] == len(learned) and numbers(report)["sun_learned"] == len(learned) / 12
        assert numbers({key: value for key, value in report.items() if key != "learned"})["sun_learned"] is None
    again, [first, second] = reports[1]["learned"]["count"], [run / "round-01", run / "round-02"]
    kept = [Structure.from_str(one["cif"], fmt="cif") for one in lines(first / "kept.jsonl")]
    draws = [Structure.from_str(one["cif"], fmt="cif") for one in lines(second / "draws.jsonl")]
    sun = [
        draw
        for draw, one in zip(draws, read_records(second), strict=True)
        if one["unique"] and one["novel"] and one["e_above_hull"] is not None and -0.2 <= one["e_above_hull"] <= 0.1
    ]
    assert again == sum(any(one.matches(draw) for one in kept) for draw in sun)
    kept = [report["kept"]["crystals"] for report in reports]
    assert [report["training"]["kept"] for report in reports] == [kept[0], sum(kept)]
    before, after = ([report["training"][name] for report in reports] for name in ("validation_before", "validation"))
    assert before[1] == pytest.approx(after[0]) and before[0] != after[0]
    assert [line["selftrain"]["kept"] for line in lines(run / "metrics.jsonl")] == kept
    assert read_run(run).panels[0].series[0].x == [1, 2]


def test_what_is_kept_was_relaxed_and_is_low_and_can_be_learned_from(whole):
    run, _ = whole
    for number in (1, 2):
        place = run / f"round-{number:02d}"
        kept, energies = lines(place / "kept.jsonl"), {one["name"]: one for one in lines(place / "relaxed.jsonl")}
        for one in kept:
            name, _, told = one["name"].rpartition("_round")
            assert int(told) == one["round"] == number
            assert (energies[name]["energy_per_atom"], energies[name]["cif"]) == (one["energy_per_atom"], one["cif"])
            assert -0.2 <= one["e_above_hull"] <= 0.5 and one["fmax"] <= 1.0
            assert lines(place / "draws.jsonl")[one["draw"]]["name"] == name
        data = load_dataset(place / "kept.jsonl", num_workers=1)
        assert len(data) == len(kept) and data.num_failures == 0
    drawn = [
        one["cif"].split("\n", 1)[1] for number in (1, 2) for one in lines(run / f"round-{number:02d}/draws.jsonl")
    ]
    assert len(set(drawn)) == len(drawn), "the rounds draw with seeds of their own"


def test_the_final_model_is_that_of_the_last_round(whole, model):
    run, _ = whole
    last = run / "round-02" / "model" / "params.safetensors"
    assert (run / "final" / "params.safetensors").read_bytes() == last.read_bytes()
    assert last.read_bytes() != (run / "round-01" / "model" / "params.safetensors").read_bytes()
    info = load_model(run / "final").info
    assert info["selftrain"]["rounds"] == 2 and "Na" in info["elements"]
    assert info["space_groups"] == model.info["space_groups"]  # groups are drawn as before


def test_a_round_that_keeps_nothing_says_why(config, model, tmp_path):
    keep = dataclasses.replace(config.keep, max_e_hull=-0.19, max_e_hull_unrelaxed=3.0)
    with pytest.raises(DataError, match="round 1 keeps none of its crystals"):
        selftrain(tmp_path / "run", dataclasses.replace(config, keep=keep), model, Mute())


def test_a_loss_that_rises_ends_the_run(config, model, tmp_path):
    """The final model is the one before."""
    keep = dataclasses.replace(config.keep, max_rise=1e-6)
    train = dataclasses.replace(config.train, learning_rate=0.05, schedule="constant", epochs=1)
    [report] = selftrain(tmp_path / "run", dataclasses.replace(config, keep=keep, train=train), model, Mute())
    assert report["training"]["validation"] > report["training"]["validation_before"]
    assert "nats above the first model's" in report["ended"]
    final, first = (tmp_path / "run" / name / "params.safetensors" for name in ("final", "reference"))
    assert final.read_bytes() == first.read_bytes()


def test_a_configuration_survives_its_file(config, model, tmp_path):
    with pytest.raises(UsageError, match="no class of compositions 'metal'"):
        selftrain(
            tmp_path / "run", dataclasses.replace(config, keep=SelfTrainConfig(classes=("metal",))), model, Mute()
        )
    assert not (tmp_path / "run").exists()
    from cfx.training.run import RunDirectory

    RunDirectory(tmp_path / "run").create(config)
    assert SelfTrainRun.read(tmp_path / "run") == config
    with pytest.raises(CfxError, match="is not a run of cfx selftrain"):
        SelfTrainRun.read(tmp_path)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data": DataConfig()}, "data to train on are missing"),
        ({"judge": EvalConfig(potential="chgnet", hull="none")}, "said by a hull"),
        ({"data": DataConfig(train="a"), "keep": SelfTrainConfig(take="best")}, "need crystals held out"),
        ({"train": TrainConfig(ema_decay=0.9)}, "averaged weights"),
    ],
)
def test_what_cannot_be_is_refused(config, changes, words):
    with pytest.raises(UsageError, match=words):
        dataclasses.replace(config, **changes)
