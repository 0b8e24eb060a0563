"""Relaxing the crystals of a file: each result is kept as soon as it is there, and the rest can be done later."""

import hashlib
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cfx.config import RelaxConfig
from cfx.core import Structure
from cfx.data.dataset import encode
from cfx.data.structures import Loaded, load_crystals
from cfx.errors import DataError, OutputError
from cfx.evaluation.matching import rms_displacement
from cfx.evaluation.validity import find_space_groups
from cfx.fetch.names import data_path
from cfx.io.files import check_file, replace_atomically, sole_writer
from cfx.io.formats import cif_block, extxyz_frame
from cfx.io.journal import JsonLines, check_same_run, check_unfinished, complete, partial_of, remove_partial
from cfx.predictors.load import load_potential
from cfx.predictors.relax import Relaxed, relax
from cfx.reporter import Interrupted, Reporter, StopRequest
from cfx.runs.evaluate import Evaluated

SUFFIXES = (".jsonl", ".extxyz", ".cif")

COLUMNS = (
    *("name", "formula", "energy", "energy_per_atom", "converged", "steps", "fmax", "rmsd", "space_group"),
    *("reason", "cif"),
)
"""What is known of a relaxed crystal."""

EVALUATED = (
    *("energy_per_atom", "energy_per_atom_unrelaxed", "e_above_hull", "e_above_hull_unrelaxed"),
    *("verdict", "decomposition"),
)
"""What an evaluation knows of it besides."""

REMARKS = ("potential", "energy", "energy_per_atom", "e_above_hull", "converged", "steps")
"""What the CIF of a crystal says of it."""


def relax_file(
    settings: RelaxConfig,
    target: Path,
    device: str,
    workers: int,
    reporter: Reporter,
    force: bool = False,
    resume: bool = False,
) -> list[dict[str, Any]]:
    """Relaxes all crystals of a file.

    Args:
        settings: how.
        target: a .jsonl, .extxyz or .cif file; until it is complete, results are in TARGET.partial.
        force: overwrite the target, or an unfinished run.
        resume: go on with TARGET.partial.

    Returns:
        A row for each crystal: name, formula, energy (eV, of the cell), energy_per_atom, converged, steps, fmax
        (eV/angstrom), rmsd (angstrom), space_group, reason, and cif, the relaxed cell.

    Raises:
        DataError: if no crystal can be read.
        UsageError: if an interrupted run was another.
        OutputError: if a result cannot be written.
        Interrupted: after a signal.
    """
    with sole_writer(target):
        check_unfinished(target, force, resume)
        check_file(target, SUFFIXES, force)
        return _relax(settings, target, device, workers, reporter, resume)


def _relax(
    settings: RelaxConfig, target: Path, device: str, workers: int, reporter: Reporter, resume: bool
) -> list[dict[str, Any]]:
    potential = load_potential(settings.potential, device)
    crystals = load_crystals(data_path(settings.source, reporter), workers)
    header = {**asdict(settings), "source": _digest(crystals), "model": potential.name, "crystals": len(crystals)}
    journal = JsonLines(partial_of(target), hint="free disk space, then use `resume`")
    rows = _resumed(journal, header) if resume else {}
    if not rows:
        remove_partial(target)
        journal.begin()
        journal.add(header)
    todo = [i for i in range(len(crystals)) if i not in rows]
    with (
        StopRequest() as stop,
        warnings.catch_warnings(action="ignore"),
        reporter.progress(f"relaxing with {potential.name}", len(crystals)) as progress,
    ):

        def keep(number: int, result: Relaxed) -> None:
            i = todo[number]
            rows[i] = row_of(crystals[i], result)
            journal.add({"row": i, **rows[i]})
            progress.update(len(rows))

        structures = [crystals[i].structure for i in todo]
        relax(potential, structures, settings.fmax, settings.steps, settings.fix_symmetry, keep, lambda: bool(stop))
        if stop.signum is not None:
            done = f"stopped after {len(rows)} of {len(crystals)} crystals; they are in {journal.path}"
            raise Interrupted(stop.signum, f"{done}; continue with `resume`")
    ordered = [rows[i] for i in range(len(crystals))]
    with warnings.catch_warnings(action="ignore"):
        text = render(target.suffix, ordered, potential.name)
    complete(target, lambda fresh: fresh.write_text(text, encoding="utf-8"))
    return ordered


def _digest(crystals: list[Loaded]) -> str:
    """SHA-256 of names and structures: the file that they come from may change, and may have several names."""
    digest = hashlib.sha256()
    for one in crystals:
        known = one.structure
        cell = known and [
            known.lattice.matrix.tolist(),
            known.frac_coords.tolist(),
            [site.species_string for site in known],
        ]
        digest.update(repr([one.name, cell]).encode(errors="backslashreplace"))
    return digest.hexdigest()


def _resumed(journal: JsonLines, header: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Rows of an interrupted run; the journal goes on after them."""
    if not journal.path.exists():
        raise OutputError(f"nothing to continue: {journal.path}", "start it without `resume`")
    lines = list(journal.read())
    if not lines:
        return {}
    check_same_run(journal.path, lines[0][1], header, "use the same settings and crystals")
    rows = {}
    for number, (_, row) in enumerate(lines[1:], start=2):
        if not isinstance(row, dict) or row.keys() != {"row", *COLUMNS} or row["row"] not in range(header["crystals"]):
            raise DataError(f"line {number} of {journal.path} is damaged", "start again with `force`")
        rows[row.pop("row")] = row
    journal.resume(lines[-1][0])
    return rows


def row_of(one: Loaded, result: Relaxed) -> dict[str, Any]:
    """What is known of a crystal and its relaxation, see COLUMNS."""
    after = result.structure if math.isfinite(result.energy) else None
    [group] = find_space_groups([after])
    return {
        "name": one.name,
        "formula": None if one.structure is None else one.structure.composition.reduced_formula,
        "energy": result.energy if after is not None else None,
        "energy_per_atom": result.energy / len(after) if after is not None else None,
        "converged": result.converged,
        "steps": result.steps,
        "fmax": result.fmax if math.isfinite(result.fmax) else None,
        "rmsd": rms_displacement(one.structure, after),
        "space_group": group.found,
        "reason": one.reason or result.reason,
        "cif": _cif(after),
    }


def write_evaluated(target: Path, evaluated: Iterable[Evaluated], reporter: Reporter) -> None:
    """Writes the relaxed crystals of evaluated files, in a format of `relax_file`.

    Raises:
        OutputError: if they cannot be written.
    """
    with warnings.catch_warnings(action="ignore"):
        text = "".join(render(target.suffix, list(_evaluated_rows(one)), one.model) for one in evaluated)
    replace_atomically(target, lambda fresh: fresh.write_text(text, encoding="utf-8"))
    reporter.message(f"written: {target}")


def _evaluated_rows(evaluated: Evaluated) -> Iterator[dict[str, Any]]:
    """Rows of relaxed crystals as `relax_file` gives them, with their energies above the hull."""
    for record, structure in zip(evaluated.result["records"], evaluated.structures, strict=True):
        energy = record["energy_per_atom"]
        after = None if energy is None else structure
        yield {
            "file": evaluated.result["name"],
            **{key: record[key] for key in ("name", "formula")},
            "energy": None if energy is None or after is None else energy * len(after),
            **{key: record[key] for key in EVALUATED},
            "converged": bool(record["converged"]),
            "steps": record["steps"],
            "rmsd": None if after is None else record["rmsd_to_relaxed"],
            "space_group": record["space_group_relaxed"],
            "space_group_unrelaxed": record["space_group"],
            "reason": record["reason"],
            "cif": _cif(after),
        }


def _cif(structure: Structure | None) -> str:
    return "" if structure is None else structure.to(fmt="cif", significant_figures=8)


def render(suffix: str, rows: list[dict[str, Any]], model: str) -> str:
    """Rows as JSON lines, or those that have a structure as extended XYZ or CIF blocks."""
    one = {".jsonl": lambda row: json.dumps(row) + "\n", ".extxyz": _as_extxyz, ".cif": _as_cif}[suffix]
    kept = rows if suffix == ".jsonl" else [row for row in rows if row["cif"]]
    return "".join(one({**row, "potential": model}) for row in kept)


def _as_extxyz(row: dict[str, Any]) -> str:
    from pymatgen.core import Structure

    remarks = {key: value for key, value in row.items() if key != "cif" and value not in (None, "")}
    return extxyz_frame(Structure.from_str(row["cif"], fmt="cif"), remarks)


def _as_cif(row: dict[str, Any]) -> str:
    from pymatgen.core import Structure

    return crystal_block(row, Structure.from_str(row["cif"], fmt="cif"))


def crystal_block(row: Mapping[str, Any], structure: Structure) -> str:
    """A CIF block with the space group and the asymmetric unit, or in P1 where no symmetry search helps.

    Args:
        row: `name`, of the block, and what is known of REMARKS.
        structure: pymatgen Structure.
    """
    from pymatgen.io.cif import CifWriter

    remarks = {key: row[key] for key in REMARKS if row.get(key) is not None}
    encoded = encode([structure], n_max=len(structure) + 1)
    if not encoded.failures:
        # The conventional cell may hold several of the cells that were relaxed.
        if "energy" in remarks:
            remarks["energy"] = row["energy_per_atom"] * sum(encoded.batch.composition(0).values())
        return cif_block(row["name"].replace(" ", "_"), encoded.batch, remarks)
    block = str(CifWriter(structure, significant_figures=8)).split("\n", 2)
    return "\n".join([block[1], *(f"_cfx_{key} {json.dumps(str(value))}" for key, value in remarks.items()), block[2]])
