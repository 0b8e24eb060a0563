"""One number with its uncertainty for every metric, from the records of crystals.

Rates are over all rows of the input: a row that could not be read, or where a step failed, counts as a failure. (Only
the space group as asked is over the rows where one was asked for.) A crystal that is not valid can still be unique,
novel or stable: these are judged for every row that could be read, as MatterGen (2312.03687) does, and whoever wants
them combined has the records. A crystal below the floor is stable in no count. What was evaluated for no row at all is
None. Means are over the rows that have a value, distances of distributions over the valid ones, as in CDVAE
(2110.06197).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cfx.core.elements import SYMBOLS
from cfx.data.structures import why_malformed
from cfx.evaluation.phases import count_atoms
from cfx.evaluation.validity import CLASSES

if TYPE_CHECKING:
    from pymatgen.core import Structure

Record = Mapping[str, Any]
"""What is known of one row; a key that is missing is None.

valid_structure, valid_composition, valid_composition_without_alloys, unique, novel, converged: bools. class: one of
CLASSES. formula: reduced. hhi_production, hhi_reserve: numbers. e_above_hull, e_above_hull_unrelaxed: eV/atom.
rmsd_to_relaxed: angstrom. space_group, space_group_asked, space_group_relaxed: 1..230. density: g/cm3. num_elements: a
number. second_e_above_hull: by a second potential, eV/atom, if there is one. verdict, second_verdict: of VERDICTS.
"""

NOT_EVALUATED = ("coverage_recall", "coverage_precision")
"""Metrics of others that cfx does not compute: they need matminer's fingerprints."""

FIRST, SECOND = "e_above_hull", "second_e_above_hull"
"""Keys of the energies above the hull by the two potentials."""

ROUNDING = 1e-8
"""Energies (eV/atom) so little above a threshold are on it."""


BELOW_FLOOR = "below the floor"
"""Verdict on a crystal so far below all known phases that the hull or its energy has to be wrong."""

VERDICTS = ("stable", "metastable", "unstable", BELOW_FLOOR)
"""What a crystal with an energy above the hull is; metastable ones are not stable, here."""


@dataclass(frozen=True)
class Thresholds:
    """Energies above the hull, eV/atom, up to which a crystal counts as stable, and as on the hull.

    One below `floor` counts as neither: it lies in a gap of the hull, or the potential is wrong.
    """

    stable: float = 0.1
    on_hull: float = 0.0
    floor: float = -0.2

    def allow(self, height: float, limit: float) -> bool:
        """Whether an energy above the hull is at most `limit`, and not below the floor."""
        return self.floor - ROUNDING <= height <= limit + ROUNDING

    def verdict(self, height: float) -> str:
        """What an energy above the hull (eV/atom) says of a crystal, as a word of VERDICTS."""
        if height < self.floor - ROUNDING:
            return BELOW_FLOOR
        if height <= self.on_hull + ROUNDING:
            return "stable"
        return "metastable" if height <= self.stable + ROUNDING else "unstable"


def is_below_floor(record: Record) -> bool:
    """Whether a crystal is below the floor by either potential: it is no candidate for anything."""
    return BELOW_FLOOR in (record.get("verdict"), record.get("second_verdict"))


def summarize(
    records: Sequence[Record],
    thresholds: Thresholds | None = None,
    reference: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, dict[str, Any] | None]:
    """All metrics of a file, by name.

    Args:
        records: one for each row of the input, see `Record`.
        thresholds: what counts as stable; default 0.1 eV/atom, and 0 for the hull, down to -0.2.
        reference: `density` (g/cm3) and `num_elements` of known crystals, if there are any.

    Returns:
        For a rate value, low, high (Wilson, 95 %), count and of; for a mean value, error (standard error), unit and
        of; for a distance of distributions value, unit and of; None for what was not evaluated.
    """
    limits = thresholds or Thresholds()
    return {
        **_validity(records),
        **_novelty(records),
        **_stability(records, "stable", limits, limits.stable),
        **_stability(records, "on_hull", limits, limits.on_hull),
        "frac_below_floor_structures": _below_floor(records, limits),
        "avg_energy_above_hull_per_atom": mean(_column(records, "e_above_hull"), "eV/atom"),
        **_confirmed(records, limits),
        **_disagreement(records, limits),
        **_diversity(records),
        "avg_hhi_production": mean(_column(records, "hhi_production"), ""),
        "avg_hhi_reserve": mean(_column(records, "hhi_reserve"), ""),
        "avg_rmsd_from_relaxation": mean(_column(records, "rmsd_to_relaxed"), "angstrom"),
        **_relaxation(records),
        "frac_space_group_as_asked": _as_asked(records),
        "wdist_density": _distance(records, reference, "density", "g/cm3"),
        "wdist_num_elements": _distance(records, reference, "num_elements", "elements"),
        **dict.fromkeys(NOT_EVALUATED),
    }


def summarize_classes(
    records: Sequence[Record], thresholds: Thresholds | None = None
) -> dict[str, dict[str, dict[str, Any] | None]]:
    """The metrics of each class of compositions by itself, and its share of all rows as `frac_of_crystals`.

    Rates are over the rows of the class. Classes without a row are left out.
    """
    summaries = {}
    for kind in CLASSES:
        rows = [record for record in records if record.get("class") == kind]
        if rows:
            share = rate([record.get("class") == kind for record in records])
            summaries[kind] = {"frac_of_crystals": share, **summarize(rows, thresholds)}
    return summaries


def _column(records: Sequence[Record], key: str) -> list:
    return [record.get(key) for record in records]


def _all_hold(*flags: bool | None) -> bool | None:
    """Whether all hold; False as soon as one does not, None if that cannot be said."""
    if any(flag is not None and not flag for flag in flags):
        return False
    return None if None in flags else True


def _joint(*columns: Sequence[bool | None]) -> dict[str, Any] | None:
    """The rate of rows where all hold; None if a whole column was not evaluated."""
    if any(all(flag is None for flag in column) for column in columns):
        return None
    return rate([_all_hold(*flags) for flags in zip(*columns, strict=True)])


def _validity(records: Sequence[Record]) -> dict[str, Any]:
    structure, composition = _column(records, "valid_structure"), _column(records, "valid_composition")
    return {
        "avg_structure_validity": rate(structure),
        "avg_comp_validity": rate(composition),
        "avg_comp_validity_without_alloys": rate(_column(records, "valid_composition_without_alloys")),
        "avg_structure_comp_validity": _joint(structure, composition),
    }


def _novelty(records: Sequence[Record]) -> dict[str, Any]:
    unique, novel = _column(records, "unique"), _column(records, "novel")
    return {
        "frac_unique_structures": rate(unique),
        "frac_novel_structures": rate(novel),
        "frac_novel_unique_structures": _joint(novel, unique),
    }


def _stability(
    records: Sequence[Record], name: str, limits: Thresholds, limit: float, by: Sequence[str] = (FIRST,)
) -> dict[str, Any]:
    """The rate of crystals up to a height above every hull, and of those among them that are unique and novel."""
    heights = zip(*(_column(records, key) for key in by), strict=True)
    low = [_all_hold(*(None if one is None else limits.allow(one, limit) for one in each)) for each in heights]
    unique, novel = _column(records, "unique"), _column(records, "novel")
    return {
        f"frac_{name}_structures": rate(low),
        f"frac_novel_unique_{name}_structures": _joint(low, unique, novel),
    }


def _confirmed(records: Sequence[Record], limits: Thresholds) -> dict[str, Any]:
    """What two potentials say is stable, each on its own hull; nothing without a second one."""
    if not any(SECOND in record for record in records):
        return {}
    return {
        name.replace("frac_", "frac_confirmed_"): found
        for level, limit in (("stable", limits.stable), ("on_hull", limits.on_hull))
        for name, found in _stability(records, level, limits, limit, by=(FIRST, SECOND)).items()
    }


def _disagreement(records: Sequence[Record], limits: Thresholds) -> dict[str, Any]:
    """How the heights by two potentials differ, over the crystals that both know; nothing without a second one.

    Means are over those that either calls metastable or better: of overlapping atoms potentials say anything.
    """
    if not any(SECOND in record for record in records):
        return {}
    heights = zip(_column(records, FIRST), _column(records, SECOND), strict=True)
    both = [(first, second) for first, second in heights if first is not None and second is not None]
    near = [pair for pair in both if any(limits.allow(height, limits.stable) for height in pair)]
    differences = [second - first for first, second in near]
    differ = rate(limits.verdict(first) != limits.verdict(second) for first, second in both)
    return {
        "frac_verdicts_differ": differ,
        "avg_e_above_hull_difference": mean(differences, "eV/atom"),
        "avg_abs_e_above_hull_difference": mean(map(abs, differences), "eV/atom"),
        "median_abs_e_above_hull_difference": _median_distance(both),
        "rank_correlation_e_above_hull": _rank_correlation(both),
    }


def _median_distance(pairs: Sequence[tuple[float, float]]) -> dict[str, Any] | None:
    """Half of the pairs are nearer to each other than this, eV/atom."""
    if not pairs:
        return None
    distances = [abs(second - first) for first, second in pairs]
    return {"value": float(np.median(distances)), "unit": "eV/atom", "of": len(pairs)}


def _rank_correlation(pairs: Sequence[tuple[float, float]]) -> dict[str, Any] | None:
    """Spearman's coefficient, 1 if two rankings are the same; None where there are no two of them."""
    from scipy.stats import rankdata

    columns = list(zip(*pairs, strict=True))
    if not columns or any(len(set(column)) < 2 for column in columns):
        return None
    first, second = map(rankdata, columns)
    return {"value": float(np.corrcoef(first, second)[0, 1]), "unit": "", "of": len(pairs)}


def _below_floor(records: Sequence[Record], limits: Thresholds) -> dict[str, Any] | None:
    heights = _column(records, "e_above_hull")
    return rate([None if height is None else limits.verdict(height) == BELOW_FLOOR for height in heights])


def _relaxation(records: Sequence[Record]) -> dict[str, Any]:
    """What relaxing changed: energies above the hull, space groups (of crystals with both), and how often it ended."""
    heights = zip(_column(records, "e_above_hull"), _column(records, "e_above_hull_unrelaxed"), strict=True)
    changes = [after - before for after, before in heights if after is not None and before is not None]
    groups = zip(_column(records, "space_group"), _column(records, "space_group_relaxed"), strict=True)
    return {
        "avg_energy_above_hull_change_per_atom": mean(changes, "eV/atom"),
        "frac_space_group_changed": rate([before != after for before, after in groups if before and after]),
        "frac_relaxation_converged": rate(_column(records, "converged")),
    }


def _diversity(records: Sequence[Record]) -> dict[str, Any]:
    """How many compositions there are, and how many there seem to be where alike ones count less than one each."""
    counts = Counter(record["formula"] for record in records if record.get("formula"))
    if not counts:
        return {"num_compositions": None, "vendi_compositions": None}
    of = counts.total()
    return {
        "num_compositions": {"value": len(counts), "unit": "", "of": of},
        "vendi_compositions": {"value": vendi_score(counts), "unit": "", "of": of},
    }


def vendi_score(formulas: Mapping[str, int]) -> float:
    """Vendi score (Friedman and Dieng, 2210.02410) of compositions: how many different ones there are in effect.

    The exponential of the entropy of the eigenvalues of K/n, where K holds the similarities of all pairs: here the
    cosine of the angle between vectors of atomic fractions. K is X X^T for n vectors of length one, so that X^T X, as
    large as the periodic table, has the same eigenvalues, and any n is cheap. 1 if all are alike; at most the number
    of elements.

    Args:
        formulas: formula -> how often it comes, at least one.
    """
    from pymatgen.core import Composition

    vectors = np.zeros((len(formulas), len(SYMBOLS)))
    for row, formula in enumerate(formulas):
        for z, amount in count_atoms(Composition(formula)).items():
            vectors[row, z] = amount
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    weights = np.array(list(formulas.values()), float)
    eigenvalues = np.linalg.eigvalsh((vectors.T * (weights / weights.sum())) @ vectors)
    kept = eigenvalues[eigenvalues > 1e-12]
    return float(np.exp(-(kept * np.log(kept)).sum()))


def _as_asked(records: Sequence[Record]) -> dict[str, Any] | None:
    asked = [record for record in records if record.get("space_group_asked") is not None]
    return rate([record.get("space_group") == record["space_group_asked"] for record in asked])


def _distance(
    records: Sequence[Record], reference: Mapping[str, Sequence[float]] | None, key: str, unit: str
) -> dict[str, Any] | None:
    """Distance of the distribution of a quantity, over the valid rows, from that of the reference."""
    valid = [record for record in records if _all_hold(record.get("valid_structure"), record.get("valid_composition"))]
    samples = [record[key] for record in valid if record.get(key) is not None]
    distance = distribution_distance(samples, reference[key]) if reference else None
    return None if distance is None else {"value": distance, "unit": unit, "of": len(samples)}


def rate(flags: Iterable[bool | None]) -> dict[str, float | int] | None:
    """The rate of True among all flags, with its interval of 95 %; None if nothing was evaluated (all are None).

    A single None among others is a failure: something was asked there, and no answer came.
    """
    flags = list(flags)
    if all(flag is None for flag in flags):
        return None
    count = sum(flag is not None and bool(flag) for flag in flags)
    low, high = wilson_interval(count, len(flags))
    return {"value": count / len(flags), "low": low, "high": high, "count": count, "of": len(flags)}


def mean(values: Iterable[float | None], unit: str) -> dict[str, float | int | str | None] | None:
    """The mean of the values that are there, with its standard error; None if none is."""
    there = [float(value) for value in values if value is not None and math.isfinite(value)]
    if not there:
        return None
    value, error = mean_and_error(there)
    return {"value": value, "error": error, "unit": unit, "of": len(there)}


def distribution_distance(samples: Sequence[float], reference: Sequence[float]) -> float | None:
    """Wasserstein distance between two samples of a quantity, in its unit; None if either is empty."""
    from scipy.stats import wasserstein_distance

    if not len(samples) or not len(reference):
        return None
    return float(wasserstein_distance(np.asarray(samples, float), np.asarray(reference, float)))


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """Wilson's score interval of 95 % of a rate: of `total` trials, `count` succeeded.

    E. B. Wilson, Journal of the American Statistical Association 22 (1927) 209.
    Unlike the interval of a normal distribution it stays within 0..1, and has a width where all trials agree.

    Args:
        count: successes, 0..total.
        total: trials, at least 1.

    Raises:
        ValueError: if there are no trials, or more successes than trials.
    """
    from scipy.stats import binomtest

    if not 0 <= count <= total or total < 1:
        raise ValueError(f"{count} of {total} is not a rate")
    interval = binomtest(count, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error (sample standard deviation over the root of n); one value has no error.

    Raises:
        ValueError: if there are no values.
    """
    if not values:
        raise ValueError("no values, no mean")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def scarcity(structure: Structure | None) -> tuple[float | None, float | None]:
    """Herfindahl-Hirschman indices of a pymatgen Structure, by production and by reserves of its elements.

    How few countries the elements come from, weighted by mass: up to 10,000, where one country has all (Gaultois et
    al., Chemistry of Materials 25 (2013) 2911). None where an element has none.
    """
    from pymatgen.analysis.hhi import HHIModel

    if structure is None or why_malformed(structure):
        return None, None
    return HHIModel().get_hhi(structure.composition.element_composition)


def density(structure: Structure | None) -> float | None:
    """Density of a pymatgen Structure, g/cm3; None without one, or in a cell that is none."""
    return None if structure is None or why_malformed(structure) else float(structure.density)


def num_elements(structure: Structure | None) -> int | None:
    """Number of chemical elements of a pymatgen Structure; None without one."""
    return None if structure is None else len({kind.symbol for site in structure for kind in site.species})
