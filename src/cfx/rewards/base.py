"""What a reward is: a number for each crystal, the larger the better, with what it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Structure

NO_STRUCTURE = "its lattice closes no cell"
"""Why a crystal without a structure has no reward."""


@dataclass(frozen=True)
class RewardBatch:
    """What a reward says of n crystals, in the order in which they were given.

    Attributes:
        value: float64 [n], higher is better, NaN where not ok.
        ok: bool [n].
        reasons: why a crystal is not ok, on one line; "" where it is.
        metrics: what the value was made of, by name with its unit ("E_hull (eV/atom)"): float64 [n], NaN where unknown.
    """

    value: np.ndarray
    ok: np.ndarray
    reasons: list[str]
    metrics: dict[str, np.ndarray] = field(default_factory=dict)


class Reward(Protocol):
    """A reward.

    Attributes:
        name: as on the command line.
        about: what computes it, for whoever reads the numbers; one line.
        unit: of the value, "" if it has none.
        kl_coef: tau in the reward's unit, unless the user says another.
        failure: what a crystal without a value counts as.
    """

    name: str
    about: str
    unit: str
    kl_coef: float
    failure: float

    def evaluate(self, structures: Sequence[Structure | None]) -> RewardBatch:
        """The rewards of crystals; one that cannot be evaluated gets a reason and leaves the others alone."""


def make_batch(value: np.ndarray, reasons: Sequence[str], metrics: dict[str, np.ndarray] | None = None) -> RewardBatch:
    """A batch whose crystals are ok where nothing is wrong with them and the value is a finite number.

    Args:
        value: float [n].
        reasons: what is wrong with each, "" for nothing.
        metrics: see `RewardBatch`.
    """
    value = np.array(value, np.float64)
    reasons = [
        reason or ("" if np.isfinite(each) else "the reward is no finite number")
        for reason, each in zip(reasons, value, strict=True)
    ]
    ok = np.array([not reason for reason in reasons], bool)
    return RewardBatch(np.where(ok, value, np.nan), ok, reasons, metrics or {})
