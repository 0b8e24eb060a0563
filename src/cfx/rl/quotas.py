"""Shares of the draws that a run holds where the reference has them, by class of compositions.

The policy maximises E[r] - tau KL(p || p_ref), now with p(c) = q_c for every class c, where q_c is its share of p_ref.
With a multiplier lambda_c for each class the optimum is p_ref(x) exp((r(x) - lambda_c) / tau). Where the multipliers
are such that the shares are met, this is q_c p_ref(x | c) exp(r(x) / tau) / Z_c, with Z_c the mean of exp(r / tau)
over p_ref(x | c): tilted within each class, and the reference between classes.
"""

from typing import Any

import numpy as np

from cfx.core.crystal import CrystalBatch
from cfx.core.elements import SYMBOLS, lowest_terms
from cfx.evaluation.validity import CLASSES, composition_class

NUM_DRAWS = 1024
"""Crystals of the reference by which its shares are known: 1 % to 0.3 %, 50 % to 1.6 %."""

PROPORTIONAL, INTEGRAL = 2.0, 0.05
"""Gains, in standard deviations of the advantages. The first damps; the second adds up until shares are exact."""

DECAY = 0.9
"""Of the moving average of the shares, by step: it looks back ten steps."""

FLOOR = 0.02
"""Added to shares before they are compared, so that a class of hardly any crystals makes little noise."""


class Quotas:
    """Multipliers of classes, estimated from the shares of their draws (proportional and integral: 2007.03964).

    The error of a class is log((share + FLOOR) / (q_c + FLOOR)), its multiplier PROPORTIONAL times the error, plus
    INTEGRAL times the sum of all errors so far, both in units of the advantages. The sum stands still only where share
    and q_c are equal: what is added to all advantages of a class by a baseline is taken up by its multiplier.
    """

    def __init__(self, prior: np.ndarray):
        """Quotas at shares `prior`, float [C], by place in CLASSES."""
        self.prior = np.asarray(prior, float)
        self.shares = self.prior.copy()
        self._sum = np.zeros(len(prior))
        self._proportional = np.zeros(len(prior))

    def update(self, kinds: np.ndarray, spread: float) -> None:
        """Takes in a rollout.

        Args:
            kinds: classes of its crystals, as places in CLASSES, int [B].
            spread: standard deviation of their advantages.
        """
        drawn = np.bincount(kinds, minlength=len(self.prior)) / len(kinds)
        self.shares = DECAY * self.shares + (1 - DECAY) * drawn
        error = np.log((self.shares + FLOOR) / (self.prior + FLOOR))
        self._proportional = PROPORTIONAL * spread * error
        self._sum += INTEGRAL * spread * error

    @property
    def multipliers(self) -> np.ndarray:
        """What is subtracted from the advantage of a crystal by its class, float64 [C]; their mean by share is 0."""
        values = self._proportional + self._sum
        return values - self.shares @ values / self.shares.sum()

    def saved(self) -> dict[str, list[float]]:
        """The state as JSON can hold it."""
        return {"prior": self.prior.tolist(), "shares": self.shares.tolist(), "sum": self._sum.tolist()}

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> "Quotas":
        """What `saved` was returned by."""
        quotas = cls(np.array(saved["prior"]))
        quotas.shares, quotas._sum = np.array(saved["shares"]), np.array(saved["sum"])
        return quotas


def classes_of(crystals: CrystalBatch) -> np.ndarray:
    """Places in CLASSES of the compositions, int [B]."""
    counts = [lowest_terms(crystals.composition(row)) for row in range(len(crystals))]
    formulas = [tuple(sorted((SYMBOLS[z], n) for z, n in count.items())) for count in counts]
    return np.array([CLASSES.index(composition_class(formula)) for formula in formulas])


def class_shares(kinds: np.ndarray) -> dict[str, float]:
    """Share of each class by its name."""
    counts = np.bincount(kinds, minlength=len(CLASSES)) / len(kinds)
    return dict(zip(CLASSES, counts.tolist(), strict=True))
