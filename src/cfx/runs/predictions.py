"""Predicted structures: merged where they are one crystal, ranked, and written to a directory."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cfx.config import SYMPREC, PredictConfig
from cfx.config.symbols import SPACE_GROUPS
from cfx.core import Structure
from cfx.evaluation.hull import Hull
from cfx.evaluation.matching import find_match, reduce_or_say_why
from cfx.evaluation.summary import BELOW_FLOOR, Thresholds
from cfx.evaluation.validity import symmetry_dataset
from cfx.io.files import check_own_files, csv_text, write_texts
from cfx.predictors.base import Potential
from cfx.report import as_drawn, render_shortlist
from cfx.rl.rollout import primitive_cell
from cfx.runs.candidates import MODEL, PROTOTYPE, Candidate, add_draws
from cfx.runs.relax import crystal_block

SAME_ENERGY = 0.05
"""eV/atom. Relaxed structures whose energies differ by more are not compared: they are different crystals."""

ENERGY_ERROR = 0.015
"""eV/atom. How far the energies of structures of one formula are trusted, in their probabilities; chosen on the
held-out compounds of benchmarks/prediction.py."""

TIED = 0.001
"""eV/atom. Of structures that are one crystal, the most symmetric one this close to the lowest stands for all."""


@dataclass(frozen=True)
class Minimum:
    """A structure on its way through relaxations.

    Attributes:
        structure: pymatgen Structure.
        energy: eV/atom.
        members: the candidates that led to it, by number.
        converged: whether a relaxation ended here.
    """

    structure: Structure
    energy: float
    members: frozenset[int]
    converged: bool = False


@dataclass(frozen=True)
class Prediction:
    """A predicted structure of a formula.

    Attributes:
        rank: among those of the formula, from 1.
        formula: reduced.
        space_group: number, that a symmetry search finds; None if it finds none.
        symbol: of the space group, "" if there is none.
        e_above_hull: eV/atom; None without a hull that reaches there.
        energy_per_atom: eV/atom, by the potential.
        verdict: of the energy above the hull, one of `evaluation.summary.VERDICTS`; None without it.
        decomposition: what the hull has at this composition, or None.
        num_sites: symmetry-inequivalent ones.
        num_atoms: of the primitive cell.
        probability: that this of the structures found is the one observed, by draws and energies (`probabilities`).
        draws: how many draws led to it, by where they came from.
        log_prob: of the likeliest of these draws, nats.
        space_group_drawn: the group of that draw.
        converged: whether its relaxation did.
        structure: pymatgen Structure of the primitive cell.
        cif: of the conventional cell.
    """

    rank: int
    formula: str
    space_group: int | None
    symbol: str
    e_above_hull: float | None
    energy_per_atom: float
    verdict: str | None
    decomposition: str | None = field(repr=False)
    num_sites: int = field(repr=False)
    num_atoms: int = field(repr=False)
    probability: float = field(repr=False)
    draws: dict[str, int] = field(repr=False)
    log_prob: float = field(repr=False)
    space_group_drawn: int = field(repr=False)
    converged: bool = field(repr=False)
    structure: Structure = field(repr=False)
    cif: str = field(repr=False)

    @property
    def name(self) -> str:
        """Formula and rank, as SrTiO3_01."""
        return f"{self.formula}_{self.rank:02d}"

    def as_json(self) -> dict[str, Any]:
        """All but the structure, ready for JSON."""
        return {key: value for key, value in vars(self).items() if key != "structure"}


def merge(minima: Sequence[Minimum]) -> list[Minimum]:
    """Distinct structures, those of lowest energy first, each with the members of all that are the same crystal."""
    groups: list[list[Minimum]] = []
    cells: list[Structure] = []
    for one in sorted(minima, key=lambda one: one.energy):
        reduced = reduce_or_say_why(one.structure)
        if isinstance(reduced, str):
            continue
        near = [i for i, group in enumerate(groups) if one.energy - group[0].energy <= SAME_ENERGY]
        match = find_match(reduced, [cells[i] for i in near])
        if match is None:
            groups.append([one])
            cells.append(reduced)
        else:
            groups[near[match]].append(one)
    return [_representative(group) for group in groups]


def _representative(group: Sequence[Minimum]) -> Minimum:
    """The most symmetric of those that tie for the lowest energy, with the members of all."""
    tied = [one for one in group if one.energy - group[0].energy <= TIED]
    best = max(tied, key=lambda one: _order(one.structure)) if len(tied) > 1 else tied[0]
    members = frozenset().union(*(one.members for one in group))
    return Minimum(best.structure, best.energy, members, best.converged)


def _order(structure: Structure) -> float:
    """Symmetry operations per atom of a cell, which its choice does not change; 0 where no symmetry is found."""
    dataset, _ = symmetry_dataset(structure)
    return 0.0 if dataset is None else len(dataset.rotations) / len(structure)


def ranked(
    formula: str,
    minima: Sequence[Minimum],
    candidates: Sequence[Candidate],
    potential: Potential,
    hull: Hull | None,
    config: PredictConfig,
) -> list[Prediction]:
    """The first of distinct structures of a formula, in the order of `config.sort`, those below the floor last."""
    limits = Thresholds(floor=config.e_hull_floor)
    structures = [one.structure for one in minima]
    heights: list[float | None] = [None] * len(minima)
    decompositions: list[str | None] = [None] * len(minima)
    if hull is not None:
        energies = [one.energy * len(one.structure) for one in minima]
        batch = hull.evaluate(structures, energies, potential.scale)
        heights = [float(height) if math.isfinite(height) else None for height in batch.e_above_hull]
        decompositions = [text or None for text in batch.decompositions]
    verdicts = [None if height is None else limits.verdict(height) for height in heights]

    def place(i: int) -> tuple[bool, float]:
        height = heights[i]
        return verdicts[i] == BELOW_FLOOR, minima[i].energy if height is None else height

    order = sorted(range(len(minima)), key=place)
    draws = [_draws(one, candidates) for one in minima]
    credible = [i for i in order if verdicts[i] != BELOW_FLOOR]
    likely = probabilities([minima[i].energy for i in credible], [sum(draws[i].values()) for i in credible])
    probability = dict(zip(credible, likely.tolist(), strict=True))
    if config.sort == "probability":
        order.sort(key=lambda i: -probability.get(i, 0.0))
    return [
        _prediction(
            rank,
            formula,
            minima[i],
            candidates,
            (heights[i], verdicts[i], decompositions[i]),
            (probability.get(i, 0.0), draws[i]),
            potential,
        )
        for rank, i in enumerate(order[: config.top], start=1)
    ]


def probabilities(energies: Sequence[float], draws: Sequence[int]) -> np.ndarray:
    """Probabilities of structures of one formula, of which one is observed.

    The model's part is the number of draws that led to a structure, the potential's exp(-E / ENERGY_ERROR): of two
    structures at nearly the same energy, the one that many draws led to is the likelier one.

    Args:
        energies: eV/atom [n].
        draws: numbers [n], each at least 1.
    """
    log_weights = np.log(np.asarray(draws, float)) - np.asarray(energies, float) / ENERGY_ERROR
    weights = np.exp(log_weights - log_weights.max(initial=-np.inf))
    return weights / weights.sum()


def _draws(minimum: Minimum, candidates: Sequence[Candidate]) -> dict[str, int]:
    """How many draws led to a structure, by where they came from."""
    draws: dict[str, int] = {}
    for member in sorted(minimum.members):
        add_draws(draws, candidates[member].draws)
    return draws


def _prediction(
    rank: int,
    formula: str,
    minimum: Minimum,
    candidates: Sequence[Candidate],
    judged: tuple[float | None, str | None, str | None],
    likely: tuple[float, dict[str, int]],
    potential: Potential,
) -> Prediction:
    height, verdict, decomposition = judged
    probability, draws = likely
    structure = primitive_cell(minimum.structure, SYMPREC)  # a smaller one, if it has become more symmetric
    dataset, _ = symmetry_dataset(structure)
    group = None if dataset is None else int(dataset.number)
    likeliest = candidates[min(minimum.members)]  # candidates are in order of likelihood
    remarks = {
        "name": f"{formula}_{rank:02d}",
        "potential": potential.name,
        "energy": minimum.energy * len(structure),
        "energy_per_atom": minimum.energy,
        "e_above_hull": height,
        "converged": minimum.converged,
    }
    return Prediction(
        rank=rank,
        formula=formula,
        space_group=group,
        symbol=symbol_of(group),
        e_above_hull=height,
        energy_per_atom=minimum.energy,
        verdict=verdict,
        decomposition=decomposition,
        num_sites=len(structure) if dataset is None else len(set(dataset.equivalent_atoms.tolist())),
        num_atoms=len(structure),
        probability=probability,
        draws=draws,
        log_prob=likeliest.log_prob,
        space_group_drawn=likeliest.space_group,
        converged=minimum.converged,
        structure=structure,
        cif=crystal_block(remarks, structure),
    )


def symbol_of(group: int | None) -> str:
    """The symbol of a space group, as Pm-3m; "" for None."""
    return "" if group is None else SPACE_GROUPS[group]


OWN_FILES = re.compile(r"predictions\.(csv|json|html)|.+_\d{2,}\.cif")
"""Names of the files of a directory of predictions."""


def check_predictions(directory: Path) -> None:
    """Makes sure before the work that a directory can be written without loss of anything but earlier predictions.

    Raises:
        UsageError: if it has no name.
        OutputError: if it holds something else.
    """
    check_own_files(directory, OWN_FILES, "hold predictions", "predictions are", "predictions")


def write_predictions(directory: Path, predictions: Sequence[Prediction], config: PredictConfig, model: str) -> None:
    """Makes a directory with a table, the same as JSON, a page to look at, and a CIF of each structure."""
    rows = [{"name": one.name, **one.as_json(), "cif_file": f"{one.name}.cif"} for one in predictions]
    table = [{**row, **_counts(one.draws)} for one, row in zip(predictions, rows, strict=True)]
    columns = [key for key in table[0] if key != "cif"]
    texts = {f"{one.name}.cif": one.cif for one in predictions}
    texts["predictions.csv"] = csv_text([{key: row[key] for key in columns} for row in table], columns)
    texts["predictions.json"] = json.dumps(rows, indent=1) + "\n"
    texts["predictions.html"] = _page(predictions, table, config, model, texts["predictions.csv"])
    write_texts(directory, texts)


def _counts(draws: dict[str, int]) -> dict[str, int]:
    return {"draws": sum(draws.values()), **{f"from_{origin}": draws.get(origin, 0) for origin in (MODEL, PROTOTYPE)}}


def _page(
    predictions: Sequence[Prediction], table: Sequence[dict[str, Any]], config: PredictConfig, model: str, text: str
) -> str:
    """The page of a shortlist, of predictions."""
    crystals = [{**row, **as_drawn(one.structure)} for one, row in zip(predictions, table, strict=True)]
    formulas = list(dict.fromkeys(one.formula for one in predictions))
    file = {
        "name": ", ".join(formulas),
        "crystals": len(predictions),
        "settings": {
            "model": f"{model}, {config.draws} draws a formula, seed {config.seed}",
            "potential": config.potential,
            "hull": config.hull or "none",
            "budget": f"{config.allowed} a formula",
            "relaxed": "with the symmetry of the draw, then without" if config.relax else "not",
        },
        "floor": config.e_hull_floor,
    }
    said = f"{len(predictions)} predicted structures of {len(formulas)} formula{'s' * (len(formulas) > 1)}"
    title = f"Predicted structures of {', '.join(formulas)}"
    return render_shortlist(file, crystals, said, text, version("cfx-crystal"), title)
