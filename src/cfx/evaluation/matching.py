"""Whether structures are the same crystal, how far apart two are, and which of many repeat others.

`same_crystal` compares a pair. Among many crystals, what StructureMatcher does anew for every pair, taking both to
their reduced primitive cells, is done once for each (`reduce_or_say_why`), and only where another one has the same
composition; oxidation states are taken off before. `find_match` compares these cells, and tells those with different
numbers of atoms apart without a comparison, as StructureMatcher would. The comparison is not quite symmetric: the
earlier crystal, or the known one, comes first.
"""

import functools
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfx.core import Structure
from cfx.core.elements import SYMBOLS, lowest_terms
from cfx.data.structures import why_malformed
from cfx.errors import CfxError

TOLERANCE = 0.25
"""How far (angstrom, along an axis) pymatgen lets atoms be off a translation of a smaller cell."""

Matched = tuple[int | None, str]
"""Number of the crystal that one matches, if it does; why it could not be compared, or ""."""

LARGEST = 2_000_000
"""Most differences of positions that `surely_primitive` looks at."""


def same_crystal(one: Structure, other: Structure) -> bool:
    """Whether pymatgen's StructureMatcher, with its own tolerances, maps one Structure to the other."""
    return bool(_matcher().fit(one, other))


@functools.cache
def _matcher(primitive_cell: bool = True):
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(primitive_cell=primitive_cell)


def rms_displacement(structure: Structure | None, relaxed: Structure | None) -> float | None:
    """Root mean square displacement of the atoms, angstrom; None where StructureMatcher no longer matches the two.

    Both are brought to one volume, the geometric mean of theirs, and laid over each other as well as possible, so a
    change of volume alone is not a displacement. Cells with equally many atoms are compared as they are: to look for
    smaller ones averages over the atoms that become one.

    Args:
        structure: pymatgen Structure before, or None.
        relaxed: after, or None.
    """
    if structure is None or relaxed is None or why_malformed(structure) or why_malformed(relaxed):
        return None
    before, after = plain(structure), plain(relaxed)
    if before.composition.reduced_composition != after.composition.reduced_composition:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distances = _matcher(primitive_cell=len(before) != len(after)).get_rms_dist(before, after)
    if distances is None:
        return None
    # pymatgen's unit of length: the cube root of the volume per atom, the geometric mean of both crystals'.
    unit = (before.volume / len(before) * after.volume / len(after)) ** (1 / 6)
    return float(distances[0]) * unit


@dataclass(frozen=True)
class Uniqueness:
    """Whether a crystal matches no kept crystal of an earlier row.

    Attributes:
        unique: it does not; it is kept.
        match: row of a kept crystal that it matches, if it does.
        reason: why it could not be compared, or "".
    """

    unique: bool
    match: int | None = None
    reason: str = ""


def find_duplicates(
    structures: Sequence[Structure | None], n_jobs: int | None = None, on_done: Callable[[int], None] | None = None
) -> list[Uniqueness]:
    """Which of the crystals match an earlier one that is kept.

    Args:
        structures: pymatgen Structures, None for rows that could not be read; these are not unique.
        n_jobs: processes, see `spread`; they do not change the result.
        on_done: told how many compositions that occur more than once are done.
    """
    reasons = [why_malformed(structure) for structure in structures]
    groups = [rows for rows in by_composition(structures, reasons).values() if len(rows) > 1]
    jobs = (([structures[row] for row in rows], rows) for rows in groups)
    found = scatter(groups, spread(_compare_with_earlier, jobs, n_jobs, on_done), reasons)
    return [Uniqueness(match is None and not reason, match, reason) for match, reason in found]


def scatter(
    groups: Sequence[Sequence[int]], answers: Sequence[Sequence[Matched]], reasons: Sequence[str]
) -> list[Matched]:
    """Answers for groups of rows as answers by row; rows of no group match nothing."""
    found: list[Matched] = [(None, reason) for reason in reasons]
    for rows, answer in zip(groups, answers, strict=True):
        for row, one in zip(rows, answer, strict=True):
            found[row] = one
    return found


def _compare_with_earlier(structures: Sequence[Structure], rows: Sequence[int]) -> list[Matched]:
    """Compares crystals of one composition: which earlier one, itself no duplicate, each of them matches."""
    answers: list[Matched] = []
    kept: list[tuple[int, Structure]] = []
    for row, one in zip(rows, map(reduce_or_say_why, structures), strict=True):
        answers.append(compare(one, kept))
        if not isinstance(one, str) and answers[-1][0] is None:
            kept.append((row, one))
    return answers


def compare(one: Structure | str, kept: Sequence[tuple[int, Structure]]) -> Matched:
    """Which of the numbered reduced crystals is the reduced crystal `one`, which may be a reason why there is none."""
    if isinstance(one, str):
        return None, one
    match = find_match(one, [other for _, other in kept])
    return (None if match is None else kept[match][0]), ""


def by_composition(structures: Sequence[Structure | None], reasons: Sequence[str]) -> dict[Hashable, list[int]]:
    """Rows of equal composition, of those without a reason."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row, (structure, reason) in enumerate(zip(structures, reasons, strict=True)):
        if structure is not None and not reason:
            groups[composition_key(structure)].append(row)
    return groups


def composition_key(structure: Structure) -> Hashable:
    """What two structures share if they can be the same crystal: the reduced formula by atomic number.

    Of structures with partial occupancies it is the set of elements; these are never the same as ordered ones.
    """
    if not structure.is_ordered:
        return ("partial occupancies", *sorted({kind.Z for site in structure for kind in site.species}))
    return tuple(sorted(lowest_terms(Counter(site.specie.Z for site in structure)).items()))


def find_match(one: Structure, kept: Sequence[Structure]) -> int | None:
    """Which of the reduced crystals `kept` is the reduced crystal `one`, by index, or None.

    Those of the most similar volume come first, and the first that matches is the answer.
    """

    def difference(i: int) -> float:
        return abs(kept[i].volume / len(kept[i]) - one.volume / len(one))

    alike = sorted((i for i in range(len(kept)) if len(kept[i]) == len(one)), key=difference)
    return next((i for i in alike if _matcher().fit(kept[i], one, skip_structure_reduction=True)), None)


def reduce_or_say_why(structure: Structure) -> Structure | str:
    """The reduced crystal, or the reason why there is none."""
    try:
        return reduced_crystal(structure)
    except (ValueError, ArithmeticError) as error:
        return f"pymatgen cannot reduce the cell ({type(error).__name__})"


def reduced_crystal(structure: Structure) -> Structure:
    """The Niggli-reduced primitive cell that StructureMatcher would make of a Structure, of elements only.

    Raises:
        ValueError: if pymatgen cannot reduce the cell.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reduced = plain(structure).get_reduced_structure()
        return reduced if surely_primitive(reduced) else reduced.get_primitive_structure()


def plain(structure: Structure) -> Structure:
    """A Structure of elements, without isotopes, oxidation states and spins."""
    from pymatgen.core import Element, Structure

    kinds = {kind for site in structure for kind in site.species}
    if all(structure.lattice.pbc) and all(isinstance(kind, Element) and kind.symbol in SYMBOLS for kind in kinds):
        return structure
    species = []
    for site in structure:
        amounts: dict[str, float] = defaultdict(float)
        for kind, amount in site.species.items():
            amounts[SYMBOLS[kind.Z]] += amount
        species.append(dict(amounts))
    return Structure(structure.lattice.matrix, species, structure.frac_coords)


def surely_primitive(structure: Structure) -> bool:
    """Whether pymatgen's search for a smaller cell is bound to fail, as it does for most crystals.

    It looks for a lattice whose vectors are all among the translations, from one atom of the rarest species to
    another, that take every atom near one of its species. At least one component of one of the vectors is off every
    integer by 1/m, where m divides the number of atoms of every species. If no translation is, none is found.
    """
    groups = defaultdict(list)
    for site in structure:
        groups[site.species_string].append(site.frac_coords)
    points = sorted((np.array(group) for group in groups.values()), key=len)
    most = math.gcd(*map(len, points))
    if most == 1:
        return True
    tolerance = TOLERANCE / np.array(structure.lattice.abc)
    steps = points[0] - points[0][0]
    for group in points:
        if not (_off_integer(steps) + tolerance >= 1 / most).any():
            return True
        if len(group) ** 2 * len(steps) > LARGEST:
            return False
        # Of these translations, those that take every atom of the group near one; rather too many than too few.
        misses = _off_integer((group + steps[:, None])[:, :, None] - group)
        steps = steps[(misses < 2.02 * tolerance).all(-1).any(-1).all(-1)]
    return not (_off_integer(steps) + tolerance >= 1 / most).any()


def _off_integer(values: np.ndarray) -> np.ndarray:
    return np.abs(values - np.rint(values))


def spread(
    function: Callable[..., Any],
    jobs: Iterable[tuple],
    n_jobs: int | None = None,
    on_done: Callable[[int], None] | None = None,
) -> list:
    """function(*job) of every job, in order, by joblib.

    The backend is joblib's own choice: loky, that is fresh processes and never forks, unless the caller has chosen
    another with `joblib.parallel_config`. Libraries' warnings are not shown, wherever a job runs.

    Args:
        function: of a module, so that it can be sent.
        jobs: arguments; taken one after the other while there is work.
        n_jobs: processes, -1 for as many as there are cores; None for what `parallel_config` says, or else one.
        on_done: told the number of jobs done so far, in this process.

    Raises:
        CfxError: if a process was killed.
    """
    import joblib

    calls = (joblib.delayed(_quietly)(function, *job) for job in jobs)
    try:
        if on_done is None:
            return list(joblib.Parallel(n_jobs=n_jobs)(calls))
        results = []
        for result in joblib.Parallel(n_jobs=n_jobs, return_as="generator")(calls):
            results.append(result)
            on_done(len(results))
        return results
    except BrokenProcessPool as error:
        raise CfxError("a worker process was killed, perhaps because memory ran out", "use fewer processes") from error


def _quietly(function: Callable[..., Any], *arguments: Any) -> Any:
    with warnings.catch_warnings(action="ignore"):
        return function(*arguments)
