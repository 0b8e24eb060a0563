"""The bundled hull, and what cfx hull says of a hull."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition, Element, Lattice, Structure

from cfx.config import EvalConfig
from cfx.core.elements import SYMBOLS
from cfx.errors import DataError
from cfx.evaluation.hull import HullInfo, build_table
from cfx.evaluation.hull_files import read_hull
from cfx.fetch.names import hull_path
from cfx.predictors.base import other_method
from cfx.reporter import Mute
from cfx.runs.hull import describe, read_formulas, without_terminal


@pytest.fixture(scope="module")
def bundled():
    return read_hull(hull_path("chgnet-mp", Mute()))


def test_every_element_of_the_bundled_hull_has_a_phase_of_its_own(bundled):
    assert bundled.scale == "mp2020"
    assert without_terminal(bundled) == []
    assert len(bundled.phases.terminals) == 89
    assert len(bundled.phases) > 45_000
    assert set(bundled.phases.origins) == {"structure", "composition", "substitution"}


def test_the_bundled_hull_of_another_potential_has_the_same_phases(bundled):
    """By 7net-0, on the same scale, so that both may be compared with published energies."""
    other = read_hull(hull_path("7net-mp", Mute()))
    assert other.scale == bundled.scale and other.info.potential == "ase sevenn.calculator:SevenNetCalculator"
    assert without_terminal(other) == []
    assert [other.phases.composition(row) for row in range(0, len(other.phases), 500)] == [
        bundled.phases.composition(row) for row in range(0, len(bundled.phases), 500)
    ]
    assert set(other.phases.origins) == {"structure", "composition", "offset"}
    difference = other.phases.energies - bundled.phases.energies
    assert 0.001 < np.median(np.abs(difference)) < 0.03
    assert abs(np.median(difference)) < 0.02


OXIDES = {"CaO": (4.81, 0), "ScO": (4.45, 0.05), "YO": (4.88, 0.1), "GaO": (4.6, 0.3), "LaO": (5.15, 0.05)}
"""Rock salts: lattice parameter (angstrom) and least E_hull. All but CaO lose against their sesquioxides."""
HALIDES = {"KF": (5.34, 0), "RbF": (5.65, 0), "LiCl": (5.13, 0), "MgF": (4.6, 0.5), "ZnCl": (5.4, 0.3)}


@pytest.fixture(scope="module")
def rock_salts(bundled) -> dict[str, float]:
    """Formula -> energy above the bundled hull, eV/atom, by CHGNet."""
    pytest.importorskip("chgnet")
    from cfx.predictors.load import load_potential

    wanted = OXIDES | HALIDES
    crystals = [
        Structure.from_spacegroup(
            "Fm-3m", Lattice.cubic(a), [str(one) for one in Composition(formula)], [[0] * 3, [0.5] * 3]
        )
        for formula, (a, _) in wanted.items()
    ]
    energies = load_potential("chgnet").evaluate(crystals, forces=False).energy
    return dict(zip(wanted, bundled.evaluate(crystals, energies, "mp2020").e_above_hull, strict=True))


@pytest.mark.parametrize("formula", [*OXIDES, *HALIDES])
def test_rock_salts_that_have_competitors_are_not_stable(rock_salts, formula):
    """Where the sesquioxide or dihalide was missing, they lay 1 to 3 eV/atom below the hull."""
    least = (OXIDES | HALIDES)[formula][1]
    assert abs(rock_salts[formula]) < 0.02 if least == 0 else rock_salts[formula] > least


@pytest.mark.skipif("CFX_DATA" not in os.environ, reason="needs mp_near_hull.csv.gz under CFX_DATA")
def test_the_bundled_hull_lacks_no_phase_of_the_list():
    """31,071 compositions that the Materials Project has within 0.025 eV/atom of its hull."""
    listed = Path(os.environ["CFX_DATA"]) / "mp_near_hull.csv.gz"
    assert describe("chgnet-mp", None, listed, Mute())["missing"] == []


def test_distances_to_the_bundled_hull_are_those_of_pymatgen(bundled):
    rng = np.random.default_rng(0)
    for system in ["Ca-O", "Y-O", "Cs-Zn-F", "Fe-Li-O-P", "Al-Cu-Ni", "Cl-K-Mg"]:
        numbers = sorted(Element(symbol).Z for symbol in system.split("-"))
        diagram = PhaseDiagram([to_entry(bundled, row) for row in bundled.phases.within(numbers)])
        for counts in rng.integers(1, 7, (20, len(numbers))).tolist():
            composition = Composition(dict(zip([SYMBOLS[z] for z in numbers], counts, strict=True)))
            expected = diagram.get_hull_energy_per_atom(composition)
            assert bundled.energy_at(dict(zip(numbers, counts, strict=True))) == pytest.approx(expected, abs=1e-6)


def to_entry(hull, row: int) -> PDEntry:
    composition = Composition({SYMBOLS[z]: n for z, n in hull.phases.composition(row)})
    return PDEntry(composition, composition.num_atoms * hull.phases.energies[row])


def test_the_bundled_hull_is_that_of_chgnet(bundled):
    """Rock salt, evaluated anew: on the hull within the rounding of a potential."""
    pytest.importorskip("chgnet")
    from cfx.predictors.load import load_potential

    potential = load_potential("chgnet")
    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.692), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    squeezed = salt.copy()
    squeezed.scale_lattice(salt.volume * 0.8)
    energies = potential.evaluate([salt, squeezed], forces=False).energy
    near, far = bundled.evaluate([salt, squeezed], energies, potential.scale).e_above_hull
    assert abs(near) < 0.01
    assert far > 0.05


def test_elements_without_a_pure_phase_are_named():
    salt = Structure(Lattice.cubic(3), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    sodium = Structure(Lattice.cubic(3), ["Na"], [[0, 0, 0]])
    hull = build_table([salt, sodium], [-6.0, -1.0], ["salt", "sodium"], HullInfo("two", "raw"))
    assert without_terminal(hull) == ["Cl"]


@pytest.mark.parametrize("column", ["formula", "pretty_formula", "formula_pretty"])
def test_formulas_of_a_list_by_any_of_their_names(tmp_path, column):
    (tmp_path / "list.csv").write_text(f"id,{column}\n1,NaCl\n2,Fe2O3\n3,UnUn\n")
    assert read_formulas(tmp_path / "list.csv") == ["NaCl", "Fe2O3", "UnUn"]
    (tmp_path / "other.csv").write_text("id,what\n1,NaCl\n")
    with pytest.raises(DataError, match="no column `formula`"):
        read_formulas(tmp_path / "other.csv")


def test_phases_that_the_bundled_hull_lacks(tmp_path):
    (tmp_path / "list.csv").write_text("formula\nNaCl\nNa3Cl\n")
    assert describe("chgnet-mp", None, tmp_path / "list.csv", Mute())["missing"] == ["Na3Cl"]


@pytest.mark.parametrize(
    "name, apart",
    [
        ("orb-models 0.5.5 (orb-v3-conservative-inf-mpa)", False),
        ("orb-models 0.5.5 (orb-v3-conservative-inf-omat)", True),
        ("orb-models 0.5.5 (orb-d3-v2)", True),
        ("matgl 4.1.2 (TensorNet-MatPES-r2SCAN-v2025.1-PES)", True),
        ("chgnet 0.4.2 (0.3.0)", False),
    ],
)
def test_models_of_other_methods_are_told_apart(name, apart):
    assert (other_method(name) is not None) == apart


def test_chgnet_is_judged_on_its_own_hull_unless_another_is_named():
    assert EvalConfig(potential="chgnet").hull == "chgnet-mp"
    assert EvalConfig(potential="chgnet", hull="none").hull is None
    assert EvalConfig(potential="chgnet", hull="mine.npz").hull == "mine.npz"
    assert EvalConfig(potential="orb").hull is None
    sevennet = "ase:sevenn.calculator:SevenNetCalculator"
    assert (
        EvalConfig(potential=sevennet).hull
        == EvalConfig(potential="chgnet", second_potential=sevennet).second_hull
        == "7net-mp"
    )
    assert EvalConfig(potential=sevennet, hull="none").hull is None
    assert EvalConfig().hull is None


def test_energies_of_the_bundled_hull_are_numbers(bundled):
    assert np.isfinite(bundled.phases.energies).all()
    assert bundled.phases.energies.min() > -15
