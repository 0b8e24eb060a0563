"""The crystals of a discovery: those of a request, a few in each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from cfx.config import SampleConfig
from cfx.core.crystal import CrystalBatch, concatenate
from cfx.rl.rollout import primitive_cells
from cfx.runs.discovery.state import Discovering
from cfx.runs.evaluate import facts
from cfx.runs.space_groups import find_space_groups
from cfx.sampling.sampler import Draws, Resumed


def draw(state: Discovering) -> None:
    """Draws the crystals, or as many as the space groups give."""
    request, parts = _request(state), list[CrystalBatch]()
    batches: Iterator[Draws] | None = None
    row: dict[str, Any] = {"rejected": {}, "exhausted": ()}

    def make() -> dict[str, Any]:
        nonlocal batches
        state.check()
        if batches is None:
            batches = state.model.draws(request, resumed=_resumed(request, parts, row), stop=lambda: bool(state.stop))
        draws = next(batches, None)
        state.check()
        return {"ended": True} if draws is None else as_json(draws)

    with state.reporter.progress("drawing", request.n) as progress:
        progress.update(0, "compiling")
        while len(state.records) < request.n:
            step = state.steps.take("draw", make)
            if step.get("ended"):
                number = f"{len(state.records)} of {request.n} crystals"
                state.reporter.warning(f"{number}: the space groups give no more new ones")
                break
            row = step
            parts.append(crystals_of(row).with_slots(state.model.config.n_max))
            _add(state, parts[-1], row)
            progress.update(len(state.records))


def _request(state: Discovering) -> SampleConfig:
    """What is drawn, with the space groups that the model finds likely if it is left to choose."""
    asked = state.run.sample
    if not state.run.by_probability:
        return asked

    def make() -> dict[str, Any]:
        state.check()
        found = find_space_groups(state.model, asked, state.reporter).narrow(asked)
        return {"space_groups": found.space_groups, "weights": found.weights}

    row = state.steps.take("space groups", make)
    return replace(asked, space_groups=tuple(row["space_groups"]), weights=tuple(row["weights"]))


def _resumed(request: SampleConfig, parts: list[CrystalBatch], row: Mapping[str, Any]) -> Resumed:
    """What an earlier session has drawn: some crystals, and what its last step said."""
    kept = concatenate(parts) if request.unique and parts else None
    before = () if kept is None else tuple(kept[i : i + 1] for i in range(len(kept)))
    return Resumed(sum(map(len, parts)), Counter(row["rejected"]), before, tuple(row["exhausted"]))


def _add(state: Discovering, crystals: CrystalBatch, row: Mapping[str, Any]) -> None:
    """Begins the records of crystals."""
    sites = crystals.num_sites
    for i, structure in enumerate(primitive_cells(crystals)):
        known, log_prob = facts(structure), row["log_prob"][i]
        state.records.append(
            {
                "name": f"{known['formula']}_{row['number'][i]}",
                **known,
                "space_group_asked": int(crystals.space_group[i]),
                "log_prob": log_prob,
                "log_prob_per_site": log_prob / int(sites[i]),
                "left_out": "",
            }
        )
        state.structures.append(structure)


def as_json(draws: Draws) -> dict[str, Any]:
    """Some crystals, to the last bit, and how far the request has come."""
    crystals = draws.crystals.numpy()
    crystals = crystals.with_slots(int(np.max(crystals.num_sites)))
    return {
        **{name: array.tolist() for name, array in vars(crystals).items()},
        "number": [job.number for job in draws.jobs],
        "log_prob": np.asarray(draws.log_prob.total, float).tolist(),
        "rejected": dict(draws.rejected),
        "exhausted": draws.exhausted,
    }


def crystals_of(row: Mapping[str, Any]) -> CrystalBatch:
    """The crystals that `as_json` gave."""
    names = ("space_group", "lattice", "frac_coords", "species", "wyckoff")
    return CrystalBatch(*(np.array(row[name]) for name in names)).numpy()
