"""From records to one number for every metric."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Composition, Lattice, Structure

from cfx.evaluation.summary import (
    Thresholds,
    density,
    distribution_distance,
    num_elements,
    scarcity,
    summarize,
    summarize_classes,
    vendi_score,
)

from .crystals import rock_salt

RATES = {
    "avg_structure_validity": 6,
    "avg_comp_validity": 6,
    "avg_comp_validity_without_alloys": 4,
    "avg_structure_comp_validity": 5,
    "frac_unique_structures": 6,
    "frac_novel_structures": 6,
    "frac_novel_unique_structures": 5,
    "frac_stable_structures": 5,
    "frac_novel_unique_stable_structures": 3,
    "frac_on_hull_structures": 3,
    "frac_novel_unique_on_hull_structures": 2,
    "frac_below_floor_structures": 0,
    "frac_space_group_as_asked": 1,
}
"""How many of RECORDS count."""

OTHERS = {
    "num_compositions",
    "vendi_compositions",
    "avg_hhi_production",
    "avg_hhi_reserve",
    "avg_energy_above_hull_per_atom",
    "avg_rmsd_from_relaxation",
    "avg_energy_above_hull_change_per_atom",
    "frac_space_group_changed",
    "frac_relaxation_converged",
    "wdist_density",
    "wdist_num_elements",
    "coverage_recall",
    "coverage_precision",
}


def row(**known) -> dict:
    """A good crystal, but for what is said."""
    good = {
        "valid_structure": True,
        "valid_composition": True,
        "valid_composition_without_alloys": True,
        "class": "charge-neutral",
        "formula": "NaCl",
        "hhi_production": 1000.0,
        "unique": True,
        "novel": True,
        "e_above_hull": -0.01,
        "rmsd_to_relaxed": 0.1,
        "space_group": 225,
        "space_group_asked": None,
        "density": 2.0,
        "num_elements": 2,
    }
    return good | known


UNREADABLE = row(
    valid_structure=False,
    valid_composition=False,
    valid_composition_without_alloys=False,
    **{"class": None},
    formula=None,
    hhi_production=None,
    unique=False,
    novel=False,
    e_above_hull=None,
    rmsd_to_relaxed=None,
    space_group=None,
    density=None,
    num_elements=None,
)

RECORDS = [
    row(),
    row(unique=False),
    row(
        novel=False,
        e_above_hull=0.05,
        valid_composition_without_alloys=False,
        formula="Fe3Al",
        **{"class": "intermetallic"},
    ),
    row(e_above_hull=0.1, valid_composition=False, valid_composition_without_alloys=False, density=100.0),
    row(e_above_hull=0.3, rmsd_to_relaxed=None, num_elements=4),
    row(e_above_hull=None, valid_structure=False, valid_composition_without_alloys=None),
    row(e_above_hull=0.0, space_group_asked=225),
    UNREADABLE | {"space_group_asked": 1},
]


def counts(summary: dict) -> dict:
    return {name: metric["count"] for name, metric in summary.items() if metric and "count" in metric}


def test_all_names_are_there():
    assert set(summarize(RECORDS)) == set(RATES) | OTHERS


def test_rates_are_over_all_rows():
    summary = summarize(RECORDS)
    assert counts(summary) == RATES
    assert {metric["of"] for name, metric in summary.items() if name in counts(summary)} == {8, 2}
    assert summary["frac_space_group_as_asked"]["of"] == 2
    stable = summary["frac_stable_structures"]
    assert stable["value"] == 5 / 8 and stable["low"] < 5 / 8 < stable["high"]


def test_means_are_over_rows_with_a_value():
    summary = summarize(RECORDS)
    energy = summary["avg_energy_above_hull_per_atom"]
    assert energy["value"] == pytest.approx((-0.01 - 0.01 + 0.05 + 0.1 + 0.3 + 0.0) / 6)
    assert energy["of"] == 6 and energy["unit"] == "eV/atom" and energy["error"] > 0
    assert summary["avg_rmsd_from_relaxation"]["of"] == 6
    assert summary["avg_rmsd_from_relaxation"]["unit"] == "angstrom"


def test_what_relaxing_changed():
    before = {"e_above_hull_unrelaxed": 0.5, "space_group": 221}
    records = [
        row(e_above_hull=0.1, space_group_relaxed=221, converged=True, **before),
        row(e_above_hull=0.2, space_group_relaxed=99, converged=False, **before),
        row(e_above_hull=None, space_group_relaxed=None, converged=None, **before),
    ]
    summary = summarize(records)
    change = summary["avg_energy_above_hull_change_per_atom"]
    assert change["value"] == pytest.approx(-0.35) and (change["of"], change["unit"]) == (2, "eV/atom")
    changed, converged = summary["frac_space_group_changed"], summary["frac_relaxation_converged"]
    assert (changed["count"], changed["of"]) == (1, 2)  # of those that were relaxed
    assert (converged["count"], converged["of"]) == (1, 3)  # one that could not be relaxed did not converge


def test_thresholds_are_as_given_and_rounding_is_no_height():
    records = [row(e_above_hull=1e-12), row(e_above_hull=0.02), row(e_above_hull=0.03)]
    assert counts(summarize(records, Thresholds(stable=0.02)))["frac_stable_structures"] == 2
    assert counts(summarize(records))["frac_on_hull_structures"] == 1
    assert counts(summarize(records, Thresholds(on_hull=0.025)))["frac_on_hull_structures"] == 2


def test_below_the_floor_is_neither_stable_nor_new_and_stable():
    heights = [-0.2, -0.2 - 1e-12, -0.21, -1.2, 0.05, 0.3, None]
    records = [row(e_above_hull=height) for height in heights]
    found = counts(summarize(records))
    assert found["frac_on_hull_structures"] == found["frac_novel_unique_on_hull_structures"] == 2
    assert found["frac_stable_structures"] == found["frac_novel_unique_stable_structures"] == 3
    assert found["frac_below_floor_structures"] == 2
    assert summarize(records)["frac_below_floor_structures"]["of"] == 7
    assert counts(summarize(records, Thresholds(floor=-1.5)))["frac_on_hull_structures"] == 4


def test_verdicts():
    heights = [-0.21, -0.2, 0.0, 1e-9, 0.05, 0.1, 0.11]
    assert [Thresholds().verdict(height) for height in heights] == [
        "below the floor", "stable", "stable", "stable", "metastable", "metastable", "unstable",
    ]  # fmt: skip


def test_what_was_not_evaluated_is_none():
    bare = [{"valid_structure": True, "unique": True}, {"valid_structure": False, "unique": False}]
    summary = summarize(bare)
    assert {name for name, metric in summary.items() if metric} == {"avg_structure_validity", "frac_unique_structures"}
    known = [one | {"e_above_hull": 0.0} for one in bare]
    assert summarize(known)["frac_stable_structures"]["count"] == 2
    assert summarize(known)["frac_novel_unique_stable_structures"] is None  # no reference


def test_a_hull_that_fails_for_one_row_counts_against_it():
    records = [row(), row(e_above_hull=None)]
    assert summarize(records)["frac_stable_structures"]["value"] == 0.5


def test_rates_by_class():
    classes = summarize_classes(RECORDS)
    assert list(classes) == ["intermetallic", "charge-neutral"]
    share = {kind: (one["frac_of_crystals"]["count"], one["frac_of_crystals"]["of"]) for kind, one in classes.items()}
    assert share == {"intermetallic": (1, 8), "charge-neutral": (6, 8)}
    assert classes["intermetallic"]["frac_stable_structures"]["count"] == 1
    assert classes["intermetallic"]["frac_novel_unique_stable_structures"]["count"] == 0
    neutral = classes["charge-neutral"]["frac_stable_structures"]
    assert (neutral["count"], neutral["of"]) == (4, 6)
    assert summarize_classes([UNREADABLE]) == {}


def test_vendi_score_is_that_of_the_similarity_matrix():
    formulas = {"NaCl": 3, "KCl": 1, "Fe3Al": 2, "FeAl": 5, "Si": 1}
    vectors = []
    for formula, count in formulas.items():
        vector = np.zeros(119)
        for element, amount in Composition(formula).items():
            vector[element.Z] = amount
        vectors += [vector / np.linalg.norm(vector)] * count
    eigenvalues = np.linalg.eigvalsh(np.array(vectors) @ np.array(vectors).T / len(vectors))
    expected = np.exp(-sum(one * np.log(one) for one in eigenvalues if one > 1e-12))
    assert vendi_score(formulas) == pytest.approx(expected)
    assert vendi_score({"NaCl": 7}) == pytest.approx(1) and vendi_score({"Si": 2, "NaCl": 2}) == pytest.approx(2)


def test_diversity():
    summary = summarize(RECORDS)
    assert (summary["num_compositions"]["value"], summary["num_compositions"]["of"]) == (2, 7)
    assert 1 < summary["vendi_compositions"]["value"] < 2
    assert summary["avg_hhi_production"]["value"] == 1000.0


def test_scarcity_is_a_mean_by_mass():
    from pymatgen.analysis.hhi import HHIModel

    of = HHIModel().symbol_hhip_hhir
    expected = [(22.98977 * of["Na"][i] + 35.453 * of["Cl"][i]) / (22.98977 + 35.453) for i in range(2)]
    assert scarcity(rock_salt()) == pytest.approx(expected, rel=1e-4)
    assert scarcity(None) == (None, None)


def test_no_rows():
    assert set(summarize([]).values()) == {None}


def test_distances_are_over_valid_rows():
    summary = summarize(RECORDS, reference={"density": [3.0, 3.0], "num_elements": [2, 3]})
    assert summary["wdist_density"] == {"value": pytest.approx(1.0), "unit": "g/cm3", "of": 5}
    assert summary["wdist_num_elements"]["of"] == 5
    # 2 2 2 2 4 against 2 3: quantiles differ by 0 up to a half, by 1 after it.
    assert summary["wdist_num_elements"]["value"] == pytest.approx(0.3 * 1 + 0.2 * 1)


def test_distances_of_known_distributions():
    assert distribution_distance([0, 1, 3], [5, 6, 8]) == pytest.approx(5)
    assert distribution_distance([1, 2], [2, 1]) == 0
    assert distribution_distance([], [1]) is None and distribution_distance([1], []) is None


def test_density_and_elements():
    assert density(rock_salt()) == pytest.approx(4 * 58.44 * 1.66054 / 5.64**3, rel=1e-3)
    assert num_elements(rock_salt()) == 2
    alloy = Structure(Lattice.cubic(3), [{"Fe": 0.5, "Co": 0.5}], [[0, 0, 0]])
    assert num_elements(alloy) == 2
    assert density(None) is None and num_elements(None) is None
    assert density(Structure(Lattice.cubic(0.1), ["Fe"], [[0, 0, 0]])) is None


TWO = [
    row(second_e_above_hull=0.0),  # stable by both
    row(second_e_above_hull=0.05),  # stable, metastable
    row(e_above_hull=0.08, second_e_above_hull=0.3, novel=False),  # metastable, unstable
    row(e_above_hull=0.05, second_e_above_hull=-0.5),  # metastable, below the floor
    row(e_above_hull=0.06, second_e_above_hull=0.09, unique=False),  # metastable by both
    row(second_e_above_hull=None),  # the second one does not know it
]
"""As two potentials see crystals."""


def test_what_two_potentials_agree_on():
    summary = summarize(TWO)
    counts = {name: value["count"] for name, value in summary.items() if name.startswith("frac_confirmed")}
    assert counts == {
        "frac_confirmed_stable_structures": 3,
        "frac_confirmed_novel_unique_stable_structures": 2,
        "frac_confirmed_on_hull_structures": 1,
        "frac_confirmed_novel_unique_on_hull_structures": 1,
    }
    assert all(summary[name]["of"] == 6 for name in counts)
    assert summary["frac_stable_structures"]["count"] == 6  # by the first alone
    differ = summary["frac_verdicts_differ"]
    assert (differ["count"], differ["of"]) == (3, 5)
    differences = [0.01, 0.06, 0.22, -0.55, 0.03]
    assert summary["median_abs_e_above_hull_difference"] == {"value": pytest.approx(0.06), "unit": "eV/atom", "of": 5}
    assert summary["avg_e_above_hull_difference"]["value"] == pytest.approx(np.mean(differences))
    assert summary["avg_abs_e_above_hull_difference"]["value"] == pytest.approx(np.mean(np.abs(differences)))
    # Ranks 1.5, 1.5, 5, 3, 4 and 2, 3, 5, 1, 4.
    ranks = np.corrcoef([1.5, 1.5, 5, 3, 4], [2, 3, 5, 1, 4])[0, 1]
    assert summary["rank_correlation_e_above_hull"] == {"value": pytest.approx(ranks), "unit": "", "of": 5}


def test_means_of_differences_leave_out_crystals_that_neither_calls_metastable():
    """Of overlapping atoms one says 0.4 eV/atom and the other a million."""
    overlapping = row(e_above_hull=0.4, second_e_above_hull=1e6)
    collapsed = row(e_above_hull=0.4, second_e_above_hull=-50.0)
    summary, without = summarize([*TWO, overlapping, collapsed]), summarize(TWO)
    for name in ("avg_e_above_hull_difference", "avg_abs_e_above_hull_difference"):
        assert summary[name] == without[name]
    assert summary["frac_verdicts_differ"]["of"] == summary["median_abs_e_above_hull_difference"]["of"] == 7


def test_without_a_second_potential_nothing_is_confirmed():
    assert not any("confirmed" in name or "differ" in name for name in summarize([row(), row()]))


def test_a_second_potential_that_knows_nothing_confirms_nothing():
    summary = summarize([row(second_e_above_hull=None)])
    assert summary["frac_confirmed_stable_structures"] is None and summary["frac_verdicts_differ"] is None
    assert summary["rank_correlation_e_above_hull"] is None and summary["avg_e_above_hull_difference"] is None
    one = summarize(TWO[:1])
    assert one["frac_confirmed_stable_structures"]["count"] == 1
    assert one["rank_correlation_e_above_hull"] is None  # one crystal has no rank
