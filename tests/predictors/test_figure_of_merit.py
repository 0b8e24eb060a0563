"""The dielectric figure of merit."""

from __future__ import annotations

import numpy as np

from cfx.predictors.base import PropertyBatch
from cfx.predictors.bundled import FigureOfMerit


class Predicted:
    """A property model of given values, the last of them of a crystal unlike all known ones."""

    def __init__(self, property: str, unit: str, values: list[float]):
        self.name, self.property, self.unit, self.values = "a table", property, unit, np.array(values)
        self.strange = [len(values) - 1]

    def evaluate(self, structures):
        n = len(structures)
        strange = np.isin(np.arange(n), self.strange)
        return PropertyBatch(reasons=[""] * n, value=self.values, std=np.full(n, 0.1), outside=strange)


def test_predictions_below_zero_have_no_merit():
    """A metal's gap is predicted slightly below zero now and then; two wrong signs must not make a good one."""
    gap = Predicted("band_gap", "eV", [2.0, -0.1, 2.0, -0.1, 2.0])
    dielectric = Predicted("dielectric", "", [10.0, 10.0, -3.0, -3.0, 10.0])
    batch = FigureOfMerit(gap, dielectric).evaluate([None] * 5)
    assert batch.ok.all() and batch.parts["unlike known crystals"].tolist() == [0, 0, 0, 0, 1]
    np.testing.assert_array_equal(batch.parts["band gap (eV)"], gap.values)
    np.testing.assert_array_equal(batch.value, [20, 0, 0, 0, 0])


def test_what_one_of_the_models_knows_nothing_of_has_no_merit():
    """Neither high gaps nor high constants are believed where their model has seen nothing like the crystal."""
    gap, dielectric = Predicted("band_gap", "eV", [2.0] * 3), Predicted("dielectric", "", [10.0] * 3)
    gap.strange, dielectric.strange = [1], [2]
    batch = FigureOfMerit(gap, dielectric).evaluate([None] * 3)
    np.testing.assert_array_equal(batch.value, [20, 0, 0])
    assert batch.outside.tolist() == [False, True, True] and batch.parts["unlike known crystals"].tolist() == [0, 1, 1]
