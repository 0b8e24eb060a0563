"""The dielectric figure of merit: a property made of two others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cfx.predictors.base import PropertyBatch, PropertyModel, predictions
from cfx.predictors.bundled import evaluate_all

if TYPE_CHECKING:
    from pymatgen.core import Structure


class FigureOfMerit:
    """Total dielectric constant times band gap, eV, as a `PropertyModel` (2504.02367, "Dielectric figure of merit").

    A crystal unlike all that the model of the gap has learnt from is worth nothing: high predictions are cheapest to
    find where a model knows nothing. It is no failure, for a third of what a small model draws is like that. (Half of
    all known crystals are unlike the few data of the dielectric models, so that their standard deviations are among the
    parts instead.)
    """

    property, unit = "figure_of_merit", "eV"

    def __init__(self, gap: PropertyModel, dielectric: PropertyModel):
        """The figure of merit by a model of the band gap, eV, and one of the dielectric constant."""
        self.name = f"band gap by {gap.name}, total dielectric constant by {dielectric.name}"
        self._models = (gap, dielectric)

    def evaluate(self, structures: Sequence[Structure | None]) -> PropertyBatch:
        """See `PropertyModel`; `parts` has both predictions, too."""
        gap, dielectric = evaluate_all(self._models, structures)
        # A metal has no gap; small negative predictions are that.
        value = np.where(gap.outside, 0.0, np.maximum(gap.value, 0) * np.maximum(dielectric.value, 0))
        parts = {
            "figure of merit (eV)": value,
            "unlike known crystals": np.where(gap.ok, gap.outside, np.nan).astype(float),
        }
        for model, batch in zip(self._models, (gap, dielectric), strict=True):
            parts |= predictions(model, batch)
        reasons = [one or other for one, other in zip(gap.reasons, dielectric.reasons, strict=True)]
        value = np.where(gap.ok & dielectric.ok, value, np.nan)
        std = np.full(len(structures), np.nan)
        return PropertyBatch(reasons=reasons, value=value, std=std, outside=gap.outside, parts=parts)
