"""The summary of scores: means by what crystals are, equal to the validation loss of training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats

from cfx.core.crystal import CrystalBatch
from cfx.core.lattice import CRYSTAL_SYSTEMS
from cfx.core.likelihood import LogProb
from cfx.data.dataset import load_dataset
from cfx.model import Model
from cfx.runs.score import Comparison, Scores, half_width
from cfx.training.train import mean_loss

pytestmark = pytest.mark.integration

PARTS = ("wyckoff", "species", "coords", "lattice")


GOLDEN = Path(__file__).parents[1] / "golden"


def dataset(batch: CrystalBatch) -> SimpleNamespace:
    """Crystals as scores read them."""
    return SimpleNamespace(batch=batch, space_group=batch.space_group, num_sites=batch.num_sites)


@pytest.fixture(scope="module")
def scores(rotary) -> Scores:
    """Made-up log-probabilities of the golden crystals, each part of another size."""
    rng, batch = np.random.default_rng(0), rotary.batch.numpy()
    return Scores(dataset(batch), LogProb(*(rng.normal(-5 * i, 2, len(batch)).astype(np.float32) for i in range(1, 5))))


def of(records: list[dict], grouping: str) -> dict:
    """The records of a grouping by value."""
    return {record["value"]: record for record in records if record["grouping"] == grouping}


def test_means_are_those_of_the_crystals_of_each_group(scores):
    records, batch = scores.summary(), scores.data.batch
    total = -sum(getattr(scores.log_prob, part).astype(float) for part in PARTS)
    members: dict[tuple, list[int]] = {}
    for i in range(len(total)):
        group, sites = int(batch.space_group[i]), int((batch.wyckoff[i] > 0).sum())
        system = next(name for name, last in CRYSTAL_SYSTEMS.items() if group <= last)
        for key in [("all", "all"), ("sites", sites), ("crystal_system", system), ("space_group", group)]:
            members.setdefault(key, []).append(i)
    assert {(record["grouping"], record["value"]) for record in records} == set(members)
    for record in records:
        rows = members[record["grouping"], record["value"]]
        assert record["crystals"] == len(rows)
        assert record["nll"] == pytest.approx(total[rows].mean(), rel=1e-5)
        assert record["nll"] == pytest.approx(sum(record[f"nll_{part}"] for part in PARTS), rel=1e-5)
        assert record["nll_coords"] == pytest.approx(-scores.log_prob.coords[rows].mean(), rel=1e-5)
        if len(rows) == 1:
            assert record["nll_error"] is None
        else:
            deviation = np.sqrt(((total[rows] - total[rows].mean()) ** 2).sum() / (len(rows) - 1))
            assert record["nll_error"] == pytest.approx(deviation / np.sqrt(len(rows)), rel=1e-4)


def test_every_grouping_has_all_crystals_in_order(scores):
    records = scores.summary()
    overall = of(records, "all")["all"]
    for grouping in ("sites", "crystal_system", "space_group"):
        found = of(records, grouping)
        counts = [record["crystals"] for record in found.values()]
        assert len(found) > 3 and sum(counts) == overall["crystals"] == 150
        for name in ("nll", "nll_species"):
            weighted = np.average([record[name] for record in found.values()], weights=counts)
            assert weighted == pytest.approx(overall[name], rel=1e-6)
    assert list(of(records, "sites")) == sorted(of(records, "sites"))
    assert list(of(records, "space_group")) == sorted(of(records, "space_group"))
    systems = list(of(records, "crystal_system"))
    assert systems == [name for name in CRYSTAL_SYSTEMS if name in systems]


def test_crystal_systems_begin_and_end_where_the_tables_say():
    from pymatgen.symmetry.groups import SpaceGroup

    groups = np.arange(1, 231)
    every = SimpleNamespace(space_group=groups, num_sites=np.ones(230, int))
    found = of(Scores(every, LogProb(*np.tile(-groups.astype(float), (4, 1)))).summary(), "crystal_system")
    expected: dict[str, list[int]] = {}
    for group in range(1, 231):
        expected.setdefault(SpaceGroup.from_int_number(group).crystal_system, []).append(group)
    assert {name: record["nll_wyckoff"] for name, record in found.items()} == pytest.approx(
        {name: float(np.mean(members)) for name, members in expected.items()}
    )


def compared(scores: Scores, change: np.ndarray, common: np.ndarray) -> Comparison:
    """The scores and others that differ by `change` in the species part; both with something in common, [n]."""
    old = scores.log_prob
    first, other = (
        LogProb(old.wyckoff + common, old.species + more, old.coords, old.lattice) for more in (0.0, change)
    )
    return Comparison("mini", "tuned", (Scores(scores.data, first), Scores(scores.data, other)))


def test_a_difference_is_that_of_the_same_crystals(scores):
    """What makes crystals likelier under both models is not in the interval."""
    rng, n = np.random.default_rng(1), len(scores.log_prob.total)
    change = rng.normal(0.4, 0.3, n)
    total, wyckoff, species, *_ = compared(scores, change, np.zeros(n)).parts()
    far = compared(scores, change, rng.normal(0, 100, n)).parts()[0]
    for name in ("difference", "low", "high", "better"):
        assert total[name] == pytest.approx(far[name], abs=1e-6) == pytest.approx(species[name], abs=1e-6)
    assert total["difference"] == pytest.approx(-change.mean()) == pytest.approx(total["nll"] - total["nll_against"])
    low, high = scipy.stats.ttest_1samp(-change, 0).confidence_interval(0.95)
    assert (total["low"], total["high"]) == pytest.approx((low, high), rel=1e-6)
    assert total["better"] == (change > 0).mean() and total["crystals"] == n
    assert [wyckoff[name] for name in ("difference", "low", "high", "better")] == [0, 0, 0, 0]
    assert [total["part"], wyckoff["part"], species["part"]] == ["total", "wyckoff", "species"]
    assert (total["model"], total["against"]) == ("tuned", "mini")


def test_differences_by_group_of_crystals(scores):
    n = len(scores.log_prob.total)
    change = np.random.default_rng(1).normal(0.4, 0.3, n)
    records = compared(scores, change, np.zeros(n)).summary()
    assert [record["value"] for record in records] == [record["value"] for record in scores.summary()]
    for record in records:
        if record["grouping"] == "space_group":
            rows = scores.data.space_group == record["value"]
            assert record["crystals"] == rows.sum() and record["difference"] == pytest.approx(-change[rows].mean())
            assert (record["low"] is None) == (rows.sum() == 1)


def test_intervals_hold_the_mean_as_often_as_they_say():
    """In 19 of 20 samples, of few values and of more."""
    rng = np.random.default_rng(2)
    for size in (3, 30):
        samples = rng.normal(5.0, 2.0, (2000, size))
        held = [abs(one.mean() - 5.0) <= half_width(one) for one in samples]
        assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def test_nll_is_the_validation_loss_of_training(rotary, tmp_path):
    entries = json.loads((GOLDEN / "v042_dev_cifs.json").read_text())
    (tmp_path / "data").mkdir()
    for i in np.flatnonzero(rotary.batch.num_sites <= 2)[:20]:
        (tmp_path / "data" / f"{i}.cif").write_text(entries[i]["cif"])
    data = load_dataset(tmp_path / "data", num_workers=1)
    model = Model("golden", rotary.config, rotary.params)
    overall = Scores(data, model.log_prob(data.batch)).summary()[0]
    loss = mean_loss(rotary.params, rotary.config, data, 16)
    assert overall["crystals"] == 20 and overall["nll"] == pytest.approx(loss["loss"], rel=1e-5)
    for name in PARTS:
        assert overall[f"nll_{name}"] == pytest.approx(loss[name], rel=1e-4, abs=1e-5)
