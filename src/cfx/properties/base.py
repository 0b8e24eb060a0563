"""What a property model is, and how to get one by name: numbers of many crystals, with what to make of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cfx.errors import UsageError

if TYPE_CHECKING:
    from pymatgen.core import Structure

BUNDLED = ("band_gap", "dielectric")
"""Properties that need no model from elsewhere: the band gap, eV, as PBE gives it; the mean eigenvalue (trace / 3) of
the total dielectric tensor, that of electrons and ions."""

UNITS = {"band_gap": "eV", "dielectric": "", "formation_energy": "eV/atom"}
"""Of the properties that cfx knows; others are taken as numbers without one."""

NAMES = "bundled; matgl:NAME or matgl:/directory"


@dataclass(frozen=True)
class PropertyBatch:
    """What a model says of n crystals, in the order in which they were given.

    Attributes:
        value: in the model's unit; float64 [n], NaN where not ok.
        std: standard deviation of the value, same unit; float64 [n], NaN where not ok or if the model has none.
        outside: bool [n], whether a crystal is unlike all those that the model learnt from; False if it cannot tell.
        ok: bool [n].
        reasons: why a crystal is not ok, on one line; "" where it is.
    """

    value: np.ndarray
    std: np.ndarray
    outside: np.ndarray
    ok: np.ndarray
    reasons: list[str]


class PropertyModel(Protocol):
    """A model of one property.

    Attributes:
        name: which model, and which version of it.
        property: "band_gap", "dielectric", or what else it predicts.
        unit: "eV", or "" for a number without one.
    """

    name: str
    property: str
    unit: str

    def evaluate(self, structures: Sequence[Structure | None]) -> PropertyBatch:
        """The property of crystals.

        A crystal that cannot be evaluated gets a reason and leaves the others alone.
        """


def evaluate_all(models: Sequence[PropertyModel], structures: Sequence[Structure | None]) -> list[PropertyBatch]:
    """What each model says of the crystals; bundled models that share an extractor compute features once."""
    computed: dict[int, list] = {}
    batches = []
    for model in models:
        extractor = getattr(model, "extractor", None)
        if extractor is None:
            batches.append(model.evaluate(structures))
            continue
        if id(extractor) not in computed:
            computed[id(extractor)] = extractor.evaluate(structures)
        batches.append(model.predict(computed[id(extractor)]))
    return batches


def load_property(property: str, text: str = "bundled", device: str = "cpu") -> PropertyModel:
    """The model of a property.

    Args:
        property: `band_gap`, `dielectric`, or any other that a model named in `text` predicts.
        text: `bundled`, `matgl:NAME` or `matgl:/directory`.
        device: `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: for a name, a property or a device that does not exist.
        DependencyError: for a library or a device that is not there.
        CheckpointError: for weights that are not there, belong to something else, or predict what is known to be wrong.
        NetworkError: for weights that cannot be downloaded.
    """
    # As in `potentials.base.load_potential`: threads of torch shall not spin while they wait.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    kind, _, rest = text.partition(":")
    if kind == "matgl" and rest:
        from cfx.properties.matgl import load_matgl_property

        return load_matgl_property(rest, property, device)
    if text != "bundled":
        raise UsageError(f"no property model is called {text}", f"there are: {NAMES}")
    if property not in BUNDLED:
        raise UsageError(
            f"there is no bundled model of {property}", f"there are: {', '.join(BUNDLED)}; or name one: matgl:NAME"
        )
    from cfx.properties.bundled import load_bundled

    return load_bundled(property, device)
