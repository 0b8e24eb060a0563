"""Makes src/cfx/resources/prototypes.npz, the known prototypes and how often they occur, from crystals.

    python tools/make_prototypes.py training.csv --larger hull.csv mpts52.csv --name "training data of mini, ..."

The bundled table is of the data that `mini` learned from, see tools/make_training_data.py, and of larger crystals from
MPTS-52 and the Materials Project's hull: held-out crystals, which have at most 20 atoms, are not among them. Crystals
with more than 20 sites are not encoded; see `count_prototypes` for what else is left out. The file says where it comes
from (`header`), with the SHA-256 of content and settings of the data.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import jax
import numpy as np

from cfx.config import SYMPREC
from cfx.core.crystal import concatenate, empty_batch
from cfx.core.prototype_counts import count_prototypes
from cfx.core.prototypes import LARGE, primitive_atoms
from cfx.data.dataset import load_dataset

OUTPUT = Path(__file__).resolve().parents[1] / "src" / "cfx" / "resources" / "prototypes.npz"
N_MAX = 21
"""Slots of a crystal, one more than sites, as in the bundled models."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path, nargs="+", help="files of crystals that cfx reads")
    arguments.add_argument("--larger", type=Path, nargs="+", default=[], help="only crystals of more than 20 atoms")
    arguments.add_argument("--name", help="what the data is called in the file; by default the names of its files")
    arguments.add_argument("-o", "--output", type=Path, default=OUTPUT)
    options = arguments.parse_args()
    jax.config.update("jax_platforms", "cpu")
    files = [*options.data, *options.larger]
    parts = [load_dataset(path, SYMPREC, N_MAX, os.cpu_count() or 1) for path in files]
    batch = concatenate([part.batch for part in parts[: len(options.data)]])
    larger = concatenate([empty_batch(N_MAX), *(part.batch for part in parts[len(options.data) :])])
    batch = concatenate([batch, larger[primitive_atoms(larger) > LARGE]])
    info = {
        "source": options.name or ", ".join(path.name for path in files),
        "sha256": [part.digest for part in parts],
        "crystals": len(batch),
    }
    table = count_prototypes(batch, info)
    table.write(options.output)
    once = int((table.crystals == 1).sum())
    print(f"{len(table):,} prototypes of {table.crystals.sum():,} crystals, {once:,} of one crystal only: {table.info}")
    print(f"sites at most {table.num_sites.max()}, most frequent:")
    for row in np.argsort(-table.formulas, kind="stable")[:5]:
        print(table.space_group[row], *table.sites(row), table.crystals[row], table.formulas[row])
    print(f"{options.output.name}: {options.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
