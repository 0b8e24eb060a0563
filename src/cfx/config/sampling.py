"""What to sample."""

from dataclasses import dataclass

from cfx.config import texts
from cfx.config.fields import NOT_NEGATIVE, SHARE, Bound, Config, at_least, option, seed
from cfx.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Template(Config):
    """A given arrangement of sites, in the order of their letters."""

    letters: tuple[str, ...] = option((), 'Wyckoff letters, as ("a", "b", "e"); empty leaves them free.')
    species: tuple[tuple[str, ...], ...] = option(
        (), "For each site the symbols it may take; an empty list, or none for a site, means all."
    )
    tied: tuple[tuple[int, ...], ...] = option((), "Groups of sites (0 is the first) that share one species.")
    frac_coords: tuple[tuple[float, float, float], ...] = option(
        (), "Coordinates of each site, kept instead of drawn; empty: drawn."
    )
    lattice: tuple[float, ...] = option(
        (), "Lattice, a, b, c (angstrom), alpha, beta, gamma (degree), kept instead of drawn; empty: drawn."
    )


FREE = Template()
"""No site is given."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Config):
    """What to sample."""

    space_groups: tuple[int, ...] = option(
        help="Numbers, 1 to 230, or symbols; the crystals take turns among those that can meet the request."
    )
    weights: tuple[float, ...] = option((), "For each of space_groups, how likely it is drawn; empty: they take turns.")
    n: int = option(1, "Number of crystals.", at_least(1), "-n --n")
    seed: int = seed()
    # Logits and concentrations are divided by it, and lattice components are widened.
    temperature: float = option(
        1.0,
        "Below 1: more likely crystals. Above 1: more adventurous ones.",
        Bound(lambda value: 1e-6 <= value <= 1e6, "be between 1e-6 and 1e6"),
    )
    top_p: float = option(1.0, "Nucleus sampling: probability kept in every categorical draw.", SHARE)
    elements: tuple[str, ...] = option((), "The only elements allowed: La,Ni,O.")
    require: tuple[str, ...] = option((), "Elements that every crystal contains: Li; `bias` raises the yield.")
    any_of: tuple[str, ...] = option(
        (), "Elements of which every crystal contains at least one: F,Cl,Br,I; `bias` raises the yield."
    )
    exclude: tuple[str, ...] = option((), "Elements not allowed: Pb,Cd.")
    radioactive: bool = option(
        True, "Exclude elements without a stable isotope: Tc, Pm, Po and beyond.", flag="--no-radioactive"
    )
    formula: tuple[tuple[str, int], ...] = option(
        (),
        "Exact reduced composition: SrTiO3. At most 20 atoms per primitive cell, unless `max_atoms` is given.",
        text=texts.formula,
    )
    bias: tuple[tuple[str, float], ...] = option(
        (),
        "Elements to favour, by nats added to their logits: Fe:2.0,S:1.5. 0.7 about doubles the odds.",
        text=texts.bias,
    )
    max_atoms: int | None = option(None, "Maximum number of atoms in the conventional cell.", at_least(1))
    max_sites: int | None = option(None, "Maximum number of symmetry-inequivalent sites.", at_least(1))
    template: Template = option(FREE, "An arrangement of sites to fill.")
    exact: bool = option(
        False, "Reject what is not allowed instead of masking it: exactly the model's conditional distribution."
    )
    refine: int = option(
        0, "Steps of Markov-chain Monte Carlo on species and coordinates after the draw.", NOT_NEGATIVE
    )
    unique: bool = option(False, "Reject duplicates, as found by pymatgen's StructureMatcher.")
    min_distance: float = option(
        0.0, "Smallest distance between atoms, angstrom.", Bound(NOT_NEGATIVE.holds, "be a length in angstrom")
    )
    keep_invalid: bool = option(False, "Also keep crystals with an unphysical lattice.")
    max_attempts: int = option(10_000, "Attempts at one crystal before giving up.", at_least(1))
    shard: tuple[int, int] = option(
        (1, 1), "Draw only a part of the request: 3/16 (`unique` holds within a part).", text=texts.shard
    )
    batch_size: int | None = option(
        None, "Crystals drawn at once, 64 or more; chosen by device and request if not given.", at_least(1)
    )

    def __post_init__(self):
        groups, weights = texts.given_space_groups(self.space_groups)
        object.__setattr__(self, "space_groups", groups)
        object.__setattr__(self, "weights", self.weights or weights)
        super().__post_init__()
        if not self.space_groups:
            raise UsageError("no space group", "space groups run from 1 to 230")
        if self.n > 2**32:
            raise UsageError(f"a request can have at most 2^32 crystals, not {self.n}", "for more, use another seed")
        for group in self.space_groups:
            if not 1 <= group <= 230:
                raise UsageError(f"there is no space group {group}", "space groups run from 1 to 230")
        if self.weights and (
            len(self.weights) != len(self.space_groups) or min(self.weights) < 0 or not max(self.weights) > 0
        ):
            raise UsageError("there must be one non-negative weight for each space group, and not all can be zero")
        if not 1 <= self.shard[0] <= self.shard[1]:
            raise UsageError(f"there is no shard {self.shard[0]} of {self.shard[1]}", "write `shard=3/16`")
        for symbol, value in self.bias:
            if not abs(value) <= 1e4:
                raise UsageError(f"the bias of {symbol} must be a number of nats, not {value}")
        for symbol, count in self.formula:
            if not 1 <= count <= 256:
                raise UsageError(f"a formula has 1 to 256 atoms of an element, not {count} of {symbol}")
        if self.exact and (self.bias or self.template.frac_coords or self.template.lattice):
            raise UsageError("`exact` filters what the model draws; a bias or a kept prototype is not a filter")
        if self.keep_invalid and self.min_distance:
            raise UsageError("`keep_invalid` keeps crystals that `min_distance` rejects: they cannot be combined")

    @property
    def numbers(self) -> range:
        """The numbers of the crystals in this shard of the request."""
        part, parts = self.shard
        return range(self.n * (part - 1) // parts, self.n * part // parts)
