"""What crystals are evaluated with: known crystals, a potential and the energies that it gives, a hull."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cfx.config import SYMPREC, EvalConfig
from cfx.data.structures import MIN_DISTANCE, MIN_VOLUME, iterate_crystals
from cfx.errors import DataError, UsageError
from cfx.evaluation import validity
from cfx.evaluation.corrections import MP2020
from cfx.evaluation.hull import DFT, Hull
from cfx.evaluation.hull_files import read_hull
from cfx.evaluation.novelty import Reference, cached_reference
from cfx.evaluation.summary import Thresholds
from cfx.fetch.names import data_path, hull_path
from cfx.io.files import cache_directory, content_digest, replace_atomically
from cfx.predictors.base import Potential, other_method
from cfx.predictors.load import load_potential
from cfx.predictors.relax import Relaxed, relax
from cfx.predictors.self_check import check_energy_scale
from cfx.reporter import Noting, Reporter

if TYPE_CHECKING:
    from pymatgen.core import Structure


READ = 64
"""Known crystals read between two reports of progress."""


@dataclass(frozen=True)
class EvaluationSetup:
    """What crystals are evaluated with; None for what is not asked for.

    Attributes:
        config: the settings.
        reference: known crystals, to judge novelty by.
        potential: computes energies.
        hull: phases, to judge stability by.
        second: another potential and its own hull, to judge the same crystals by.
        warnings: what was said of them while they were loaded.
    """

    config: EvalConfig
    reference: Reference | None
    potential: Potential | None
    hull: Hull | None
    second: tuple[Potential, Hull] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def thresholds(self) -> Thresholds:
        """What counts as stable."""
        return Thresholds(floor=self.config.e_hull_floor)

    def settings(self) -> dict[str, str | float | bool]:
        """Conventions and models that a reader of the numbers has to know, by name."""
        config = self.config
        settings: dict[str, str | float | bool] = {
            "structure validity": (f"atoms > {MIN_DISTANCE} angstrom apart, volume > {MIN_VOLUME} angstrom^3"),
            "composition validity": validity.SMACT_SETTING + ", mixed valence" * config.mixed_valence,
            "class": "element; intermetallic (no non-metal); charge-neutral (SMACT without alloys); other",
            "duplicates": "pymatgen StructureMatcher, default tolerances",
            "symmetry tolerance": f"{SYMPREC} angstrom",
            "metastable": f"at most {self.thresholds.stable:g} eV/atom above the hull",
        }
        if self.reference is not None:
            settings["reference"] = f"{config.reference} ({len(self.reference):,} crystals)"
        if self.potential is not None:
            settings["potential"] = f"{self.potential.name}, energies on the scale {self.potential.scale}"
        if self.hull is not None:
            settings["hull"] = str(self.hull)
            settings["floor"] = f"{config.e_hull_floor:g} eV/atom; what is below is not counted as stable"
        if self.second is not None:
            potential, hull = self.second
            settings["second potential"] = f"{potential.name}, energies on the scale {potential.scale}"
            settings["second hull"] = str(hull)
        if config.relax:
            kept = ", space groups kept" * config.fix_symmetry
            limits = f"to {config.fmax:g} eV/angstrom, at most {config.steps} steps"
            settings["relaxed"] = f"{limits}{kept}; judged as relaxed"
        return settings


def load_setup(config: EvalConfig, reporter: Reporter) -> EvaluationSetup:
    """Loads what a configuration names.

    Raises:
        DataError: if a file cannot be read.
        UsageError: if potential and hull do not go together.
        DependencyError: if a library is missing.
    """
    validity.composition_validity([])  # complains if a library is missing
    reporter = Noting(reporter)
    potential = load_potential(config.potential, config.device) if config.potential else None
    hull = None
    if config.hull and potential:
        hull = open_hull(config.hull, config.hull_scale, potential, reporter, config.corrections)
    second = _load_second(config, reporter)
    reference = read_reference(config.reference, config.workers, reporter) if config.reference else None
    return EvaluationSetup(config, reference, potential, hull, second, tuple(reporter.warnings))


def _load_second(config: EvalConfig, reporter: Reporter) -> tuple[Potential, Hull] | None:
    """The second potential and its hull."""
    if not config.second_potential or not config.second_hull:
        return None
    potential = load_potential(config.second_potential, config.device)
    return potential, open_hull(config.second_hull, None, potential, reporter, config.corrections, own=True)


def open_hull(
    name: str,
    scale: str | None,
    potential: Potential,
    reporter: Reporter,
    corrections: str = MP2020,
    own: bool = False,
) -> Hull:
    """A hull to compare a potential's energies with.

    A potential that did not compute the hull has to show that its energies are on the scale that it claims: raw and
    corrected energies differ by more than metastable crystals lie above the hull. With `own`, a hull that another
    potential computed is refused: the errors of two potentials do not cancel.

    Raises:
        DataError: if it cannot be read.
        UsageError: if potential and hull do not go together.
        CheckpointError: if the potential's energies are not on the scale that it says.
    """
    with reporter.progress(f"reading {Path(name).name}", None) as progress:
        hull = read_hull(hull_path(name, reporter), scale, progress.update)
    if own and hull.info.potential not in (potential.name, DFT):
        raise UsageError(
            f"the hull {hull.name} has energies of {hull.info.potential}, and {potential.name} needs one of its own",
            f"cfx hull build --fill-from {hull.name} makes one, even from few structures",
        )
    hull.check_potential(potential.scale)
    hull.corrections = corrections
    if corrections != MP2020 and potential.scale == hull.scale:
        reporter.warning(f"energies of {potential.name} need no corrections: `corrections` changes nothing")
    if hull.info.potential != potential.name:
        _check_comparable(potential, hull, reporter)
    return hull


def _check_comparable(potential: Potential, hull: Hull, reporter: Reporter) -> None:
    """Makes sure that energies of a potential and of a hull made by something else mean the same."""
    if (what := other_method(potential.name)) is not None:
        reporter.warning(
            f"energies of {potential.name} are {what}: energies above the hull {hull.info.name} are unreliable; "
            "build a hull with the potential itself (cfx hull build)"
        )
    if not check_energy_scale(potential):
        reporter.warning(
            f"the energy scale of {potential.name}, {potential.scale}, could not be tested: it does not know the "
            f"elements of the test crystals, and the hull was made with {hull.info.potential}"
        )


def read_reference(name: str, workers: int, reporter: Reporter) -> Reference:
    """Known crystals, from the cache if they have been read before.

    Raises:
        DataError: if the file cannot be read.
    """
    path = data_path(name, reporter)

    unread: list[str] = []
    names: list[str] = []

    def structures() -> Iterator[Structure | None]:
        with reporter.progress(f"reading {name}", None) as progress:
            for done, one in enumerate(iterate_crystals(path, workers), start=1):
                names.append(one.name)
                if one.structure is None:
                    unread.append(f"{one.name}: {one.reason}")
                if done % READ == 0:
                    progress.update(done)
                yield one.structure

    digest, known = content_digest(path, ["reference", path.name]), cache_directory("known")
    reference, note = cached_reference(structures, digest, known, names), known / f"unread-{digest}.txt"
    if unread:
        text = f"{len(unread):,} of {len(reference) + len(unread):,} known crystals could not be read ({unread[0]})"
        replace_atomically(note, lambda fresh: fresh.write_text(text, encoding="utf-8"))
    if note.exists():  # from now, or from when they were read
        reporter.warning(f"{name}: {note.read_text(encoding='utf-8')}")
    if not len(reference):
        raise DataError(f"{name} contains no crystals to compare with")
    reporter.message(f"{name}: {len(reference):,} known crystals")
    return reference


def check_inputs(names: Sequence[str], reporter: Reporter) -> None:
    """Makes sure before the work that all files are there, fetching those that are only named.

    Raises:
        DataError: if one is not.
        NetworkError: if one cannot be fetched.
    """
    for name in names:
        if not (path := data_path(name, reporter)).exists():
            raise DataError(f"no such file or directory: {path}")


CHUNKS = (64, 1024)
"""Crystals given to a potential at once, at first and at most: among many there are more alike, which fill a batch."""

CHUNK_SECONDS = 1.0
"""Chunks grow while one takes less."""


class Energy(NamedTuple):
    """The energy of a crystal.

    Attributes:
        energy: of the whole cell, eV; NaN if there is none.
        structure: the pymatgen Structure that has it, or None.
        reason: what went wrong, or "".
        relaxed: how it came to that minimum, if it was relaxed.
    """

    energy: float
    structure: Structure | None
    reason: str
    relaxed: Relaxed | None = None


def energies_as_they_are(
    potential: Potential, structures: Sequence[Structure | None], on_done: Callable[[int], None]
) -> Iterator[Energy]:
    """The energy of each crystal.

    Args:
        potential: gives energies.
        structures: pymatgen Structures, None for rows that could not be read.
        on_done: told how many crystals are done, after each chunk; what it raises ends the work.
    """
    size, first = CHUNKS[0], 0
    while first < len(structures):
        part, began = structures[first : first + size], time.monotonic()
        batch = potential.evaluate(part, forces=False)
        first += len(part)
        on_done(first)
        size = next_chunk(size, time.monotonic() - began)
        for energy, structure, reason in zip(batch.energy, part, batch.reasons, strict=True):
            yield Energy(float(energy), structure, "" if structure is None else reason)


def next_chunk(size: int, seconds: float) -> int:
    """How many crystals to take at once, after `size` took `seconds`."""
    return min(2 * size, CHUNKS[1]) if seconds < CHUNK_SECONDS else size


def energies_of_relaxed(
    potential: Potential,
    structures: Sequence[Structure | None],
    fmax: float,
    steps: int,
    on_done: Callable[[int], None],
    fix_symmetry: bool = False,
) -> Iterator[Energy]:
    """The energy of each crystal at its nearest minimum, and the relaxed structure.

    Args:
        potential: gives energies, forces and stresses.
        structures: pymatgen Structures, None for rows that could not be read.
        fmax: largest force left, eV/angstrom.
        steps: at most.
        on_done: told how many crystals are done, before every step of all; what it raises ends the work.
        fix_symmetry: keep the initial space group.
    """
    done = 0

    def count(number: int, result: object) -> None:
        nonlocal done
        done += 1

    def look() -> bool:
        on_done(done)
        return False

    for one in relax(potential, structures, fmax, steps, fix_symmetry, count, look):
        stuck = "" if one.converged or one.structure is None else one.reason or "the relaxation did not converge"
        yield Energy(float(one.energy), one.structure, stuck, one)
    on_done(done)
