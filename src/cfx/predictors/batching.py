"""Many crystals through a model in batches of even size, so that one that breaks the model breaks nothing else."""

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from cfx.core import Structure
from cfx.core.elements import SYMBOLS
from cfx.data.structures import MIN_DISTANCE, closest_approach
from cfx.errors import CfxError
from cfx.predictors.base import PotentialBatch

Result = TypeVar("Result")

SMALLEST_VOLUME, LARGEST_VOLUME = 2.0, 200.0
"""Volumes per atom, angstrom^3. Diamond has 5.7, the densest hydrides of high pressure in OQMD have 4.4, metallic
caesium has 118. In larger cells atoms see no neighbours, and cells become as long as one likes."""

MOST_ATOMS = 1000
"""Atoms in a cell. Beyond, the table of distances alone is large."""

ORDINARY_VOLUME = 20.0
"""Volume per atom, angstrom^3, of the crystals whose atoms count once in `memory_load`."""

LARGEST_LOAD = 1500.0
"""Memory load of one crystal. CHGNet, the hungriest model, takes 6 MB for the forces of an atom that counts once (17 MB
for each of copper's, 76 MB for each of diamond's, measured), so this is 9 GB."""

LARGEST_BATCH = {"cpu": 128.0, "cuda": 2048.0}
"""Sum of the memory loads in a batch that keeps a device busy. With CHGNet, 0.8 and 12 GB."""

OUT_OF_MEMORY = ("out of memory", "not enough memory", "alloc_failed", "can't allocate memory")
"""What torch says when memory runs out, besides raising an error of its own."""

NOT_FINITE = {"energy": "an energy that is", "forces": "forces that are", "stress": "a stress that is"}


class Output(NamedTuple):
    """What a model says of one crystal: eV; eV/angstrom [atoms, 3]; eV/angstrom^3 [3, 3], positive under tension."""

    energy: float
    forces: np.ndarray | None
    stress: np.ndarray | None


class Model(Protocol):
    """A library's potential, wrapped for `BatchedPotential`.

    Attributes:
        name: which model, and which version of it.
        scale: scale of its energies.
        elements: atomic numbers that it knows; None if it does not tell.
    """

    name: str
    scale: str
    elements: frozenset[int] | None

    def compute(self, structures: Sequence[Structure], forces: bool) -> list[Output]:
        """Evaluates all crystals in one batch; may raise any exception."""
        ...


class BatchedPotential:
    """A `Potential` that evaluates crystals with a library's model, batch by batch.

    Attributes:
        name: name of the model.
        scale: scale of its energies.
    """

    def __init__(self, model: Model, device: str = "cpu", largest_batch: float | None = None):
        self.name, self.scale = model.name, model.scale
        self._model, self._batches = model, Batches(device, largest_batch)

    @property
    def largest_batch(self) -> float:
        """See `Batches.largest`."""
        return self._batches.largest

    def evaluate(self, structures: Sequence[Structure | None], forces: bool = True) -> PotentialBatch:
        """See `Potential.evaluate`."""

        def compute(part: list[Structure]) -> list[Output | str]:
            outputs = self._model.compute(part, forces)
            return [checked(one, len(crystal), forces) for one, crystal in zip(outputs, part, strict=True)]

        results = self._batches.run(compute, structures, self._model.elements)
        energy, stress = np.full(len(results), np.nan), np.full((len(results), 3, 3), np.nan)
        each_forces: list[np.ndarray | None] = [None] * len(results)
        for i, result in enumerate(results):
            if not isinstance(result, str):
                energy[i], each_forces[i] = result.energy, result.forces
                stress[i] = np.nan if result.stress is None else result.stress
        return PotentialBatch(energy=energy, forces=each_forces, stress=stress, reasons=reasons_of(results))


class Batches:
    """Crystals through a library: screened, batched, and those on which the library fails isolated.

    Attributes:
        largest: sum of the memory loads of a batch; halved for good when the memory runs out.
    """

    def __init__(self, device: str, largest: float | None = None):
        self.largest = largest or LARGEST_BATCH[device.partition(":")[0]]

    def run(
        self,
        compute: Callable[[list[Structure]], Sequence[Result | str]],
        structures: Sequence[Structure | None],
        elements: frozenset[int] | None,
    ) -> list[Result | str]:
        """What a library says of each crystal, or why it says nothing.

        Args:
            compute: results of crystals, in their order, or a reason why there is none; raises whatever it likes.
            structures: screened first by `why_unsuitable`.
            elements: atomic numbers that the library knows; None if it does not tell.
        """
        results: list[Result | str] = [why_unsuitable(structure, elements) for structure in structures]
        crystals = {i: one for i, one in enumerate(structures) if one is not None and not results[i]}
        loads = {i: memory_load(crystal) for i, crystal in crystals.items()}
        waiting = plan(loads, self.largest)[::-1]
        while waiting:
            batch = waiting.pop()
            outcome: Sequence[Result | str] | str = ""
            if len(batch) == 1 or sum(loads[i] for i in batch) <= self.largest:
                outcome = self._attempt(compute, [crystals[i] for i in batch])
            if not isinstance(outcome, str):
                for i, result in zip(batch, outcome, strict=True):
                    results[i] = result
            elif len(batch) == 1:
                results[batch[0]] = outcome
            else:
                middle = len(batch) // 2
                waiting += [batch[middle:], batch[:middle]]
        return results

    def _attempt(
        self, compute: Callable[[list[Structure]], Sequence[Result | str]], structures: list[Structure]
    ) -> Sequence[Result | str] | str:
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


def reasons_of(results: Sequence[object]) -> list[str]:
    """The reasons among results of `Batches.run`; "" for the results that are none."""
    return [one if isinstance(one, str) else "" for one in results]


def plan(loads: dict[int, float], largest: float) -> list[list[int]]:
    """Batches of crystals of similar load, each with one crystal or with loads of at most `largest` together.

    Args:
        loads: memory loads of crystals, by number.
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


def memory_load(structure: Structure) -> float:
    """How much memory a crystal takes: its atoms, counted more in dense crystals.

    Neighbours grow with the density, angles between bonds with its square.
    """
    density = ORDINARY_VOLUME * len(structure) / structure.volume
    return len(structure) * max(density, density**2)


def why_unsuitable(structure: Structure | None, elements: frozenset[int] | None) -> str:
    """Why a crystal is not shown to a model, or "".

    Stricter than `cfx.data.structures.why_malformed`: models are undefined on disorder and unknown elements, and waste
    memory or crash on densities and sizes far from any crystal.

    Args:
        structure: None is a crystal that could not be read.
        elements: atomic numbers that the model knows; None if it does not tell.
    """
    if structure is None:
        return "no structure"
    return _bad_content(structure, elements) or _bad_geometry(structure)


def _bad_content(structure: Structure, elements: frozenset[int] | None) -> str:
    if not len(structure):
        return "no atoms"
    if len(structure) > MOST_ATOMS:
        return f"{len(structure)} atoms in the cell, more than {MOST_ATOMS}"
    if not structure.is_ordered:
        return "sites with partial or mixed occupancy"
    symbols = {getattr(site.specie, "element", site.specie).symbol for site in structure}
    if strange := sorted(symbols - set(SYMBOLS[1:])):
        return f"{strange[0]} is not an element"
    if elements is not None and (unknown := sorted(symbols - {SYMBOLS[z] for z in elements})):
        return f"the model does not know {unknown[0]}"
    return ""


def _bad_geometry(structure: Structure) -> str:
    if not np.isfinite(structure.lattice.matrix).all() or not np.isfinite(structure.frac_coords).all():
        return "a lattice or coordinates that are not finite"
    volume = structure.volume / len(structure)
    if volume < SMALLEST_VOLUME:
        return f"{volume:.2g} cubic angstrom per atom, less than {SMALLEST_VOLUME:g}"
    if volume > LARGEST_VOLUME:
        return f"{volume:.4g} cubic angstrom per atom, more than {LARGEST_VOLUME:g}"
    if memory_load(structure) > LARGEST_LOAD:
        return f"{len(structure)} atoms so dense are too many for the memory"
    distance = closest_approach(structure)
    if not distance > MIN_DISTANCE:
        return f"atoms {distance:.2f} angstrom apart"
    return ""


def checked(output: Output, atoms: int, forces: bool) -> Output | str:
    """An output in double precision, or what is wrong with it."""
    shapes: dict[str, tuple[int, ...]] = {"energy": ()}
    if forces:
        shapes |= {"forces": (atoms, 3), "stress": (3, 3)}
    parts = {name: np.asarray(getattr(output, name), float) for name in shapes}
    for name, values in parts.items():
        if values.shape != shapes[name]:
            return f"the model gives {name} of shape {values.shape}"
        if not np.isfinite(values).all():
            return f"the model gives {NOT_FINITE[name]} not finite"
    return Output(float(output.energy), parts.get("forces"), parts.get("stress"))


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
