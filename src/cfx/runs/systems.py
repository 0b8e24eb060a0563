"""Formulas of a chemical system: those that a model draws most often where no other elements are allowed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cfx.config import SampleConfig
from cfx.config.symbols import ALL_SPACE_GROUPS
from cfx.core.elements import SYMBOLS, lowest_terms
from cfx.errors import NumericsError, UsageError
from cfx.model import Model
from cfx.reporter import Interrupted, Reporter, StopRequest
from cfx.runs.candidates import Formula
from cfx.sampling.request import atomic_number

DRAWS = 2000
"""Crystals of a chemical system that are drawn."""


def formulas_of_system(
    model: Model, elements: Sequence[str], most: int, space_groups: Sequence[int], seed: int, reporter: Reporter
) -> list[Formula]:
    """The formulas of all elements of a chemical system that a model draws most often; of equal ones the simpler.

    Args:
        elements: symbols.
        most: formulas, at most.
        space_groups: the only ones to be drawn; none for all. They are as frequent as in the model's training data.

    Raises:
        UsageError: if an element is named twice, or there is no such element.
        NumericsError: if no crystal has all of them.
        Interrupted: after a signal.
    """
    if len(set(elements)) < len(elements):
        raise UsageError(f"the system {'-'.join(elements)} names an element twice", "write it as Li-La-Zr-O")
    groups = tuple(space_groups) or ALL_SPACE_GROUPS
    counts = [model.trained_on(group) for group in groups]
    weights = tuple(float(1 if count is None else count) for count in counts)
    request = SampleConfig(
        space_groups=groups,
        weights=weights if any(weights) else (),
        elements=tuple(elements),
        n=DRAWS,
        seed=seed,
    )
    wanted, found = sorted(map(atomic_number, elements)), Counter[tuple[tuple[int, int], ...]]()
    title = f"{'-'.join(elements)}: crystals drawn"
    with StopRequest() as stop, reporter.progress(title, DRAWS) as progress:
        done = 0
        for draws in model.draws(request, stop=lambda: bool(stop)):
            for row in range(len(draws)):
                counts_of = draws.crystals.composition(row)
                if sorted(counts_of) == wanted:
                    found[tuple(sorted(lowest_terms(counts_of).items()))] += 1
            done += len(draws)
            progress.update(done)
        if stop.signum is not None:
            raise Interrupted(stop.signum, f"stopped looking for formulas of {'-'.join(elements)}")
    if not found:
        raise NumericsError(
            f"none of {DRAWS} crystals drawn has all of {', '.join(elements)}", "name formulas instead of the system"
        )
    ranked = sorted(found, key=lambda formula: (-found[formula], sum(n for _, n in formula), formula))
    by_symbol = [{SYMBOLS[number]: count for number, count in formula} for formula in ranked[:most]]
    return [tuple((symbol, formula[symbol]) for symbol in elements) for formula in by_symbol]
