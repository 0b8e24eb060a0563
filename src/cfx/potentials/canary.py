"""Whether a potential's energies are on the scale that it says: known crystals with known energies tell.

Haematite and periclase as Materials Project computed them (mp-19770, mp-1265; PBE, with a Hubbard U on iron). Their
corrected energies are the published formation energies plus those of the elements. In haematite the corrections of 2020
are 1.3 eV/atom, far more than a potential's error.
"""

from __future__ import annotations

from dataclasses import dataclass

from cfx.errors import CheckpointError
from cfx.potentials.base import Potential

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


CANARIES = (
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
    batch = potential.evaluate([canary.structure() for canary in CANARIES], forces=False)
    proven = False
    for canary, energy, ok in zip(CANARIES, batch.energy, batch.ok, strict=True):
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
