"""cfx.predict, as a script calls it, by the bundled model and CHGNet."""

from __future__ import annotations

import pytest
from pymatgen.core import Lattice, Structure

import cfx
from cfx.errors import UsageError

PEROVSKITE = Structure.from_spacegroup(
    "Pm-3m", Lattice.cubic(3.91), ["Sr", "Ti", "O"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]
)


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def mini() -> cfx.Model:
    return cfx.load_model("mini")


def test_the_structure_of_a_formula(mini):
    pytest.importorskip("chgnet")
    found = cfx.predict(mini, "Sr2Ti2O6", space_groups="Pm-3m", draws=8, budget=150, seed=1)
    assert [one.rank for one in found] == list(range(1, len(found) + 1))
    assert [one.energy_per_atom for one in found] == sorted(one.energy_per_atom for one in found)
    best = found[0]
    assert (best.formula, best.space_group, best.symbol) == ("SrTiO3", 221, "Pm-3m")
    assert best.structure.matches(PEROVSKITE) and Structure.from_str(best.cif, fmt="cif").matches(PEROVSKITE)
    assert repr(best).startswith("Prediction(rank=1, formula='SrTiO3', space_group=221, symbol='Pm-3m', e_above_hull=")
    assert len(repr(best)) < 200


@pytest.mark.parametrize(
    ("formulas", "settings", "message"),
    [
        ("SrTxO3", {}, "'SrTxO3' is not a formula: there is no element 'Tx'"),
        (["SrTiO3", "Sr0.5O"], {}, "'Sr0.5O' does not have whole numbers of atoms"),
        ("SrTiO3", {"space_groups": "Pm3m"}, r"Pm3m is not a space group: did you mean Pm-3m\?"),
        ("SrTiO3", {"draws": 0}, "`draws` must be at least 1, not 0"),
    ],
)
def test_what_is_wrong_is_told(mini, formulas, settings, message):
    with pytest.raises(UsageError, match=message):
        cfx.predict(mini, formulas, **settings)
