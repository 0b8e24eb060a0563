"""How far energies lie above the convex hull of known phases.

The hull at a composition is the lowest energy of any mixture of phases with that composition: a linear programme over
the phases made of its elements. Distances are signed, so a crystal below all known mixtures has a negative one.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cfx.core import Structure
from cfx.core.elements import SYMBOLS
from cfx.errors import DataError, UsageError
from cfx.evaluation.corrections import MP2020, UNCORRECTABLE, correct
from cfx.evaluation.phases import NoSolution, Phases, Reduced, best_mixture, count_atoms, reduce_counts
from cfx.predictors.base import SCALES, BatchResult

DFT = "PBE"
"""What computed the energies of a hull that is no potential's."""

SYSTEMS = 1024
"""Most chemical systems whose phases a hull keeps in memory."""


class HullFailure(ValueError):
    """A crystal without a distance to the hull; the message is the reason."""


@dataclass(frozen=True)
class HullInfo:
    """Where a hull comes from.

    Attributes:
        name: of the set of phases.
        scale: raw or mp2020.
        potential: what computed the energies: "PBE", or a potential's name.
        version: of the set, "" if it has none.
        provenance: a sentence about where it comes from.
    """

    name: str
    scale: str
    potential: str = DFT
    version: str = ""
    provenance: str = ""

    def __post_init__(self) -> None:
        check_scale(self.scale)


def check_scale(scale: str) -> None:
    """Raises UsageError unless it is one of SCALES."""
    if scale not in SCALES:
        raise UsageError(f"unknown scale of energies: {scale!r}", f"it is one of {', '.join(SCALES)}")


@dataclass(frozen=True)
class Mixture:
    """The mixture of phases that has the lowest energy at a composition.

    Attributes:
        energy: eV/atom, the hull's at that composition.
        shares: phase -> its share of the atoms, as in pymatgen's decompositions; their sum is 1.
    """

    energy: float
    shares: dict[int, float]


@dataclass(frozen=True, kw_only=True)
class HullBatch(BatchResult):
    """Distances of n crystals to a hull.

    Attributes:
        e_above_hull: float64 [n], eV/atom, negative below the hull; NaN where not ok.
        decompositions: [n], what the hull has at the composition of each, as "0.6 NaCl + 0.4 KF"; "" where not ok.
    """

    e_above_hull: np.ndarray
    decompositions: list[str]


class Hull:
    """A set of phases, and distances to their convex hull.

    Attributes:
        phases: the lowest of each composition.
        info: what the hull is.
        corrections: what is made of raw energies that are compared with corrected ones, see `evaluation.corrections`.
    """

    def __init__(self, phases: Phases, info: HullInfo, corrections: str = MP2020):
        self.phases, self.info, self.corrections = phases, info, corrections
        self._systems: OrderedDict[tuple[int, ...], _System] = OrderedDict()
        self._formulas: dict[int, str] = {}

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def scale(self) -> str:
        return self.info.scale

    def __str__(self) -> str:
        name = " ".join(filter(None, (self.info.name, self.info.version)))
        which = "" if self.corrections == MP2020 else f", {self.corrections} corrections of raw energies"
        return f"{name} ({self.info.potential}, {self.scale}, {len(self.phases):,} phases{which})"

    def check_potential(self, scale: str) -> None:
        """Raises UsageError if energies on that scale cannot be compared with this hull."""
        check_scale(scale)
        if scale == "mp2020" and self.scale == "raw":
            raise UsageError(
                f"corrected energies (mp2020) cannot be compared with the raw energies of the hull {self.name}",
                "use a hull on the mp2020 scale, or a potential on the raw scale",
            )

    def e_above_hull(self, structure: Structure, energy: float, potential_scale: str) -> float:
        """Distance of one crystal to the hull of all phases, itself not among them unless it is one, eV/atom.

        Args:
            structure: pymatgen Structure.
            energy: of all its atoms, eV.
            potential_scale: raw or mp2020; a raw energy is corrected if the hull's are.

        Raises:
            HullFailure: if it has none.
            UsageError: if energies on that scale cannot be compared with this hull.
        """
        self.check_potential(potential_scale)
        return self._judge(structure, energy, potential_scale)[0]

    def _judge(self, structure: Structure, energy: float, potential_scale: str) -> tuple[float, Mixture]:
        """Distance to the hull, eV/atom, and the mixture below or above the crystal."""
        if not math.isfinite(energy):
            raise HullFailure("no energy")
        counts = count_atoms(structure.composition)
        mixture = self.mixture_at(counts)
        if potential_scale != self.scale:
            try:
                energy = correct(structure, energy, self.corrections)
            except UNCORRECTABLE as error:
                raise HullFailure("the MP2020 corrections do not cover it") from error
        return float(energy) / sum(counts.values()) - mixture.energy, mixture

    def energy_at(self, counts: Mapping[int, float]) -> float:
        """Energy of the hull, eV/atom, at a composition: atomic number -> atoms.

        Raises:
            HullFailure: if the hull does not reach there.
        """
        return self.mixture_at(counts).energy

    def mixture_at(self, counts: Mapping[int, float]) -> Mixture:
        """What the hull consists of at a composition: atomic number -> atoms.

        Raises:
            HullFailure: if the hull does not reach there.
        """
        numbers = tuple(sorted(counts))
        self._check_elements(numbers)
        x = np.array([counts[z] for z in numbers], np.float64)
        try:
            return self._system(numbers).mixture(x / x.sum())
        except NoSolution as error:
            raise HullFailure(str(error)) from error

    def _check_elements(self, numbers: tuple[int, ...]) -> None:
        if unknown := [SYMBOLS[z] for z in numbers if z not in self.phases.elements]:
            raise HullFailure(f"the hull has no phase with {', '.join(unknown)}")
        if impure := [SYMBOLS[z] for z in numbers if z not in self.phases.terminals]:
            raise HullFailure(f"no phase of pure {', '.join(impure)} in the hull")

    def _system(self, numbers: tuple[int, ...]) -> _System:
        if numbers not in self._systems:
            self._systems[numbers] = _System(self.phases, numbers)
            if len(self._systems) > SYSTEMS:
                self._systems.popitem(last=False)
        self._systems.move_to_end(numbers)
        return self._systems[numbers]

    def evaluate(
        self, structures: Sequence[Structure | None], energies: Sequence[float], potential_scale: str
    ) -> HullBatch:
        """Distances of many crystals; None among the structures, and NaN among the energies, are failures.

        Args:
            structures: n pymatgen Structures or None.
            energies: [n], of all atoms, eV.
            potential_scale: raw or mp2020; raw energies are corrected if the hull's are.

        Raises:
            UsageError: if energies on that scale cannot be compared with this hull.
        """
        self.check_potential(potential_scale)
        values = np.full(len(structures), np.nan)
        reasons, decompositions = [""] * len(structures), [""] * len(structures)
        for i, (structure, energy) in enumerate(zip(structures, energies, strict=True)):
            try:
                if structure is None:
                    raise HullFailure("no structure")
                values[i], mixture = self._judge(structure, energy, potential_scale)
                decompositions[i] = self.describe(mixture)
            except HullFailure as failure:
                reasons[i] = str(failure)
        return HullBatch(e_above_hull=values, decompositions=decompositions, reasons=reasons)

    def describe(self, mixture: Mixture) -> str:
        """A mixture as the field writes it, the largest share first: "0.6 NaCl + 0.4 KF", or "NaCl" alone."""
        parts = sorted(mixture.shares.items(), key=lambda part: (-round(part[1], 6), part[0]))
        if len(parts) == 1:
            return self.formula(parts[0][0])
        return " + ".join(f"{share:.3g} {self.formula(row)}" for row, share in parts)

    def formula(self, row: int) -> str:
        """The reduced formula of a phase, as pymatgen orders it: NaCl, O2."""
        if row not in self._formulas:
            from pymatgen.core import Composition

            counts = dict(self.phases.composition(row))
            self._formulas[row] = Composition({SYMBOLS[z]: n for z, n in counts.items()}).reduced_formula
        return self._formulas[row]


class _System:
    """The phases of one chemical system, without those that no mixture with the lowest energy needs.

    Attributes:
        rows: int [k + m], the phases of the pure elements, then the compounds that gain energy by forming.
        references: float64 [k], energies of the pure elements, eV/atom.
        fractions: float64 [k, m], compositions of the compounds.
        gains: float64 [m], their formation energies, eV/atom, negative.
    """

    def __init__(self, phases: Phases, numbers: Sequence[int]):
        rows = phases.within(numbers)
        self.references = np.array([phases.terminals[z] for z in numbers])
        fractions = phases.fractions(rows, numbers)
        gains = phases.energies[rows] - self.references @ fractions
        useful = (gains < 0) & (phases.sizes[rows] > 1)
        self.rows = np.concatenate([[phases.pure[z] for z in numbers], rows[useful]])
        self.fractions, self.gains = fractions[:, useful], gains[useful]
        self._known: dict[bytes, Mixture] = {}

    def mixture(self, x: np.ndarray) -> Mixture:
        """The mixture of lowest energy at atomic fractions x, float64 [k], all positive."""
        key = x.tobytes()
        if key not in self._known:
            gain, basis, shares = best_mixture(self.fractions, self.gains, x)
            parts = {int(self.rows[i]): float(share) for i, share in zip(basis, shares, strict=True) if share}
            self._known[key] = Mixture(float(self.references @ x) + gain, parts)
        return self._known[key]


def build_table(structures: Sequence[Structure], energies: Sequence[float], ids: Sequence[str], info: HullInfo) -> Hull:
    """A hull of computed crystals.

    Args:
        structures: n pymatgen Structures (anything with a composition).
        energies: [n], of all atoms, eV, on the scale that `info` says.
        ids: [n].
        info: what to call it.

    Raises:
        DataError: if an energy is not finite, or a composition not of whole atoms.
    """
    compositions, per_atom = [], []
    for structure, energy, name in zip(structures, energies, ids, strict=True):
        counts = count_atoms(structure.composition)
        if not math.isfinite(energy):
            raise DataError(f"{name} has no energy", "remove such crystals from the data")
        try:
            compositions.append(reduce_counts(counts))
        except ValueError as error:
            raise DataError(f"{name} {error}", "remove such crystals from the data") from error
        per_atom.append(float(energy) / sum(counts.values()))
    return Hull(Phases.lowest(compositions, per_atom, ids), info)


def missing_phases(hull: Hull, formulas: Iterable[str]) -> list[str]:
    """Reduced formulas of a reference list that the hull has no phase of, each once, in the order of the list.

    Args:
        hull: the hull.
        formulas: of the reference list.

    Raises:
        DataError: if one is not a formula.
    """
    known = {hull.phases.composition(row) for row in range(len(hull.phases))}
    lacking: dict[Reduced, str] = {}
    for text in formulas:
        composition, reduced = _parse(text)
        if composition not in known:
            lacking.setdefault(composition, reduced)
    return list(lacking.values())


def _parse(text: str) -> tuple[Reduced, str]:
    from pymatgen.core import Composition

    try:
        # Fe0.5O is a way to write FeO2.
        composition = Composition(Composition(text).get_integer_formula_and_factor()[0])
        return reduce_counts(count_atoms(composition)), composition.reduced_formula
    except ValueError as error:
        raise DataError(f"no formula: {text!r}") from error
