"""Log-probabilities of given crystals under a model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfx.config import SYMPREC
from cfx.core.elements import formula
from cfx.core.lattice import CRYSTAL_SYSTEMS
from cfx.core.likelihood import LogProb
from cfx.data.dataset import EncodedDataset
from cfx.data.summary import read
from cfx.errors import UsageError
from cfx.model import Model
from cfx.reporter import Reporter


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
        batch, parts, num_sites = self.data.batch, self.log_prob.parts(), self.data.num_sites
        return [
            {
                "name": self.data.names[i],
                "formula": formula(batch[i : i + 1].composition(0)),
                "space_group": int(batch.space_group[i]),
                "sites": int(num_sites[i]),
                "log_prob": float(self.log_prob.total[i]),
                **{f"log_prob_{name}": float(value[i]) for name, value in parts.items()},
            }
            for i in range(len(batch))
        ]

    def summary(self) -> list[dict[str, str | int | float | None]]:
        """Mean negative log-likelihood, nats per crystal: of all, by sites, by crystal system and by space group.

        Each record has: grouping ("all", "sites", "crystal_system", "space_group"), value (of what was grouped by, in
        order), crystals, nll, nll_error (standard error of nll; None for one crystal), and nll by part. Over a whole
        data set, nll is the validation loss of training.
        """
        nll = {"nll": -np.asarray(self.log_prob.total, float)}
        nll |= {f"nll_{name}": -np.asarray(value, float) for name, value in self.log_prob.parts().items()}
        space_group, systems = self.data.space_group, list(CRYSTAL_SYSTEMS)
        groupings = {
            "all": (np.zeros(len(space_group), int), lambda key: "all"),
            "sites": (self.data.num_sites, int),
            "crystal_system": (np.searchsorted(list(CRYSTAL_SYSTEMS.values()), space_group), systems.__getitem__),
            "space_group": (space_group, int),
        }
        return [
            {"grouping": grouping, "value": value(key), **_means(nll, keys == key)}
            for grouping, (keys, value) in groupings.items()
            for key in np.unique(keys)
        ]


def _means(nll: dict[str, np.ndarray], chosen: np.ndarray) -> dict[str, int | float | None]:
    count = int(chosen.sum())
    means = {name: float(values[chosen].mean()) for name, values in nll.items()}
    error = float(nll["nll"][chosen].std(ddof=1) / np.sqrt(count)) if count > 1 else None
    return {"crystals": count, "nll": means.pop("nll"), "nll_error": error, **means}


def score(model: Model, name: str | Path, reporter: Reporter, symprec: float = SYMPREC, workers: int = 1) -> Scores:
    """Encodes the crystals of a file and scores them.

    Raises:
        DataError: if there is no crystal in it that the model can read.
    """
    data = read(name, model.config.n_max, reporter, symprec, workers)
    return Scores(data, model.log_prob(data.batch))


def space_group_counts(model: Model, name: str, reporter: Reporter) -> dict[int, int]:
    """Crystals by space group of a data set, or of what a model was trained on (name "model").

    Raises:
        UsageError: if the model does not say.
    """
    if name == "model":
        counts = model.info.get("space_groups")
        if not counts:
            raise UsageError(
                f"model {model.name} does not say what it was trained on", "name a data set: `space_group=data:FILE`"
            )
        return {int(group): int(count) for group, count in counts.items()}
    data = read(name, model.config.n_max, reporter, SYMPREC, os.cpu_count() or 1)
    return {group: int(count) for group, count in enumerate(data.space_group_counts(), start=1) if count}
