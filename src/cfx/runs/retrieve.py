"""Which known crystals a model makes again, and how many of the best of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfx.config import SampleConfig
from cfx.core import Structure
from cfx.data.formats.tables import column_names, read_column
from cfx.data.read import row_names
from cfx.data.structures import load_crystals
from cfx.errors import DataError, UsageError
from cfx.evaluation.novelty import Reference, find_novel
from cfx.evaluation.setup import read_reference
from cfx.fetch.names import data_path
from cfx.predictors.base import PropertyModel, label
from cfx.reporter import Interrupted, Reporter, StopRequest
from cfx.runs.curves import Curves, Panel, Series

if TYPE_CHECKING:
    from cfx.model import Model

FIGURE_OF_MERIT = "fom"
PREDICTED = (FIGURE_OF_MERIT, "band_gap", "dielectric")
"""Properties that models predict."""

CHUNK = 256
"""Crystals whose property is predicted between two looks at the clock."""


@dataclass(frozen=True)
class Ranking:
    """Known crystals in the order of a property.

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
        name: file or data set.
        path: its file.
        crystals: the known crystals.
        ranking: their order by a property.
    """

    name: str
    path: Path
    crystals: Reference
    ranking: Ranking


@dataclass(frozen=True)
class Retrieved:
    """Which known crystals were found among those of one origin.

    Attributes:
        name: the model or file.
        sampled: number of crystals looked at.
        failed: how many could not be compared, each a sample that found nothing.
        times: index in the reference -> how many of the crystals match it.
    """

    name: str
    sampled: int
    failed: int
    times: Counter[int]


def read_known(
    name: str, property: str | None, lowest: bool, models: dict[str, str], device: str, workers: int, reporter: Reporter
) -> Known:
    """A reference, ranked by a property.

    Args:
        name: file or data set.
        property: a column of the file, or else one of PREDICTED; None to rank by nothing.
        lowest: the lowest value is the best.
        models: property -> model, as in `load_property`; one that is named here is used whatever columns there are.

    Raises:
        DataError: if it cannot be read, or has no such column.
        UsageError, DependencyError, CheckpointError, NetworkError: for models that cannot be had.
        Interrupted: after a signal.
    """
    unused = set(models) - (_parts(property) if property in PREDICTED else set())
    if unused:
        raise UsageError(
            f"the model of {min(unused)} is not needed", "name it with `property`, or fom, or leave out its model"
        )
    path = data_path(name, reporter)
    if property is None:
        crystals = read_reference(name, workers, reporter)
        value = np.full(len(crystals), np.nan)
        return Known(name, path, crystals, Ranking(None, "", "", lowest, value, rank(value, lowest)))
    if not path.exists():
        raise DataError(f"no such file or directory: {path}")
    values_of, about, unit = _source(path, property, models, device, reporter)
    crystals = read_reference(name, workers, reporter)
    value = values_of(crystals)
    if not np.isfinite(value).any():
        raise DataError(f"no crystal of {name} has a {property}")
    return Known(name, path, crystals, Ranking(property, about, unit, lowest, value, rank(value, lowest)))


def _source(
    path: Path, property: str, models: dict[str, str], device: str, reporter: Reporter
) -> tuple[Callable[[Reference], np.ndarray], str, str]:
    """Where values of a property come from: a function of the reference that gives them, a description, their unit."""
    columns = column_names(path)
    if property in columns and not _parts(property) & set(models):
        column = read_column(path, property)
        return lambda crystals: column[crystals.rows], f"column {property} of {path.name}", ""
    if property in PREDICTED:
        model = _load_model(property, models, device)
        about = model.name if property == FIGURE_OF_MERIT else f"{label(model)} by {model.name}"
        return lambda crystals: _predict(property, model, about, crystals, reporter), about, model.unit
    raise DataError(
        f"{path.name} has no column {property}",
        f"there are: {', '.join([*columns, *PREDICTED])} (the last {len(PREDICTED)} are predicted)",
    )


def rank(value: np.ndarray, lowest: bool) -> np.ndarray:
    """Places from 1, equal ones for equal values [n]; 0 where a value is NaN."""
    worth = value if lowest else -value
    ordered = np.sort(worth[np.isfinite(worth)])
    return np.where(np.isfinite(worth), np.searchsorted(ordered, worth) + 1, 0)


def _parts(property: str) -> set[str]:
    """The properties that a model is needed for."""
    return {"band_gap", "dielectric"} if property == FIGURE_OF_MERIT else {property}


def _load_model(property: str, models: dict[str, str], device: str) -> PropertyModel:
    from cfx.predictors.bundled import FigureOfMerit
    from cfx.predictors.load import load_property

    loaded = {part: load_property(part, models.get(part, "auto"), device) for part in sorted(_parts(property))}
    if property == FIGURE_OF_MERIT:
        return FigureOfMerit(loaded["band_gap"], loaded["dielectric"])
    return loaded[property]


def _predict(property: str, model: PropertyModel, about: str, crystals: Reference, reporter: Reporter) -> np.ndarray:
    """The property of every crystal [n], NaN where there is none."""
    from cfx.predictors.bundled import SOFT_POLAR

    value, soft = np.full(len(crystals), np.nan), 0
    with StopRequest() as stop, reporter.progress(f"predicting {about}", len(crystals)) as progress:
        for first in range(0, len(crystals), CHUNK):
            chunk = range(first, min(first + CHUNK, len(crystals)))
            batch = model.evaluate([crystals.structure(i) for i in chunk])
            value[first : first + CHUNK] = batch.value
            soft += int(np.nansum(batch.parts.get(SOFT_POLAR, 0.0)))
            progress.update(chunk.stop)
            if stop.signum is not None and chunk.stop < len(crystals):
                raise Interrupted(stop.signum, "stopped while properties of known crystals were predicted")
    if missing := int(np.isnan(value).sum()):
        reporter.warning(f"{missing:,} of {len(crystals):,} known crystals have no {property} and are not ranked")
    if soft:
        reporter.warning(
            f"{soft:,} of {len(crystals):,} known crystals are soft polar: predicted constants are too low"
        )
    return value


def sample_structures(model: Model, request: SampleConfig, reporter: Reporter) -> list[Structure]:
    """The crystals of a request as pymatgen Structures.

    Raises:
        UsageError, NumericsError: see `Model.draws`.
        Interrupted: after a signal.
    """
    structures: list[Structure] = []
    with StopRequest() as stop, reporter.progress(f"sampling {model.name}", request.n) as progress:
        for draws in model.draws(request, stop=lambda: bool(stop)):
            structures += draws.crystals.to_structures()
            progress.update(len(structures))
        if stop.signum is not None and len(structures) < request.n:
            raise Interrupted(stop.signum, f"stopped after {len(structures)} crystals of {model.name}")
    if len(structures) < request.n:
        reporter.warning(f"{len(structures)} of {request.n} crystals: the space groups give no more new ones")
    return structures


def read_structures(name: str, workers: int, reporter: Reporter) -> list[Structure | None]:
    """The crystals of a file as pymatgen Structures, None for those that cannot be read.

    Raises:
        DataError: if there is none.
    """
    return [one.structure for one in load_crystals(data_path(name, reporter), workers)]


def retrieve(
    name: str, structures: Sequence[Structure | None], known: Known, workers: int, reporter: Reporter
) -> Retrieved:
    """Finds the known crystals among others, as `find_novel` does.

    Raises:
        Interrupted: after a signal.
    """
    with StopRequest() as stop, reporter.progress(f"comparing {name}", None) as progress:

        def update(done: int) -> None:
            progress.update(done)
            if stop.signum is not None:
                raise Interrupted(stop.signum, f"stopped comparing {name}")

        records = find_novel(structures, known.crystals, workers, update)
    places = np.searchsorted(known.crystals.rows, [one.match for one in records if one.match is not None])
    return Retrieved(name, len(structures), sum(bool(one.reason) for one in records), Counter(places.tolist()))


def as_result(
    known: Known, found: Sequence[Retrieved], best: Sequence[int], settings: dict[str, Any]
) -> dict[str, Any]:
    """Everything that was found, ready for JSON.

    Args:
        known: the reference.
        found: by model or file.
        best: sizes of the tops of the ranking that are looked at.
        settings: how the crystals were made, for whoever reads the numbers.
    """
    ranking = known.ranking
    rows = {int(known.crystals.rows[place]) for one in found for place in one.times}
    names = row_names(known.path, rows) if rows else {}
    return {
        "version": version("cfx-crystal"),
        "reference": {"name": known.name, "crystals": len(known.crystals), "ranked": int((ranking.rank > 0).sum())},
        "property": {
            "name": ranking.property,
            "about": ranking.about,
            "unit": ranking.unit,
            "best": "lowest" if ranking.lowest else "highest",
        },
        "settings": settings,
        "sources": [
            {
                "name": one.name,
                "sampled": one.sampled,
                "failed": one.failed,
                "known": one.times.total(),
                "distinct": len(one.times),
                "top": _tops(one, ranking, best) if ranking.property else [],
                "found": _found(one, known, names),
            }
            for one in found
        ],
    }


def _tops(one: Retrieved, ranking: Ranking, best: Sequence[int]) -> list[dict[str, int]]:
    """How many of the best k crystals were found; of equal ones at the end all count."""

    def among(places: np.ndarray, k: int) -> int:
        return int(((places > 0) & (places <= k)).sum())

    found = ranking.rank[sorted(one.times)]
    return [{"k": k, "found": among(found, k), "of": among(ranking.rank, k)} for k in best]


def _found(one: Retrieved, known: Known, names: dict[int, str]) -> list[dict[str, Any]]:
    """The known crystals found, the best first; those without a rank by how often they were found."""
    ranking, rows = known.ranking, known.crystals.rows

    def order(place: int) -> tuple:
        return ranking.rank[place] == 0, ranking.rank[place], -one.times[place], place

    return [
        {
            "rank": int(ranking.rank[place]) or None,
            "name": names[int(rows[place])],
            "row": int(rows[place]),
            "formula": known.crystals.structure(place).composition.reduced_formula,
            "value": float(ranking.value[place]) if ranking.rank[place] else None,
            "times": one.times[place],
        }
        for place in sorted(one.times, key=order)
    ]


def as_curves(result: dict[str, Any]) -> Curves:
    """How many of the best known crystals each source found, to be drawn.

    Raises:
        UsageError: if the crystals are not ranked.
    """
    if result["property"]["name"] is None:
        raise UsageError("there is nothing to draw, since nothing is ranked without a property", "name a `property`")
    series = tuple(_curve(one, result["reference"]["ranked"]) for one in result["sources"])
    by, reference = result["property"]["name"], Path(result["reference"]["name"]).name
    found_by = f"{series[0].label}: " if len(series) == 1 else ""
    panel = Panel("known crystals found", "", series, wide=True)
    return Curves(f"{found_by}{reference} by {by}", f"among so many of the best, by {by}", (panel,), "")


def _curve(source: dict[str, Any], ranked: int) -> Series:
    """A step at every rank at which crystals were found."""
    steps = Counter(one["rank"] for one in source["found"] if one["rank"] is not None)
    x, y = [0.0], [0.0]
    for place in sorted(steps):
        x += [float(place), float(place)]
        y += [y[-1], y[-1] + steps[place]]
    return Series(source["name"], [*x, float(ranked)], [*y, y[-1]])
