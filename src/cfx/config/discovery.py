"""What becomes of the crystals of a discovery: which of them go on, and what is written of those that arrive."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from cfx.config import texts
from cfx.config.evaluation import SORTABLE, EvalConfig, Sorted
from cfx.config.fields import NOT_NEGATIVE, SHARE, Config, at_least, option
from cfx.config.sampling import SampleConfig
from cfx.config.symbols import ALL_SPACE_GROUPS
from cfx.errors import UsageError

LIKELIHOODS = ("log_prob", "log_prob_per_site")
"""Columns of what the model finds of a crystal, nats."""

PROGRAMS = ("vasp", "qe")
"""Programs that inputs can be written for."""


@dataclass(frozen=True, kw_only=True)
class DiscoverConfig(Sorted, Config):
    """Which crystals of a discovery go on, and what is written of those that arrive."""

    charge_balanced: bool = option(False, "Only crystals whose charges balance, by SMACT, alloys among them.")
    likeliest: float = option(
        1.0, "Share of the crystals that is evaluated: those likeliest to the model, in nats per site.", SHARE
    )
    relax: int = option(
        100, "Crystals that are relaxed, at most: those of lowest energy above the hull as drawn.", at_least(1)
    )
    budget: str | int | None = option(
        None,
        "What energies and relaxations may cost: 2000 evaluations of one structure each, or a time, as 90s, 10min or "
        "2h. Default: what `relax` takes.",
    )
    max_e_hull: float | None = option(
        None, "Energy above the hull up to which a relaxed crystal counts, eV/atom. Default: any.", NOT_NEGATIVE
    )
    properties: tuple[str, ...] = option(
        (),
        "Properties of the relaxed crystals: band_gap, dielectric, or NAME=MODEL, as band_gap=matgl:DIRECTORY.",
        flag="--property",
    )
    top: int = option(20, "Crystals in the list, at most.", at_least(1))
    sort: str = option(
        "e_above_hull", "Column of numbers that the list is sorted by, smallest first; -COLUMN: largest first."
    )
    inputs: tuple[str, ...] = option((), "Inputs for calculations of the list: vasp, qe, or both.")

    def __post_init__(self):
        super().__post_init__()
        if self.budget is not None:
            texts.budget(self.budget)
        if wrong := [name for name in self.inputs if name not in PROGRAMS]:
            raise UsageError(f"there are no inputs for {wrong[0]!r}", f"choose among: {', '.join(PROGRAMS)}")
        known = [*SORTABLE, *LIKELIHOODS, *self.property_models]
        if self.column not in known:
            raise UsageError(f"there is no column of numbers {self.column!r}", f"sort by one of {', '.join(known)}")

    @property
    def property_models(self) -> dict[str, str]:
        """The property models, `auto` where none is named, by property."""
        parts = (text.partition("=") for text in self.properties)
        return {name: model or "auto" for name, _, model in parts}

    def check(self, judging: EvalConfig) -> None:
        """Raises UsageError if crystals cannot be ranked by how they are judged."""
        if not judging.potential or not judging.hull:
            raise UsageError("crystals are ranked by their energy above a hull", "name one with `hull`")
        if lacking := [f"`{name}`" for name in SORTABLE.get(self.column, ()) if not getattr(judging, name)]:
            raise UsageError(
                f"{self.column} is only known with {' and '.join(lacking)}", "add them, or sort by another column"
            )


@dataclass(frozen=True, kw_only=True)
class DiscoverRun:
    """All that a discovery is asked; an interrupted one is continued with the same.

    Attributes:
        sample: what is drawn.
        judge: what crystals are compared with, and how they are relaxed.
        keep: which of them go on.
        by_probability: whether space groups are drawn by the probability that the model gives them for the formula.
    """

    sample: SampleConfig
    judge: EvalConfig
    keep: DiscoverConfig
    by_probability: bool = False

    @classmethod
    def of(cls, space_groups: Any = None, **settings: Any) -> Self:
        """The run of some settings, each a field of one of its configurations; the potential is CHGNet by default.

        Args:
            space_groups: as in `SampleConfig`; without them, a formula leaves them to the model.
            **settings: the others.

        Raises:
            UsageError: for a setting that there is not, a wrong value, or without space groups and formula.
        """
        given = {"potential": "chgnet", **settings}
        parts = [{name: given.pop(name) for name in names_of(kind) if name in given} for kind in PARTS]
        if given:
            raise UsageError(f"there is no setting {', '.join(map(repr, given))}")
        if space_groups is None and not parts[0].get("formula"):
            raise UsageError("no space group", "give one, or a `formula` for the space groups that are likely for it")
        sample = SampleConfig(space_groups=ALL_SPACE_GROUPS if space_groups is None else space_groups, **parts[0])
        judge, keep = EvalConfig(relax=True, **parts[1]), DiscoverConfig(**parts[2])
        keep.check(judge)
        return cls(sample=sample, judge=judge, keep=keep, by_probability=space_groups is None)

    def header(self) -> dict[str, Any]:
        """What a run has to share with the one that it continues, by name."""
        parts = {**asdict(self.judge), **asdict(self.sample), **asdict(self.keep)}
        return {name: value for name, value in parts.items() if name not in SAME_RESULT}


PARTS = (SampleConfig, EvalConfig, DiscoverConfig)
"""Configurations of a run, in order."""

NOT_ASKED = ("space_groups", "keep_invalid", "shard", "relax")
"""Fields of the first two that a discovery decides itself."""

SAME_RESULT = ("workers", "batch_size", "max_attempts")
"""Settings that change nothing but the time."""


def names_of(kind: Any) -> list[str]:
    """The settings of a run that are fields of a configuration."""
    names = [field.name for field in fields(kind)]
    return names if kind is DiscoverConfig else [name for name in names if name not in NOT_ASKED]
