"""cfx.retrieve: which known crystals are among others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cfx.api.results import frame, table_html
from cfx.data.given import Crystals, given_crystals, given_file, title_of
from cfx.progress import reporting
from cfx.reporter import counted
from cfx.runs import retrieve as runs

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, repr=False)
class Retrieval:
    """Known crystals that were found among others.

    Attributes:
        table: pandas DataFrame of the known crystals that were found, the best first: rank (by the property), name, row
            (of the reference, from 0), formula, value (of the property), times.
        top: pandas DataFrame: of the best k known crystals, `found` of `of`; empty without a property.
        sampled: crystals that were looked at.
        failed: how many of these could not be compared.
        known: how many of them are known.
        about: where the values of the property come from; "" without one.
    """

    table: DataFrame
    top: DataFrame
    sampled: int
    failed: int
    known: int
    about: str

    def __len__(self) -> int:
        return len(self.table)

    def headline(self) -> str:
        """The result in one line."""
        return f"{self.known:,} of {counted(self.sampled, 'crystal')} known, {len(self):,} distinct"

    def __repr__(self) -> str:
        return f"Retrieval({self.headline()})"

    def _repr_html_(self) -> str:
        return f"<p>{self.headline()}</p>{table_html(self.table)}"


def retrieve(
    crystals: Crystals,
    reference: Crystals,
    *,
    property: str | None = None,
    top: Sequence[int] = (10, 50, 100),
    lowest: bool = False,
    band_gap: str | None = None,
    dielectric: str | None = None,
    device: str = "cpu",
    workers: int = -1,
    progress: bool | None = None,
) -> Retrieval:
    """Finds known crystals among others, by pymatgen's StructureMatcher.

    Args:
        crystals: a sample, pymatgen Structures, ASE Atoms, a file or a name, or several of these.
        reference: the known crystals, likewise.
        property: what ranks the known crystals: a column of their file, or a prediction: fom, band_gap, dielectric.
        top: sizes of the tops of that ranking.
        lowest: whether the lowest value comes first.
        band_gap: what predicts band gaps: bundled, matgl:NAME, matgl:/directory, or auto.
        dielectric: what predicts dielectric constants, likewise.
        device: where property models run: cpu or cuda.
        workers: processes that read and compare; -1: one for each core.
        progress: whether bars are shown; by default in notebooks.

    Raises:
        UsageError: for what are no crystals, or a model that is not needed.
        DataError: if nothing can be read, or the reference has no such property.
        Interrupted: after a signal.
    """
    models = {name: model for name, model in (("band_gap", band_gap), ("dielectric", dielectric)) if model is not None}
    with reporting(progress) as told:
        structures = [one.structure for one in given_crystals(crystals, told, workers)]
        known = runs.read_known(given_file(reference, told), property, lowest, models, device, workers, told)
        found = runs.retrieve(title_of(crystals), structures, known, workers, told)
    [source] = runs.as_result(known, [found], sorted(top), {})["sources"]
    columns: list[Any] = ["rank", "name", "row", "formula", "value", "times"]
    return Retrieval(
        frame(source["found"]).reindex(columns=columns),
        frame(source["top"]).reindex(columns=["k", "found", "of"]),
        source["sampled"],
        source["failed"],
        source["known"],
        known.ranking.about,
    )
