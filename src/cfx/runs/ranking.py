"""Known crystals ranked by a property: a column of their table, or what a model predicts of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cfx.errors import DataError, UsageError
from cfx.io.columns import column_names, read_column
from cfx.metrics.reference import Reference
from cfx.reporter import Reporter
from cfx.runs.fetch import data_path
from cfx.runs.judges import read_reference
from cfx.runs.signals import Interrupted, StopRequest

FIGURE_OF_MERIT = "fom"
PREDICTED = (FIGURE_OF_MERIT, "band_gap", "dielectric")
"""Properties that models predict."""

CHUNK = 256
"""Crystals whose property is predicted between two looks at the clock."""


@dataclass(frozen=True)
class Ranking:
    """The known crystals, by a property.

    Attributes:
        property: by which they are ranked; None if they are not.
        about: where its values come from.
        unit: of the values, "" if there is none or nobody says.
        lowest: whether the lowest value comes first.
        value: float64 [n], of each crystal of the reference; NaN where there is none.
        rank: int64 [n], 1 + number of crystals with a better value; 0 without a value.
    """

    property: str | None
    about: str
    unit: str
    lowest: bool
    value: np.ndarray
    rank: np.ndarray


@dataclass(frozen=True)
class Known:
    """A reference and its ranking.

    Attributes:
        name: of the reference.
        path: of its file.
        crystals: to be compared with.
        ranking: of them.
    """

    name: str
    path: Path
    crystals: Reference
    ranking: Ranking

    @cached_property
    def ranked(self) -> int:
        """How many crystals have a value."""
        return int((self.ranking.rank > 0).sum())


def read_known(
    name: str, property: str | None, lowest: bool, models: dict[str, str], device: str, workers: int, reporter: Reporter
) -> Known:
    """A reference, ranked.

    Args:
        name: file or data set.
        property: a column of the file, or else one of PREDICTED; None to rank by nothing.
        lowest: the lowest value is the best.
        models: property -> model, as in `load_property`; one that is named here is used whatever columns there are.
        device: of the models.
        workers: processes that read.
        reporter: receives progress.

    Raises:
        DataError: if it cannot be read, or has no such column.
        UsageError, DependencyError, CheckpointError, NetworkError: for models that cannot be had.
        Interrupted: after a signal.
    """
    unused = set(models) - (_parts(property) if property in PREDICTED else set())
    if unused:
        raise UsageError(f"no {min(unused)} is predicted", "name it with --property, or fom, or leave out its model")
    path = data_path(name, reporter)
    if property is None:
        crystals = read_reference(name, workers, reporter)
        nothing = np.full(len(crystals), np.nan)
        return Known(name, path, crystals, Ranking(None, "", "", lowest, nothing, rank(nothing, lowest)))
    if not path.exists():
        raise DataError(f"no such file or directory: {path}")
    columns = column_names(path)
    if property in columns and not _parts(property) & set(models):
        values = read_column(path, property)
        crystals = read_reference(name, workers, reporter)
        value, about, unit = values[crystals.rows], f"column {property} of {path.name}", ""
    elif property in PREDICTED:
        scorer = _scorer(property, models, device)
        crystals = read_reference(name, workers, reporter)
        value, about, unit = _predict(scorer, crystals, reporter), scorer.about, scorer.unit
    else:
        raise DataError(
            f"{path.name} has no column {property}",
            f"there are: {', '.join([*columns, *PREDICTED])} (the last {len(PREDICTED)} are predicted)",
        )
    if not np.isfinite(value).any():
        raise DataError(f"no crystal of {name} has a {property}")
    return Known(name, path, crystals, Ranking(property, about, unit, lowest, value, rank(value, lowest)))


def rank(value: np.ndarray, lowest: bool) -> np.ndarray:
    """Places from 1, equal ones for equal values [n]; 0 where a value is NaN."""
    worth = value if lowest else -value
    ordered = np.sort(worth[np.isfinite(worth)])
    return np.where(np.isfinite(worth), np.searchsorted(ordered, worth) + 1, 0)


def _parts(property: str) -> set[str]:
    """The properties that a model is needed for."""
    return {"band_gap", "dielectric"} if property == FIGURE_OF_MERIT else {property}


def _scorer(property: str, models: dict[str, str], device: str):
    from cfx.properties.base import load_property
    from cfx.rewards.property import FigureOfMerit, Property

    loaded = {part: load_property(part, models.get(part, "bundled"), device) for part in sorted(_parts(property))}
    if property == FIGURE_OF_MERIT:
        return FigureOfMerit(loaded["band_gap"], loaded["dielectric"])
    return Property(property, loaded[property])


def _predict(scorer, crystals: Reference, reporter: Reporter) -> np.ndarray:
    """The property of every crystal [n], NaN where there is none."""
    value = np.full(len(crystals), np.nan)
    with StopRequest() as stop, reporter.progress(f"predicting {scorer.about}", len(crystals)) as progress:
        for first in range(0, len(crystals), CHUNK):
            chunk = range(first, min(first + CHUNK, len(crystals)))
            value[first : first + CHUNK] = scorer.evaluate([crystals.structure(i) for i in chunk]).value
            progress.update(chunk.stop)
            if stop.signum is not None and chunk.stop < len(crystals):
                raise Interrupted(stop.signum, "stopped while properties of known crystals were predicted")
    if missing := int(np.isnan(value).sum()):
        reporter.warning(f"{missing:,} of {len(crystals):,} known crystals get no {scorer.name}, and no rank")
    return value
