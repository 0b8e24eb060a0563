"""MP2020 corrections of a raw energy, and the oxidation states they go by."""

from __future__ import annotations

import csv
import gzip
import os
import random
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedStructureEntry

from cfx.evaluation.corrections import correct, correction, hubbard_values, likeliest_states

CUBIC, HEXAGONAL = Lattice.cubic, Lattice.hexagonal


def antifluorite(a: float, small: str, large: str) -> Structure:
    return Structure.from_spacegroup("Fm-3m", CUBIC(a), [small, large], [[0.25] * 3, [0] * 3])


def rutile(metal: str, anion: str) -> Structure:
    lattice = Lattice.tetragonal(4.70, 3.18)
    return Structure.from_spacegroup("P4_2/mnm", lattice, [metal, anion], [[0, 0, 0], [0.306, 0.306, 0]])


def dioxygen(metal: str, a: float, c: float, bond: float) -> Structure:
    """The structure of CaC2 with pairs of oxygen along z, `bond` apart (angstrom)."""
    z = 0.5 - bond / 2 / c
    return Structure.from_spacegroup("I4/mmm", Lattice.tetragonal(a, c), [metal, "O"], [[0, 0, 0], [0, 0, z]])


HEMATITE = Structure.from_spacegroup("R-3c", HEXAGONAL(5.04, 13.75), ["Fe", "O"], [[0, 0, 0.355], [0.306, 0, 0.25]])
MUSTARD = Structure.from_spacegroup("Fm-3m", CUBIC(5.2), ["Fe", "S"], [[0] * 3, [0.5] * 3])
CASES = {
    "oxide": (antifluorite(4.62, "Li", "O"), 4 * -0.687),
    "oxide of a metal with U": (HEMATITE, 12 * -2.256 + 18 * -0.687),
    "fluoride of a metal with U": (rutile("Co", "F"), 2 * -1.638 + 4 * -0.462),
    "oxide of a metal without U": (rutile("Ti", "O"), 4 * -0.687),
    "sulphide of the same metal": (MUSTARD, 4 * -0.503),
    "chloride of the same metal": (rutile("Fe", "Cl"), 4 * -0.614),
    "peroxide": (dioxygen("Ba", 3.81, 6.84, 1.49), 4 * -0.465),
    "superoxide": (dioxygen("K", 4.03, 6.70, 1.28), 4 * -0.161),
    "the same formula, pairs broken": (dioxygen("K", 4.03, 6.70, 2.4), 4 * -0.687),
    "anion with a third of a charge": (Structure(CUBIC(9), ["Na", "N", "N", "N"], np.eye(4, 3) / 2), 0.0),
    "metal": (Structure(CUBIC(2.87), ["Fe", "Fe"], [[0] * 3, [0.5] * 3]), 0.0),
    "alloy": (Structure(CUBIC(2.9), ["Fe", "Al"], [[0] * 3, [0.5] * 3]), 0.0),
    "element that is an anion elsewhere": (Structure(CUBIC(5), ["O", "O"], [[0] * 3, [0.24, 0, 0]]), 0.0),
}


@pytest.mark.parametrize("name", CASES)
def test_known_corrections(name):
    structure, expected = CASES[name]
    assert correction(structure) == pytest.approx(expected, abs=1e-9)
    assert correct(structure, -7.5) == pytest.approx(-7.5 + expected, abs=1e-9)


@pytest.mark.parametrize(
    ("structure", "parameters"),
    [
        (HEMATITE, {"run_type": "GGA+U", "hubbards": {"Fe": 5.3, "O": 0.0}, "potcar_symbols": ["PBE Fe_pv", "PBE O"]}),
        (rutile("Co", "F"), {"run_type": "GGA+U", "hubbards": {"Co": 3.32}, "potcar_symbols": ["PBE Co", "PBE F"]}),
        (MUSTARD, {"run_type": "GGA", "hubbards": {}, "potcar_symbols": ["PBE Fe_pv", "PBE S"]}),
    ],
    ids=lambda value: value.formula if isinstance(value, Structure) else "",
)
def test_as_an_entry_of_materials_project(structure, parameters):
    """The whole scheme, checks of potentials included, on an entry as Materials Project's interface gives them."""
    entry = ComputedStructureEntry(structure, -20.0, parameters=parameters, entry_id="mp-1")
    processed = MaterialsProject2020Compatibility().process_entry(entry, on_error="raise")
    assert processed.correction != 0
    assert correct(structure, -20.0) == pytest.approx(processed.energy, abs=1e-9)


def test_only_oxygen_and_fluorine_bring_a_hubbard_term():
    assert hubbard_values(Composition("Fe2O3")) == {"Fe": 5.3}
    assert hubbard_values(Composition("LiCoF3")) == {"Co": 3.32}
    assert hubbard_values(Composition("FeClO")) == {"Fe": 5.3}
    assert hubbard_values(Composition("FeCl3")) == {}
    assert hubbard_values(Composition("Cu2O")) == {}
    assert hubbard_values(Composition("Fe")) == {}


def test_charges_on_the_sites_change_nothing():
    charged = HEMATITE.copy().add_oxidation_state_by_element({"Fe": 3, "O": -2})
    assert correction(charged) == pytest.approx(correction(HEMATITE))
    assert charged[0].specie.oxi_state == 3  # the caller's structure is left alone
    mixed = Structure(CUBIC(4), ["Se", "Se2-"], [[0] * 3, [0.5] * 3])
    assert correction(mixed) == 0  # still one element


def test_a_disordered_crystal_has_no_correction():
    disordered = Structure(CUBIC(4), [{"Zn": 0.5, "Cd": 0.5}, "S"], [[0] * 3, [0.5] * 3])
    with pytest.raises(ValueError, match="disordered"):
        correction(disordered)


def guessed(formula: str) -> dict[str, float]:
    guesses = Composition(formula).oxi_state_guesses(max_sites=-20)
    return guesses[0] if guesses else {}


FORMULAS = "Fe3O4 Li2O LiFePO4 KO2 NaCl2 FeAl Mn3Si2Te6 CsH5O3 Eu3P2S8 BaRe2H8O7 PbSb2Se4 VN MoS2F Sb2O4 Tl2I3 PrPuU2"


@pytest.mark.parametrize("formula", FORMULAS.split())
def test_oxidation_states_are_those_that_pymatgen_guesses(formula):
    assert likeliest_states(Composition(formula)) == guessed(formula)


def test_multiples_and_large_formulas():
    assert likeliest_states(Composition("Fe6O8")) == likeliest_states(Composition("Fe3O4")) == {"Fe": 8 / 3, "O": -2}
    assert likeliest_states(Composition("Na17Cl17")) == {"Na": 1, "Cl": -1}
    assert likeliest_states(Composition("Na17Cl15O")) == {}
    assert likeliest_states(Composition("Na0.5Cl0.5")) == {}


@pytest.mark.skipif("CFX_DATA" not in os.environ, reason="CFX_DATA is not set")
def test_oxidation_states_of_known_crystals():
    with gzip.open(Path(os.environ["CFX_DATA"]) / "mp_near_hull.csv.gz", "rt") as file:
        formulas = sorted({row["pretty_formula"] for row in csv.DictReader(file)})
    small = [text for text in formulas if len(Composition(text)) > 1 and Composition(text).num_atoms <= 12]
    for formula in random.Random(0).sample(small, 600):
        assert likeliest_states(Composition(formula)) == guessed(formula), formula


@pytest.mark.parametrize(("structure", "corrected"), [(HEMATITE, True), (MUSTARD, False), (rutile("Ti", "O"), False)])
def test_published_corrections_are_what_pymatgen_makes_of_entries_without_a_run_type(structure, corrected):
    """The public program states a run type where there is a Hubbard U only; pymatgen leaves other entries alone."""
    hubbards = hubbard_values(structure.composition)
    parameters = {"hubbards": hubbards, "run_type": "GGA+U"} if hubbards else {"hubbards": {}}
    entry = ComputedStructureEntry(structure, -20.0, parameters=parameters)
    MaterialsProject2020Compatibility(check_potcar=False).process_entries(entry, clean=True)
    assert correct(structure, -20.0, "published") == pytest.approx(entry.energy, abs=1e-9)
    assert (entry.energy != -20.0) == corrected
    assert correct(structure, -20.0) != -20.0
