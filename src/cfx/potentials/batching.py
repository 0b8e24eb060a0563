"""Many crystals through a model in batches of even size, so that one that breaks the model breaks nothing else."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from cfx.errors import CfxError
from cfx.potentials.base import PotentialBatch
from cfx.potentials.screen import load, unfit

if TYPE_CHECKING:
    from pymatgen.core import Structure

LARGEST_BATCH = {"cpu": 128.0, "cuda": 2048.0}
"""Of crystals' loads (see `screen.load`), by device: what keeps it busy. With CHGNet, 0.8 and 12 GB."""

OUT_OF_MEMORY = ("out of memory", "not enough memory", "alloc_failed", "can't allocate memory")
"""What torch says when memory runs out, besides raising an error of its own."""

NOT_FINITE = {"energy": "an energy that is", "forces": "forces that are", "stress": "a stress that is"}


class Output(NamedTuple):
    """What a model says of one crystal: eV; eV/angstrom [atoms, 3]; eV/angstrom^3 [3, 3], positive under tension."""

    energy: float
    forces: np.ndarray | None
    stress: np.ndarray | None


class Model(Protocol):
    """A library's model, as `BatchedPotential` wants it.

    Attributes:
        name: which model, and which version of it.
        scale: of its energies.
        elements: atomic numbers that it knows; None if it does not tell.
    """

    name: str
    scale: str
    elements: frozenset[int] | None

    def compute(self, structures: Sequence[Structure], forces: bool) -> list[Output]:
        """All crystals at once; raises whatever it likes."""


class BatchedPotential:
    """A `Potential` made of a model: screens, batches, isolates crystals on which the model fails.

    Attributes:
        name: of the model.
        scale: of its energies.
        largest_batch: sum of the loads of its crystals; halved for good when the memory runs out.
    """

    def __init__(self, model: Model, device: str = "cpu", largest_batch: float | None = None):
        self.name, self.scale = model.name, model.scale
        self.largest_batch = largest_batch or LARGEST_BATCH[device.partition(":")[0]]
        self._model = model

    def evaluate(self, structures: Sequence[Structure | None], forces: bool = True) -> PotentialBatch:
        """See `Potential.evaluate`."""
        count = len(structures)
        results: list[Output | str] = [unfit(structure, self._model.elements) for structure in structures]
        fit = [i for i, reason in enumerate(results) if not reason]
        for i, result in self._run(structures, fit, forces).items():
            results[i] = result
        energy, stress = np.full(count, np.nan), np.full((count, 3, 3), np.nan)
        all_forces: list[np.ndarray | None] = [None] * count
        for i, result in enumerate(results):
            if not isinstance(result, str):
                energy[i], all_forces[i] = result.energy, result.forces
                stress[i] = np.nan if result.stress is None else result.stress
        reasons = [result if isinstance(result, str) else "" for result in results]
        return PotentialBatch(energy, all_forces, stress, np.array([not reason for reason in reasons], bool), reasons)

    def _run(self, structures: Sequence, fit: list[int], forces: bool) -> dict[int, Output | str]:
        """Result or reason of each crystal that is fit, by its number."""
        loads = {i: load(structures[i]) for i in fit}
        waiting = plan(loads, self.largest_batch)[::-1]
        results: dict[int, Output | str] = {}
        while waiting:
            batch = waiting.pop()
            outcome: list[Output] | str = ""
            if len(batch) == 1 or sum(loads[i] for i in batch) <= self.largest_batch:
                outcome = self._attempt([structures[i] for i in batch], forces)
            if not isinstance(outcome, str):
                pairs = zip(batch, outcome, strict=True)
                results |= {i: checked(output, len(structures[i]), forces) for i, output in pairs}
            elif len(batch) == 1:
                results[batch[0]] = outcome
            else:
                middle = len(batch) // 2
                waiting += [batch[middle:], batch[:middle]]
        return results

    def _attempt(self, structures: list, forces: bool) -> list[Output] | str:
        """What the model says of a batch, or why it does not."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self._model.compute(structures, forces)
        except CfxError:
            raise
        # The one place that catches everything: libraries raise what they like, and the next crystal may be fine.
        except Exception as error:
            exhausted, reason = is_out_of_memory(error), explain(error)
        if exhausted:
            release_memory()
            if len(structures) == 1:
                return f"{len(structures[0])} atoms do not fit in memory"
            self.largest_batch = min(self.largest_batch, sum(map(load, structures)) / 2)
        return reason


def plan(loads: dict[int, float], largest: float) -> list[list[int]]:
    """Batches of crystals of similar load, each with one crystal or with loads of at most `largest` together.

    Args:
        loads: of crystals, by number.
        largest: sum of loads in a batch.
    """
    batches: list[list[int]] = []
    total = 0.0
    for i in sorted(loads, key=lambda i: (loads[i], i)):
        if not batches or total + loads[i] > largest:
            batches.append([])
            total = 0.0
        batches[-1].append(i)
        total += loads[i]
    return batches


def checked(output: Output, atoms: int, forces: bool) -> Output | str:
    """An output in double precision, or what is wrong with it."""
    parts = {"energy": (np.asarray(output.energy, float), ())}
    if forces:
        parts["forces"] = (np.asarray(output.forces, float), (atoms, 3))
        parts["stress"] = (np.asarray(output.stress, float), (3, 3))
    for name, (values, shape) in parts.items():
        if values.shape != shape:
            return f"the model gives {name} of shape {values.shape}"
        if not np.isfinite(values).all():
            return f"the model gives {NOT_FINITE[name]} not finite"
    return Output(float(output.energy), *(parts[name][0] for name in ("forces", "stress")) if forces else (None, None))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)


def release_memory() -> None:
    """Gives the memory that torch keeps for later back to the device."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def explain(error: Exception) -> str:
    """An error of a library on one line of at most 200 characters."""
    text = " ".join(str(error).split())
    return f"the model fails: {text or type(error).__name__}"[:200]
