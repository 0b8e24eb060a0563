"""What to sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cfx.config.fields import at_least, check_seed
from cfx.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Template:
    """A given arrangement of sites, in the order of their letters.

    Attributes:
        letters: Wyckoff letters, as ("a", "b", "e"); empty leaves them free.
        species: for each site the symbols it may take; an empty list, or none for a site, means all.
        tied: groups of sites (0 is the first) that share one species.
        frac_coords: of each site, kept instead of drawn; empty: drawn.
        lattice: a, b, c (angstrom), alpha, beta, gamma (degree), kept instead of drawn; empty: drawn.
    """

    letters: tuple[str, ...] = ()
    species: tuple[tuple[str, ...], ...] = ()
    tied: tuple[tuple[int, ...], ...] = ()
    frac_coords: tuple[tuple[float, float, float], ...] = ()
    lattice: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What to sample.

    Attributes:
        space_groups: numbers, 1 to 230; the crystals take turns among those that can meet the request.
        weights: for each of `space_groups`, how likely it is drawn; empty: they take turns.
        n: crystals wanted.
        seed: of all random draws.
        temperature: divides logits and concentrations, widens lattice components; 1 is the model itself.
        top_p: share of the probability kept in every categorical draw; 1 is the model itself.
        batch_size: crystals drawn at once, 64 at least; None chooses by device and request.
        shard: (k, m): only the k-th of m parts of the request.
        elements: symbols allowed; empty: all.
        exclude: symbols not allowed.
        radioactive: allow elements without a stable isotope.
        require: symbols that every crystal contains.
        formula: reduced composition as (symbol, count); empty: free.
        bias: (symbol, nats) added to the logit of an element.
        max_atoms: most atoms in the conventional cell.
        max_sites: most symmetry-inequivalent sites.
        template: an arrangement of sites to fill.
        exact: draw from the model itself and reject what the request does not allow, instead of masking the draws.
        refine: steps of Markov-chain Monte Carlo on species and coordinates after the draw.
        unique: no crystal twice.
        min_distance: smallest distance between atoms, angstrom.
        keep_invalid: keep crystals without a physical lattice or with atoms too close.
        max_attempts: at one crystal, before giving up.
    """

    space_groups: tuple[int, ...]
    n: int = 1
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int | None = None
    weights: tuple[float, ...] = ()
    shard: tuple[int, int] = (1, 1)
    elements: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    radioactive: bool = True
    require: tuple[str, ...] = ()
    formula: tuple[tuple[str, int], ...] = ()
    bias: tuple[tuple[str, float], ...] = ()
    max_atoms: int | None = None
    max_sites: int | None = None
    template: Template = Template()
    exact: bool = False
    refine: int = 0
    unique: bool = False
    min_distance: float = 0.0
    keep_invalid: bool = False
    max_attempts: int = 10_000

    def __post_init__(self):
        if not self.space_groups:
            raise UsageError("no space group", "space groups run from 1 to 230")
        if self.n > 2**32:
            raise UsageError(f"one request has at most 2^32 crystals, not {self.n}", "take another seed for more")
        for group in self.space_groups:
            if not 1 <= group <= 230:
                raise UsageError(f"there is no space group {group}", "space groups run from 1 to 230")
        if self.weights and (
            len(self.weights) != len(self.space_groups) or min(self.weights) < 0 or not max(self.weights) > 0
        ):
            raise UsageError("there must be one weight, not negative, for each space group, and one above zero")
        at_least(self, 1, "n", "batch_size", "max_atoms", "max_sites", "max_attempts")
        if not 1e-6 <= self.temperature <= 1e6:
            raise UsageError(f"the temperature must be between 1e-6 and 1e6, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p must be above 0 and at most 1, not {self.top_p}")
        check_seed(self.seed, 63)
        if not 1 <= self.shard[0] <= self.shard[1]:
            raise UsageError(f"there is no shard {self.shard[0]} of {self.shard[1]}", "write `shard=3/16`")
        if self.refine < 0:
            raise UsageError(f"steps of refinement must not be negative, not {self.refine}")
        if not 0 <= self.min_distance < math.inf:
            raise UsageError(f"the smallest distance must be a length in angstrom, not {self.min_distance}")
        for symbol, value in self.bias:
            if not abs(value) <= 1e4:
                raise UsageError(f"the bias of {symbol} must be a number of nats, not {value}")
        for symbol, count in self.formula:
            if not 1 <= count <= 256:
                raise UsageError(f"a formula has 1 to 256 atoms of an element, not {count} of {symbol}")
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        if self.exact and (self.bias or self.template.frac_coords or self.template.lattice):
            raise UsageError("`exact` filters what the model draws; a bias or a kept prototype is no filter")
        if self.keep_invalid and self.min_distance:
            raise UsageError("atoms too close are kept by `keep_invalid` and refused by `min_distance`")

    @property
    def numbers(self) -> range:
        """The numbers of the crystals in this shard of the request."""
        part, parts = self.shard
        return range(self.n * (part - 1) // parts, self.n * part // parts)
