"""How crystals are judged."""

from __future__ import annotations

from dataclasses import dataclass

from cfx.config.fields import at_least, positive
from cfx.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How crystals are judged.

    Attributes:
        reference: known crystals that novelty is judged against, as a file or a name; None: it is not judged.
        potential: interatomic potential that computes energies, see `cfx.potentials`; None: stability is not judged.
        hull: phases that stability is judged against, as a file or a name; None: the bundled hull of CHGNet's energies
            where the potential is chgnet, and else none; "none": only energies are computed.
        hull_scale: of the hull's energies where its file does not say: raw or mp2020.
        relax: judge the relaxed crystals, but for validity and space group.
        fmax: largest force of a relaxed crystal, eV/angstrom.
        steps: of a relaxation, at most.
        device: of the potential.
        workers: processes; -1 for all cores.
    """

    reference: str | None = None
    potential: str | None = None
    hull: str | None = None
    hull_scale: str | None = None
    relax: bool = False
    fmax: float = 0.05
    steps: int = 500
    device: str = "cpu"
    workers: int = -1

    def __post_init__(self):
        for name, needed in (("hull", "potential"), ("relax", "potential"), ("hull_scale", "hull")):
            if getattr(self, name) and not getattr(self, needed):
                raise UsageError(f"{name.replace('_', '-')} needs a {needed}", f"name one with --{needed}")
        if self.hull is None and self.potential == "chgnet":
            object.__setattr__(self, "hull", "chgnet-mp")
        if self.hull == "none":
            object.__setattr__(self, "hull", None)
        positive(self, "fmax")
        at_least(self, 1, "steps")
