"""Log-probabilities of given crystals under a model."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfx.core.elements import formula
from cfx.core.likelihood import LogProb
from cfx.errors import UsageError
from cfx.io.dataset import EncodedDataset, load_dataset
from cfx.io.encode import SYMPREC
from cfx.model import Model
from cfx.runs.reporter import Reporter


@dataclass(frozen=True)
class Scores:
    """Crystals of a file and their log-probabilities.

    Attributes:
        data: the crystals.
        log_prob: of each, nats.
    """

    data: EncodedDataset
    log_prob: LogProb

    def rows(self) -> list[dict[str, str | int | float]]:
        """One a crystal: name, formula, space group, sites, log-probability in nats, by part."""
        batch, parts = self.data.batch, self.log_prob.parts()
        return [
            {
                "name": self.data.names[i],
                "formula": formula(batch.composition(i)),
                "space_group": int(batch.space_group[i]),
                "sites": int(batch.num_sites[i]),
                "log_prob": float(self.log_prob.total[i]),
                **{f"log_prob_{name}": float(value[i]) for name, value in parts.items()},
            }
            for i in range(len(batch))
        ]


def score(model: Model, path: Path, reporter: Reporter, symprec: float = 0.01, workers: int = 1) -> Scores:
    """Encodes the crystals of a file and scores them.

    Raises:
        DataError: if there is no crystal in it that the model can read.
    """
    data = read(path, model.config.n_max, reporter, symprec, workers)
    return Scores(data, model.log_prob(data.batch))


def read(path: Path, n_max: int, reporter: Reporter, symprec: float, workers: int) -> EncodedDataset:
    """An encoded file; says how many crystals it holds and what was skipped."""
    with reporter.progress(f"encoding {path.name}", None) as progress:
        data = load_dataset(path, symprec, n_max, workers, progress.update)
    reporter.message(f"{path.name}: {len(data.batch)} crystals, {len(data.failures)} rows skipped")
    for name, reason in data.failures[:5]:
        reporter.warning(f"skipped {name}: {reason}")
    if len(data.failures) > 5:
        reporter.warning(f"and {len(data.failures) - 5} more")
    return data


def space_group_counts(model: Model, name: str, reporter: Reporter) -> dict[int, int]:
    """Crystals by space group of a data set, or of what a model was trained on (name "model").

    Raises:
        UsageError: if the model does not say.
    """
    if name == "model":
        counts = model.info.get("space_groups")
        if not counts:
            raise UsageError(
                f"model {model.name} does not say what it was trained on", "name a data set: --sg data:FILE"
            )
        return {int(group): int(count) for group, count in counts.items()}
    data = read(Path(name), model.config.n_max, reporter, SYMPREC, os.cpu_count() or 1)
    return Counter(int(group) for group in np.asarray(data.batch.space_group))
