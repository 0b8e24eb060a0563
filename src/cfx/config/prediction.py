"""How structures of a formula are predicted."""

from dataclasses import dataclass
from typing import Literal

from cfx.config import texts
from cfx.config.evaluation import (
    CORRECTIONS,
    DEVICE,
    E_HULL_FLOOR,
    FMAX,
    HULL_SCALE,
    OWN_HULLS,
    POTENTIALS,
)
from cfx.config.fields import NOT_NEGATIVE, Bound, Config, at_least, option, seed
from cfx.errors import UsageError

A_DRAW, AT_LEAST, AT_MOST = 40, 400, 2000
"""Evaluations that a formula may cost by default: for each draw, and in all."""

FROM_ZERO_TO_ONE = Bound(lambda value: 0 <= value <= 1, "be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Config):
    """How the structures of a formula are predicted; an interrupted run is continued with the same."""

    space_groups: tuple[int, ...] = option(
        (), "The only space groups that are drawn, numbers or symbols; empty: all, as likely as the model finds them."
    )
    draws: int = option(200, "Structures drawn for each formula.", at_least(1), "-n --draws")
    seed: int = seed()
    prototypes: float = option(
        0.5, "Share of the draws that have the sites of known prototypes, if there are any.", FROM_ZERO_TO_ONE
    )
    max_atoms: int | None = option(
        None,
        "Maximum number of atoms in the conventional cell. Default: 20 in the primitive cell, 100 of known prototypes.",
        at_least(1),
    )
    max_sites: int | None = option(None, "Maximum number of symmetry-inequivalent sites.", at_least(1))
    min_distance: float = option(
        0.7,
        "Smallest distance between atoms of a structure, angstrom.",
        Bound(NOT_NEGATIVE.holds, "be a length in angstrom"),
    )
    potential: str = option("chgnet", f"Interatomic potential that ranks the structures: {POTENTIALS}")
    hull: str | None = option(
        None,
        "Hull that energies are counted from: a file, a name, or none. Default: one bundled for the potential.",
    )
    hull_scale: str | None = option(*HULL_SCALE)
    e_hull_floor: float = option(*E_HULL_FLOOR)
    corrections: Literal["mp2020", "published"] = option(*CORRECTIONS)
    budget: str | int | None = option(
        None,
        "What a formula may cost: 2000 evaluations of one structure each, or a time, as 90s, 10min or 2h. Default: 40 "
        "evaluations for each draw, from 400 to 2000.",
    )
    relax: bool = option(True, "Rank the structures as drawn.", flag="--no-relax")
    fmax: float = option(*FMAX)
    steps: int = option(200, "Maximum number of steps of a relaxation.", at_least(1))
    sort: Literal["energy", "probability"] = option(
        "energy", "What the list is sorted by: energy, lowest first, or probability, likeliest first."
    )
    top: int = option(20, "Structures in the list of a formula, at most.", at_least(1))
    device: str = option(*DEVICE)

    def __post_init__(self):
        object.__setattr__(self, "space_groups", texts.given_space_groups(self.space_groups)[0])
        super().__post_init__()
        texts.budget(self.allowed)
        if self.hull is None:
            object.__setattr__(self, "hull", OWN_HULLS.get(self.potential))
        if self.hull == "none":
            object.__setattr__(self, "hull", None)
        if self.hull_scale and not self.hull:
            raise UsageError("`hull_scale` needs a hull", "name one with `hull`")

    @property
    def allowed(self) -> str | int:
        """What a formula may cost: the budget, or what the number of draws makes of it."""
        return min(max(A_DRAW * self.draws, AT_LEAST), AT_MOST) if self.budget is None else self.budget

    @property
    def evaluations(self) -> int | None:
        """Evaluations of one structure that a formula may cost; None where time counts."""
        return texts.budget(self.allowed)[0]

    @property
    def seconds(self) -> float | None:
        """Time that a formula may take; None where evaluations count."""
        return texts.budget(self.allowed)[1]
