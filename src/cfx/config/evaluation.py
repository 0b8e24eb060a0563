"""How crystals are judged and relaxed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cfx.config.fields import NOT_NEGATIVE, POSITIVE, Bound, Config, at_least, option
from cfx.errors import UsageError

POTENTIALS = "chgnet, orb:NAME, matgl:NAME, ase:MODULE:FACTORY."


def hull_scale() -> Any:
    """The field `hull_scale`."""
    return option(None, "Scale of the hull's energies, if its file does not state it: raw or mp2020.")


def device() -> Any:
    """The field `device`."""
    return option("cpu", "Where potentials and property models run: cpu or cuda.")


def fmax() -> Any:
    """The field `fmax` of a relaxation."""
    return option(0.05, "Largest force at which a relaxation has converged, eV/angstrom.", POSITIVE)


def steps(bound: Bound) -> Any:
    """The field `steps` of a relaxation."""
    return option(500, "Maximum number of steps of a relaxation.", bound)


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Config):
    """How crystals are judged. Without a reference novelty is not, and without a potential stability is not."""

    reference: str | None = option(None, "Known crystals that novelty is judged against: a file, or a name.")
    potential: str | None = option(None, f"Interatomic potential, for energies: {POTENTIALS}")
    hull: str | None = option(
        None, "Hull that stability is judged against: a file, a name, or none. Default with chgnet: chgnet-mp."
    )
    hull_scale: str | None = hull_scale()
    relax: bool = option(False, "Relax the crystals first, and evaluate the relaxed ones.")
    fmax: float = fmax()
    steps: int = steps(at_least(1))
    device: str = device()
    workers: int = option(-1, "Processes that read and compare crystals; -1: one for each core.")

    def __post_init__(self):
        super().__post_init__()
        for name, needed in (("hull", "potential"), ("relax", "potential"), ("hull_scale", "hull")):
            if getattr(self, name) and not getattr(self, needed):
                raise UsageError(f"{name.replace('_', '-')} needs a {needed}", f"name one with `{needed}`")
        if self.hull is None and self.potential == "chgnet":
            object.__setattr__(self, "hull", "chgnet-mp")
        if self.hull == "none":
            object.__setattr__(self, "hull", None)


@dataclass(frozen=True, kw_only=True)
class RelaxConfig(Config):
    """How the crystals of a file are relaxed; an interrupted run is continued with the same."""

    source: str = option(help="File of crystals, or a name.")
    potential: str = option(help=f"Interatomic potential: {POTENTIALS}")
    fmax: float = fmax()
    steps: int = steps(NOT_NEGATIVE)
    fix_symmetry: bool = option(False, "Keep the initial space group.")
