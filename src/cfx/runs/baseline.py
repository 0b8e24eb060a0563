"""What a reward is held against: moving averages of the mean reward."""

from __future__ import annotations

from typing import Any

import numpy as np

from cfx.config import RLConfig

PRIOR = 4.0
"""Crystals that a space group must have seen to trust its own mean as much as that of all."""


class Baseline:
    """The baseline of a run, brought up to date before it is used, as published.

    `ema` is the published one: b <- decay * b + (1 - decay) * mean reward, at first the mean reward. `batch` is the
    mean reward of the rollout. `group` is an average for each space group: sums over its crystals that fade with the
    same decay, drawn towards `ema` by PRIOR crystals. A policy does not choose space groups; what is easy to reach in
    one of them says nothing of a crystal of another.
    """

    def __init__(self, config: RLConfig):
        self._kind, self._decay = config.baseline, config.baseline_decay
        self.mean: float | None = None
        self._groups: dict[int, tuple[float, float]] = {}

    def update(self, reward: np.ndarray, space_group: np.ndarray) -> np.ndarray:
        """Takes in the rewards of a rollout [B], and gives the baseline of each of its crystals, float64 [B]."""
        mean = float(reward.mean())
        if self._kind == "batch" or self.mean is None:
            self.mean = mean
        else:
            self.mean = self._decay * self.mean + (1 - self._decay) * mean
        if self._kind != "group":
            return np.full(len(reward), self.mean)
        self._groups = {group: (self._decay * n, self._decay * total) for group, (n, total) in self._groups.items()}
        for group in np.unique(space_group).tolist():
            own = reward[space_group == group]
            n, total = self._groups.get(group, (0.0, 0.0))
            self._groups[group] = (n + len(own), total + float(own.sum()))
        return np.array([self._of(int(group)) for group in space_group])

    def _of(self, group: int) -> float:
        n, total = self._groups[group]
        return (total + PRIOR * self.mean) / (n + PRIOR)

    def saved(self) -> dict[str, Any]:
        """All there is, as JSON can hold it."""
        return {"mean": self.mean, "groups": {str(group): list(sums) for group, sums in self._groups.items()}}

    def restore(self, saved: dict[str, Any]) -> None:
        """The inverse of `saved`."""
        self.mean = saved["mean"]
        self._groups = {int(group): (float(n), float(total)) for group, (n, total) in saved["groups"].items()}
