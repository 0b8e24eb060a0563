"""Many crystals through a library in batches of even size; one that breaks it breaks nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from cfx.errors import CfxError
from cfx.potentials.batching import explain, is_out_of_memory, plan, release_memory
from cfx.potentials.screen import load, unfit

if TYPE_CHECKING:
    from pymatgen.core import Structure

Result = TypeVar("Result")


def run_batched(
    compute: Callable[[list[Structure]], list[Result]],
    structures: Sequence[Structure | None],
    elements: frozenset[int] | None,
    largest_batch: float,
) -> list[Result | str]:
    """What a library says of each crystal, or why it says nothing.

    Args:
        compute: results of crystals, in their order; raises whatever it likes.
        structures: screened first (see `potentials.screen`).
        elements: atomic numbers that the library knows; None if it does not tell.
        largest_batch: sum of the loads of the crystals of a batch.
    """
    results: list[Result | str] = [unfit(structure, elements) for structure in structures]
    loads = {i: load(structures[i]) for i, reason in enumerate(results) if not reason}
    waiting = plan(loads, largest_batch)[::-1]
    while waiting:
        batch = waiting.pop()
        outcome = _attempt(compute, [structures[i] for i in batch])
        if not isinstance(outcome, str):
            for i, result in zip(batch, outcome, strict=True):
                results[i] = result
        elif len(batch) == 1:
            results[batch[0]] = outcome
        else:
            middle = len(batch) // 2
            waiting += [batch[middle:], batch[:middle]]
    return results


def _attempt(compute: Callable[[list[Structure]], list[Result]], structures: list[Structure]) -> list[Result] | str:
    """Results of a batch, or why there are none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return compute(structures)
    except CfxError:
        raise
    # A model's compute on a batch: libraries raise what they like, and the next crystal may be fine.
    except Exception as error:
        exhausted, reason = is_out_of_memory(error), explain(error)
    if exhausted:
        release_memory()
        if len(structures) == 1:
            return f"{len(structures[0])} atoms do not fit in memory"
    return reason
