"""cfx.evaluate: what crystals are worth, as a table, rates and a report."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfx.api.results import Judged, frame
from cfx.config import EvalConfig
from cfx.config.fields import sorted_out
from cfx.data.given import Crystals, given_crystals, title_of
from cfx.evaluation.novelty import make_reference
from cfx.evaluation.setup import load_setup
from cfx.io.files import replace_atomically, write_table
from cfx.progress import reporting
from cfx.report import render_report
from cfx.reporter import counted
from cfx.runs.evaluate import as_result, evaluate_crystals

if TYPE_CHECKING:
    from pandas import DataFrame

TOLD = {
    "avg_structure_comp_validity": "valid",
    "frac_unique_structures": "unique",
    "frac_novel_structures": "novel",
    "frac_stable_structures": "metastable",
    "frac_novel_unique_stable_structures": "S.U.N.",
}
"""Rates that the text of an evaluation tells, by name."""


FEW = 50
"""Crystals that are compared sooner than other processes are started for it."""


@dataclass(frozen=True, repr=False)
class Evaluation(Judged):
    """Evaluated crystals; `structures` are the relaxed ones where they were relaxed.

    Attributes:
        result: all of it as `cfx eval --json` prints it of a file: settings, warnings, summary, classes, records.
    """

    result: dict[str, Any] = field(repr=False)

    @property
    def summary(self) -> DataFrame:
        """pandas DataFrame: for each metric (MatterGen's names) its value, and its interval or error where it has one.

        Rates are of all crystals, with Wilson intervals of 95 %: value, low, high, count, of. Means have an error and a
        unit. What was not evaluated is left out.
        """
        return _summary(self.result["summary"])

    @property
    def classes(self) -> dict[str, DataFrame]:
        """The summary of each class of compositions."""
        return {name: _summary(metrics) for name, metrics in self.result["classes"].items()}

    @property
    def warnings(self) -> list[str]:
        """What a reader of the numbers should know."""
        return self.result["warnings"]

    def headline(self) -> str:
        """See `Judged`."""
        rates = {words: self.result["summary"].get(name) for name, words in TOLD.items()}
        told = [f"{100 * rate['value']:.1f} % {words}" for words, rate in rates.items() if rate is not None]
        return ", ".join([counted(len(self), "crystal"), *told])

    def report(self, path: str | Path) -> Path:
        """Writes the page of `cfx eval --html`: one file that needs no network. A file that is there is replaced.

        Raises:
            OutputError: if it cannot be written.
        """
        page, path = render_report(as_result([self.result])), Path(path)
        replace_atomically(path, lambda fresh: fresh.write_text(page, encoding="utf-8"))
        return path

    def write(self, path: str | Path) -> Path:
        """Writes the table as .csv or .parquet. A file that is there is replaced.

        Raises:
            OutputError: if it cannot be written.
        """
        write_table(Path(path), self.result["records"])
        return Path(path)


def evaluate(
    crystals: Crystals,
    reference: Crystals | None = None,
    potential: str | None = None,
    hull: str | None = None,
    relax: bool = False,
    *,
    progress: bool | None = None,
    **settings: Any,
) -> Evaluation:
    """Evaluates crystals: validity, uniqueness, novelty, energies, stability.

    Args:
        crystals: pymatgen Structures, ASE Atoms, a `CrystalBatch`, a file or a name, or several of these.
        reference: known crystals, likewise, that novelty is judged against; None: novelty is not judged.
        potential: interatomic potential, as "chgnet"; None: neither energies nor stability.
        hull: a file or a name; by default the one that is bundled for the potential.
        relax: whether the crystals are relaxed first.
        progress: whether bars are shown; by default in notebooks.
        **settings: other fields of `EvalConfig`, as fmax=0.02 or second_potential="orb".

    Raises:
        TypeError: for a name that is no setting.
        UsageError: for values that cannot be meant, and what are no crystals.
        DataError: if nothing can be read.
        DependencyError: if a library is missing.
        Interrupted: after a signal.
    """
    own = ("crystals", "reference", "potential", "hull", "relax", "progress")
    [settings] = sorted_out("evaluate", settings, EvalConfig, own=own)
    asked = {"potential": potential, "hull": hull, "relax": relax, **settings}
    name = str(reference) if isinstance(reference, str | Path) else None
    config = EvalConfig(reference=name, **asked)
    with reporting(progress) as told:
        loaded = given_crystals(crystals, told, config.workers)
        if len(loaded) <= FEW:
            asked = {"workers": 1, **asked}
        setup = load_setup(EvalConfig(reference=name, **asked), told)
        if reference is not None and name is None:
            known = given_crystals(reference, told)
            made = make_reference([one.structure for one in known], [one.name for one in known])
            setup = dataclasses.replace(setup, config=EvalConfig(reference="given", **asked), reference=made)
        evaluated = evaluate_crystals(title_of(crystals), loaded, setup, told)
    return Evaluation(frame(evaluated.result["records"]), list(evaluated.structures), evaluated.result)


def _summary(metrics: dict[str, Any]) -> DataFrame:
    import pandas

    rows = {name: value for name, value in metrics.items() if value is not None}
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("metric")
