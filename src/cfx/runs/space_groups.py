"""Space groups that a request with a formula leaves to the model."""

from __future__ import annotations

from cfx.config import SampleConfig
from cfx.model import Model
from cfx.reporter import Reporter, interrupted_by_signals
from cfx.sampling.posterior import SpaceGroupPosterior, SpaceGroupsOfHead

SHOWN, MOST_SHOWN = 0.9, 8
"""Space groups are named until they have this probability together, and at most so many."""


def find_space_groups(
    model: Model, request: SampleConfig, reporter: Reporter
) -> SpaceGroupPosterior | SpaceGroupsOfHead:
    """How likely each space group of a request is, which is also said.

    Raises:
        UsageError: if no space group that the model saw can meet the request.
        NumericsError: if no draw met it.
        Interrupted: after a signal.
    """
    with interrupted_by_signals("stopped before the first crystal"), reporter.progress("space groups", None) as bar:
        found = model.likely_space_groups(request, watch=lambda draws: bar.update(draws, "draws"))
    for line in describe(found):
        reporter.message(line)
    return found


def describe(found: SpaceGroupPosterior | SpaceGroupsOfHead) -> list[str]:
    """The likeliest space groups, and how well they are known."""
    ranked, shown, reached = found.ranked, [], 0.0
    for group, probability in ranked[:MOST_SHOWN]:
        if reached >= SHOWN:
            break
        shown.append(f"{group} {100 * probability:.1f} %")
        reached += probability
    if others := len(ranked) - len(shown):
        shown.append(f"{others} other{'s' * (others > 1)} {100 * (1 - reached):.1f} %")
    if isinstance(found, SpaceGroupsOfHead):
        return [f"space groups by the model's own head: {', '.join(shown)}"]
    prior = " (from equal chances: the model does not say what it was trained on)" if found.is_uniform else ""
    return [
        f"space groups by their probability{prior}: {', '.join(shown)}; "
        f"effective sample size {found.effective_sample_size:.0f} of {found.draws.sum()} draws"
    ]
