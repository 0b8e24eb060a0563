"""Self-checks: known crystals that potentials and property models have to predict before they judge others.

Upgrades of libraries have changed the predictions of published models without a word.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from cfx.core import Structure
from cfx.errors import CheckpointError
from cfx.predictors.base import Potential, PropertyModel

ENERGY_TOLERANCE = 0.3
"""eV/atom. Potentials trained on Materials Project's data are within 0.15 on the known crystals."""

HINT = "take weights made for the installed version of its library, or the model that comes with cfx: bundled"


def check_energy_scale(potential: Potential) -> bool:
    """Whether known crystals prove the scale of a potential's energies; False if it knows none of them.

    Raises:
        CheckpointError: if their energies are on another scale, or on none that is known.
    """
    structures = [crystal.structure() for crystal in KNOWN_ENERGIES]
    batch = potential.evaluate(structures, forces=False)
    for crystal, structure, energy, ok in zip(KNOWN_ENERGIES, structures, batch.energy, batch.ok, strict=True):
        if not ok:
            continue
        found, expected = energy / len(structure), crystal.energies[potential.scale]
        nearest = min(crystal.energies.values(), key=lambda value: abs(found - value))
        if nearest != expected or abs(found - expected) > ENERGY_TOLERANCE:
            raise CheckpointError(
                f"{potential.name} gives {found:.2f} eV/atom for {crystal.formula}, where energies on the scale "
                f"{potential.scale} are {expected:.2f}",
                "state its scale (:mp2020), or build a hull with it: cfx hull build",
            )
    return bool(batch.ok.any())


def check_property(model: PropertyModel) -> float:
    """Compares a property model with the known crystals of its property, if there are any.

    Crystals with elements that the model does not know are left out.

    Returns:
        The largest miss, as a share of the tolerance.

    Raises:
        CheckpointError: if it misses one of them, or can evaluate none.
    """
    crystals = KNOWN_PROPERTIES.get(model.property, ())
    if not crystals:
        return 0.0
    batch = model.evaluate([crystal.structure() for crystal in crystals])
    if not batch.ok.any():
        raise CheckpointError(
            f"{model.name} can evaluate none of the crystals with known {model.property}: {batch.reasons[0]}", HINT
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
            f"{crystal.value:.2f} ± {crystal.tolerance:.2f}{unit} is correct; it mispredicts {missed} of {len(misses)} "
            "known crystals",
            HINT,
        )
    return worst


Sites = tuple[tuple[str, tuple[float, float, float]], ...]
"""Symbol and fractional coordinates of the symmetry-inequivalent sites."""


@dataclass(frozen=True)
class KnownCrystal:
    """A crystal of which something is known.

    Attributes:
        formula: for messages.
        space_group: Hermann-Mauguin symbol.
        sites: symmetry-inequivalent sites of the conventional cell.
        a: lattice constant of the conventional cell, angstrom.
        c: the other one of a hexagonal cell, angstrom; None in a cubic cell.
    """

    formula: str
    space_group: str
    sites: Sites
    a: float
    c: float | None = None

    def structure(self) -> Structure:
        """The primitive cell, as a pymatgen Structure."""
        return self._primitive.copy()

    @cached_property
    def _primitive(self) -> Structure:
        from pymatgen.core import Lattice, Structure

        lattice = Lattice.cubic(self.a) if self.c is None else Lattice.hexagonal(self.a, self.c)
        symbols, coords = zip(*self.sites, strict=True)
        return Structure.from_spacegroup(self.space_group, lattice, symbols, coords).get_primitive_structure()


@dataclass(frozen=True, kw_only=True)
class KnownEnergy(KnownCrystal):
    """A crystal whose energy is known.

    Attributes:
        energies: scale -> eV/atom.
    """

    energies: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class KnownProperty(KnownCrystal):
    """A crystal whose property is known.

    Attributes:
        value: in the unit of the property.
        tolerance: by how much a model may miss the value.
    """

    value: float
    tolerance: float


_ORIGIN, _QUARTER, _HALF = (0.0, 0.0, 0.0), (0.25, 0.25, 0.25), (0.5, 0.5, 0.5)


def _metal(symbol: str, a: float, value: float, tolerance: float) -> KnownProperty:
    return KnownProperty(symbol, "Fm-3m", ((symbol, _ORIGIN),), a, value=value, tolerance=tolerance)


def _diamond(symbol: str, a: float, value: float, tolerance: float) -> KnownProperty:
    return KnownProperty(symbol, "Fd-3m", ((symbol, _ORIGIN),), a, value=value, tolerance=tolerance)


def _rock_salt(one: str, other: str, a: float, value: float, tolerance: float) -> KnownProperty:
    sites = ((one, _ORIGIN), (other, _HALF))
    return KnownProperty(one + other, "Fm-3m", sites, a, value=value, tolerance=tolerance)


def _zinc_blende(one: str, other: str, a: float, value: float, tolerance: float) -> KnownProperty:
    sites = ((one, _ORIGIN), (other, _QUARTER))
    return KnownProperty(one + other, "F-43m", sites, a, value=value, tolerance=tolerance)


KNOWN_ENERGIES = (
    KnownEnergy(
        "Fe2O3",
        "R-3c",
        (("Fe", (0.0, 0.0, 0.35416)), ("O", (0.30488, 0.0, 0.25))),
        5.10493,
        13.91330,
        energies=MappingProxyType({"mp2020": -8.064, "raw": -6.749}),
    ),
    KnownEnergy(
        "MgO",
        "Fm-3m",
        (("Mg", _ORIGIN), ("O", _HALF)),
        4.25648,
        energies=MappingProxyType({"mp2020": -6.328, "raw": -5.984}),
    ),
)
"""Haematite and periclase as Materials Project computed them (mp-19770, mp-1265; PBE, with a Hubbard U on iron).

Their corrected energies are the published formation energies plus those of the elements. In haematite the corrections
of 2020 are 1.3 eV/atom, far more than a potential's error.
"""

KNOWN_PROPERTIES: Mapping[str, tuple[KnownProperty, ...]] = MappingProxyType(
    {
        "band_gap": (
            _metal("Cu", 3.621, 0.0, 0.6),
            _diamond("Si", 5.469, 0.61, 0.6),
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
            KnownProperty(
                "TiCoSb",
                "F-43m",
                (("Ti", _ORIGIN), ("Co", _QUARTER), ("Sb", _HALF)),
                5.894,
                value=31.72,
                tolerance=14.0,
            ),
        ),
        "formation_energy": (
            _metal("Cu", 3.621, 0.0, 0.2),
            _diamond("Si", 5.469, 0.0, 0.2),
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
