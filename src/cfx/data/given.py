"""Crystals in memory or in files, whatever they are: pymatgen Structures, ASE Atoms, batches, results, paths."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfx.core import Structure
from cfx.core.crystal import CrystalBatch
from cfx.core.lattice import is_physical
from cfx.data.encode import DISORDERED
from cfx.data.structures import Loaded, load_crystals
from cfx.errors import DataError, UsageError
from cfx.fetch.names import data_path
from cfx.io.files import cache_directory, replace_atomically
from cfx.reporter import Reporter, Silent, counted

Crystals = Any
"""A pymatgen Structure, ASE Atoms, a CrystalBatch, a result that has structures, a file, a name; or several of these.

No union, so that a signature can be read without importing pymatgen and ASE.
"""

NO_CELL = "its lattice closes no cell"
"""Why a crystal of a batch has no structure."""


def given_crystals(
    crystals: Crystals,
    reporter: Reporter | None = None,
    workers: int = -1,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Loaded]:
    """Crystals with their names, or the reasons why they cannot be read.

    In memory they are called by their reduced formula and place, as `SrTiO3_0`.

    Args:
        crystals: see `Crystals`.
        reporter: is told of what has to be fetched.
        workers: processes that read files.
        on_progress: told how many of a file were read so far.

    Raises:
        DataError: if there are none, or a file cannot be read.
        UsageError: for what are no crystals.
    """
    found = list(_loaded(crystals, reporter or Silent(), workers, on_progress))
    if not found:
        raise DataError("there are no crystals", "give pymatgen Structures, ASE Atoms, a CrystalBatch, or a file")
    return [one if one.name else _named(one, i) for i, one in enumerate(found)]


def _loaded(crystals: Crystals, reporter: Reporter, workers: int, on_progress) -> Iterable[Loaded]:
    if isinstance(crystals, str | os.PathLike):
        return load_crystals(data_path(str(crystals), reporter), workers, on_progress)
    if isinstance(crystals, CrystalBatch):
        return _of_batch(crystals)
    if isinstance(crystals, Loaded):
        return [crystals]
    if hasattr(crystals, "to_structures"):
        return map(_of_structure, crystals.to_structures())
    if isinstance(several := getattr(crystals, "structures", None), list):
        return map(_of_structure, several)
    if (structure := structure_of(crystals)) is not None:
        return [_of_structure(structure)]
    if not isinstance(crystals, Iterable):
        raise UsageError(
            f"crystals cannot be made of {type(crystals).__name__}",
            "give pymatgen Structures, ASE Atoms, a CrystalBatch, or a file",
        )
    parts = (
        [Loaded("", None, "there is none")] if one is None else _loaded(one, reporter, workers, on_progress)
        for one in crystals
    )
    return [one for part in parts for one in part]


def structure_of(crystal: Any) -> Structure | None:
    """The pymatgen Structure that something is, or has as `structure`; None where there is none."""
    from ase import Atoms
    from pymatgen.core import IStructure, Structure

    if isinstance(crystal, Atoms):
        from pymatgen.io.ase import AseAtomsAdaptor

        crystal = AseAtomsAdaptor.get_structure(crystal)  # pyright: ignore[reportArgumentType]  (its own class of Atoms)
    found = crystal if isinstance(crystal, IStructure) else getattr(crystal, "structure", None)
    if not isinstance(found, IStructure):
        return None
    return found if isinstance(found, Structure) else Structure.from_sites(list(found))


def given_file(crystals: Crystals, reporter: Reporter) -> str:
    """A file or a name that has the crystals; those in memory are written into the cache, by content.

    Raises:
        DataError: if there are none.
        UsageError: for what are no crystals.
        OutputError: if they cannot be written.
    """
    if isinstance(crystals, str | os.PathLike):
        return str(crystals)
    lines = ({"name": one.name, "structure": _as_json(one.structure)} for one in given_crystals(crystals, reporter))
    return _kept(lines, "crystals")


def given_pairs(pairs: Any, reporter: Reporter) -> str:
    """A file of pairs of crystals, a better and a worse one each; those in memory are written into the cache.

    Raises:
        DataError: if there are none.
        UsageError: for what are no pairs of crystals.
        OutputError: if they cannot be written.
    """
    if isinstance(pairs, str | os.PathLike):
        return str(pairs)
    read = [given_crystals(list(pair), reporter) for pair in pairs]
    if not read:
        raise DataError("there are no pairs", "give (better, worse), each a crystal")
    if other := next((f"{i} has {counted(len(pair), 'crystal')}" for i, pair in enumerate(read) if len(pair) != 2), ""):
        raise UsageError(f"a pair has two crystals: number {other}", "give (better, worse), each a crystal")
    return _kept(({"chosen": _as_json(a.structure), "rejected": _as_json(b.structure)} for a, b in read), "pairs")


def _kept(rows: Iterable[dict[str, Any]], kind: str) -> str:
    """A file of rows in the cache, named by its content."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    file = cache_directory("given") / f"{kind}-{hashlib.sha256(lines.encode()).hexdigest()[:16]}.jsonl"
    if not file.exists():
        replace_atomically(file, lambda fresh: fresh.write_text(lines, encoding="utf-8"))
    return str(file)


def _as_json(structure: Structure | None) -> dict[str, Any] | None:
    """What of a structure is kept in a file: cell and sites."""
    if structure is None:
        return None
    sites = [
        {"species": [{"element": site.specie.symbol, "occu": 1}], "abc": list(map(float, site.frac_coords))}
        for site in structure
    ]
    return {"lattice": {"matrix": structure.lattice.matrix.tolist()}, "sites": sites}


def to_ase(structures: Sequence[Structure | None]) -> list[Any]:
    """ASE Atoms of pymatgen Structures; None stays None."""
    return [None if one is None else one.to_ase_atoms(msonable=False) for one in structures]


def _of_batch(batch: CrystalBatch) -> list[Loaded]:
    """The crystals of a batch, which ask for their space groups."""
    batch = batch.numpy()
    physical = is_physical(np.asarray(batch.lattice))
    made = iter(batch[physical].to_structures())
    return [
        Loaded("", next(made) if fine else None, "" if fine else NO_CELL, int(group))
        for fine, group in zip(physical, batch.space_group, strict=True)
    ]


def _of_structure(structure: Structure | None) -> Loaded:
    if structure is None:
        return Loaded("", None, "there is none")
    return Loaded("", structure) if structure.is_ordered else Loaded("", None, DISORDERED)


def _named(one: Loaded, place: int) -> Loaded:
    formula = "crystal" if one.structure is None else one.structure.composition.reduced_formula
    return Loaded(f"{formula}_{place}", one.structure, one.reason, one.space_group_asked)


def title_of(crystals: Crystals) -> str:
    """What crystals are called in messages: the name of their file, or what they are."""
    return Path(crystals).name if isinstance(crystals, str | os.PathLike) else "crystals"
