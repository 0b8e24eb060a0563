"""cfx.score: how likely crystals are under a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cfx.api.results import Judged, frame
from cfx.config import SYMPREC
from cfx.core.crystal import CrystalBatch
from cfx.data.dataset import encode
from cfx.data.given import Crystals, given_crystals
from cfx.data.structures import Loaded
from cfx.errors import UsageError
from cfx.model import Model, given_model
from cfx.progress import reporting
from cfx.reporter import counted
from cfx.runs.score import mean_and_interval


class Gain(NamedTuple):
    """A mean difference of log-probabilities of the same crystals, in nats.

    Attributes:
        mean: over the crystals.
        low: the lower end of its interval of 95 % (Student's t of the differences); None for one crystal.
        high: the upper end.
        crystals: how many.
    """

    mean: float
    low: float | None
    high: float | None
    crystals: int


@dataclass(frozen=True, repr=False)
class Scoring(Judged):
    """Crystals and their log-probabilities.

    The table has name, formula, space_group, num_sites, log_prob and log_prob_PART (wyckoff, species, coords, lattice),
    in nats; and reason, why a crystal has none.

    Attributes:
        model: name of the model.
    """

    model: str

    @property
    def log_prob(self) -> np.ndarray:
        """Total log-probabilities, nats, float64 [n]; NaN where there is none."""
        return self.table["log_prob"].to_numpy(float)

    def gain(self, other: Scoring) -> Gain:
        """How much likelier the crystals are than under another model, crystal by crystal, as `cfx score` compares.

        Args:
            other: the same crystals under the other model. Those without a log-probability in either are left out.

        Raises:
            UsageError: if they are not as many, or none has a log-probability in both.
        """
        if len(self) != len(other):
            raise UsageError(f"{len(self)} and {len(other)} crystals cannot be the same", "score the same ones")
        difference = self.log_prob - other.log_prob
        difference = difference[~np.isnan(difference)]
        if not len(difference):
            raise UsageError("no crystal has a log-probability under both models")
        return Gain(*mean_and_interval(difference), len(difference))

    def headline(self) -> str:
        """See `Judged`."""
        known = self.log_prob[~np.isnan(self.log_prob)]
        mean = f", {known.mean():.2f} nats on average" if len(known) else ""
        without = f", {len(self) - len(known)} without" if len(known) < len(self) else ""
        return f"{counted(len(self), 'crystal')} by {self.model}{mean}{without}"


def score(
    model: Model | str,
    crystals: Crystals,
    *,
    symprec: float = SYMPREC,
    progress: bool | None = None,
) -> Scoring:
    """Computes the log-probabilities of crystals under a model.

    Those of a `CrystalBatch` are of the crystals as they are; others are encoded first, each in the setting that
    `cfx.encode` finds.

    Args:
        model: a model, or what `load_model` takes.
        crystals: pymatgen Structures, ASE Atoms, a `CrystalBatch`, a file or a name, or several of these.
        symprec: tolerance of the symmetry search, angstrom.
        progress: whether bars are shown; by default in notebooks.

    Raises:
        UsageError: for what are no crystals.
        DataError: if nothing can be read.
    """
    with reporting(progress) as told:
        model = given_model(model, told)
        loaded = given_crystals(crystals, told, workers=-1)
        with told.progress("encoding", len(loaded)) as bar:
            batch, failures = _encoded(crystals, loaded, symprec, model.config.n_max)
            bar.update(len(loaded))
        index = [row for row in range(len(loaded)) if row not in failures]
        scored = model.log_prob(batch)
    rows = [
        {
            "name": one.name,
            "formula": None if one.structure is None else one.structure.composition.reduced_formula,
            "reason": one.reason or failures.get(row, ""),
        }
        for row, one in enumerate(loaded)
    ]
    for number, row in enumerate(index):
        rows[row] |= {
            "space_group": int(batch.space_group[number]),
            "num_sites": int(batch.num_sites[number]),
            "log_prob": float(scored.total[number]),
            **{f"log_prob_{part}": float(value[number]) for part, value in scored.parts().items()},
        }
    return Scoring(frame(rows), [one.structure for one in loaded], model.name)


def _encoded(
    crystals: Crystals, loaded: list[Loaded], symprec: float, n_max: int
) -> tuple[CrystalBatch, dict[int, str]]:
    """Crystals as a model reads them, and by row why others are not among them."""
    if isinstance(crystals, CrystalBatch):
        return crystals, {}
    rows = [row for row, one in enumerate(loaded) if one.structure is not None]
    encoded = encode([loaded[row].structure for row in rows], symprec, n_max)
    unread = {row: one.reason for row, one in enumerate(loaded) if one.structure is None}
    return encoded.batch, unread | {rows[number]: reason for number, reason in encoded.failures}
