"""Crystals of earlier steps that are learnt from again."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from cfx.config import RLConfig
from cfx.core.crystal import CrystalBatch, concatenate


@dataclass(frozen=True)
class Experience:
    """B crystals, and what was known of them when they were drawn.

    Attributes:
        crystals: as drawn (numpy).
        value: float64 [B], their rewards, NaN where there is none.
        advantage: float32 [B], about the baseline of their step, without the terms that change as the policy does.
        log_prob: float32 [B], of the policy that drew them, nats.
        log_prob_reference: float32 [B], of the reference, nats.
    """

    crystals: CrystalBatch
    value: np.ndarray
    advantage: np.ndarray
    log_prob: np.ndarray
    log_prob_reference: np.ndarray

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, rows: np.ndarray) -> Self:
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All of them, one after the other."""
        arrays = [
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("value", "advantage", "log_prob", "log_prob_reference")
        ]
        return cls(concatenate([part.crystals for part in parts]), *arrays)


class Replay:
    """The crystals of the last steps, and which of them are learnt from again.

    `uniform` draws them without regard to anything. Weighed by p / p_drew, their probability now over that when they
    were drawn, they stand for draws of p: what is estimated by them is what fresh draws would give, with more noise the
    further p has moved. `best` takes those of highest reward. These are no draws of p, whatever their weights: averages
    over them are biased, and so is where the policy tends to.
    """

    def __init__(self, config: RLConfig):
        """Nothing is kept yet."""
        self._kind, self._size, self._seed = config.replay, config.batch_size, config.seed
        self.steps = config.replay_steps if config.replay != "none" else 0
        self._kept: deque[Experience] = deque(maxlen=self.steps)

    def add(self, experience: Experience) -> None:
        """Keeps the crystals of a step, for those that come after it."""
        self._kept.append(experience)

    def choose(self, step: int) -> Experience | None:
        """As many crystals of the last steps as a rollout has, none twice; None where there are none yet."""
        if not self._kept:
            return None
        kept = Experience.joined(self._kept)
        num = min(self._size, len(kept))
        if self._kind == "best":
            rows = np.argsort(-np.nan_to_num(kept.value, nan=-np.inf), kind="stable")[:num]
        else:
            # The seeds of the passes are [seed, step].
            rows = np.random.default_rng([self._seed, step, 1]).choice(len(kept), num, replace=False)
        return kept[np.sort(rows)]


def effective_share(weight: np.ndarray) -> float:
    """Kish's effective sample size of weighed draws, as a share of their number."""
    return float(weight.sum() ** 2 / (len(weight) * (weight**2).sum()))
