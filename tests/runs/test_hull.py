"""The bundled hull, and what cfx hull says of a hull."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cfx.config import EvalConfig
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
    assert len(bundled.phases) > 24_000


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
    assert EvalConfig().hull is None


def test_energies_of_the_bundled_hull_are_numbers(bundled):
    assert np.isfinite(bundled.phases.energies).all()
    assert bundled.phases.energies.min() > -15
