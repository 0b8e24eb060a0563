"""Published property models of matgl on known crystals, run by each convention that their files may be of, as JSON.

    python benchmarks/reward_models.py WEIGHTS CRYSTALS [--json FILE]

WEIGHTS is a directory that holds the directories of MODELS, or some of them, as they were published. CRYSTALS is a
table with columns cif, band_gap (eV) and formation_energy_per_atom (eV/atom), such as the validation part of MP-20.
`chosen` is the name of what cfx loads; `refused` says why the self-check refuses a convention. Errors are in eV for
gaps, also on those crystals alone that have one, and in eV/atom for formation energies.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas
from pymatgen.core import Structure
from record import add_json, keep

from cfx.errors import CheckpointError
from cfx.predictors.load import load_property
from cfx.predictors.matgl import MatglProperty
from cfx.predictors.matgl_files import ModelFiles, conventions_of, find_files, run_by
from cfx.predictors.self_check import KNOWN_PROPERTIES, check_property

MODELS = {
    "MEGNet-MP-2019.4.1-BandGap-mfi": "band_gap",
    "MEGNet-MP-2018.6.1-Eform": "formation_energy",
    "M3GNet-MP-2018.6.1-Eform": "formation_energy",
}
COLUMNS = {"band_gap": "band_gap", "formation_energy": "formation_energy_per_atom"}


def errors(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Mean absolute error, bias and correlation."""
    off = found - expected
    return {
        "mae": float(np.abs(off).mean()),
        "bias": float(off.mean()),
        "r": float(np.corrcoef(found, expected)[0, 1]),
    }


def figures_of(model: MatglProperty, structures: list[Structure], expected: np.ndarray) -> dict:
    """How well a model does, on crystals and on those by which models are tested."""
    start = time.perf_counter()
    batch = model.evaluate(structures)
    seconds = time.perf_counter() - start
    ok = batch.ok
    figures = {"crystals": int(ok.sum()), "crystals_per_second": len(ok) / seconds}
    figures |= errors(batch.value[ok], expected[ok])
    if model.property == "band_gap":
        has_gap = ok & (expected > 0)
        figures["with_a_gap"] = {"crystals": int(has_gap.sum())} | errors(batch.value[has_gap], expected[has_gap])
    known = KNOWN_PROPERTIES[model.property]
    values = model.evaluate([crystal.structure() for crystal in known]).value
    figures["known"] = {crystal.formula: float(value) for crystal, value in zip(known, values, strict=True)}
    try:
        check_property(model)
        figures["refused"] = None
    except CheckpointError as error:
        figures["refused"] = error.message
    return figures


def by_convention(files: ModelFiles, property: str, structures: list[Structure], expected: np.ndarray) -> dict:
    """Figures of a published model: as cfx loads it, and by every convention."""
    network = files.network()
    figures = {"chosen": load_property(property, f"matgl:{files.directory}").name}
    for convention in conventions_of(network):
        name = str(convention) or "as matgl runs it"
        model = MatglProperty(run_by(network, convention), name, property, "cpu")
        figures[name] = figures_of(model, structures, expected)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("crystals", type=Path)
    add_json(parser)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    table = pandas.read_csv(options.crystals)
    structures = [Structure.from_str(cif, fmt="cif") for cif in table["cif"]]
    figures = {}
    for name, property in MODELS.items():
        if (options.weights / name).is_dir():
            expected = table[COLUMNS[property]].to_numpy(float)
            figures[name] = by_convention(find_files(str(options.weights / name)), property, structures, expected)
    options.weights, options.crystals = options.weights.name, options.crystals.name
    keep(figures, options)


if __name__ == "__main__":
    main()
