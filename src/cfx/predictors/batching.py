"""Many crystals through a model in batches of even size, so that one that breaks the model breaks nothing else."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import numpy as np

from cfx.data.sanity import memory_load, unfit
from cfx.errors import CfxError
from cfx.predictors.base import PotentialBatch

if TYPE_CHECKING:
    from pymatgen.core import Structure

Result = TypeVar("Result")

LARGEST_BATCH = {"cpu": 128.0, "cuda": 2048.0}
"""Of crystals' loads (see `screen.memory_load`), by device: what keeps it busy. With CHGNet, 0.8 and 12 GB."""

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


class Batches:
    """Crystals through a library: screened, batched, and those on which it fails isolated.

    Attributes:
        largest: sum of the loads of a batch; halved for good when the memory runs out.
    """

    def __init__(self, largest: float):
        self.largest = largest

    def run(
        self,
        compute: Callable[[list[Structure]], list[Result]],
        structures: Sequence[Structure | None],
        elements: frozenset[int] | None,
    ) -> list[Result | str]:
        """What a library says of each crystal, or why it says nothing.

        Args:
            compute: results of crystals, in their order; raises whatever it likes.
            structures: screened first (see `screen`).
            elements: atomic numbers that the library knows; None if it does not tell.
        """
        results: list[Result | str] = [unfit(structure, elements) for structure in structures]
        loads = {i: memory_load(structures[i]) for i, reason in enumerate(results) if not reason}
        waiting = plan(loads, self.largest)[::-1]
        while waiting:
            batch = waiting.pop()
            outcome: list[Result] | str = ""
            if len(batch) == 1 or sum(loads[i] for i in batch) <= self.largest:
                outcome = self._attempt(compute, [structures[i] for i in batch])
            if not isinstance(outcome, str):
                for i, result in zip(batch, outcome, strict=True):
                    results[i] = result
            elif len(batch) == 1:
                results[batch[0]] = outcome
            else:
                middle = len(batch) // 2
                waiting += [batch[middle:], batch[:middle]]
        return results

    def _attempt(self, compute: Callable[[list[Structure]], list[Result]], structures: list) -> list[Result] | str:
        """What the library says of a batch, or why it does not."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return compute(structures)
        except CfxError:
            raise
        # The one place that catches everything: libraries raise what they like, and the next crystal may be fine.
        except Exception as error:
            exhausted, reason = is_out_of_memory(error), explain(error)
        if exhausted:
            release_memory()
            if len(structures) == 1:
                return f"{len(structures[0])} atoms do not fit in memory"
            self.largest = min(self.largest, sum(map(memory_load, structures)) / 2)
        return reason


class BatchedPotential:
    """A `Potential` made of a model.

    Attributes:
        name: of the model.
        scale: of its energies.
    """

    def __init__(self, model: Model, device: str = "cpu", largest_batch: float | None = None):
        self.name, self.scale = model.name, model.scale
        self._model, self._batches = model, Batches(largest_batch or LARGEST_BATCH[device.partition(":")[0]])

    @property
    def largest_batch(self) -> float:
        """See `Batches.largest`."""
        return self._batches.largest

    def evaluate(self, structures: Sequence[Structure | None], forces: bool = True) -> PotentialBatch:
        """See `Potential.evaluate`."""
        count = len(structures)
        outputs = self._batches.run(lambda part: self._model.compute(part, forces), structures, self._model.elements)
        results = [
            output if isinstance(output, str) else checked(output, len(structure), forces)
            for output, structure in zip(outputs, structures, strict=True)
        ]
        energy, stress = np.full(count, np.nan), np.full((count, 3, 3), np.nan)
        all_forces: list[np.ndarray | None] = [None] * count
        for i, result in enumerate(results):
            if not isinstance(result, str):
                energy[i], all_forces[i] = result.energy, result.forces
                stress[i] = np.nan if result.stress is None else result.stress
        reasons = [result if isinstance(result, str) else "" for result in results]
        return PotentialBatch(energy, all_forces, stress, np.array([not reason for reason in reasons], bool), reasons)


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
