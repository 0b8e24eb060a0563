"""What potentials and property models are: structures in, numbers out, in one batched call."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cfx.errors import DependencyError, UsageError

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure


SCALES = ("raw", "mp2020")
"""Energies as DFT gives them; energies with Materials Project's corrections of 2020."""

OTHER_METHODS = {
    "omat": "of OMat24's pseudopotentials, which differ from Materials Project's and Alexandria's",
    "d3": "with a correction for dispersion",
    "r2scan": "of the r2SCAN functional",
    "matpes": "of MatPES, which has no Hubbard U and its own pseudopotentials",
}
"""Parts of names of models whose energies are not those of the PBE calculations that hulls are made of."""

UNITS = {"band_gap": "eV", "dielectric": "", "formation_energy": "eV/atom"}
"""Units of the properties that cfx knows; the values of other properties are taken as numbers without a unit."""

UNNAMED = "property"
"""The property of a model of which nobody says what it predicts."""


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """Results for n crystals, in the order in which the crystals were given.

    Attributes:
        reasons: [n], why a crystal has no result, on one line; "" where it has one.
    """

    reasons: list[str]

    @cached_property
    def ok(self) -> np.ndarray:
        """Which crystals have a result, bool [n]."""
        return np.array([not reason for reason in self.reasons], bool)


@dataclass(frozen=True, kw_only=True)
class PotentialBatch(BatchResult):
    """Energies, forces and stresses of n crystals.

    Attributes:
        energy: energy of the whole cell, eV; float64 [n], NaN where not ok.
        forces: for each crystal float64 [atoms, 3], eV/angstrom; None where not ok or not asked for.
        stress: float64 [n, 3, 3], eV/angstrom^3, positive under tension, as in ASE; NaN where not ok or not asked for.
    """

    energy: np.ndarray
    forces: list[np.ndarray | None]
    stress: np.ndarray


@dataclass(frozen=True, kw_only=True)
class PropertyBatch(BatchResult):
    """A property of n crystals.

    Attributes:
        value: in the model's unit; float64 [n], NaN where not ok.
        std: standard deviation of the value, same unit; float64 [n], NaN where not ok or if the model has none.
        outside: bool [n], whether a crystal is unlike all training data of the model; False if the model cannot tell.
        parts: what the value was made of, by name with its unit: float64 [n], NaN where unknown.
    """

    value: np.ndarray
    std: np.ndarray
    outside: np.ndarray
    parts: dict[str, np.ndarray] = field(default_factory=dict)


class Potential(Protocol):
    """An interatomic potential.

    Attributes:
        name: which model, and which version of it.
        scale: scale of its energies, one of `SCALES`.
    """

    name: str
    scale: str

    def evaluate(self, structures: Sequence[Structure | None], forces: bool = True) -> PotentialBatch:
        """Energies of crystals, and forces and stresses too unless only energies are asked for.

        A crystal that cannot be evaluated gets a reason and leaves the others alone.
        """
        ...


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
        ...


def other_method(name: str) -> str | None:
    """What sets the energies of a potential apart from those of a PBE hull, as far as its name says."""
    return next((what for part, what in OTHER_METHODS.items() if re.search(rf"\b{part}", name.lower())), None)


def torch_devices() -> list[str]:
    """Names of the devices that torch can use."""
    import torch

    return ["cpu", *(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count()))]


def check_device(device: str) -> None:
    """Makes sure that torch can use a device.

    Raises:
        UsageError: if it is neither cpu nor cuda.
        DependencyError: if it is not there.
    """
    kind, _, number = device.partition(":")
    if device != "cpu" and (kind != "cuda" or not (number.isdecimal() or device == "cuda")):
        raise UsageError(f"there is no device called {device}", "there are: cpu, cuda, cuda:N")
    if kind == "cuda":
        import torch

        if int(number or 0) >= torch.cuda.device_count():
            raise DependencyError(
                f"there is no device {device} here for torch", "use cpu, or install a torch that was built for CUDA"
            )


LABELS = {"band_gap": "band gap", "dielectric": "dielectric constant"}


def label(model: PropertyModel) -> str:
    """What a property is called, with its unit."""
    name = LABELS.get(model.property, model.property)
    return f"{name} ({model.unit})" if model.unit else name


def predictions(model: PropertyModel, batch: PropertyBatch) -> dict[str, np.ndarray]:
    """The values of a batch, their standard deviations and what they were made of, by label: float64 [n]."""
    values = {label(model): np.asarray(batch.value, float), f"{label(model)}, std": np.asarray(batch.std, float)}
    return values | batch.parts


def load_attribute(text: str, not_named: str, hint: str) -> Any:
    """Imports what MODULE:ATTRIBUTE names, in code from outside cfx.

    Args:
        text: MODULE:ATTRIBUTE.
        not_named: the message if it is not of that form.
        hint: of all errors.

    Raises:
        UsageError: if it is not of that form, or there is no such thing in the module, or the module raises.
        DependencyError: if the module cannot be imported.
    """
    module, _, attribute = text.partition(":")
    if not module or not attribute or module.startswith("."):
        raise UsageError(not_named, hint)
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise DependencyError(f"the module {module} cannot be imported: {error}", hint) from error
    except (Exception, SystemExit) as error:  # the code of others raises what it likes
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"the module {module} cannot be imported: it raised {said}", hint) from error
    try:
        return getattr(found, attribute)
    except AttributeError as error:
        raise UsageError(f"there is no {attribute} in {module}", hint) from error


def to_atoms(structure: Structure) -> Atoms:
    """Elements, positions and cell of an ordered Structure, and nothing else of it."""
    from ase import Atoms

    numbers = [site.specie.Z for site in structure]
    return Atoms(numbers=numbers, positions=structure.cart_coords, cell=structure.lattice.matrix, pbc=True)
