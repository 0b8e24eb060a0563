"""Data sets by name or file: read and encoded, with what was left out and why, and what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cfx.core.elements import SYMBOLS
from cfx.core.lattice import CRYSTAL_SYSTEMS
from cfx.data.dataset import EncodedDataset, load_dataset
from cfx.data.store import describe
from cfx.fetch.names import data_path
from cfx.reporter import Interrupted, Reporter, StopRequest


def read(name: str | Path, n_max: int, reporter: Reporter, symprec: float, workers: int) -> EncodedDataset:
    """An encoded data set; says how many crystals it holds, and what was skipped and why.

    Args:
        name: a file, see `load_dataset`; or a data set of the catalog, or hf:datasets/owner/repo/path, which are
            fetched.
        n_max: slots of the model.
        reporter: receives progress and messages.
        symprec: distance tolerance of the symmetry search, angstrom.
        workers: processes that encode; -1 for all cores.

    Raises:
        DataError: if nothing can be read, or no row is a crystal.
        NetworkError: if it has to be fetched, and cannot be.
        Interrupted: after a signal; the work so far is kept, and continued by the next call.
    """
    path = data_path(name, reporter)
    source = path.name if path == Path(name) else str(name)
    with StopRequest() as stop, reporter.progress(f"encoding {source}", None) as progress:

        def update(done: int) -> None:
            progress.update(done)
            if stop.signum is not None:
                message = f"encoding stopped after {done:,} rows; run the same command again to continue"
                raise Interrupted(stop.signum, message)

        data = load_dataset(path, symprec, n_max, workers, update, source)
        if stop.signum is not None:
            raise Interrupted(stop.signum, f"stopped; {source} is encoded")
    reporter.message(f"{source}: {len(data)} crystals, {data.num_failures} rows skipped")
    if data.num_failures:
        reasons = describe(data.reasons())
        reporter.warning(f"skipped {data.num_failures} rows: {reasons}; all are listed in {data.failures_path}")
    return data


def summarize(data: EncodedDataset) -> dict[str, Any]:
    """What a data set holds, ready for JSON.

    Returns:
        source, digest, n_max, rows, crystals, skipped; reasons (a list of reason, rows, example); crystals by
        space_groups, crystal_systems, sites and elements (that they hold; the most frequent first); cache, the
        directory of the encoded data, and its cache_bytes.
    """
    groups, sites = data.space_group_counts(), np.bincount(data.num_sites)
    elements = data.element_counts()
    systems, first = {}, 0
    for name, last in CRYSTAL_SYSTEMS.items():
        systems[name], first = int(groups[first:last].sum()), last
    return {
        "source": data.source,
        "digest": data.digest,
        "n_max": data.n_max,
        "rows": len(data) + data.num_failures,
        "crystals": len(data),
        "skipped": data.num_failures,
        "reasons": [
            {"reason": reason.text, "rows": reason.rows, "example": reason.example} for reason in data.reasons()
        ],
        "space_groups": {int(i) + 1: int(groups[i]) for i in np.flatnonzero(groups)},
        "crystal_systems": systems,
        "sites": {int(i): int(sites[i]) for i in np.flatnonzero(sites)},
        "elements": {SYMBOLS[i]: int(elements[i]) for i in np.argsort(-elements, kind="stable") if elements[i]},
        "cache": str(data.directory),
        "cache_bytes": sum(file.stat().st_size for file in data.directory.iterdir()),
    }
