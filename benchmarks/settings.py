"""Held-out nats of models in the given setting of each crystal, and over all its equivalent settings.

    python benchmarks/settings.py DATA --model mini [--model RUN/best ...] [--match 200]

DATA is anything `cfx train` reads. Prints JSON:

- settings: crystals, distinct settings of a crystal on average, the mean logarithm of their number (nats), and crystals
  a second that are brought into a random setting, in batches of 64 on one core.
- models: by model, the mean loss in the given setting (nats a crystal), the same with each crystal in a random one of
  its settings, minus the mean log of the probability summed over settings, each with its standard error over crystals.
  The sum is comparable between models that learned given settings and those trained with --augment.
- other_setting: by model, minus the mean log of the sum where it begins from another setting than the given one. The
  encoder chooses an orbit's representative by the order of atoms, so that both sums run over the same settings but not
  always over the same representatives.
- match: of so many crystals, all settings: the share that pymatgen's StructureMatcher takes for the given crystal, and
  where a symmetry search finds the space group that it finds for the given one.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from record import add_json, keep

from cfx.core.batches import InRandomSettings
from cfx.core.crystal import CrystalBatch, all_settings
from cfx.core.symmetry import settings_table
from cfx.data.dataset import load_dataset
from cfx.data.encode import find_space_group
from cfx.model import Model, load_model


def settings_figures(batch: CrystalBatch) -> dict[str, float]:
    _, crystal = all_settings(batch)
    distinct = np.bincount(crystal)
    short = batch[np.flatnonzero(batch.num_sites < 6)].with_slots(6)
    data = InRandomSettings.of_epoch(short, 0, 0)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < 2:
        for first in range(0, len(short), 64):
            done += len(data.take(np.arange(first, min(first + 64, len(short))), 6))
    return {
        "crystals": len(batch),
        "mean": float(distinct.mean()),
        "mean_log": float(np.log(distinct).mean()),
        "most": int(distinct.max()),
        "crystals_per_second": done / (time.perf_counter() - began),
    }


def model_figures(model: Model, batch: CrystalBatch, other: CrystalBatch) -> dict[str, float]:
    figures = {}
    scores = {
        "given": model.log_prob(batch).total,
        "random": model.log_prob(other).total,
        "summed": model.settings_log_prob(batch),
        "summed_from_another": model.settings_log_prob(other),
    }
    for name, score in scores.items():
        figures[name] = -float(score.mean(dtype=float))
        figures[f"{name}_error"] = float(score.std(dtype=float) / len(score) ** 0.5)
    return figures


def match_figures(batch: CrystalBatch, most_atoms: int = 60) -> dict[str, float]:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    batch = batch[np.flatnonzero(batch.num_atoms <= most_atoms)]
    found, crystal = all_settings(batch)
    matcher, given = StructureMatcher(scale=False, attempt_supercell=False), batch.to_structures()
    group = [_space_group(structure) for structure in given]
    matched, same_group = [], []
    for structure, i in zip(found.to_structures(), crystal, strict=True):
        matched.append(matcher.fit(given[i], structure))
        same_group.append(_space_group(structure) == group[i])
    return {
        "crystals": len(batch),
        "space_groups": len(np.unique(batch.space_group)),
        "settings": len(crystal),
        "matched": float(np.mean(matched)),
        "same_space_group": float(np.mean(same_group)),
    }


def _space_group(structure) -> int | None:
    return find_space_group((structure.lattice.matrix, structure.frac_coords, list(structure.atomic_numbers)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", action="append", default=[], help="a name or directory; several are compared")
    parser.add_argument("--match", type=int, default=0, metavar="N", help="also match the settings of N crystals")
    add_json(parser)
    asked = parser.parse_args()
    data = load_dataset(asked.data)
    batch = data.batch
    settings_table()
    figures: dict = {"settings": settings_figures(batch), "models": {}}
    other = InRandomSettings.of_epoch(batch, 0, 0).take(np.arange(len(batch)), data.n_max)
    for name in asked.model:
        figures["models"][name] = model_figures(load_model(name), batch, other)
    if asked.match:
        rows = np.random.default_rng(0).permutation(len(batch))[: asked.match]
        figures["match"] = match_figures(batch[rows])
    keep(figures, asked)


if __name__ == "__main__":
    main()
