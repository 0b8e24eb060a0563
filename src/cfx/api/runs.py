"""What runs of training and fine-tuning have in common in Python: a model, a directory, a history with curves."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfx.model import Model
from cfx.reporter import Reporter, counted
from cfx.runs.curves import read_lines, read_run
from cfx.runs.sample import drawn_space_groups

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True, repr=False)
class Run:
    """A run that has ended.

    Attributes:
        model: what it made.
        directory: of its files.
        steps: taken, since it began.
    """

    model: Model
    directory: Path
    steps: int

    @property
    def history(self) -> DataFrame:
        """pandas DataFrame: the lines of metrics, with columns as train.loss and validation.loss, or rl.reward."""
        import pandas

        return pandas.json_normalize(read_lines(self.directory / "metrics.jsonl"))

    def plot(self) -> Figure:
        """The curves of `cfx plot`, as a matplotlib Figure."""
        import matplotlib

        from cfx.runs.figures import STYLE, draw_curves

        with matplotlib.rc_context(STYLE):  # pyright: ignore[reportArgumentType]  (its keys are strings)
            return draw_curves(read_run(self.directory))

    def headline(self) -> str:
        """The run in one line."""
        return counted(self.steps, "step")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.headline()})"

    def _repr_html_(self) -> str:
        drawn = io.StringIO()
        self.plot().savefig(drawn, format="svg")
        picture = drawn.getvalue().partition("<svg")
        return f"<p>{self.headline()}</p>{''.join(picture[1:])}"


def directory_of(run: str | Path | None) -> Path:
    """The directory of a run: the one that was named, or a temporary one that stays until the system empties it."""
    return Path(tempfile.mkdtemp(prefix="cfx-")) if run is None else Path(run)


def drawn_from(space_group: Any, model: Model, reporter: Reporter) -> dict[str, Any]:
    """Space groups and their weights, as fields of a `SampleConfig`."""
    if not isinstance(space_group, str):
        return {"space_groups": space_group}
    groups, weights = drawn_space_groups(space_group, model, reporter)
    return {"space_groups": groups, "weights": weights}
