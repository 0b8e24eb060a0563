"""Rewards from an interatomic potential: stability, energy, and how close a crystal is to a minimum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cfx.metrics.hull import Hull
from cfx.potentials.base import Potential, PotentialBatch
from cfx.rewards.base import RewardBatch, make_batch

if TYPE_CHECKING:
    from pymatgen.core import Structure

STRESS_WEIGHT = 10.0
"""How many eV/angstrom of force 1 eV/angstrom^3 of stress counts as."""

FORCE_LIMIT = 20.0
"""Above which a force counts no further, eV/angstrom; so does a stress above FORCE_LIMIT / STRESS_WEIGHT."""


class EHull:
    """Minus the energy above the hull of the crystal as it is, eV/atom (2504.02367, Section "Reward").

    A crystal far below all known phases is a failure: a policy finds the gaps of a hull, and what a potential gets
    wrong, faster than stable crystals.
    """

    name, unit = "ehull", "eV/atom"
    kl_coef = 0.1

    def __init__(self, potential: Potential, hull: Hull, limit: float, floor: float):
        """Rewards between -limit and -floor, eV/atom; failures score worst."""
        self.about = f"energies by {potential.name}, above the hull {hull}, from {floor:g} up to {limit:g} eV/atom"
        self.failure = -limit
        self._potential, self._hull, self._limit, self._floor = potential, hull, limit, floor

    def evaluate(self, structures: Sequence[Structure | None]) -> RewardBatch:
        """See `Reward`."""
        batch = self._potential.evaluate(structures, forces=False)
        judged = [one if ok else None for one, ok in zip(structures, batch.ok, strict=True)]
        heights = self._hull.evaluate(judged, batch.energy.tolist(), self._potential.scale)
        reasons = [one or other for one, other in zip(batch.reasons, heights.reasons, strict=True)]
        under = f"more than {-self._floor:g} eV/atom below all known phases"
        reasons = [
            reason or (under if height < self._floor else "")
            for reason, height in zip(reasons, heights.e_above_hull, strict=True)
        ]
        value = np.clip(-heights.e_above_hull, -self._limit, -self._floor)
        metrics = {"E_hull (eV/atom)": heights.e_above_hull, "energy (eV/atom)": _per_atom(batch, structures)}
        return make_batch(value, reasons, metrics)


class Energy:
    """Minus the energy, eV/atom, on the potential's own scale."""

    name, unit = "energy", "eV/atom"
    kl_coef = 0.1
    failure = 0.0

    def __init__(self, potential: Potential):
        self.about = f"energies by {potential.name}"
        self._potential = potential

    def evaluate(self, structures: Sequence[Structure | None]) -> RewardBatch:
        """See `Reward`."""
        batch = self._potential.evaluate(structures, forces=False)
        energy = _per_atom(batch, structures)
        return make_batch(-energy, batch.reasons, {"energy (eV/atom)": energy})


class Force:
    """Minus the logarithm of mean force plus weighted mean stress, clipped: how close a crystal is to a minimum."""

    name, unit = "force", ""
    kl_coef = 0.1
    failure = -float(np.log(FORCE_LIMIT + FORCE_LIMIT))

    def __init__(self, potential: Potential):
        self.about = f"forces and stresses by {potential.name}"
        self._potential = potential

    def evaluate(self, structures: Sequence[Structure | None]) -> RewardBatch:
        """See `Reward`."""
        batch = self._potential.evaluate(structures, forces=True)
        n = len(structures)
        force, stress = np.full(n, np.nan), np.full(n, np.nan)
        for i in np.flatnonzero(batch.ok):
            sizes = np.linalg.norm(batch.forces[i], axis=1)
            force[i] = np.minimum(sizes, FORCE_LIMIT).mean()
            stress[i] = np.minimum(np.abs(batch.stress[i]), FORCE_LIMIT / STRESS_WEIGHT).mean()
        # A crystal at rest by symmetry has forces of rounding size only, which are no better than none.
        value = -np.log(np.maximum(force + STRESS_WEIGHT * stress, 1e-4))
        metrics = {"mean force (eV/angstrom)": force, "mean stress (eV/angstrom^3)": stress}
        return make_batch(value, batch.reasons, metrics)


def _per_atom(batch: PotentialBatch, structures: Sequence[Structure | None]) -> np.ndarray:
    """Energies in eV/atom, float64 [n]; NaN where there is none."""
    return batch.energy / np.array([np.nan if one is None else len(one) for one in structures], float)
