"""Known crystals that potentials and property models prove themselves on before they judge.

Haematite and periclase as Materials Project computed them (mp-19770, mp-1265; PBE, with a Hubbard U on iron). Their
corrected energies are the published formation energies plus those of the elements. In haematite the corrections of 2020
are 1.3 eV/atom, far more than a potential's error.

Upgrades of libraries have changed the predictions of published models without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from cfx.errors import CheckpointError
from cfx.predictors.base import Potential, PropertyModel

if TYPE_CHECKING:
    from pymatgen.core import Structure

TOLERANCE = 0.3
"""Of an energy, eV/atom. Potentials trained on Materials Project's data are within 0.15 on these crystals."""


@dataclass(frozen=True)
class Canary:
    """A crystal with known energies.

    Attributes:
        formula: for messages.
        space_group: Hermann-Mauguin symbol.
        lattice: a and c, angstrom; c is None in a cubic cell.
        sites: symbol and coordinates of the symmetry-inequivalent sites.
        energies: scale -> eV/atom.
    """

    formula: str
    space_group: str
    lattice: tuple[float, float | None]
    sites: tuple[tuple[str, tuple[float, float, float]], ...]
    energies: dict[str, float]

    def structure(self):
        """As a pymatgen Structure."""
        from pymatgen.core import Lattice, Structure

        a, c = self.lattice
        lattice = Lattice.cubic(a) if c is None else Lattice.hexagonal(a, c)
        symbols, coords = zip(*self.sites, strict=True)
        return Structure.from_spacegroup(self.space_group, lattice, symbols, coords).get_primitive_structure()


KNOWN_ENERGIES = (
    Canary(
        "Fe2O3",
        "R-3c",
        (5.10493, 13.91330),
        (("Fe", (0.0, 0.0, 0.35416)), ("O", (0.30488, 0.0, 0.25))),
        {"mp2020": -8.064, "raw": -6.749},
    ),
    Canary(
        "MgO",
        "Fm-3m",
        (4.25648, None),
        (("Mg", (0.0, 0.0, 0.0)), ("O", (0.5, 0.5, 0.5))),
        {"mp2020": -6.328, "raw": -5.984},
    ),
)


def prove_scale(potential: Potential) -> bool:
    """Whether known crystals prove the scale of a potential; False if it knows none of them.

    Raises:
        CheckpointError: if their energies are on another scale, or on none that is known.
    """
    batch = potential.evaluate([canary.structure() for canary in KNOWN_ENERGIES], forces=False)
    proven = False
    for canary, energy, ok in zip(KNOWN_ENERGIES, batch.energy, batch.ok, strict=True):
        if not ok:
            continue
        found, expected = energy / len(canary.structure()), canary.energies[potential.scale]
        nearest = min(canary.energies.values(), key=lambda value: abs(found - value))
        if nearest != expected or abs(found - expected) > TOLERANCE:
            raise CheckpointError(
                f"{potential.name} gives {found:.2f} eV/atom for {canary.formula}, where energies on the scale "
                f"{potential.scale} are {expected:.2f}",
                "say the scale it has (:mp2020), or build a hull with it: cfx hull build",
            )
        proven = True
    return proven


HINT = "take weights made for the installed version of its library, or the model that comes with cfx: bundled"


def prove(model: PropertyModel) -> None:
    """Holds a model against the known crystals of its property; of a property without any, nothing can be proven.

    Crystals with elements that the model does not know are left out.

    Raises:
        CheckpointError: if it misses one of them, or can evaluate none.
    """
    crystals = KNOWN_PROPERTIES.get(model.property, ())
    if not crystals:
        return
    batch = model.evaluate([crystal.structure() for crystal in crystals])
    if not batch.ok.any():
        raise CheckpointError(
            f"{model.name} can evaluate none of the crystals whose {model.property} is known: {batch.reasons[0]}", HINT
        )
    misses = [
        (abs(float(found) - crystal.value) / crystal.tolerance, crystal, float(found))
        for crystal, found, ok in zip(crystals, batch.value, batch.ok, strict=True)
        if ok
    ]
    worst, crystal, found = max(misses, key=lambda miss: miss[0])
    if worst > 1:
        missed = sum(share > 1 for share, _, _ in misses)
        unit = f" {model.unit}" if model.unit else ""
        raise CheckpointError(
            f"{model.name} predicts a {model.property} of {found:.2f}{unit} for {crystal.formula}, where "
            f"{crystal.value:.2f} ± {crystal.tolerance:.2f}{unit} is right; it misses {missed} of {len(misses)} known "
            "crystals",
            HINT,
        )


FACE_CENTRED = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
"""Primitive vectors, in edges of the cube."""


@dataclass(frozen=True)
class KnownCrystal:
    """A crystal whose property is known, on which a model of that property proves itself; face-centred cubic.

    Attributes:
        formula: for messages.
        a: edge of the cube, angstrom.
        sites: symbol and place, in edges of the cube, of each atom of the primitive cell.
        value: of the property, in its unit.
        tolerance: by how much a model may miss it.
    """

    formula: str
    a: float
    sites: tuple[tuple[str, tuple[float, float, float]], ...]
    value: float
    tolerance: float

    def structure(self) -> Structure:
        """The primitive cell, as a pymatgen Structure."""
        from pymatgen.core import Structure

        symbols, places = zip(*self.sites, strict=True)
        return Structure(self.a * FACE_CENTRED, symbols, self.a * np.array(places), coords_are_cartesian=True)


_ORIGIN, _QUARTER, _HALF = (0.0, 0.0, 0.0), (0.25, 0.25, 0.25), (0.5, 0.5, 0.5)


def _rock_salt(one: str, other: str, a: float, value: float, tolerance: float) -> KnownCrystal:
    return KnownCrystal(one + other, a, ((one, _ORIGIN), (other, _HALF)), value, tolerance)


def _zinc_blende(one: str, other: str, a: float, value: float, tolerance: float) -> KnownCrystal:
    return KnownCrystal(one + other, a, ((one, _ORIGIN), (other, _QUARTER)), value, tolerance)


KNOWN_PROPERTIES: Mapping[str, tuple[KnownCrystal, ...]] = MappingProxyType(
    {
        "band_gap": (
            KnownCrystal("Cu", 3.621, (("Cu", _ORIGIN),), 0.0, 0.6),
            KnownCrystal("Si", 5.469, (("Si", _ORIGIN), ("Si", _QUARTER)), 0.61, 0.6),
            _zinc_blende("Al", "As", 5.734, 1.69, 1.0),
            _rock_salt("Mg", "O", 4.256, 4.64, 1.5),
            _rock_salt("Na", "Cl", 5.692, 5.15, 1.5),
            _rock_salt("Li", "F", 4.083, 8.72, 2.0),
        ),
        "dielectric": (
            _rock_salt("Rb", "Cl", 6.699, 5.65, 2.5),
            _zinc_blende("Be", "O", 3.824, 7.20, 3.5),
            _zinc_blende("Ga", "N", 4.546, 10.96, 4.5),
            _rock_salt("Sr", "S", 6.063, 11.87, 5.0),
            KnownCrystal("TiCoSb", 5.894, (("Ti", _ORIGIN), ("Co", _QUARTER), ("Sb", _HALF)), 31.72, 14.0),
        ),
        "formation_energy": (
            KnownCrystal("Cu", 3.621, (("Cu", _ORIGIN),), 0.0, 0.2),
            KnownCrystal("Si", 5.469, (("Si", _ORIGIN), ("Si", _QUARTER)), 0.0, 0.2),
            _rock_salt("Mg", "O", 4.256, -3.05, 0.2),
            _rock_salt("Na", "Cl", 5.692, -2.11, 0.2),
            _rock_salt("Li", "F", 4.083, -3.17, 0.2),
        ),
    }
)
"""By property, what a model of it has to know.

band_gap: eV, PBE, of Materials Project: mp-30, mp-149 (as of 2019; 0.85 later), mp-2172, mp-1265, mp-22862, mp-1138.
Errors of a sound model are 0.1 to 0.3 eV on average and grow with the gap: the tolerances are two to six times 0.3. A
model that takes silicon for a metal misses it just so, and one that takes magnesium oxide for one by far.

dielectric: mean eigenvalue of the total dielectric tensor by Petousis et al. (doi:10.1038/sdata.2016.134): mp-23295,
mp-1778, mp-830, mp-1087, mp-5967. Tolerances of some 45 %: models miss by 10 to 20 % on average. The electronic part
alone, or a mean over many crystals, misses at least one of them.

formation_energy: eV/atom, with Materials Project's corrections: the same materials as for the gap. A published MEGNet
is within 0.03 of all of them with the library it was made with, and off by 0.3 to 0.5 for the salts with matgl 4.
"""
