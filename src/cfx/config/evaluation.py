"""How crystals are judged and relaxed."""

from dataclasses import dataclass
from typing import Literal

from cfx.config.fields import NEGATIVE, NOT_NEGATIVE, POSITIVE, Config, at_least, option
from cfx.errors import UsageError

POTENTIALS = "chgnet, orb:NAME, matgl:NAME, ase:MODULE:FACTORY."

OWN_HULLS = {"chgnet": "chgnet-mp", "ase:sevenn.calculator:SevenNetCalculator": "7net-mp"}
"""Bundled hulls by the potential that computed them."""


# What `option` takes for fields that several configurations have.
HULL_SCALE = (None, "Scale of the hull's energies, if its file does not state it: raw or mp2020.")
# That far under all known phases are gaps of the hull and errors of the potential.
E_HULL_FLOOR = (-0.2, "E_hull below which a crystal counts as a failure, eV/atom: the hull has gaps there.", NEGATIVE)
CORRECTIONS = (
    "mp2020",
    "Corrections of raw energies on a corrected hull: mp2020, or published (with a Hubbard U only).",
)
DEVICE = ("cpu", "Where potentials and property models run: cpu or cuda.")
SECOND_HULL = (
    None,
    "Hull of the second potential's own, as cfx hull build makes. Default: one bundled for the potential.",
)
FMAX = (0.05, "Largest force at which a relaxation has converged, eV/angstrom.", POSITIVE)
STEPS = (500, "Maximum number of steps of a relaxation.")
FIX_SYMMETRY = (False, "Keep the initial space group in a relaxation.")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Config):
    """How crystals are judged. Without a reference novelty is not, and without a potential stability is not."""

    reference: str | None = option(None, "Known crystals that novelty is judged against: a file, or a name.")
    potential: str | None = option(None, f"Interatomic potential, for energies: {POTENTIALS}")
    hull: str | None = option(
        None,
        "Hull that stability is judged against: a file, a name, or none. Default: one bundled for the potential.",
    )
    hull_scale: str | None = option(*HULL_SCALE)
    second_potential: str | None = option(None, "A second potential, whose verdicts stand beside those of the first.")
    second_hull: str | None = option(*SECOND_HULL)
    e_hull_floor: float = option(*E_HULL_FLOOR)
    corrections: Literal["mp2020", "published"] = option(*CORRECTIONS)
    mixed_valence: bool = option(
        False, "Let one element have two oxidation states in valid compositions, as iron in Fe3O4."
    )
    relax: bool = option(False, "Relax the crystals first, and evaluate the relaxed ones.")
    fmax: float = option(*FMAX)
    steps: int = option(*STEPS, at_least(1))
    fix_symmetry: bool = option(*FIX_SYMMETRY)
    device: str = option(*DEVICE)
    workers: int = option(-1, "Processes that read and compare crystals; -1: one for each core.")

    def __post_init__(self):
        super().__post_init__()
        for name, needed in (("hull", "potential"), ("relax", "potential"), ("hull_scale", "hull")):
            if getattr(self, name) and not getattr(self, needed):
                raise UsageError(f"{name.replace('_', '-')} needs a {needed}", f"name one with `{needed}`")
        if self.fix_symmetry and not self.relax:
            raise UsageError("`fix_symmetry` is for relaxations", "add `relax`")
        if self.second_hull and not self.second_potential:
            raise UsageError("a second hull needs a second potential", "name one with `second_potential`")
        if self.hull is None:
            object.__setattr__(self, "hull", OWN_HULLS.get(self.potential or ""))
        if self.hull == "none":
            object.__setattr__(self, "hull", None)
        if self.second_potential:
            self._complete_second(self.second_potential)

    def _complete_second(self, potential: str) -> None:
        """The second potential needs a hull, for its energies alone say nothing, and a first one to disagree with."""
        if not self.hull:
            raise UsageError(
                "a second potential needs a first one with a hull to be compared with",
                "name them with `potential` and `hull`",
            )
        object.__setattr__(self, "second_hull", own_hull(potential, self.second_hull))


def own_hull(potential: str, given: str | None) -> str:
    """The hull of a second potential: the one that is given, or the one that is bundled for it.

    Raises:
        UsageError: if there is none.
    """
    hull = given or OWN_HULLS.get(potential)
    if hull is None or hull == "none":
        raise UsageError(
            f"the second potential {potential} needs a hull of its own: give `second_hull`",
            "cfx hull build makes one, with --fill-from even from few structures",
        )
    return hull


SORTABLE: dict[str, tuple[str, ...]] = {
    "e_above_hull": ("hull",),
    "e_above_hull_unrelaxed": ("hull", "relax"),
    "energy_per_atom": ("potential",),
    **dict.fromkeys(("energy_per_atom_unrelaxed", "rmsd_to_relaxed", "space_group_relaxed", "steps"), ("relax",)),
    **dict.fromkeys(
        ("second_energy_per_atom", "second_e_above_hull", "e_above_hull_difference"), ("second_potential",)
    ),
    **dict.fromkeys(("density", "num_atoms", "num_elements", "hhi_production", "hhi_reserve"), ()),
    **dict.fromkeys(("space_group", "space_group_asked"), ()),
}
"""Numeric columns of the records of crystals, and the settings without which nothing is in them."""


class Sorted:
    """What is sorted by a column of numbers, smallest first, or by -COLUMN, largest first."""

    sort: str

    @property
    def column(self) -> str:
        """The column without its sign."""
        return self.sort.removeprefix("-")

    @property
    def descending(self) -> bool:
        """Whether the largest value comes first."""
        return self.sort.startswith("-")


@dataclass(frozen=True, kw_only=True)
class ShortlistConfig(Sorted, Config):
    """Which crystals of an evaluated file are the best."""

    top: int = option(20, "Crystals in the shortlist, at most.", at_least(1))
    sort: str = option(
        "e_above_hull", "Column of numbers by which the shortlist is sorted, smallest first; -COLUMN: largest first."
    )

    def __post_init__(self):
        super().__post_init__()
        if self.column not in SORTABLE:
            raise UsageError(f"there is no column of numbers {self.column!r}", f"sort by one of {', '.join(SORTABLE)}")

    def check(self, judging: EvalConfig) -> None:
        """Raises UsageError if an evaluation leaves the column empty."""
        if lacking := [f"`{name}`" for name in SORTABLE[self.column] if not getattr(judging, name)]:
            raise UsageError(
                f"{self.column} is only known with {' and '.join(lacking)}", "add them, or sort by another column"
            )


@dataclass(frozen=True, kw_only=True)
class RelaxConfig(Config):
    """How the crystals of a file are relaxed; an interrupted run is continued with the same."""

    source: str = option(help="File of crystals, or a name.")
    potential: str = option(help=f"Interatomic potential: {POTENTIALS}")
    fmax: float = option(*FMAX)
    steps: int = option(*STEPS, NOT_NEGATIVE)
    fix_symmetry: bool = option(*FIX_SYMMETRY)
