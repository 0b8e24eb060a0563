"""Candidates for the structures of a formula: drawn from a model, without unphysical ones and repeats."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cfx.config import PredictConfig, SampleConfig
from cfx.config.symbols import ALL_SPACE_GROUPS
from cfx.core import Structure
from cfx.core.crystal import CrystalBatch
from cfx.core.known_prototypes import KnownPrototype, likeliest, prototypes_of, typical_crystals
from cfx.core.lattice import is_physical
from cfx.core.prototypes import Arrangement, arrangements_of
from cfx.core.symmetry import LETTERS, symmetry_table
from cfx.data.structures import closest_approach, structure_as_json, structure_from_json
from cfx.evaluation.matching import find_match, reduce_or_say_why
from cfx.model import Model
from cfx.rl.rollout import primitive_cell
from cfx.sampling.posterior import DRAWS, SpaceGroupPosterior
from cfx.sampling.prototypes import draw_prototypes

Formula = tuple[tuple[str, int], ...]
"""Symbols and numbers of atoms."""

MODEL = "model"
"""Where a structure comes from that the model drew freely."""

PROTOTYPE = "prototype"
"""Where one comes from that has the sites of a known prototype."""

Scored = tuple[CrystalBatch, np.ndarray]
"""Crystals with their log-probabilities, nats [B]."""

LEAST_SEARCH, SEARCH, SEARCH_IN_GROUP = 1000, 20, 100
"""Draws of the search for space groups, at most: so many, or so many for each draw that is wanted, if that is more.
Among few space groups the first of these is less, so many for each."""

TYPICAL = 0.75
"""Share of the structures in known prototypes that have the geometry of a known crystal, if so many are known."""

SAME_VOLUME = 1.3
"""Ratio of the volumes of two draws up to which one can stand for the other."""

MOST_REPEATS = 4
"""How often a likely prototype is drawn again, at most unless few are known."""


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
        return cls(structure_from_json(saved), saved["space_group"], saved["log_prob"], saved["draws"])


@dataclass(frozen=True)
class DrawnCandidates:
    """What was drawn for a formula.

    Attributes:
        candidates: distinct structures, the likeliest first.
        left_out: how many draws were not used, by reason.
        space_groups: those with a probability, the likeliest first.
        effective_sample_size: of the draws behind these probabilities; None if the model has a head that tells them.
    """

    candidates: list[Candidate]
    left_out: Counter[str]
    space_groups: list[tuple[int, float]]
    effective_sample_size: float | None


def draw_candidates(
    model: Model, formula: Formula, config: PredictConfig, watch: Callable[[int], None] = lambda made: None
) -> DrawnCandidates:
    """Draws structures of a formula: some freely, the others in known prototypes.

    Free ones are draws by which the model finds likely space groups (see `sampling.posterior`), chosen by weight, or of
    the space groups that the model's own head finds likely. Most of the others are one of each prototype, the likeliest
    first (see `likeliest`), in the geometry of a known crystal (`typical_crystals`); for the rest the model draws
    coordinates and lattice, of those that it finds likeliest.

    Args:
        watch: told how many draws the search for space groups has made.

    Raises:
        UsageError: if no space group can hold the formula.
        NumericsError: if no draw ends with the formula.
    """
    prototypes = prototypes_of(formula, config.space_groups or None)
    prototypes = [one for one in prototypes if len(one.letters) < model.config.n_max and _fits(one, config)]
    in_prototypes = round(config.draws * config.prototypes) if prototypes else 0
    free = _draw_freely(model, formula, config, config.draws - in_prototypes, watch)
    known = _in_prototypes(model, prototypes, in_prototypes, config.seed)
    left_out: Counter[str] = Counter()
    candidates: list[tuple[Candidate, Arrangement]] = []
    for origin, parts in ((MODEL, free.parts), (PROTOTYPE, known)):
        for crystals, log_prob in parts:
            candidates += _candidates(crystals.numpy(), log_prob, origin, config.min_distance, left_out)
    candidates.sort(key=lambda pair: -pair[0].log_prob)
    found = distinct([one for one, _ in candidates], [arrangement for _, arrangement in candidates])
    return DrawnCandidates(found, left_out, free.space_groups, free.effective_sample_size)


class _FreeDraws(NamedTuple):
    """Crystals with their log-probabilities, nats, and the space groups that they come from."""

    parts: list[Scored]
    space_groups: list[tuple[int, float]]
    effective_sample_size: float | None


def _draw_freely(
    model: Model, formula: Formula, config: PredictConfig, n: int, watch: Callable[[int], None]
) -> _FreeDraws:
    """Crystals of a formula, in the space groups that the model finds likely: by its own head, if it has one."""
    request = draws_request(formula, config)
    least = min(LEAST_SEARCH, SEARCH_IN_GROUP * len(request.space_groups))
    found = model.likely_space_groups(request, min(DRAWS, max(least, SEARCH * config.draws)), watch)
    if isinstance(found, SpaceGroupPosterior):
        chosen = _choose(found, n, config.seed)
        scored = (found.crystals[chosen], found.log_prob.total[chosen])
        return _FreeDraws([scored], found.ranked, found.effective_sample_size)
    if not n:
        return _FreeDraws([], found.ranked, None)
    request = dataclasses.replace(found.narrow(request), n=n)
    return _FreeDraws([(draws.crystals, draws.log_prob.total) for draws in model.draws(request)], found.ranked, None)


def draws_request(formula: Formula, config: PredictConfig) -> SampleConfig:
    """The request whose crystals are the free candidates of a formula."""
    return SampleConfig(
        space_groups=config.space_groups or ALL_SPACE_GROUPS,
        formula=formula,
        seed=config.seed,
        max_atoms=config.max_atoms,
        max_sites=config.max_sites,
    )


def _fits(prototype: KnownPrototype, config: PredictConfig) -> bool:
    """Whether a prototype is within the limits on sites and atoms."""
    if config.max_sites is not None and len(prototype.letters) > config.max_sites:
        return False
    return config.max_atoms is None or prototype.num_atoms <= config.max_atoms


def _choose(posterior: SpaceGroupPosterior, n: int, seed: int) -> np.ndarray:
    """Which crystals of a posterior are candidates: as many, each once, by weight (Gumbel's top-k trick)."""
    physical = np.flatnonzero(is_physical(np.asarray(posterior.crystals.lattice)))
    noise = np.random.default_rng(seed).gumbel(size=len(physical))
    order = np.argsort(-(np.asarray(posterior.log_weights)[physical] + noise), kind="stable")
    return np.sort(physical[order[:n]])


def _in_prototypes(model: Model, prototypes: Sequence[KnownPrototype], n: int, seed: int) -> list[Scored]:
    """Crystals of prototypes with their log-probabilities, nats."""
    if not n:
        return []
    crystals = typical_crystals(prototypes, model.config.n_max)
    log_prob = model.log_prob(crystals)
    arrangement = log_prob.wyckoff + log_prob.species
    rows = likeliest(prototypes, arrangement)[: math.ceil(n * TYPICAL)]
    first, crystals = [prototypes[row] for row in rows], crystals[rows]
    parts: list[Scored] = [(crystals, log_prob.total[rows])]
    # A letter without a coordinate leaves nothing to draw but the lattice, which is relaxed anyhow.
    likely = np.argsort(-(arrangement[rows] + _log_frequency(model, crystals)))
    forms: dict[Arrangement, KnownPrototype] = {}
    for one in (first[row] for row in likely):
        if not _is_fixed(one):  # which element of one letter is on which of its sites, the model says when it draws
            forms.setdefault(one.arrangement, one)
    again = list(forms.values())
    if (more := n - len(crystals)) > 0 and (again := again[: -(-more // MOST_REPEATS)]):
        drawn = draw_prototypes(model.params, model.config, again, -(-more // len(again)), seed)
        parts.append((drawn.crystals, drawn.log_prob.total))
    return parts


def _log_frequency(model: Model, crystals: CrystalBatch) -> np.ndarray:
    """Log of how many crystals of the space group of each the model was trained on; of none as of a half."""
    counts = [model.trained_on(int(group)) for group in crystals.space_group]
    return np.log([1.0 if count is None else count or 0.5 for count in counts])


def _is_fixed(prototype: KnownPrototype) -> bool:
    """Whether no site of a prototype has a free coordinate."""
    fixed = symmetry_table().is_fixed[prototype.space_group - 1]
    return all(fixed[LETTERS.index(letter)] for letter in prototype.letters)


def _candidates(
    crystals: CrystalBatch, log_prob: np.ndarray, origin: str, min_distance: float, left_out: Counter[str]
) -> list[tuple[Candidate, Arrangement]]:
    """Candidates with their arrangements, from crystals (numpy); what is left out is counted."""
    found = []
    for row, (arrangement, structure) in enumerate(
        zip(arrangements_of(crystals), crystals.to_structures(), strict=True)
    ):
        if closest_approach(structure) < min_distance:
            left_out["atoms too close"] += 1
            continue
        group, nats = int(crystals.space_group[row]), float(log_prob[row])
        found.append((Candidate(primitive_cell(structure), group, nats, {origin: 1}), arrangement))
    return found


def distinct(candidates: Sequence[Candidate], arrangements: Sequence[Arrangement]) -> list[Candidate]:
    """Candidates that match no earlier one of the same arrangement; they take over the draws of those that do.

    Other arrangements are other starts of a relaxation that keeps the symmetry, however alike they are, and so are
    other volumes (SAME_VOLUME): a matcher that brings crystals to one volume has a likely draw of thrice the volume
    stand for the good one.
    """
    kept: list[Candidate] = []
    alike: dict[Arrangement, list[tuple[int, Structure]]] = defaultdict(list)
    with warnings.catch_warnings(action="ignore"):
        for one, arrangement in zip(candidates, arrangements, strict=True):
            reduced = reduce_or_say_why(one.structure)
            if isinstance(reduced, str):
                continue
            as_large = [(row, other) for row, other in alike[arrangement] if _same_volume(reduced, other)]
            match = find_match(reduced, [structure for _, structure in as_large])
            if match is None:
                alike[arrangement].append((len(kept), reduced))
                kept.append(one)
            else:
                add_draws(kept[as_large[match][0]].draws, one.draws)
    return kept


def _same_volume(one: Structure, other: Structure) -> bool:
    small, large = sorted(cell.volume / len(cell) for cell in (one, other))
    return large <= SAME_VOLUME * small


def add_draws(to: dict[str, int], more: dict[str, int]) -> None:
    """Adds numbers of draws, by where they come from."""
    for origin, count in more.items():
        to[origin] = to.get(origin, 0) + count
