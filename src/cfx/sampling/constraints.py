"""What a request allows at every draw: letters, species, sizes, a composition, a prototype.

Constraints act as masks on the model's own distributions, one draw after another. Each mask depends on the sites drawn
so far, never on later ones, so that decoder and likelihood apply the same functions: the decoder to the prefix it has,
the likelihood to every prefix of a crystal.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from cfx.config import ModelConfig
from cfx.core import AnyArray
from cfx.core.crystal import CrystalBatch
from cfx.core.elements import lowest_terms
from cfx.core.symmetry import symmetry_table

MOST_ATOMS = 256
"""Most atoms of one element in a conventional cell that a formula can ask for."""

MOST_UNITS = 96
"""Most formula units in a conventional cell."""

IMPOSSIBLE = 255
"""Entry of `min_sites` where no combination of letters gives this number of atoms."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Formula:
    """An exact reduced composition; arrays over its elements, filled up with zeros.

    Attributes:
        species: atomic numbers.
        counts: atoms in one formula unit.
        min_sites: of every space group that is asked for, see `min_sites`.
    """

    species: Int[AnyArray, " E"]
    counts: Int[AnyArray, " E"]
    min_sites: UInt8[AnyArray, "230 29 atoms"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prototype:
    """Coordinates and lattice (angstrom and degree) that are kept instead of drawn."""

    frac_coords: Float[AnyArray, "N 3"]
    lattice: Float[AnyArray, "6"]
    keep_coords: Bool[AnyArray, ""]
    keep_lattice: Bool[AnyArray, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sites:
    """Letters and species given to every crystal of a batch; row b belongs to crystal b.

    Letters are in order and pads a suffix. Which of a letter's sites takes which of its species is left to the model:
    an encoder orders these sites by their coordinates.
    """

    letters: Int[AnyArray, "B N"]
    species: Int[AnyArray, "B N"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Constraints:
    """What is allowed in the slots of a crystal; a pytree, so that one compilation serves all requests of a kind.

    Attributes:
        allowed_letters: column 0 is for ending the crystal.
        allowed_species: column 0 is unused.
        tied_to: the earlier slot whose species a slot repeats; its own number where it is free.
        species_bias: added to the logits, nats.
        required: elements that the crystal must contain. No mask asks for them: to keep a crystal from ending without
            them leads far from anything the model knows. Crystals that lack them are rejected.
        any_of: elements of which the crystal must contain one at least, likewise; none: it need not.
        max_atoms: most atoms in the conventional cell of each space group.
        formula: an exact composition, or None.
        prototype: what is kept of a given crystal, or None.
        sites: what each crystal of a batch is given, or None; whoever sets it takes care of the order of rows.
    """

    allowed_letters: Bool[AnyArray, "N W"]
    allowed_species: Bool[AnyArray, "N S"]
    tied_to: Int[AnyArray, " N"]
    species_bias: Float[AnyArray, " S"]
    required: Bool[AnyArray, " S"]
    any_of: Bool[AnyArray, " S"]
    max_atoms: Int[AnyArray, "230"]
    formula: Formula | None = None
    prototype: Prototype | None = None
    sites: Sites | None = None

    @property
    def max_sites(self) -> Int[AnyArray, ""]:
        """Slots that may hold a site."""
        return self.allowed_letters[:, 1:].any(1).sum()


def unconstrained(config: ModelConfig) -> Constraints:
    """Constraints that allow everything that the model can draw; the last slot is the pad's."""
    letters = np.ones((config.n_max, config.num_letters), bool)
    letters[-1, 1:] = False
    return Constraints(
        allowed_letters=letters,
        allowed_species=np.ones((config.n_max, config.num_species), bool),
        tied_to=np.arange(config.n_max, dtype=np.int32),
        species_bias=np.zeros(config.num_species, np.float32),
        required=np.zeros(config.num_species, bool),
        any_of=np.zeros(config.num_species, bool),
        max_atoms=np.full(230, 192 * config.n_max, np.int32),
    )


def make_formula(counts: dict[int, int], space_groups: tuple[int, ...]) -> Formula:
    """The constraint of a composition {atomic number: atoms}, in lowest terms, for some space groups."""
    species, units = np.zeros((2, -(-len(counts) // 4) * 4), np.int32)  # in fours: few shapes, few compilations
    species[: len(counts)], units[: len(counts)] = list(counts), list(lowest_terms(counts).values())
    table = np.full((230, 29, MOST_ATOMS + 1), IMPOSSIBLE, np.uint8)
    for group in space_groups:
        table[group - 1] = min_sites(group)
    return Formula(species, units, table)


@functools.cache
def min_sites(space_group: int) -> UInt8[np.ndarray, "29 atoms"]:
    """Fewest sites of letters w and later that together have d atoms, or IMPOSSIBLE.

    Columns are d = 0, 1, ... MOST_ATOMS; row w is letter w, and row 28 has no letters left. A letter without a free
    coordinate serves once.
    """
    table = symmetry_table()
    fewest = np.full((29, MOST_ATOMS + 1), IMPOSSIBLE, np.int32)
    fewest[:, 0] = 0
    for letter in range(27, -1, -1):
        fewest[letter] = fewest[letter + 1]
        size = int(table.multiplicity[space_group - 1, letter])
        if not size:
            continue
        times = 1 if table.is_fixed[space_group - 1, letter] else MOST_ATOMS // size
        for used in range(1, times + 1):
            with_used = fewest[letter + 1, : -used * size] + used
            fewest[letter, used * size :] = np.minimum(fewest[letter, used * size :], with_used)
    return np.minimum(fewest, IMPOSSIBLE).astype(np.uint8)


class Prefix(NamedTuple):
    """The sites before a slot, as far as masks depend on them.

    Attributes:
        slot: the slot's number.
        atoms: of each element in the conventional cell so far.
    """

    slot: Int[AnyArray, "..."]
    atoms: Int[AnyArray, "... S"]


def prefix(crystals: CrystalBatch, num_species: int) -> Prefix:
    """The prefix of the slot after the last site of crystals under way."""
    return Prefix(crystals.num_sites.astype(jnp.int32), _atoms(crystals, num_species).sum(1))


def prefixes(crystals: CrystalBatch, num_species: int) -> Prefix:
    """The prefixes, [B, N], of all slots of whole crystals."""
    atoms = _atoms(crystals, num_species)
    return Prefix(jnp.broadcast_to(jnp.arange(atoms.shape[1]), atoms.shape[:2]), jnp.cumsum(atoms, axis=1) - atoms)


def _atoms(crystals: CrystalBatch, num_species: int) -> Int[AnyArray, "B N S"]:
    """Atoms of each element on each site; numpy for numpy."""
    return (crystals.species[..., None] == np.arange(num_species)) * crystals.multiplicity[..., None]


def letter_mask(constraints: Constraints, space_group: Int[AnyArray, "..."], before: Prefix) -> Bool[Array, "... W"]:
    """Letters that may follow a prefix; the model's own rules come on top."""
    letters = jnp.arange(constraints.allowed_letters.shape[-1])
    size = jnp.asarray(symmetry_table().multiplicity)[space_group - 1][..., : len(letters)]
    mask = jnp.asarray(constraints.allowed_letters)[before.slot]
    mask &= before.atoms.sum(-1, keepdims=True) + size <= jnp.asarray(constraints.max_atoms)[space_group - 1][..., None]
    if constraints.formula is not None:
        ends = _formula_complete(constraints.formula, before)[..., None]
        continues = _formula_choices(constraints.formula, constraints, space_group, before, letters[1:]).any(-1)
        mask &= jnp.concatenate([ends, continues], axis=-1)
    if constraints.sites is not None:
        mask &= letters == _given_letter(constraints.sites, before)[..., None]
    return mask


def _given_letter(sites: Sites, before: Prefix) -> Int[Array, "..."]:
    """The letter that each crystal is given for the slot after its prefix."""
    crystal = jnp.arange(len(sites.letters)).reshape(-1, *[1] * (before.slot.ndim - 1))
    return jnp.asarray(sites.letters)[crystal, before.slot]


def _species_left(
    sites: Sites, before: Prefix, species: Int[AnyArray, "... N"], num_species: int
) -> Bool[Array, "... S"]:
    """Species given to the letter of the slot after a prefix that fewer earlier sites of this letter have taken."""
    letters, given = (
        jnp.expand_dims(jnp.asarray(leaf), tuple(range(1, before.slot.ndim))) for leaf in (sites.letters, sites.species)
    )
    same_letter = letters == _given_letter(sites, before)[..., None]
    earlier = jnp.arange(letters.shape[-1]) < before.slot[..., None]
    numbers = jnp.arange(num_species)

    def count(of: Int[AnyArray, "... N"], where: Bool[Array, "... N"]) -> Int[Array, "... S"]:
        return ((of[..., None] == numbers) & where[..., None]).sum(-2)

    return count(given, same_letter) > count(species, same_letter & earlier)


def species_mask(
    constraints: Constraints,
    space_group: Int[AnyArray, "..."],
    before: Prefix,
    letter: Int[AnyArray, "..."],
    species: Int[AnyArray, "... N"],
) -> Bool[Array, "... S"]:
    """Species that a site may take.

    Args:
        space_group: 1 to 230.
        before: the sites before it.
        letter: of the site; not a pad.
        species: of the crystal; those of earlier slots are read.
    """
    numbers = jnp.arange(constraints.allowed_species.shape[-1])
    mask = jnp.asarray(constraints.allowed_species)[before.slot]
    origin = jnp.asarray(constraints.tied_to)[before.slot]
    repeated = jnp.take_along_axis(species, origin[..., None], axis=-1)
    mask &= (numbers == repeated) | (origin == before.slot)[..., None]
    if constraints.formula is not None:
        choices = _formula_choices(constraints.formula, constraints, space_group, before, letter[..., None])[..., 0, :]
        is_element = jnp.asarray(constraints.formula.species)[:, None] == numbers
        mask &= (choices[..., None] & is_element).any(-2)
    if constraints.sites is not None:
        mask &= _species_left(constraints.sites, before, species, len(numbers))
    return mask


def _missing(formula: Formula, before: Prefix) -> Int[Array, "... units E"]:
    """Atoms still missing for 1, 2, ... formula units; below zero for too many."""
    units = jnp.arange(1, MOST_UNITS + 1)[:, None]
    return units * jnp.asarray(formula.counts) - before.atoms[..., formula.species][..., None, :]


def _formula_complete(formula: Formula, before: Prefix) -> Bool[Array, "..."]:
    """Whether the sites make a whole number of formula units."""
    return (_missing(formula, before) == 0).all(-1).any(-1)


def _formula_choices(
    formula: Formula,
    constraints: Constraints,
    space_group: Int[AnyArray, "..."],
    before: Prefix,
    letters: Int[AnyArray, "... letters"],
) -> Bool[Array, "... letters E"]:
    """Whether, after a letter with an element, each element can still be completed in the slots left.

    Elements are looked at one by one, and templates and ties not at all: where two elements need the same letter, or a
    template wants another, a crystal can still end in a dead end.
    """
    table = symmetry_table()
    group = space_group[..., None] - 1
    size, fixed = jnp.asarray(table.multiplicity)[group, letters], jnp.asarray(table.is_fixed)[group, letters]
    missing = _missing(formula, before)[..., None, :, :]
    most = jnp.asarray(constraints.max_atoms)[group][..., None, None]
    within = jnp.arange(1, MOST_UNITS + 1)[:, None] * jnp.asarray(formula.counts).sum() <= most
    following = (letters + fixed)[..., None, None]

    def fewest(atoms: Int[Array, "..."]) -> Int[Array, "..."]:
        found = jnp.asarray(formula.min_sites)[group[..., None, None], following, jnp.clip(atoms, 0, MOST_ATOMS)]
        possible = (atoms >= 0) & (atoms <= MOST_ATOMS) & (found < IMPOSSIBLE)
        # More than any number of slots, and no infinity, since totals are formed by adding and subtracting it.
        return jnp.where(possible, found.astype(jnp.int32), 10 * IMPOSSIBLE)

    without = fewest(missing)
    chosen = fewest(missing - size[..., None, None]) + 1
    # For each element chosen: what all need without the choice, with its own need replaced by that after it.
    total = without.sum(-1, keepdims=True) - without + chosen
    slots_left = constraints.max_sites - before.slot
    fits = (total <= slots_left[..., None, None, None]) & within & (jnp.asarray(formula.counts) > 0)
    return fits.any(-2) & (size > 0)[..., None]


def satisfied(constraints: Constraints, crystals: CrystalBatch, xp: Any = np) -> Bool[AnyArray, " B"]:
    """Which crystals are among those that the constraints allow; `xp` is numpy or jax.numpy."""
    slots, filled, species = np.arange(crystals.num_slots), crystals.wyckoff > 0, crystals.species
    letters, elements, tied, required, any_of = (
        xp.asarray(leaf)
        for leaf in (
            constraints.allowed_letters,
            constraints.allowed_species,
            constraints.tied_to,
            constraints.required,
            constraints.any_of,
        )
    )
    most = xp.asarray(constraints.max_atoms)[crystals.space_group - 1]
    atoms = _atoms(crystals, len(required)).sum(1)
    is_drawn = slots <= crystals.num_sites[:, None]  # the letters of the sites and the pad after them
    good = (letters[slots, crystals.wyckoff] | ~is_drawn).all(1) & (crystals.num_sites > 0)
    good &= ((species > 0) == filled).all(1)
    good &= ((elements[slots, species] & (species == species[:, tied[slots]])) | ~filled).all(1)
    good &= ~(required & (atoms == 0)).any(1) & (crystals.num_atoms <= most)
    good &= (any_of & (atoms > 0)).any(1) | ~any_of.any()
    if constraints.formula is not None:
        counts = (xp.asarray(constraints.formula.species)[:, None] == np.arange(len(required))) * xp.asarray(
            constraints.formula.counts
        )[:, None]
        units = atoms.sum(1) // counts.sum()
        good &= (units > 0) & (atoms == units[:, None] * counts.sum(0)).all(1)
    if constraints.sites is not None:
        drawn = xp.sort(crystals.wyckoff * len(required) + species, axis=1)
        given = constraints.sites.letters * len(required) + constraints.sites.species
        good &= (drawn == xp.sort(xp.asarray(given), axis=1)).all(1)
    return good
