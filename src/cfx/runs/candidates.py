"""Candidates for the structures of a formula: drawn from a model, without unphysical ones and repeats."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfx.config import PredictConfig, SampleConfig
from cfx.core import Structure
from cfx.core.crystal import CrystalBatch
from cfx.core.symmetry import settings_table
from cfx.data.structures import closest_approach
from cfx.evaluation.matching import find_match, reduce_or_say_why
from cfx.model import Model
from cfx.rl.rollout import primitive_cell

Formula = tuple[tuple[str, int], ...]
"""Symbols and numbers of atoms."""

MODEL = "model"
"""Where a structure comes from that the model drew freely."""


@dataclass(frozen=True)
class Candidate:
    """A structure that may be one of a formula.

    Attributes:
        structure: pymatgen Structure of the primitive cell, as drawn.
        space_group: that it was drawn in.
        log_prob: of the likeliest of the draws that gave it, nats, as published.
        draws: how many gave it, by where they came from.
    """

    structure: Structure
    space_group: int
    log_prob: float
    draws: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """What `of` rebuilds it from, to the last bit."""
        cell = structure_as_json(self.structure)
        return {"space_group": self.space_group, "log_prob": self.log_prob, "draws": self.draws, **cell}

    @classmethod
    def of(cls, saved: dict[str, Any]) -> Candidate:
        """The candidate that `as_json` gave."""
        return cls(structure_of(saved), saved["space_group"], saved["log_prob"], saved["draws"])


def structure_as_json(structure: Structure) -> dict[str, Any]:
    """Cell (angstrom, a row per vector), symbols and coordinates of an ordered Structure."""
    return {
        "cell": structure.lattice.matrix.tolist(),
        "species": [site.specie.symbol for site in structure],
        "frac_coords": structure.frac_coords.tolist(),
    }


def structure_of(saved: dict[str, Any]) -> Structure:
    """The Structure that `structure_as_json` gave."""
    from pymatgen.core import Lattice, Structure

    return Structure(Lattice(saved["cell"]), saved["species"], saved["frac_coords"])


def draw_candidates(
    model: Model, formula: Formula, config: PredictConfig, stop: Callable[[], bool], on_draw: Callable[[int], None]
) -> tuple[list[Candidate], Counter[str]]:
    """Draws structures of a formula.

    Args:
        stop: asked after every step of the decoder; True ends the draws.
        on_draw: told how many were drawn so far.

    Returns:
        Distinct structures, the likeliest first, and how many draws were left out, by reason.

    Raises:
        UsageError: if no space group can hold the formula.
        NumericsError: if the model gives no acceptable crystal.
    """
    left_out: Counter[str] = Counter()
    candidates: list[Candidate] = []
    arrangements: list[Hashable] = []
    done = 0
    for draws in model.draws(draws_request(formula, config), stop=stop):
        crystals = draws.crystals.numpy()
        keys, structures = arrangements_of(crystals), crystals.to_structures()
        for row, structure in enumerate(structures):
            if closest_approach(structure) < config.min_distance:
                left_out["atoms too close"] += 1
                continue
            log_prob = float(draws.log_prob.total[row])
            group = int(crystals.space_group[row])
            candidates.append(Candidate(primitive_cell(structure), group, log_prob, {MODEL: 1}))
            arrangements.append(keys[row])
        done += len(crystals)
        on_draw(done)
    order = sorted(range(len(candidates)), key=lambda i: -candidates[i].log_prob)
    return distinct([candidates[i] for i in order], [arrangements[i] for i in order]), left_out


def draws_request(formula: Formula, config: PredictConfig) -> SampleConfig:
    """The request whose crystals are the candidates of a formula."""
    return SampleConfig(
        space_groups=config.space_groups,
        weights=config.weights,
        formula=formula,
        n=config.draws,
        seed=config.seed,
        temperature=config.temperature,
        top_p=config.top_p,
        max_atoms=config.max_atoms,
        max_sites=config.max_sites,
    )


def arrangements_of(crystals: CrystalBatch) -> list[Hashable]:
    """Which element is on which letter, crystal by crystal (numpy): the same for all settings of a crystal."""
    found: list[Hashable] = []
    for row, count in enumerate(settings_table().count[crystals.space_group - 1].tolist()):
        alike = crystals[np.full(count, row)].in_settings(np.arange(count))
        sites = [
            tuple(sorted(zip(letters.tolist(), species.tolist(), strict=True)))
            for letters, species in zip(alike.wyckoff, alike.species, strict=True)
        ]
        found.append((int(crystals.space_group[row]), min(sites)))
    return found


def distinct(candidates: Sequence[Candidate], arrangements: Sequence[Hashable]) -> list[Candidate]:
    """Candidates that match no earlier one of the same arrangement; they take over the draws of those that do.

    Other arrangements are other starts of a relaxation that keeps the symmetry, however alike they are.
    """
    kept: list[Candidate] = []
    alike: dict[Hashable, list[tuple[int, Structure]]] = defaultdict(list)
    with warnings.catch_warnings(action="ignore"):
        for one, arrangement in zip(candidates, arrangements, strict=True):
            reduced = reduce_or_say_why(one.structure)
            if isinstance(reduced, str):
                continue
            others = alike[arrangement]
            match = find_match(reduced, [structure for _, structure in others])
            if match is None:
                others.append((len(kept), reduced))
                kept.append(one)
            else:
                add_draws(kept[others[match][0]].draws, one.draws)
    return kept


def add_draws(to: dict[str, int], more: dict[str, int]) -> None:
    """Adds numbers of draws, by where they come from."""
    for origin, count in more.items():
        to[origin] = to.get(origin, 0) + count
