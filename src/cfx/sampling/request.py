"""A request made ready for a model: its constraints, and whether any crystal can meet them."""

import bisect
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from cfx.config import ModelConfig, SampleConfig, Template
from cfx.core.composition import composition_vector
from cfx.core.elements import SYMBOLS
from cfx.core.symmetry import LETTERS, symmetry_table
from cfx.errors import UsageError
from cfx.sampling.constraints import MOST_ATOMS, MOST_UNITS, Constraints, Prototype, make_formula, unconstrained
from cfx.sampling.policy import Policy, Sharpness

RADIOACTIVE = frozenset({43, 61, *range(84, 119)})
"""Elements without a stable isotope; bismuth, whose half-life is 2e19 years, counts as stable."""

FORMULA_ATOMS = 20
"""Most atoms in the primitive cell of a formula, unless the request says otherwise: the most in the published data
sets. Without a limit, masks that keep a crystal from ending at another composition lead far beyond known cells."""


@dataclass(frozen=True)
class PreparedRequest:
    """A request, made ready for a model.

    Attributes:
        constraints: what the crystals must meet.
        policy: what is in force while they are drawn.
        impossible: space groups of the request that cannot meet it, each with the reason.
    """

    constraints: Constraints
    policy: Policy
    impossible: dict[int, str]


def prepare(request: SampleConfig, config: ModelConfig) -> PreparedRequest:
    """Makes a request ready.

    Raises:
        UsageError: if it contradicts itself, or none of its space groups can meet it.
    """
    constraints = build_constraints(request, config)
    weights = request.weights or (1.0,) * len(request.space_groups)
    wanted = dict.fromkeys(group for group, weight in zip(request.space_groups, weights, strict=True) if weight)
    reasons = {group: why_impossible(constraints, group) for group in wanted}
    impossible = {group: reason for group, reason in reasons.items() if reason is not None}
    if len(impossible) == len(reasons):
        first, *others = impossible.values()
        if others:
            first += f"; {len(others)} other space group{'s' * (len(others) > 1)} cannot meet the request either"
        raise UsageError(first, _remedy(request, config, next(iter(impossible))))
    sharpness = Sharpness(np.float32(request.temperature), np.float32(request.top_p))
    in_force = unconstrained(config) if request.exact else constraints
    told = None if config.composition == "none" else told_composition(request.formula, config)
    policy = Policy(in_force, sharpness, told)
    return PreparedRequest(constraints, policy, impossible)


def told_composition(formula: Sequence[tuple[str, int]], config: ModelConfig) -> Float[np.ndarray, " S"]:
    """What a network is told that has a composition as input.

    Raises:
        UsageError: if there is none and the network needs one, or no such element.
    """
    if config.composition == "required" and not formula:
        raise UsageError("this model makes crystals of a given composition", "give it with `formula=SrTiO3`")
    return composition_vector({atomic_number(symbol): n for symbol, n in formula}, config.num_species)


def _remedy(request: SampleConfig, config: ModelConfig, space_group: int) -> str:
    """The hint for a request that a space group cannot meet: the option in the way, and its least change."""

    def possible(**changes: Any) -> bool:
        changed = dataclasses.replace(request, **changes)
        return why_impossible(build_constraints(changed, config), space_group) is None

    def least(name: str, most: int) -> int:
        return bisect.bisect_left(range(1, most + 1), True, key=lambda value: possible(**{name: value})) + 1

    last = LETTERS[int(symmetry_table().last_letter[space_group - 1])]
    if any(LETTERS.index(letter) > LETTERS.index(last) for letter in request.template.letters):
        return f"the letters of space group {space_group} are a to {last}: choose among them with `wyckoff`"
    most_atoms = MOST_UNITS * MOST_ATOMS
    if possible(max_atoms=most_atoms):
        atoms = least("max_atoms", most_atoms)
        return f"its smallest cell in space group {space_group} has {atoms} atoms: allow them with `max_atoms={atoms}`"
    if request.max_sites is not None and possible(max_sites=None):
        return f"allow more sites with `max_sites={least('max_sites', config.n_max - 1)}`"
    if request.max_sites is not None and possible(max_sites=None, max_atoms=most_atoms):
        return "allow more with `max_sites` and `max_atoms`"
    if request.template.letters and possible(template=Template()):
        return "other letters can: leave `wyckoff` out, or choose others"
    return "try another space group, or relax the request"


def left_out(impossible: dict[int, str]) -> str:
    """What the user is told of space groups that cannot meet a request."""
    shown = ", ".join(map(str, sorted(impossible)[:8])) + (", ..." if len(impossible) > 8 else "")
    return f"left out, since they cannot satisfy the request: {shown} ({next(iter(impossible.values()))})"


def possible_groups(request: SampleConfig, impossible: dict[int, str]) -> SampleConfig:
    """The same request, without the space groups that cannot meet it."""
    left = [i for i, group in enumerate(request.space_groups) if group not in impossible]
    weights = tuple(request.weights[i] for i in left) if request.weights else ()
    return dataclasses.replace(request, space_groups=tuple(request.space_groups[i] for i in left), weights=weights)


def space_group_of(request: SampleConfig, impossible: dict[int, str]) -> Callable[[int], int]:
    """The space group of a crystal by its number: in turn, or by weight; never an impossible one."""
    possible = [i for i, group in enumerate(request.space_groups) if group not in impossible]
    if not request.weights:
        groups = [request.space_groups[i] for i in possible]
        return lambda number: groups[number % len(groups)]
    return lambda number: _by_weight(request, possible, [request.seed, number])


def another_group(request: SampleConfig, impossible: dict[int, str]) -> Callable[[int, Sequence[int]], int | None]:
    """Where a crystal goes by its number once some space groups are exhausted: to the others in turn, or by weight."""
    weights = request.weights or (1.0,) * len(request.space_groups)
    possible = [i for i, group in enumerate(request.space_groups) if group not in impossible and weights[i]]

    def choose(number: int, exhausted: Sequence[int]) -> int | None:
        left = [i for i in possible if request.space_groups[i] not in exhausted]
        if not left:
            return None
        if request.weights:
            return _by_weight(request, left, [request.seed, number, len(exhausted)])
        # Of a group, every len(possible)-th crystal has come here.
        return request.space_groups[left[number // len(possible) % len(left)]]

    return choose


def _by_weight(request: SampleConfig, possible: Sequence[int], seed: list[int]) -> int:
    """Draws a space group by weight for given places of the request."""
    possible = [i for i in possible if request.weights[i]]
    shares = np.cumsum([request.weights[i] for i in possible])
    share = np.random.default_rng(seed).random() * shares[-1]
    return request.space_groups[possible[int(np.searchsorted(shares, share, side="right"))]]


def atomic_number(symbol: str) -> int:
    """The atomic number of a symbol.

    Raises:
        UsageError: if there is no such element.
    """
    if symbol not in SYMBOLS[1:]:
        raise UsageError(f"there is no element {symbol!r}", "write symbols as in the periodic table: La,Ni,O")
    return SYMBOLS.index(symbol)


def allowed_elements(request: SampleConfig, num_species: int) -> Bool[np.ndarray, " S"]:
    """What the element options leave.

    Raises:
        UsageError: if that is nothing, or not what the crystals are required to contain.
    """
    allowed = np.ones(num_species, bool)
    if request.elements:
        allowed[:] = False
        allowed[[atomic_number(symbol) for symbol in request.elements]] = True
    if not request.radioactive:
        allowed[list(RADIOACTIVE)] = False
    allowed[[atomic_number(symbol) for symbol in request.exclude]] = False
    needed = [*request.require, *(symbol for symbol, _ in request.formula)]
    for symbol in needed:
        if not allowed[atomic_number(symbol)]:
            raise UsageError(f"{symbol} is both requested and excluded", "see `elements`, `exclude` and `radioactive`")
    if request.formula:
        inside = [atomic_number(symbol) for symbol, _ in request.formula]
        for symbol in request.require:
            if atomic_number(symbol) not in inside:
                raise UsageError(f"{symbol} is required but not part of the formula", "a formula needs no `require`")
        if request.any_of and not {atomic_number(symbol) for symbol in request.any_of} & set(inside):
            raise UsageError(
                f"none of {', '.join(request.any_of)} is part of the formula", "a formula needs no `any_of`"
            )
        allowed &= np.isin(np.arange(num_species), inside)
    if request.any_of and not allowed[[atomic_number(symbol) for symbol in request.any_of]].any():
        raise UsageError(
            f"none of {', '.join(request.any_of)} is allowed", "see `any_of`, `elements`, `exclude` and `radioactive`"
        )
    if not allowed[1:].any():
        raise UsageError("the element options leave no element", "allow more with `elements`, or exclude fewer")
    return allowed


def build_constraints(request: SampleConfig, config: ModelConfig) -> Constraints:
    """What a request allows.

    Raises:
        UsageError: if it contradicts itself, or asks for more than the model's slots hold.
    """
    built = unconstrained(config)  # new arrays, which are narrowed in place
    built.allowed_species[:] = allowed_elements(request, config.num_species)
    for symbol, value in request.bias:
        built.species_bias[atomic_number(symbol)] = value
    built.required[[atomic_number(symbol) for symbol in request.require]] = True
    built.any_of[[atomic_number(symbol) for symbol in request.any_of]] = True
    if request.max_sites is not None:
        if len(request.template.letters) > request.max_sites:
            raise UsageError(
                f"the template has {len(request.template.letters)} sites, more than {request.max_sites}",
                "allow more with `max_sites`",
            )
        built.allowed_letters[request.max_sites :, 1:] = False
    _apply_template(request.template, built.allowed_letters, built.allowed_species, built.tied_to)
    prototype = _prototype(request.template, config.n_max)
    built = dataclasses.replace(built, max_atoms=_max_atoms(request, built), prototype=prototype)
    _check_room(request, built)
    if request.formula:
        counts = {atomic_number(symbol): count for symbol, count in request.formula}
        built = dataclasses.replace(built, formula=make_formula(counts, tuple(sorted(set(request.space_groups)))))
    return built


def _check_room(request: SampleConfig, built: Constraints) -> None:
    """Refuses elements that the sites cannot hold, each on a site of its own; tied sites are one."""
    if (needed := built.required.sum()) > built.max_sites:
        raise UsageError(
            f"{needed} required elements do not fit {built.max_sites} sites", "require fewer, or allow more sites"
        )
    wanted = {symbol: [atomic_number(symbol)] for symbol in request.require}
    if request.any_of and not (built.any_of & built.required).any():
        wanted[f"any of {', '.join(request.any_of)}"] = [atomic_number(symbol) for symbol in request.any_of]
    if not wanted:
        return
    sites = [site for site in np.unique(built.tied_to) if built.allowed_letters[site, 1:].any()]
    room = np.array([built.allowed_species[sites][:, numbers].any(1) for numbers in wanted.values()])
    for name, own in zip(wanted, room, strict=True):
        if not own.any():
            raise UsageError(f"no site can hold {name}", "allow it on a site of `sites`, or do not ask for it")
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    if maximum_bipartite_matching(csr_array(room), perm_type="column").min() < 0:
        raise UsageError(
            f"the sites cannot hold all of these together: {'; '.join(wanted)}", "require fewer, or allow more sites"
        )


def _max_atoms(request: SampleConfig, built: Constraints) -> Int[np.ndarray, "230"]:
    """Most atoms in the conventional cell of each space group."""
    if request.max_atoms is not None:
        return np.minimum(built.max_atoms, min(request.max_atoms, int(built.max_atoms.max()))).astype(np.int32)
    if not request.formula:
        return built.max_atoms
    return FORMULA_ATOMS * symmetry_table().lattice_points


def _apply_template(
    template: Template, letters: Bool[np.ndarray, "N W"], allowed: Bool[np.ndarray, "N S"], tied: Int[np.ndarray, " N"]
) -> None:
    """Narrows what the slots allow, in place, to a template."""
    num_slots = len(letters) - 1
    if max(len(template.letters), len(template.species)) > num_slots:
        raise UsageError(f"a template has at most {num_slots} sites")
    if template.letters and len(template.species) > len(template.letters):
        raise UsageError(
            f"species are given for {len(template.species)} sites, but there are {len(template.letters)} letters"
        )
    if template.frac_coords and len(template.frac_coords) != len(template.letters):
        raise UsageError(f"{len(template.frac_coords)} coordinates are given for {len(template.letters)} letters")
    for slot, letter in enumerate(template.letters):
        if letter not in LETTERS[1:] or len(letter) != 1:
            raise UsageError(f"{letter!r} is not a Wyckoff letter", "write `wyckoff=a,b,e`")
        letters[slot] = np.arange(letters.shape[1]) == LETTERS.index(letter)
    if list(template.letters) != sorted(template.letters, key=LETTERS.index):
        raise UsageError(
            "the letters of a template must not decrease", "write them from a to z, then A: `wyckoff=a,b,e`"
        )
    if template.letters:
        letters[len(template.letters) :, 1:] = False
    for slot, symbols in enumerate(template.species):
        if symbols:
            allowed[slot] &= np.isin(np.arange(allowed.shape[1]), [atomic_number(symbol) for symbol in symbols])
            if not allowed[slot].any():
                raise UsageError(f"no element is left for site {slot + 1}: {', '.join(symbols)}")
    for group in _merged(template.tied):
        if not all(0 <= site < num_slots for site in group):
            raise UsageError(f"there are no sites {group} to tie", "sites are counted from 0")
        common = np.logical_and.reduce([allowed[site] for site in group])
        if not common.any():
            raise UsageError(f"sites {', '.join(map(str, group))} are tied but have no element in common")
        for site in group:
            tied[site], allowed[site] = min(group), common


def _merged(groups: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
    """Groups of sites, those with a site in common as one."""
    merged: list[set[int]] = []
    for group in groups:
        common = [other for other in merged if other & set(group)]
        merged = [other for other in merged if other not in common] + [set(group).union(*common)]
    return [tuple(sorted(group)) for group in merged if group]


def _prototype(template: Template, n_max: int) -> Prototype | None:
    if not template.frac_coords and not template.lattice:
        return None
    coords, cell = np.zeros((n_max, 3), np.float32), np.ones(6, np.float32)
    if template.frac_coords:
        coords[: len(template.frac_coords)] = template.frac_coords
    if template.lattice:
        cell[:] = template.lattice
    return Prototype(coords, cell, np.bool_(bool(template.frac_coords)), np.bool_(bool(template.lattice)))


def why_impossible(constraints: Constraints, space_group: int) -> str | None:
    """Why no crystal of a space group can meet the constraints, or None if one can, as far as letters decide."""
    table = symmetry_table()
    last = int(table.last_letter[space_group - 1])
    size, fixed = table.multiplicity[space_group - 1], table.is_fixed[space_group - 1]
    name = f"space group {space_group}"
    given = [int(np.flatnonzero(row)[0]) for row in constraints.allowed_letters if row.sum() == 1 and not row[0]]
    for letter in given:
        if letter > last:
            return f"{name} has no Wyckoff letter {LETTERS[letter]} (its last is {LETTERS[last]})"
        if fixed[letter] and given.count(letter) > 1:
            return f"{name}: letter {LETTERS[letter]} has no free coordinate and can be taken only once"
    smallest = sum(int(size[letter]) for letter in given) or int(size[1 : last + 1].min())
    most = int(constraints.max_atoms[space_group - 1])
    if smallest > most:
        return f"{name} needs at least {smallest} atoms in its conventional cell, more than {most}"
    if constraints.formula is not None:
        counts = np.asarray(constraints.formula.counts)
        if counts.sum() > most:
            return f"{name} may have {most} atoms in its conventional cell, and the formula has {counts.sum()}"
        most = int(min(most, MOST_UNITS * counts.sum(), MOST_ATOMS * counts.sum() // counts.max()))
        if not _formula_can_be_met(constraints, space_group, most):
            limits = f"{constraints.max_sites} sites and {most} atoms in its conventional cell"
            return f"no combination of letters of {name} gives that composition within {limits}"
    return None


def _formula_can_be_met(constraints: Constraints, space_group: int, most: int) -> bool:
    """Looks for a way to spread letters over elements, slot by slot, as the decoder would, within `most` atoms."""
    formula = constraints.formula
    assert formula is not None, "asked of compositions only"
    table = symmetry_table()
    size, fixed = table.multiplicity[space_group - 1], table.is_fixed[space_group - 1]
    letters = np.asarray(constraints.allowed_letters)[:, : int(table.last_letter[space_group - 1]) + 1]
    fewest = np.asarray(formula.min_sites)[space_group - 1]

    @functools.cache
    def can_fill(missing: tuple[int, ...], slot: int, lowest: int) -> bool:
        """Whether letters from `lowest` on, in the slots from `slot` on, make the atoms missing of each element."""
        if not any(missing):
            return bool(letters[slot, 0])
        if sum(int(fewest[lowest, atoms]) for atoms in missing) > len(letters) - 1 - slot:
            return False
        for letter in range(lowest, letters.shape[1]):
            if not letters[slot, letter]:
                continue
            for i, atoms in enumerate(missing):
                left = sorted((*missing[:i], atoms - int(size[letter]), *missing[i + 1 :]))
                if left[0] >= 0 and can_fill(tuple(left), slot + 1, letter + bool(fixed[letter])):
                    return True
        return False

    counts = sorted(int(count) for count in formula.counts if count)
    return any(can_fill(tuple(units * count for count in counts), 0, 1) for units in range(1, most // sum(counts) + 1))
