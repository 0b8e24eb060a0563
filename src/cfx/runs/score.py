"""cfx score: log-probabilities of crystals under a model, their means over a data set, and models compared on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfx.config import SYMPREC, DataConfig
from cfx.core.elements import formula
from cfx.core.lattice import CRYSTAL_SYSTEMS
from cfx.core.likelihood import LogProb
from cfx.data.dataset import EncodedDataset
from cfx.data.split import read_data
from cfx.model import Model
from cfx.reporter import Reporter

Record = dict[str, Any]
"""A row of a table."""


@dataclass(frozen=True)
class Scores:
    """Crystals of a file and their log-probabilities.

    Attributes:
        data: the crystals.
        log_prob: of each, nats.
    """

    data: EncodedDataset
    log_prob: LogProb

    def rows(self) -> list[Record]:
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

    def summary(self) -> list[Record]:
        """Mean negative log-likelihood, nats per crystal: of all, by sites, by crystal system and by space group.

        Each record has: grouping ("all", "sites", "crystal_system", "space_group"), value (of what was grouped by, in
        order), crystals, nll, nll_error (standard error of nll; None for one crystal), and nll by part. Over a whole
        data set, nll is the validation loss of training.
        """
        nll = self.nll()
        return [
            {"grouping": grouping, "value": value, **_means(nll, chosen)}
            for grouping, value, chosen in _groups(self.data)
        ]

    def nll(self) -> dict[str, np.ndarray]:
        """Negative log-likelihood of each crystal, nats, [n]: nll, and its parts as nll_wyckoff and so on."""
        parts = {f"nll_{name}": -np.asarray(value, float) for name, value in self.log_prob.parts().items()}
        return {"nll": -np.asarray(self.log_prob.total, float), **parts}


@dataclass(frozen=True)
class Comparison:
    """Negative log-likelihoods of the same crystals under two models.

    Differences are taken crystal by crystal, other minus first, so that what makes some crystals likelier than others
    under any model is not in their intervals: of 95 %, by Student's t. They speak of crystals like these, and take
    the crystals to be independent.

    Attributes:
        first: the model that the other is compared with.
        other: the other model.
        scores: under both.
    """

    first: str
    other: str
    scores: tuple[Scores, Scores]

    def parts(self) -> list[Record]:
        """A record for the total and for each of its parts.

        Each has: model and against (the other and the first), part ("total", "wyckoff", and so on), crystals, nll and
        nll_against (means, nats per crystal), difference with low and high (the ends of its interval; None for one
        crystal), and better, the share of the crystals on which the other model has the lower nll.
        """
        everything = np.ones(len(self.scores[0].log_prob.total), bool)
        names = {"total": "nll"} | {part: f"nll_{part}" for part in self.scores[0].log_prob.parts()}
        return [self._record({"part": part}, name, everything) for part, name in names.items()]

    def summary(self) -> list[Record]:
        """Records like those of `parts`, of the total: of all crystals, by sites, crystal system and space group."""
        groups = _groups(self.scores[0].data)
        return [self._record({"grouping": one, "value": value}, "nll", chosen) for one, value, chosen in groups]

    def _record(self, about: Record, name: str, chosen: np.ndarray) -> Record:
        first, other = (scores.nll()[name][chosen] for scores in self.scores)
        difference = other - first
        mean, low, high = mean_and_interval(difference)
        return {
            "model": self.other,
            "against": self.first,
            **about,
            "crystals": len(difference),
            "nll": float(other.mean()),
            "nll_against": float(first.mean()),
            "difference": mean,
            "low": low,
            "high": high,
            "better": float((difference < 0).mean()),
        }


def mean_and_interval(values: np.ndarray) -> tuple[float, float | None, float | None]:
    """The mean of values [n] and the ends of its 95 % interval; see `half_width`."""
    mean, half = float(values.mean()), half_width(values)
    return (mean, None, None) if half is None else (mean, mean - half, mean + half)


def half_width(values: np.ndarray) -> float | None:
    """Half the 95 % interval of the mean of values [n], by Student's t; None for one value, which has no spread."""
    from scipy.special import stdtrit

    if len(values) < 2:
        return None
    return float(stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values)))


def _groups(data: EncodedDataset) -> Iterator[tuple[str, str | int, np.ndarray]]:
    """All, then each number of sites, crystal system and space group: grouping, value, and whether of it, bool [n]."""
    space_group, systems = data.space_group, list(CRYSTAL_SYSTEMS)
    yield "all", "all", np.ones(len(space_group), bool)
    for sites in np.unique(data.num_sites):
        yield "sites", int(sites), data.num_sites == sites
    system = np.searchsorted(list(CRYSTAL_SYSTEMS.values()), space_group)
    for number in np.unique(system):
        yield "crystal_system", systems[number], system == number
    for group in np.unique(space_group):
        yield "space_group", int(group), space_group == group


def _means(nll: dict[str, np.ndarray], chosen: np.ndarray) -> dict[str, int | float | None]:
    count = int(chosen.sum())
    means = {name: float(values[chosen].mean()) for name, values in nll.items()}
    error = float(nll["nll"][chosen].std(ddof=1) / np.sqrt(count)) if count > 1 else None
    return {"crystals": count, "nll": means.pop("nll"), "nll_error": error, **means}


def score(
    model: Model,
    name: str | Path,
    reporter: Reporter,
    symprec: float = SYMPREC,
    workers: int = 1,
    held_out: str | None = None,
) -> Scores:
    """Encodes the crystals of a file and scores them.

    Args:
        model: that scores them.
        name: a file, or a name, as `data.dataset.read` takes it.
        reporter: is told how many crystals there are.
        symprec: tolerance of the symmetry search, angstrom.
        workers: processes that encode.
        held_out: a share such as 10%: those crystals alone that a training with this `validation` does not learn from.

    Raises:
        DataError: if there is no crystal in it that the model can read, or the share holds out none, or all.
    """
    [scores] = _scores([model], name, reporter, symprec, workers, held_out)
    return scores


def compare(
    models: Sequence[Model],
    name: str | Path,
    reporter: Reporter,
    symprec: float = SYMPREC,
    workers: int = 1,
    held_out: str | None = None,
) -> list[Comparison]:
    """Scores the crystals of a file under several models, and compares all others with the first; see `score`.

    Crystals that have too many sites for one of the models are left out for all.
    """
    first, *others = _scores(models, name, reporter, symprec, workers, held_out)
    names = [model.name for model in models]
    return [Comparison(names[0], name, (first, scores)) for name, scores in zip(names[1:], others, strict=True)]


def _scores(
    models: Sequence[Model], name: str | Path, reporter: Reporter, symprec: float, workers: int, held_out: str | None
) -> list[Scores]:
    config = DataConfig(train=str(name), validation=held_out, symprec=symprec)
    learned_from, rest = read_data(config, min(model.config.n_max for model in models), reporter, workers)
    data = learned_from if rest is None else rest
    return [Scores(data, model.log_prob(data.batch)) for model in models]
