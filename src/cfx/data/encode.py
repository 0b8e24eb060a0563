"""Structures to symmetry-inequivalent sites, straight from spglib into the table's setting.

The representative of an orbit is chosen so: take the orbit's first atom in spglib's standardised cell, apply the
general position's operations in table order, and keep the first image that op 0 maps to itself. Sites are then
sorted by letter, x, y, z.

Nothing here imports JAX: worker processes stay small.
"""

import logging
import os
from typing import NamedTuple

import numpy as np

from cfx.config import SYMPREC
from cfx.core.elements import SYMBOLS
from cfx.core.symmetry import LETTERS, orbit, symmetry_table, wrap

ANGLE_TOLERANCE = 5.0
"""Angle tolerance (degree) of the symmetry search of the published models, whose distance tolerance is SYMPREC."""

ON_POSITION = 0.01
"""Largest sum of fractional deviations of a point that counts as lying on a Wyckoff position."""

MOST_ATOMS = 20_000
"""Atoms in a cell at most. The symmetry search takes minutes for more."""

DISORDERED = "sites with partial or mixed occupancy"
"""Why a disordered structure is not a crystal for cfx."""


class EncodedCrystal(NamedTuple):
    """One crystal: its group, lattice [6] (angstrom, degree), and letters [n], species [n], coordinates [n, 3]."""

    space_group: int
    lattice: np.ndarray
    wyckoff: np.ndarray
    species: np.ndarray
    frac_coords: np.ndarray


class EncodingError(ValueError):
    """A structure that is not a sequence of Wyckoff sites the model can read; the message is the reason."""


def encode_structure(structure, symprec: float = SYMPREC, max_sites: int = 20) -> EncodedCrystal:
    """Encodes one ordered pymatgen Structure, in any cell, with at most so many symmetry-inequivalent sites.

    `symprec` is the distance tolerance of the symmetry search, angstrom.

    Raises:
        EncodingError: with the reason.
    """
    if not structure.is_ordered:
        raise EncodingError(DISORDERED)
    if not len(structure):
        raise EncodingError("no atoms")
    lattice, frac_coords = structure.lattice.matrix, structure.frac_coords
    numbers = [site.specie.Z for site in structure]
    if not np.isfinite(lattice).all() or not np.isfinite(frac_coords).all():
        raise EncodingError("a lattice or coordinates that are not finite")
    if not all(0 < z < len(SYMBOLS) for z in numbers):
        raise EncodingError("an element outside 1..118")
    cell = (lattice, frac_coords, numbers)
    _refuse_overlaps(*cell, symprec)
    _refuse_large(cell, symprec, max_sites)
    crystal = cubic_without_search(cell, symprec) or _by_spglib(cell, symprec)
    if len(crystal.wyckoff) > max_sites:
        raise EncodingError(f"{len(crystal.wyckoff)} symmetry-inequivalent sites, more than {max_sites}")
    return crystal


def _refuse_overlaps(lattice: np.ndarray, coords: np.ndarray, numbers: list[int], symprec: float) -> None:
    """Refuses two atoms on one point, which a symmetry search may take for a crystal like any other."""
    from scipy.spatial import KDTree

    if len(numbers) > MOST_ATOMS:
        raise EncodingError(f"{len(numbers)} atoms, more than {MOST_ATOMS}")
    if not abs(np.linalg.det(lattice)) > 1e-6:
        raise EncodingError("a degenerate cell, without volume")
    points, atoms = coords - np.floor(coords), np.arange(len(numbers))
    # With images of the atoms at three faces of the cell, neighbours across all six are found.
    for axis, margin in enumerate(symprec * np.linalg.norm(np.linalg.inv(lattice), axis=0)):
        near = points[:, axis] <= min(margin, 1)
        points = np.concatenate([points, points[near] + np.eye(3)[axis]])
        atoms = np.concatenate([atoms, atoms[near]])
    tree = KDTree(points @ lattice)
    distance, nearest = tree.query(tree.data, k=2, distance_upper_bound=symprec)
    if not np.isfinite(distance[:, 1]).any():
        return
    pairs = atoms[np.asarray(nearest)[np.isfinite(distance[:, 1])]]
    kinds = np.array(numbers)[pairs]
    two = (kinds[:, 0] != kinds[:, 1]).any()
    raise EncodingError("atoms of two elements overlap" if two else "atoms too close: two of one element on one point")


LARGE = 1000
"""Atoms from which on moyo looks first: spglib takes ten seconds for 4,000 atoms without symmetry, moyo two."""

FAR_TOO_MANY = 8
"""Times the sites that a crystal may have; two searches do not differ by so much."""


def _refuse_large(cell: tuple, symprec: float, max_sites: int) -> None:
    """Refuses a large cell that has far too many sites, before the slow search."""
    dataset = _moyo(cell, symprec) if len(cell[2]) > LARGE else None
    if dataset is not None and (sites := len(set(dataset.orbits))) > FAR_TOO_MANY * max_sites:
        raise EncodingError(f"{sites} symmetry-inequivalent sites, more than {max_sites}")


def _by_spglib(cell: tuple, symprec: float) -> EncodedCrystal:
    dataset = _standardise(cell, symprec)
    group, orbits = int(dataset.number), _orbits(dataset)
    sites = [_representative(group, letter, dataset.std_positions[atom]) for letter, atom in orbits]
    species = [int(dataset.std_types[atom]) for _, atom in orbits]
    return _sorted_crystal(group, _parameters(dataset.std_lattice), sites, species)


def _sorted_crystal(group: int, lattice: np.ndarray, sites: list, species: list[int]) -> EncodedCrystal:
    letters = np.array([letter for letter, _ in sites], np.int32)
    coords = np.array([point for _, point in sites])
    order = np.lexsort((coords[:, 2], coords[:, 1], coords[:, 0], letters))
    return EncodedCrystal(group, lattice, letters[order], np.array(species, np.int32)[order], coords[order])


CUBIC_HOLOHEDRAL = (221, 225, 229)
"""Pm-3m, Fm-3m, Im-3m: symmorphic, with all the symmetry of their lattice."""


def cubic_without_search(cell: tuple, symprec: float) -> EncodedCrystal | None:
    """Encodes the crystals that spglib is slowest on, rock salts and Heuslers among them, by moyo alone; or None.

    In Pm-3m, Fm-3m and Im-3m a change of axes is a symmetry of the crystal, so that the setting is a choice of
    origin only. Where the input's origin already is a standard one (a point of symmetry m-3m), spglib keeps it; and
    where every atom sits on a position without a free coordinate, nothing else is left to choose. (With noise of
    1e-8 angstrom on the input spglib itself may move the origin, to an equivalent one.)
    """
    dataset = _moyo(cell, symprec)
    if dataset is None or dataset.number not in CUBIC_HOLOHEDRAL:
        return None
    group = dataset.number
    # The 48 operations of m-3m without a translation (modulo the lattice) are those of the point at the origin.
    shifts = np.array(dataset.operations.translations)
    if (np.abs(shifts - np.rint(shifts)).max(1) < 1e-4).sum() < 48:
        return None
    points = cell[1] @ np.linalg.inv(np.array(dataset.std_linear)).T
    fixed = [letter for letter in range(1, 28) if symmetry_table().is_fixed[group - 1, letter]]
    sites, species, seen = [], [], set()
    for orbit_of, point, number in zip(dataset.orbits, points, cell[2], strict=True):
        if orbit_of in seen:
            continue
        seen.add(orbit_of)
        letter = next((letter for letter in fixed if _distance(orbit(group, letter, point), point) < 1e-3), None)
        if letter is None:
            return None
        sites.append((letter, symmetry_table().projector[group - 1, letter, :, 3].astype(float)))
        species.append(number)
    edge = np.linalg.norm(np.array(dataset.std_cell.basis), axis=1).mean()
    return _sorted_crystal(group, np.array([edge] * 3 + [90.0] * 3), sites, species)


def find_space_group(cell: tuple, symprec: float = SYMPREC) -> int | None:
    """The space group that a search finds in a cell (row vectors, coordinates, atomic numbers), or None."""
    dataset = _moyo(cell, symprec)
    return None if dataset is None else int(dataset.number)


def _moyo(cell: tuple, symprec: float):
    """moyo's data set in the standard setting, or None where it finds no symmetry."""
    import moyopy

    for name in ("moyo", "moyopy"):
        logging.getLogger(name).setLevel(logging.ERROR)
    lattice, coords, numbers = (np.asarray(part).tolist() for part in cell)
    try:
        return moyopy.MoyoDataset(
            moyopy.Cell(lattice, coords, numbers), symprec=symprec, setting=moyopy.Setting.standard()
        )
    except ValueError:
        return None


def _distance(points: np.ndarray, point: np.ndarray) -> float:
    """Smallest sum of fractional deviations of `point` [3] from `points` [n, 3], modulo 1."""
    deviation = points - point
    return float(np.abs(deviation - np.rint(deviation)).sum(1).min())


def _standardise(cell: tuple, symprec: float):
    """spglib's data set in the table's setting: one search, and a second where spglib prefers another setting."""
    first = _search(cell, symprec, 0)
    hall_number = int(symmetry_table().hall_number[first.number - 1])
    return first if first.hall_number == hall_number else _search(cell, symprec, hall_number)


def _search(cell: tuple, symprec: float, hall_number: int):
    os.environ.setdefault("SPGLIB_WARNING", "OFF")  # its retries are no news
    import spglib

    try:
        dataset = spglib.get_symmetry_dataset(cell, symprec, ANGLE_TOLERANCE, hall_number)
    except spglib.SpglibError as error:
        raise EncodingError(f"spglib: {error}") from error
    if dataset is None:
        raise EncodingError("spglib finds no symmetry (atoms too close, or a degenerate cell)")
    return dataset


def _orbits(dataset) -> list[tuple[str, int]]:
    """(letter, first atom of the standardised cell) of every orbit, in order of that atom."""
    # Atoms of the standardised cell and of the input meet in the primitive cell.
    of_primitive = {}
    for atom, primitive in enumerate(dataset.mapping_to_primitive):
        of_primitive.setdefault(int(primitive), atom)
    first = {}
    for atom, primitive in enumerate(dataset.std_mapping_to_primitive):
        origin = of_primitive[int(primitive)]
        first.setdefault(int(dataset.crystallographic_orbits[origin]), (dataset.wyckoffs[origin], atom))
    return list(first.values())


def _representative(group: int, symbol: str, point: np.ndarray) -> tuple[int, np.ndarray]:
    """Letter and representative of the orbit of `point`, exactly on its Wyckoff position."""
    letter, table = LETTERS.index(symbol), symmetry_table()
    rotations, translations = table.general_operations(group)
    images = rotations @ point + translations
    op = table.projector[group - 1, letter].astype(float)
    projected = images @ op[:, :3].T + op[:, 3]
    deviation = images - projected
    on_position = np.abs(deviation - np.rint(deviation)).sum(1) < ON_POSITION
    if not on_position.any():
        raise EncodingError(f"no point of an orbit lies on Wyckoff position {symbol} of space group {group}")
    chosen = wrap(projected[int(np.argmax(on_position))])
    return letter, np.where(chosen > 1 - 1e-7, 0.0, chosen)  # a rounding error below 1 is 0


def _parameters(matrix: np.ndarray) -> np.ndarray:
    """a, b, c (angstrom), alpha, beta, gamma (degree) of row vectors [3, 3]."""
    lengths = np.linalg.norm(matrix, axis=1)
    unit = matrix / lengths[:, None]
    cosines = np.clip([unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]], -1, 1)
    return np.concatenate([lengths, np.rad2deg(np.arccos(cosines))])
