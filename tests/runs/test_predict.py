"""What a prediction does with draws and minima, what it may spend, and what a resumed run does not compute again."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cfx import encode
from cfx.config import PredictConfig
from cfx.core.known_prototypes import prototypes_of
from cfx.errors import OutputError, UsageError
from cfx.io.journal import JsonLines
from cfx.runs.candidates import Candidate, _choose, _fits, _is_fixed, distinct
from cfx.runs.predictions import ENERGY_ERROR, Minimum, check_predictions, merge, ranked
from cfx.runs.steps import WORTHWHILE, Budget, Steps


def perovskite(a: float, c: float | None = None) -> Structure:
    coords = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return Structure(Lattice.tetragonal(a, c or a), ["Sr", "Ti", "O", "O", "O"], coords)


WURTZITE = Structure.from_spacegroup(
    "P6_3mc", Lattice.hexagonal(3.2, 5.2), ["Ga", "N"], [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.375]]
)
ZINCBLENDE = Structure.from_spacegroup("F-43m", Lattice.cubic(4.5), ["Ga", "N"], [[0, 0, 0], [0.25] * 3])


@pytest.mark.parametrize(
    ("text", "evaluations", "seconds"),
    [("2000", 2000, None), (300, 300, None), ("90s", None, 90), ("1.5min", None, 90), ("2 h", None, 7200)],
)
def test_a_budget_is_of_evaluations_or_of_time(text, evaluations, seconds):
    config = PredictConfig(budget=text)
    assert (config.evaluations, config.seconds) == (evaluations, seconds)


def test_few_draws_have_a_small_budget():
    assert [PredictConfig(draws=draws).evaluations for draws in (1, 20, 50, 200)] == [400, 800, 2000, 2000]
    assert PredictConfig(draws=1, budget="90s").evaluations is None


@pytest.mark.parametrize("text", ["", "0", "0min", "-5", "10 days", "1.5", "min", "1e3"])
def test_what_is_no_budget(text):
    with pytest.raises(UsageError, match="is not a budget"):
        PredictConfig(budget=text)


def test_the_hull_that_goes_without_saying():
    assert PredictConfig().hull == "chgnet-mp"
    assert PredictConfig(hull="none").hull is None
    assert PredictConfig(potential="orb").hull is None
    with pytest.raises(UsageError, match="hull"):
        PredictConfig(hull="none", hull_scale="raw")


def test_evaluations_never_exceed_the_budget():
    budget = Budget(evaluations=1000, seconds=None)
    for share in (0.5, 1.0):
        while (batch := budget.next_batch(7, 50, share))[0]:
            structures, steps = batch
            assert 1 <= structures <= 7 and 1 <= steps <= 50
            budget.charge({"evaluations": structures * (steps + 1), "seconds": 1.0})
        assert 1000 * share - WORTHWHILE < budget.spent <= 1000 * share
    assert Budget(evaluations=40, seconds=None).next_batch(7, 500) == (1, 39)


def test_a_time_is_shared_too():
    budget = Budget(None, 10.0, took=4.0)
    assert (budget.left(), budget.next_batch(7, 5, 0.5), budget.next_batch(7, 5, 0.4)) == (6.0, (7, 5), (0, 0))


def test_repeated_draws_are_counted_and_other_arrangements_are_kept():
    draws = [Candidate(perovskite(a), 221, -a, {"model": 1}) for a in (3.9, 4.0, 4.1, 3.95)]
    kept = distinct(draws, ["one", "one", "other", "one"])
    assert [(one.structure.lattice.a, one.draws) for one in kept] == [(3.9, {"model": 3}), (4.1, {"model": 1})]


def test_a_likelier_draw_of_another_volume_does_not_stand_for_a_good_one():
    draws = [Candidate(perovskite(a), 221, -a, {"model": 1}) for a in (5.5, 3.9, 4.0, 5.6, 4.6)]
    kept = distinct(draws, ["one"] * 5)
    assert [one.structure.lattice.a for one in kept] == [5.5, 3.9, 4.6]
    assert [one.draws["model"] for one in kept] == [2, 2, 1]


def test_merged_by_structure_and_the_most_symmetric_of_those_that_tie():
    tetragonal = Minimum(perovskite(3.9, 3.93), -8.4004, frozenset({0}), True)
    cubic = Minimum(perovskite(3.91), -8.4, frozenset({1, 2}), True)
    higher = Minimum(perovskite(3.91) * (2, 1, 1), -8.38, frozenset({3}))
    strained = Minimum(perovskite(4.4), -8.2, frozenset({4}))  # matches too, but is another point of the energy
    for order in ([tetragonal, cubic, higher, strained], [strained, higher, cubic, tetragonal]):
        first, second = merge(order)
        assert first.structure is cubic.structure and first.members == {0, 1, 2, 3} and first.converged
        assert second.structure is strained.structure
    apart = Minimum(tetragonal.structure, -8.402, frozenset({0}))
    assert merge([apart, cubic])[0].structure is apart.structure


def test_candidates_are_chosen_by_weight_each_once_and_with_a_cell():
    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    crystals = encode([salt]).batch[np.zeros(200, int)]
    crystals.lattice[:50, 3:] = [10, 10, 170]
    weights = np.full(200, 1e-6)
    weights[[0, 60, 70, 80]] = 1.0
    posterior = SimpleNamespace(crystals=crystals, log_weights=np.log(weights / weights.sum()))
    assert _choose(posterior, 3, seed=0).tolist() == [60, 70, 80]
    more = _choose(posterior, 20, seed=0)
    assert len(set(more)) == 20 and {60, 70, 80} < set(more) and more.min() >= 50
    assert len(_choose(posterior, 1000, seed=0)) == 150
    assert _choose(posterior, 20, seed=1).tolist() != more.tolist()


def test_prototypes_within_limits():
    [spinel, *_] = prototypes_of("MgAl2O4", [227])  # 56 atoms in the conventional cell
    limits = [{}, {"max_atoms": 56}, {"max_atoms": 55}, {"max_sites": 3}, {"max_sites": 2}]
    assert [_fits(spinel, PredictConfig(**one)) for one in limits] == [True, True, False, True, False]
    assert not _is_fixed(spinel) and _is_fixed(prototypes_of("NaCl", [225])[0])


class ByElement:
    """A hull that has GaN at -6 eV/atom."""

    def evaluate(self, structures, energies, scale):
        from cfx.evaluation.hull import HullBatch

        heights = [energy / len(one) + 6.0 for one, energy in zip(structures, energies, strict=True)]
        return HullBatch(reasons=[""] * len(heights), e_above_hull=heights, decompositions=["GaN"] * len(heights))


class Named:
    name, scale = "test", "raw"


def test_ranked_by_energy_with_what_is_below_the_floor_last():
    candidates = [Candidate(WURTZITE, 186, -10.0, {"model": 3}), Candidate(ZINCBLENDE, 216, -12.0, {"prototype": 1})]
    rocksalt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.2), ["Ga", "N"], [[0, 0, 0], [0.5] * 3])
    minima = [
        Minimum(rocksalt, -6.9, frozenset({1})),
        Minimum(ZINCBLENDE, -5.99, frozenset({1})),
        Minimum(WURTZITE, -6.0, frozenset({0, 1}), True),
    ]
    found = ranked("GaN", minima, candidates, Named(), ByElement(), PredictConfig())
    assert [(one.rank, one.symbol, one.verdict) for one in found] == [
        (1, "P6_3mc", "stable"), (2, "F-43m", "metastable"), (3, "Fm-3m", "below the floor")]  # fmt: skip
    best = found[0]
    # Structures below the floor have no probability; the others by draws and energies.
    assert sum(one.probability for one in found[:2]) == pytest.approx(1) and found[2].probability == 0
    odds = 4 / sum(found[1].draws.values()) * math.exp((found[1].energy_per_atom + 6.0) / ENERGY_ERROR)
    assert best.probability / found[1].probability == pytest.approx(odds)
    assert best.draws == {"model": 3, "prototype": 1} and (best.space_group_drawn, best.log_prob) == (186, -10.0)
    assert (best.num_sites, best.num_atoms, best.converged) == (2, 4, True)
    assert Structure.from_str(best.cif, fmt="cif").matches(WURTZITE)
    assert json.loads(json.dumps(best.as_json()))["decomposition"] == "GaN"
    assert len(ranked("GaN", minima, candidates, Named(), ByElement(), PredictConfig(top=1))) == 1
    by_probability = PredictConfig(sort="probability")
    drawn_often = [candidates[0], dataclasses.replace(candidates[1], draws={"model": 9})]
    apart = [*minima[:2], dataclasses.replace(minima[2], members=frozenset({0}))]  # 9 draws of one 10 meV/atom higher
    likely = ranked("GaN", apart, drawn_often, Named(), ByElement(), by_probability)
    assert [(one.rank, one.symbol) for one in likely] == [(1, "F-43m"), (2, "P6_3mc"), (3, "Fm-3m")]
    assert ranked("GaN", apart, drawn_often, Named(), ByElement(), PredictConfig())[1].probability == max(
        one.probability for one in likely
    )
    without = ranked("GaN", minima, candidates, Named(), None, PredictConfig())
    assert without[0].symbol == "Fm-3m" and without[0].e_above_hull is None and without[0].verdict is None


def test_steps_of_a_resumed_run_are_read(tmp_path):
    path = tmp_path / "out.partial"
    made = []

    def make(value: float):
        def function():
            made.append(value)
            return {"value": value}

        return function

    steps = Steps(JsonLines(path), {"seed": 0}, resume=False)
    first = [steps.take("a", make(0.1)), steps.take("b", make(1 / 3))]
    with open(path, "a") as file:
        file.write('{"step": "c", "val')  # as a kill leaves it
    steps = Steps(JsonLines(path), {"seed": 0}, resume=True)
    assert [steps.take("a", make(9)), steps.take("b", make(9))] == first and made == [0.1, 1 / 3]
    assert steps.take("c", make(2.0))["value"] == 2.0
    assert len(path.read_text().splitlines()) == 4
    with pytest.raises(UsageError, match=r"different settings \(seed\)"):
        Steps(JsonLines(path), {"seed": 1}, resume=True)


def test_a_directory_of_other_files_is_not_overwritten(tmp_path):
    (tmp_path / "predictions.csv").touch()
    (tmp_path / "Sr(NO3)2_01.cif").touch()
    check_predictions(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputError, match="not predictions"):
        check_predictions(tmp_path)
