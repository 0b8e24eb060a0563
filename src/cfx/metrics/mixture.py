"""The mixture of compounds and pure elements with the lowest energy, by the revised simplex method (Dantzig's rule).

A hull's programmes have a row for each element, so a basis is a matrix of at most a dozen rows, and the pure elements
are a mixture to start from. scipy's general solver needs milliseconds for what takes a few steps of small matrices
here.
"""

from __future__ import annotations

import numpy as np

TOLERANCE = 1e-10
"""eV/atom. No compound that would lower the energy by more is left out."""

NUDGE = 1e-10
"""Atomic fractions are moved by about this much, unevenly, so that no two mixtures tie and the steps cannot circle."""

MAX_STEPS = 20_000


class NoSolution(ArithmeticError):
    """The steps did not come to an end."""


def lowest_energy(fractions: np.ndarray, gains: np.ndarray, x: np.ndarray) -> float:
    """Formation energy of the best mixture at a composition, eV/atom, 0 or negative.

    The result is the value of chemical potentials at which no compound gains more than TOLERANCE: a lower bound, which
    the best mixture reaches.

    Args:
        fractions: float64 [k, m], atomic fractions of compounds.
        gains: float64 [m], their formation energies from the pure elements, eV/atom.
        x: float64 [k], atomic fractions to mix, positive, with the sum 1.

    Raises:
        NoSolution: if it is not found in MAX_STEPS.
    """
    k = len(x)
    columns = np.concatenate([np.eye(k), fractions], axis=1)
    costs = np.concatenate([np.zeros(k), gains])
    nudged = x + NUDGE * (1 + np.modf(np.arange(1, k + 1) * np.sqrt(2.0))[0])
    basis, inverse = np.arange(k), np.eye(k)
    for _ in range(MAX_STEPS):
        potentials = costs[basis] @ inverse
        margins = costs - potentials @ columns
        enters = int(margins.argmin())
        if margins[enters] >= -TOLERANCE:
            return float(potentials @ x)
        change = inverse @ columns[:, enters]
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(change > 1e-12, (inverse @ nudged) / change, np.inf)
        basis[room.argmin()] = enters
        inverse = np.linalg.inv(columns[:, basis])
    raise NoSolution("no best mixture of phases found")
