"""The stages of a discovery on a few alloys: what goes on, what is left out and why, and what a resumed run repeats."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cfx.config import DiscoverRun
from cfx.core.crystal import CrystalBatch
from cfx.errors import NumericsError, OutputError, UsageError
from cfx.evaluation.hull import HullInfo, build_table
from cfx.evaluation.novelty import make_reference
from cfx.evaluation.setup import EvaluationSetup
from cfx.io.journal import JsonLines
from cfx.predictors.load import load_potential
from cfx.reporter import Interrupted, Noting, Silent, StopRequest
from cfx.runs.discover import find_best
from cfx.runs.discovery import funnel
from cfx.runs.discovery.draw import as_json, crystals_of
from cfx.runs.discovery.relax import evaluate
from cfx.runs.discovery.result import check_discovery
from cfx.runs.discovery.sift import sift
from cfx.runs.discovery.state import Discovering
from cfx.runs.evaluate import facts
from cfx.runs.steps import Budget, Steps

EMT = "ase:ase.calculators.emt:EMT"


def fcc(symbol: str, a: float) -> Structure:
    return Structure(Lattice([[0, a / 2, a / 2], [a / 2, 0, a / 2], [a / 2, a / 2, 0]]), [symbol], [[0, 0, 0]])


def l12(one: str, three: str, a: float) -> Structure:
    coords = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    return Structure(Lattice.cubic(a), [one, three, three, three], coords)


def rock_salt(a: float) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3])


CLOSE = Structure(Lattice.cubic(4), ["Cu", "Cu"], [[0, 0, 0], [0, 0, 0.05]])
DRAWN = [
    (l12("Au", "Cu", 3.6), -4.0),
    (CLOSE, -1.0),
    (l12("Au", "Cu", 3.9), -2.0),  # the first one again, likelier
    (l12("Cu", "Au", 4.0), -6.0),
    (fcc("Cu", 3.7), -3.0),
    (rock_salt(5.64), -5.0),
    (fcc("Au", 4.3), -9.0),
]
"""Crystals with log-probabilities per site."""


@pytest.fixture(scope="module")
def potential():
    return load_potential(EMT)


@pytest.fixture(scope="module")
def hull(potential):
    phases = [fcc("Cu", 3.59), fcc("Au", 4.06), l12("Au", "Cu", 3.72)]
    energies = potential.evaluate(phases, forces=False).energy.tolist()
    return build_table(phases, energies, ["cu", "au", "cu3au"], HullInfo("small", "raw"))


@pytest.fixture
def begin(potential, hull):
    """Begins a discovery after the draw."""

    def start(known=None, journal=None, resume=False, second=None, models=None, **settings) -> Discovering:
        run = DiscoverRun.of(221, potential=EMT, hull="small", workers=1, **settings)
        reference = None if known is None else make_reference(known, [f"known {i}" for i in range(len(known))])
        setup = EvaluationSetup(run.judge, reference, potential, hull, second)
        steps = Steps(journal, {}, resume)
        found = Discovering(
            run, SimpleNamespace(name="mini"), setup, models or {}, Noting(Silent()), steps, StopRequest()
        )
        for i, (structure, nats) in enumerate(DRAWN):
            row = {"name": f"c{i}", **facts(structure), "log_prob": nats, "log_prob_per_site": nats, "left_out": ""}
            found.records.append(row)
            found.structures.append(structure)
        return found

    return start


def lost(discovery) -> dict[str, str]:
    return {record["name"]: record["left_out"] for record in discovery.records if record["left_out"]}


def test_sifted_the_likeliest_of_repeats_goes_on(begin):
    found = begin()
    sift(found)
    assert lost(found) == {"c0": funnel.DISTINCT.lost, "c1": funnel.VALID.lost}
    assert found.records[0]["duplicate_of"] == "c2"
    assert [record["class"] for record in found.records][3:] == [
        "intermetallic", "element", "charge-neutral", "element"]  # fmt: skip


def test_sifted_by_charges_novelty_and_likelihood(begin):
    found = begin(charge_balanced=True)
    sift(found)
    assert {name for name, why in lost(found).items() if why == funnel.BALANCED.lost} == {
        "c0",
        "c2",
    }  # CuAu3 can balance
    found = begin(known=[fcc("Cu", 3.5), l12("Cu", "Au", 4.1)], reference="known", likeliest=0.5)
    sift(found)
    assert lost(found) == {
        "c0": funnel.DISTINCT.lost,
        "c1": funnel.VALID.lost,
        "c3": funnel.NOVEL.lost,
        "c4": funnel.NOVEL.lost,
        "c6": funnel.LIKELY.lost,  # of three that are left, half, rounded up, go on
    }
    assert found.records[3]["matched"] == "known 1"


def test_the_lowest_as_drawn_are_relaxed_and_the_best_listed(begin):
    found = begin(relax=3, top=2)
    result = find_best(found)
    records = {record["name"]: record for record in result.records}
    assert records["c5"]["left_out"] == funnel.WITH_ENERGY.lost  # EMT knows no salt
    heights = {name: record["e_above_hull_unrelaxed"] for name, record in records.items()}
    relaxed = {name for name, record in records.items() if record["e_above_hull"] is not None}
    evaluated = sorted((name for name in heights if heights[name] is not None), key=heights.__getitem__)
    assert relaxed == set(evaluated[:3]) and records[evaluated[3]]["left_out"] == funnel.RELAXED.lost
    for name in relaxed:
        one = records[name]
        assert one["e_above_hull"] <= one["e_above_hull_unrelaxed"] and one["converged"]
    assert [row["rank"] for row in result.rows] == [1, 2]
    assert [row["e_above_hull"] for row in result.rows] == sorted(records[name]["e_above_hull"] for name in relaxed)[:2]
    assert result.evaluations == len(evaluated) + 1 + sum(records[name]["steps"] + 1 for name in relaxed)
    assert [row["left"] for row in result.funnel][:: len(result.funnel) - 1] == [len(DRAWN), 2]
    assert sum(row["lost"] for row in result.funnel) == len(DRAWN) - 2
    best, structure = next(iter(result))
    assert structure.composition.reduced_formula == best["formula"]
    assert len(result.table) == 2 and repr(result).startswith("Discovery(2 of 7 crystals, after ")


def test_sorted_by_another_column_and_cut_by_energy(begin):
    result = find_best(begin(sort="-density"))
    densities = [row["density"] for row in result.rows]
    assert densities == sorted(densities, reverse=True) and len(densities) > 2
    cut = sorted(row["e_above_hull"] for row in result.rows)[0] + 1e-6
    low = find_best(begin(max_e_hull=max(cut, 0.0)))
    assert all(row["e_above_hull"] <= max(cut, 0.0) for row in low.rows) and 0 < len(low) < len(result)
    assert funnel.LOW.lost in {record["left_out"] for record in low.records}


def test_known_crystals_are_found_once_relaxed_too(begin):
    with pytest.raises(NumericsError, match=r"none of 7 crystals arrives: .* known"):
        find_best(begin(known=[one for one, _ in DRAWN], reference="known"))


class Volume:
    """A property model that knows no gold."""

    name, property, unit = "volume", "volume", "angstrom^3"

    def __init__(self, unlike: str = ""):
        self.unlike = unlike

    def evaluate(self, structures):
        value = np.array([math.nan if "Au" in one.composition else one.volume / len(one) for one in structures])
        unlike = [one.composition.reduced_formula == self.unlike for one in structures]
        return SimpleNamespace(value=value, std=np.full(len(structures), 0.5), outside=np.array(unlike))


def test_a_second_potential_and_properties_have_their_say(begin, potential, hull):
    for row, structure in find_best(begin(second=(potential, hull), models={"volume": Volume()})):
        assert row["second_e_above_hull"] == pytest.approx(row["e_above_hull"], abs=1e-6)
        assert row["e_above_hull_difference"] == pytest.approx(0, abs=1e-6) and row["second_verdict"] == row["verdict"]
        gold = "Au" in structure.composition
        assert (row["volume"] is None) == gold and (gold or row["volume"] == structure.volume / len(structure))
    by_volume = begin(models={"volume": Volume()}, properties="volume", sort="volume")
    assert [row["formula"] for row in find_best(by_volume).rows] == ["Cu"]
    assert funnel.WITH_COLUMN.lost in lost(by_volume).values()
    unlike = begin(models={"volume": Volume("Cu")}, properties="volume", sort="volume")
    with pytest.raises(NumericsError, match=f"1 {funnel.INTERPOLATED.lost}"):
        find_best(unlike)
    [copper] = [record for record in unlike.records if record["left_out"] == funnel.INTERPOLATED.lost]
    assert copper["volume_extrapolated"] and copper["volume"] > 0


def test_a_budget_ends_energies_and_relaxations(begin):
    found = begin(budget=4)
    with pytest.raises(NumericsError, match=funnel.WITHIN_BUDGET.lost):
        find_best(found)
    assert found.budget.spent == 2  # half of it, for the likeliest two
    found = begin(budget=60)
    assert find_best(found).evaluations <= 60
    limit = Budget(evaluations=100, seconds=None, spent=30)
    assert [limit.next_evaluations(64, share) for share in (0.2, 0.5, 1.0)] == [0, 20, 64]
    assert [Budget(None, 10.0, took=5.0).next_evaluations(64, share) for share in (0.5, 0.6)] == [0, 64]


def test_a_resumed_run_makes_only_the_steps_that_are_missing(begin, tmp_path):
    journal = tmp_path / "out.partial"
    whole = find_best(begin(journal=JsonLines(journal), relax=1))
    lines = journal.read_text().splitlines(keepends=True)
    names = [json.loads(line).get("step") for line in lines[1:]]
    assert names == ["sift", "energies", "relax"]
    for kept in (1, 3, 4):
        journal.write_text("".join(lines[:kept]))
        found = begin(journal=JsonLines(journal), resume=True, relax=1)
        if kept == 4:
            found.setup = replace(found.setup, potential=Refuses())
        assert find_best(found).rows == whole.rows
        assert [json.loads(line).get("step") for line in journal.read_text().splitlines()[1:]] == names


class Refuses:
    """A potential that must not be asked again."""

    name, scale = "EMT", "raw"

    def evaluate(self, structures, forces=True):
        pytest.fail("evaluated again")


def test_a_signal_ends_the_step_and_keeps_the_others(begin, tmp_path):
    journal = tmp_path / "out.partial"
    found = begin(journal=JsonLines(journal))
    sift(found)
    found.stop.signum = 2
    with pytest.raises(Interrupted, match="continue with `resume`"):
        evaluate(found)
    assert len(journal.read_text().splitlines()) == 2


def signal_in(found: Discovering, step: str) -> None:
    """Lets a signal come at the beginning of a step."""
    take = found.steps.take

    def signalled(name, make):
        if name == step:
            found.stop.signum = 2
        return take(name, make)

    found.steps.take = signalled


def test_interrupted_in_every_step_and_resumed_it_is_the_same(begin, potential, hull, tmp_path):
    asked = {"second": (potential, hull), "models": {"volume": Volume()}, "relax": 2}

    def steps(journal: Path) -> list[str]:
        return [json.loads(line)["step"] for line in journal.read_text().splitlines()[1:]]

    undisturbed, journal = tmp_path / "undisturbed", tmp_path / "out.partial"
    whole = find_best(begin(journal=JsonLines(undisturbed), **asked))
    names = steps(undisturbed)
    assert names == ["sift", "energies", "relax", "energies by the second potential", "property volume"]
    for done, name in enumerate(names):
        found = begin(journal=JsonLines(journal), resume=done > 0, **asked)
        signal_in(found, name)
        with pytest.raises(Interrupted, match="continue with `resume`"):
            find_best(found)
        assert steps(journal) == names[:done]
    again = find_best(begin(journal=JsonLines(journal), resume=True, **asked))
    assert (again.rows, again.funnel, again.records) == (whole.rows, whole.funnel, whole.records)


def test_drawn_crystals_are_kept_to_the_last_bit():
    rng = np.random.default_rng(0)
    batch = CrystalBatch(
        np.array([221, 225], np.int32),
        rng.uniform(3, 9, (2, 6)).astype(np.float32),
        rng.random((2, 21, 3), np.float32),
        np.array([[3, 8] + [0] * 19, [11] + [0] * 20], np.int32),
        np.array([[1, 2] + [0] * 19, [1] + [0] * 20], np.int32),
    )
    jobs = [SimpleNamespace(number=n) for n in (4, 7)]
    draws = SimpleNamespace(
        crystals=batch, jobs=jobs, log_prob=SimpleNamespace(total=np.float32([-1.1, -2.2])), rejected={}, exhausted=()
    )
    row = json.loads(json.dumps(as_json(draws)))
    read = crystals_of(row)
    assert row["number"] == [4, 7] and read.num_slots == 2
    for name, array in vars(batch.with_slots(2)).items():
        assert np.array_equal(getattr(read, name), array) and getattr(read, name).dtype == array.dtype


def test_stages_are_those_that_are_asked_for():
    asked = funnel.stages(DiscoverRun.of(221))
    assert asked[0] == funnel.VALID and asked[-1] == funnel.LISTED
    assert not {funnel.BALANCED, funnel.NOVEL, funnel.LIKELY, funnel.WITHIN_BUDGET, funnel.LOW} & set(asked)
    more = DiscoverRun.of(221, reference="mp-20", likeliest=0.5, charge_balanced=True, budget=10, max_e_hull=0.1)
    assert {funnel.BALANCED, funnel.NOVEL, funnel.LIKELY, funnel.WITHIN_BUDGET, funnel.LOW} < set(funnel.stages(more))
    assert len({stage.lost for stage in funnel.stages(more)}) == len(funnel.stages(more))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"space_groups": None}, "no space group"),
        ({"nonsense": 1}, "there is no setting 'nonsense'"),
        ({"keep_invalid": True}, "there is no setting 'keep_invalid'"),
        ({"relax": 0}, "`relax` must be at least 1"),
        ({"budget": "much"}, "'much' is not a budget"),
        ({"sort": "beauty"}, "there is no column of numbers 'beauty'"),
        ({"sort": "second_e_above_hull"}, "only known with `second_potential`"),
        ({"hull": "none"}, "ranked by their energy above a hull"),
        ({"potential": "orb"}, "ranked by their energy above a hull"),
        ({"inputs": "vasp,castep"}, "no inputs for 'castep'"),
        ({"likeliest": 0.0}, "`likeliest` must be above 0"),
    ],
)
def test_what_is_wrong_is_told(settings, message):
    with pytest.raises(UsageError, match=message):
        DiscoverRun.of(**{"space_groups": 221, **settings})


def test_space_groups_are_left_to_a_formula():
    run = DiscoverRun.of(formula="SrTiO3", n=5, relax=2)
    assert run.by_probability and len(run.sample.space_groups) == 230 and run.judge.hull == "chgnet-mp"
    assert (run.header()["relax"], run.header()["n"]) == (2, 5) and "workers" not in run.header()
    assert math.isclose(DiscoverRun.of("Pm-3m", likeliest=0.25).keep.likeliest, 0.25)


def test_a_directory_of_other_files_is_not_overwritten(tmp_path):
    for name in ("discovery.csv", "all.csv", "07_SrTiO3.cif"):
        (tmp_path / name).touch()
    (tmp_path / "vasp").mkdir()
    check_discovery(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputError, match="not of a discovery"):
        check_discovery(tmp_path)
