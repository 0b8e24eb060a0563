"""What is checked crystal by crystal: its structure, its composition, its space group.

Validity is that of CDVAE (2110.06197). A structure is valid if no two atoms, periodic images included, are within 0.5
angstrom and the cell is larger than 0.1 cubic angstrom. A composition is valid if SMACT finds oxidation states that
balance, the more electronegative element being the negative one; elements and alloys are valid as they are. So a model
that makes more and more alloys looks better and better: the same is told without alloys, and what each crystal is.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cfx.config import SYMPREC
from cfx.config.symbols import CLASSES as CLASSES
from cfx.core.elements import NOBLE_GASES, SYMBOLS, lowest_terms
from cfx.data.structures import MIN_DISTANCE, UNREAD, closest_approach, why_malformed
from cfx.errors import DependencyError, install
from cfx.evaluation.matching import spread

if TYPE_CHECKING:
    from pymatgen.core import Structure
    from spglib import SpglibDataset

Formula = tuple[tuple[str, int], ...]
"""(symbol, atoms) of a reduced formula, in order of symbol."""

OXIDATION_STATES = "smact14"
"""SMACT's set of oxidation states that was its only one when the convention was published."""

SMACT_SETTING = f"SMACT, oxidation states {OXIDATION_STATES}, Pauling test, alloys valid"
"""The setting in words, for reports."""

NONMETALS = frozenset(SYMBOLS[z] for z in (1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 32, 33, 34, 35, 52, 53, 85, *NOBLE_GASES))
"""Elements that no intermetallic has."""

MAX_COMBINATIONS = 2_000_000
"""Most combinations of oxidation states that are tried, in a second or two; eight elements may have more."""

ANGLE_TOLERANCE = 5.0
"""Angle tolerance (degree) of the symmetry search, pymatgen's."""

CHUNK = 64
"""Crystals whose symmetry a process searches at once."""


@dataclass(frozen=True)
class Validity:
    """Whether a structure or a composition is valid, and if not, the reason."""

    valid: bool
    reason: str = ""


@dataclass(frozen=True)
class CompositionValidity(Validity):
    """Whether a composition is valid, and what it is.

    Attributes:
        without_alloys: whether it is valid if alloys have to balance their charges as well.
        kind: one of CLASSES; None if there is no composition.
    """

    without_alloys: bool = False
    kind: str | None = None


def structure_validity(structures: Iterable[Structure | None]) -> list[Validity]:
    """Whether each pymatgen Structure is valid; None stands for a row that could not be read."""
    reasons = map(_wrong_structure, structures)
    return [Validity(not reason, reason) for reason in reasons]


def _wrong_structure(structure: Structure | None) -> str:
    if (reason := why_malformed(structure)) or structure is None:
        return reason
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        close = closest_approach(structure) <= MIN_DISTANCE
    return f"atoms within {MIN_DISTANCE} angstrom" if close else ""


def composition_validity(
    structures: Iterable[Structure | None], mixed_valence: bool = False
) -> list[CompositionValidity]:
    """Whether the composition of each pymatgen Structure is valid; None stands for a row that could not be read.

    Args:
        structures: the crystals.
        mixed_valence: whether an element may be in two oxidation states at once, as iron is in Fe3O4.

    Raises:
        DependencyError: if SMACT is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import smact.screening  # noqa: F401
    except ImportError as error:
        raise DependencyError("the validity of compositions needs smact", install("eval")) from error
    return [_judge_composition(structure, mixed_valence) for structure in structures]


def _judge_composition(structure: Structure | None, mixed_valence: bool) -> CompositionValidity:
    if structure is None:
        return CompositionValidity(False, UNREAD)
    if not len(structure):
        return CompositionValidity(False, "no atoms")
    if not structure.is_ordered:
        return CompositionValidity(False, "partial occupancies have no oxidation states")
    counts = Counter(site.specie.symbol for site in structure)
    formula = tuple(sorted(lowest_terms(counts).items()))
    reason = wrong_formula(formula, mixed_valence)
    balanced = not _unbalanced(formula, mixed_valence)
    return CompositionValidity(not reason, reason, balanced, composition_class(formula, mixed_valence))


def composition_class(formula: Formula, mixed_valence: bool = False) -> str:
    """What a composition is, as one of CLASSES."""
    if len(formula) == 1:
        return "element"
    if not any(symbol in NONMETALS for symbol, _ in formula):
        return "intermetallic"
    return "other" if _unbalanced(formula, mixed_valence) else "charge-neutral"


@functools.lru_cache(maxsize=100_000)
def wrong_formula(formula: Formula, mixed_valence: bool = False) -> str:
    """Why SMACT finds a formula, of (symbol, count), invalid; "" if it is valid."""
    return "" if _valid_as_it_is(formula) else _unbalanced(formula, mixed_valence)


@functools.lru_cache(maxsize=100_000)
def _unbalanced(formula: Formula, mixed_valence: bool) -> str:
    """Why the charges of a formula do not balance; "" if they do, or if it is an element."""
    from pymatgen.core import Composition
    from smact.screening import smact_validity

    if len(formula) == 1:
        return ""
    if reason := _cannot_be_asked(formula):
        return reason
    ask = functools.partial(smact_validity, Composition(dict(formula)), oxidation_states_set=OXIDATION_STATES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if ask(use_pauling_test=True, include_alloys=False) or (mixed_valence and _balances_mixed(formula)):
            return ""
        neutral = ask(use_pauling_test=False, include_alloys=False)
    return "charges balance only against electronegativity" if neutral else "charges do not balance"


def _balances_mixed(formula: Formula) -> bool:
    """Whether charges balance with one element in two positive oxidation states, among the atoms of two formula units.

    SMACT's own option looks at one formula unit, in which Cs2SbCl6 has a single antimony to be both +3 and +5.
    """
    from smact.screening import MIXED_VALENCE_ELEMENTS

    for mixed, count in formula:
        if mixed in MIXED_VALENCE_ELEMENTS:
            others = [(symbol, n) for symbol, n in formula if symbol != mixed]
            choices = [_oxidation_states(symbol) or () for symbol, _ in others]
            pairs = list(itertools.combinations([q for q in _oxidation_states(mixed) or () if q > 0], 2))
            if math.prod(map(len, choices)) * len(pairs) > MAX_COMBINATIONS:
                continue
            for (low, high), charges in itertools.product(pairs, itertools.product(*choices)):
                needed = -2 * sum(q * n for q, (_, n) in zip(charges, others, strict=True))
                oxidized, rest = divmod(needed - 2 * count * low, high - low)
                if not rest and 0 < oxidized < 2 * count:
                    states = {mixed: high, **{symbol: q for (symbol, _), q in zip(others, charges, strict=True)}}
                    if _follows_electronegativity(states):
                        return True
    return False


def _follows_electronegativity(states: Mapping[str, int]) -> bool:
    """SMACT's Pauling test of oxidation states by symbol; passed where an electronegativity is unknown, as there."""
    from smact import Element
    from smact.screening import pauling_test

    try:
        return pauling_test(list(states.values()), [Element(symbol).pauling_eneg for symbol in states])
    except TypeError:
        return True


def _valid_as_it_is(formula: Formula) -> bool:
    """Whether this is an element or an alloy, which SMACT's rules take as valid."""
    from smact import metals

    return len(formula) == 1 or all(symbol in metals for symbol, _ in formula)


def _cannot_be_asked(formula: Formula) -> str:
    """Why SMACT has no answer: it lacks data, or it would try combinations for ever."""
    combinations = 1
    for symbol, _ in formula:
        states = _oxidation_states(symbol)
        if states is None:
            return f"SMACT does not know {symbol}"
        if not states:
            return f"{symbol} has no oxidation states"
        combinations *= len(states)
    if combinations > MAX_COMBINATIONS:
        return f"more than {MAX_COMBINATIONS:,} combinations of oxidation states"
    return ""


@functools.cache
def _oxidation_states(symbol: str) -> tuple[int, ...] | None:
    from smact import Element

    try:
        return tuple(getattr(Element(symbol), f"oxidation_states_{OXIDATION_STATES}") or ())
    except KeyError:
        return None


@dataclass(frozen=True)
class SpaceGroup:
    """The space group of a crystal.

    Attributes:
        found: by spglib, or None.
        asked: what was asked for, or None.
        reason: why none was found, or "".
    """

    found: int | None
    asked: int | None = None
    reason: str = ""

    @property
    def as_asked(self) -> bool | None:
        """Whether both are the same; None if none was asked for."""
        return None if self.asked is None else self.found == self.asked


def find_space_groups(
    structures: Sequence[Structure | None],
    asked: Sequence[int | None] | None = None,
    symprec: float = SYMPREC,
    n_jobs: int | None = None,
    on_done: Callable[[int], None] | None = None,
) -> list[SpaceGroup]:
    """The space group of each pymatgen Structure; None stands for a row that could not be read.

    Searched by spglib, as in published figures. (moyo is faster; on relaxed crystals, which keep to a group within
    about the tolerance only, it finds another one in 3 of 100 cases.)

    Args:
        structures: the crystals.
        asked: the space group asked for, for every row, or None.
        symprec: distance tolerance of the search, angstrom.
        n_jobs: processes, see `spread`.
        on_done: told how many chunks of `CHUNK` crystals are done.
    """
    requested = [None] * len(structures) if asked is None else asked
    chunks = ((structures[start : start + CHUNK], symprec) for start in range(0, len(structures), CHUNK))
    found = [one for chunk in spread(_search_all, chunks, n_jobs, on_done) for one in chunk]
    return [SpaceGroup(group, wanted, reason) for (group, reason), wanted in zip(found, requested, strict=True)]


def _search_all(structures: Sequence[Structure | None], symprec: float) -> list[tuple[int | None, str]]:
    """Space group and reason of each."""
    return [_search(structure, symprec) for structure in structures]


def _search(structure: Structure | None, symprec: float) -> tuple[int | None, str]:
    dataset, reason = symmetry_dataset(structure, symprec)
    return (None if dataset is None else int(dataset.number)), reason


def symmetry_dataset(structure: Structure | None, symprec: float = SYMPREC) -> tuple[SpglibDataset | None, str]:
    """What spglib finds of the symmetry of a pymatgen Structure, within `symprec` angstrom; or why it finds nothing."""
    os.environ.setdefault("SPGLIB_WARNING", "OFF")
    import spglib

    if (reason := why_malformed(structure)) or structure is None:
        return None, reason
    if not structure.is_ordered:
        return None, "partial occupancies: no symmetry search"
    cell = (structure.lattice.matrix, structure.frac_coords, [site.specie.Z for site in structure])
    try:
        # The stubs want lists of lists; spglib takes arrays.
        dataset = spglib.get_symmetry_dataset(cell, symprec, ANGLE_TOLERANCE)  # pyright: ignore[reportArgumentType]
    except spglib.SpglibError:
        dataset = None
    return dataset, "spglib finds no symmetry" if dataset is None else ""
