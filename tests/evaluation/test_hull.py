"""Distances to the hull, against pymatgen's phase diagram."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition, Lattice, Structure

from cfx.core.elements import SYMBOLS
from cfx.errors import DataError, UsageError
from cfx.evaluation import hull as module
from cfx.evaluation.corrections import correction
from cfx.evaluation.hull import Hull, HullFailure, HullInfo, build_table, missing_phases
from cfx.evaluation.hull_files import read_hull
from cfx.evaluation.phases import Phases, best_mixture, count_atoms, fill, fit_elements, fractions_of, reduce_counts
from cfx.fetch.names import hull_path
from cfx.reporter import Silent

NUMBERS = [3, 8, 26, 65, 83]
"""Elements of the random hull, on both sides of 64."""


def crystal(formula: str) -> Structure:
    """Some structure with all atoms of a formula, far from each other."""
    composition = Composition(formula)
    species = [element for element, n in composition.items() for _ in range(int(n))]
    coords = np.random.default_rng(0).random((len(species), 3))
    return Structure(Lattice.cubic(6 * len(species) ** (1 / 3)), species, coords)


def hull_of(energies: dict[str, float], scale: str = "raw", **info) -> Hull:
    """A hull of formulas with total energies."""
    structures = [crystal(formula) for formula in energies]
    return build_table(structures, list(energies.values()), list(energies), HullInfo("small", scale, **info))


@pytest.fixture(scope="module")
def small() -> Hull:
    return hull_of({"Li": -2.0, "O2": -10.0, "Li2O": -15.0, "Li2O2": -20.0, "LiO2": -12.5, "Fe": -8.0, "Fe4": -31.0})


@pytest.fixture(scope="module")
def random_entries() -> list[PDEntry]:
    """The elements and 250 compounds of two to five of them; formulas may come several times, energies may be high."""
    rng = np.random.default_rng(1)
    reference = dict(zip(NUMBERS, rng.uniform(-9, -1, len(NUMBERS)), strict=True))
    entries = [PDEntry(Composition(SYMBOLS[z]), reference[z]) for z in NUMBERS]
    for size in rng.choice([2, 3, 4, 5], 250, p=[0.4, 0.4, 0.15, 0.05]):
        numbers = rng.choice(NUMBERS, size, replace=False)
        counts = dict(zip(numbers.tolist(), rng.integers(1, 6, size).tolist(), strict=True))
        x = np.array(list(counts.values())) / sum(counts.values())
        gain = (1 - (x**2).sum()) * rng.uniform(-0.1, 1.0)
        per_atom = float(x @ [reference[z] for z in counts]) - gain
        composition = Composition({SYMBOLS[z]: n for z, n in counts.items()})
        entries.append(PDEntry(composition, per_atom * composition.num_atoms))
    return entries


@pytest.fixture(scope="module")
def random_hull(random_entries) -> Hull:
    names = [str(i) for i in range(len(random_entries))]
    compositions = [reduce_counts(count_atoms(entry.composition)) for entry in random_entries]
    energies = [entry.energy_per_atom for entry in random_entries]
    return Hull(Phases.lowest(compositions, energies, names), HullInfo("random", "raw"))


def queries() -> list[dict[int, int]]:
    """500 compositions of one to five elements."""
    rng = np.random.default_rng(2)
    found = []
    for size in rng.integers(1, 6, 500):
        numbers = rng.choice(NUMBERS, size, replace=False).tolist()
        found.append(dict(zip(numbers, rng.integers(1, 9, size).tolist(), strict=True)))
    return found


def test_agrees_with_pymatgen(random_entries, random_hull):
    diagram = PhaseDiagram(random_entries)
    assert 20 < len(diagram.stable_entries) < len(diagram.all_entries) / 2
    for counts in queries():
        composition = Composition({SYMBOLS[z]: n for z, n in counts.items()})
        expected = diagram.get_hull_energy_per_atom(composition)
        assert random_hull.energy_at(counts) == pytest.approx(expected, abs=1e-6), composition


def test_decompositions_are_those_of_pymatgen(random_entries, random_hull):
    diagram = PhaseDiagram(random_entries)
    for counts in queries():
        composition = Composition({SYMBOLS[z]: n for z, n in counts.items()})
        expected = {
            reduce_counts(count_atoms(entry.composition)): share
            for entry, share in diagram.get_decomposition(composition).items()
        }
        mixture = random_hull.mixture_at(counts)
        shares = {random_hull.phases.composition(row): share for row, share in mixture.shares.items()}
        assert shares == pytest.approx(expected, abs=1e-6), composition
        assert sum(shares.values()) == pytest.approx(1, abs=1e-9)


def test_distances_of_the_bundled_hull_are_those_of_pymatgen():
    hull = read_hull(hull_path("chgnet-mp", Silent()))
    numbers = [11, 17, 19, 9, 30]  # Na, Cl, K, F, Zn
    rows = hull.phases.within(numbers)
    entries = [
        PDEntry(Composition({SYMBOLS[z]: n for z, n in composition}), energy * sum(n for _, n in composition))
        for composition, energy in ((hull.phases.composition(row), float(hull.phases.energies[row])) for row in rows)
    ]
    diagram = PhaseDiagram(entries)
    assert len(entries) > 20 and any(diagram.get_e_above_hull(entry) > 0.01 for entry in entries)
    for entry in entries:
        counts = count_atoms(entry.composition)
        height = hull.e_above_hull(entry, entry.energy, hull.scale)
        assert height == pytest.approx(diagram.get_e_above_hull(entry), abs=1e-6)
        expected = {other.composition.reduced_formula: share
                    for other, share in diagram.get_decomposition(entry.composition).items()}  # fmt: skip
        shares = {hull.formula(row): share for row, share in hull.mixture_at(counts).shares.items()}
        assert shares == pytest.approx(expected, abs=1e-6)


def test_mixtures_in_words(small):
    batch = small.evaluate([crystal("Li4O2"), crystal("LiO2"), crystal("LiO4"), None], [-30.0, -12.5, -1, -1], "raw")
    assert batch.decompositions == ["Li2O", "0.5 Li2O + 0.5 O2", "0.7 O2 + 0.3 Li2O", ""]


def test_agrees_with_a_general_solver():
    from scipy.optimize import linprog

    rng = np.random.default_rng(3)
    for k in (1, 2, 3, 5, 8):
        fractions = rng.dirichlet(np.ones(k), 40 * k).T
        gains = rng.uniform(-1, 0, fractions.shape[1])
        points = [*rng.dirichlet(np.ones(k), 5), fractions[:, 0], (fractions[:, 1] + fractions[:, 2]) / 2]
        for x in points:
            expected = linprog(gains, A_ub=fractions, b_ub=x, method="highs").fun
            energy, basis, shares = best_mixture(fractions, gains, x)
            assert energy == pytest.approx(expected, abs=1e-6)
            columns = np.concatenate([np.eye(k), fractions], axis=1)[:, basis]
            np.testing.assert_allclose(columns @ shares, x, atol=1e-6)
            assert np.concatenate([np.zeros(k), gains])[basis] @ shares == pytest.approx(expected, abs=1e-6)


def test_every_phase_of_a_hull_is_on_it_or_above(random_entries, random_hull):
    stable = {reduce_counts(count_atoms(entry.composition)) for entry in PhaseDiagram(random_entries).stable_entries}
    phases, found = random_hull.phases, set()
    for row in range(len(phases)):
        distance = phases.energies[row] - random_hull.energy_at(dict(phases.composition(row)))
        assert distance > -1e-6
        if distance < 1e-6:
            found.add(phases.composition(row))
    assert found == stable


def test_signed_distances(small):
    # Half a Li2O and one and a half O have -15 eV in all, where LiO2 has -12.5.
    assert small.e_above_hull(crystal("Li4O2"), -30.0, "raw") == pytest.approx(0, abs=1e-9)
    assert small.e_above_hull(crystal("Li4O2"), -29.4, "raw") == pytest.approx(0.1)
    assert small.e_above_hull(crystal("Li4O2"), -30.6, "raw") == pytest.approx(-0.1)
    assert small.e_above_hull(crystal("LiO2"), -12.5, "raw") == pytest.approx(2.5 / 3)
    assert small.e_above_hull(crystal("Fe2"), -15.0, "raw") == pytest.approx(0.5)
    assert small.e_above_hull(crystal("FeLi"), -9.0, "raw") == pytest.approx(0.5)


def test_the_lowest_of_a_composition_counts(small):
    assert len(small.phases) == 6
    assert small.phases.terminals[26] == -8.0
    assert small.phases.ids[[small.formula(row) for row in range(6)].index("Fe")] == "Fe"


def test_failures_are_named(small):
    lacking = hull_of({"Li": -2.0, "Li2O": -15.0})
    cases = [
        (lacking, "LiO", -7.0, "no phase of pure O in the hull"),
        (small, "Li2Xe", -7.0, "the hull has no phase with Xe"),
        (small, "KNaO", -7.0, "the hull has no phase with Na, K"),
        (small, "XO", -7.0, "the hull has no phase with X"),
        (small, "Li2O", float("nan"), "no energy"),
        (small, "Li2O", float("-inf"), "no energy"),
    ]
    for hull, formula, energy, reason in cases:
        with pytest.raises(HullFailure, match=f"^{reason}$"):
            hull.e_above_hull(crystal(formula), energy, "raw")


def test_a_batch_keeps_its_order(small):
    structures = [crystal("Li2O"), None, crystal("Xe"), crystal("LiO2"), crystal("Li")]
    batch = small.evaluate(structures, [-14.7, -1.0, -1.0, np.nan, -2.0], "raw")
    np.testing.assert_allclose(batch.e_above_hull, [0.1, np.nan, np.nan, np.nan, 0.0], atol=1e-9)
    assert batch.ok.tolist() == [True, False, False, False, True]
    assert batch.reasons == ["", "no structure", "the hull has no phase with Xe", "no energy", ""]
    assert batch.e_above_hull.dtype == np.float64


def test_a_raw_energy_is_corrected_once_and_no_other():
    corrected = hull_of({"Li": -2.0, "O2": -10.0, "Li2O": -15.0}, "mp2020")
    raw = hull_of({"Li": -2.0, "O2": -10.0, "Li2O": -15.0}, "raw")
    oxide, energy = crystal("Li2O"), -14.0
    assert correction(oxide) == pytest.approx(-0.687)
    assert corrected.e_above_hull(oxide, energy, "mp2020") == pytest.approx(1.0 / 3)
    assert corrected.e_above_hull(oxide, energy, "raw") == pytest.approx((1.0 - 0.687) / 3)
    assert raw.e_above_hull(oxide, energy, "raw") == pytest.approx(1.0 / 3)
    for ask in (lambda: raw.e_above_hull(oxide, energy, "mp2020"), lambda: raw.evaluate([], [], "mp2020")):
        with pytest.raises(UsageError, match="with the raw energies of the hull small"):
            ask()
    with pytest.raises(UsageError, match="unknown scale"):
        raw.e_above_hull(oxide, energy, "pbe")
    with pytest.raises(UsageError, match="unknown scale"):
        HullInfo("name", "MP2020")


def test_what_the_corrections_do_not_cover_fails_alone():
    hull = hull_of({"Zn": -1.0, "Cd": -1.0, "S": -4.0}, "mp2020")
    disordered = Structure(Lattice.cubic(4), [{"Zn": 0.5, "Cd": 0.5}, "S"], [[0] * 3, [0.5] * 3])
    batch = hull.evaluate([disordered, crystal("ZnS")], [-6.0, -6.0], "raw")
    assert batch.reasons == ["the MP2020 corrections do not cover it", ""]
    assert batch.e_above_hull[1] == pytest.approx((-6.0 - 0.503 + 5.0) / 2)


def test_forgotten_systems_come_back(monkeypatch, random_entries, random_hull):
    monkeypatch.setattr(module, "SYSTEMS", 2)
    forgetful = Hull(random_hull.phases, random_hull.info)
    for counts in queries()[:60]:
        assert forgetful.energy_at(counts) == random_hull.energy_at(counts)
        assert len(forgetful._systems) <= 2
    assert len(random_hull._systems) > 2


def test_charges_and_isotopes_count_as_their_element(small):
    charged = crystal("Li2O").add_oxidation_state_by_element({"Li": 1, "O": -2})
    assert small.e_above_hull(charged, -14.7, "raw") == pytest.approx(0.1)
    assert count_atoms(Composition("D2O")) == {1: 2, 8: 1}


def test_a_hull_says_what_it_is(small):
    assert str(small) == "small (PBE, raw, 6 phases)"
    assert str(hull_of({"Li": -2.0}, "mp2020", version="3", potential="chgnet")) == "small 3 (chgnet, mp2020, 1 phases)"


def test_a_table_of_bad_energies_is_refused():
    with pytest.raises(DataError, match="O2 has no energy"):
        hull_of({"Li": -2.0, "O2": float("nan")})
    disordered = Structure(Lattice.cubic(4), [{"Zn": 0.5, "Cd": 0.5}, "S"], [[0] * 3, [0.5] * 3])
    with pytest.raises(DataError, match="x-1 has fractions of atoms"):
        build_table([disordered], [-6.0], ["x-1"], HullInfo("name", "raw"))


def test_missing_phases(small):
    reference = ["Li4O2", "NaCl", "Na2Cl2", "Fe", "FeO"]
    assert missing_phases(small, reference) == ["NaCl", "FeO"]
    assert missing_phases(small, ["O2", "LiO2"]) == []
    assert missing_phases(small, ["Fe0.5O", "Li0.5O", "NaD"]) == ["FeO2", "NaH"]
    with pytest.raises(DataError, match="no formula: '12'"):
        missing_phases(small, ["12"])


def test_reduced_counts():
    assert reduce_counts({8: 6.0, 26: 4.0}) == ((8, 3), (26, 2))
    assert reduce_counts({8: 2, 3: 0}) == ((8, 1),)
    for counts in ({}, {8: 0.5}, {8: -1}, {0: 1}):
        with pytest.raises(ValueError, match="has fractions of atoms"):
            reduce_counts(counts)


def test_corrections_of_raw_energies_as_published():
    """The public program leaves what has no Hubbard term as it is; a corrected energy is left alone anyway."""
    hull = hull_of({"Mg": -1.5, "O2": -10.0, "Fe": -8.0}, "mp2020")
    published = Hull(hull.phases, hull.info, "published")
    for formula, is_corrected in (("MgO", False), ("Fe2O3", True)):
        full, public = (one.e_above_hull(crystal(formula), -30.0, "raw") for one in (hull, published))
        uncorrected = published.e_above_hull(crystal(formula), -30.0, "mp2020")
        assert full < uncorrected - 0.1 and public == pytest.approx(full if is_corrected else uncorrected)
    assert "published corrections" in str(published) and "corrections" not in str(hull)


def reduced(formula: str):
    return reduce_counts(count_atoms(Composition(formula)))


def test_energies_of_elements_are_found_despite_outliers():
    rng = np.random.default_rng(0)
    compositions = [reduced(f"Li{a}O{b}S{c}") for a, b, c in rng.integers(1, 9, (60, 3)).tolist()]
    truth = np.zeros(len(SYMBOLS))
    truth[[3, 8, 16]] = -1.9, 0.4, 2.5
    energies = fractions_of(compositions) @ truth
    energies[::10] += 3.0
    found = fit_elements(compositions, energies)
    assert found == pytest.approx(truth, abs=0.02)
    held = fit_elements(compositions[:1], energies[1:2], prior=np.full(len(SYMBOLS), 7.0))
    assert held[26] == pytest.approx(7.0)  # nothing is said of iron


def test_phases_of_another_potential_are_added_with_its_offsets():
    """Where it is off by so much for each atom of an element, what it adds is exact."""
    off = {"Na": 0.3, "Cl": -1.1, "O": 0.7}
    formulas = ["Na", "Cl", "O", "NaCl", "Na2O", "Na2O2", "NaClO3", "ClO2", "NaClO4", "Cl2O7", "Fe2O3", "FeCl3"]
    theirs = {formula: -float(i) for i, formula in enumerate(formulas)}

    def ours(formula: str) -> float:
        return theirs[formula] + sum(Composition(formula)[symbol] * amount for symbol, amount in off.items())

    other = hull_of(theirs).phases
    own = hull_of({formula: ours(formula) for formula in formulas[:7]}).phases
    filled = fill(own, other, range(len(other)))
    assert (filled.shared, filled.added, filled.lacking) == (7, 3, ["Fe"])
    assert filled.error < 0.01
    found = {filled.phases.composition(row): row for row in range(len(filled.phases))}
    assert set(found) == {reduced(formula) for formula in formulas[:10]}
    for formula in formulas[:10]:
        row = found[reduced(formula)]
        assert filled.phases.energies[row] == pytest.approx(ours(formula) / Composition(formula).num_atoms, abs=1e-3)
        assert filled.phases.origins[row] == ("structure" if formula in formulas[:7] else "offset")
    only = [row for row in range(len(other)) if other.composition(row) == reduced("Cl2O7")]
    assert fill(own, other, only).added == 1
    assert fill(hull_of({"Na": 0.0, "Cl": 0.0}).phases, other, only) is None  # one composition tells nothing
