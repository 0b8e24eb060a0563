"""Crystals of many known prototypes, drawn together: letters and elements are given, coordinates and lattice drawn.

A request has one template for all its crystals, and pays a batch of slots for it. Here every row of a batch has sites
of its own (`constraints.Sites`), so that a hundred prototypes take two batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from cfx.config import ModelConfig, SampleConfig
from cfx.core import Params
from cfx.core.composition import composition_vector
from cfx.core.elements import SYMBOLS
from cfx.core.known_prototypes import KnownPrototype
from cfx.core.network import TOKENS_PER_SITE
from cfx.core.symmetry import LETTERS, symmetry_table
from cfx.errors import UsageError
from cfx.sampling import decode, incremental
from cfx.sampling.constraints import Sites, unconstrained
from cfx.sampling.decode import Drawn
from cfx.sampling.policy import Policy, Sharpness, request_key
from cfx.sampling.pools import MIN_SLOTS, POOL_SITES, finish_rows
from cfx.sampling.sampler import judge

MAX_ATTEMPTS = 16
"""Draws of a prototype that fail before it is left out."""


@dataclass(frozen=True)
class PrototypeDraws(Drawn):
    """Crystals of prototypes (numpy), in the order in which they were asked for.

    Attributes:
        prototype: which of the prototypes each crystal has.
    """

    prototype: Int[np.ndarray, " B"]


def given_sites(prototypes: Sequence[KnownPrototype], num_slots: int) -> Sites:
    """Letters and atomic numbers of prototypes, one a row (numpy).

    Raises:
        UsageError: if a prototype has more sites than the model draws.
    """
    letters, species = np.zeros((2, len(prototypes), num_slots), np.int32)
    for row, prototype in enumerate(prototypes):
        if (count := len(prototype.letters)) >= num_slots:
            raise UsageError(f"a prototype has {count} sites, and the model draws at most {num_slots - 1}")
        letters[row, :count] = [LETTERS.index(letter) for letter in prototype.letters]
        species[row, :count] = [SYMBOLS.index(symbol) for symbol in prototype.species]
    return Sites(letters, species)


def draw_prototypes(
    params: Params,
    config: ModelConfig,
    prototypes: Sequence[KnownPrototype],
    n_each: int = 1,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    min_distance: float = 0.0,
) -> PrototypeDraws:
    """Draws crystals of known prototypes, which take turns: number i has prototype i modulo how many there are.

    A crystal depends on the model, its prototype, its number, the seed and the sharpness, not on what is drawn beside
    it. Draws that fail, as a request's would, are repeated; after MAX_ATTEMPTS the crystal is left out.

    Args:
        params: of the model.
        config: of the model.
        prototypes: what to draw.
        n_each: crystals of each.
        seed: the same seed gives the same crystals.
        temperature: of all draws; letters and elements are given.
        top_p: likewise.
        min_distance: smallest distance between atoms, angstrom.

    Raises:
        UsageError: for values out of range, or a prototype that does not fit the model.
    """
    total = n_each * len(prototypes)
    request = SampleConfig(
        space_groups=(1,), n=max(total, 1), seed=seed, temperature=temperature, top_p=top_p, min_distance=min_distance
    )
    sharpness = Sharpness(np.float32(temperature), np.float32(top_p))
    batches = _Batches(params, config, prototypes, request_key(seed), sharpness)
    found: dict[int, Drawn] = {}
    for attempt in range(MAX_ATTEMPTS):
        missing = [number for number in range(total) if number not in found]
        # Crystals of equal length together: a batch takes as many steps as its longest crystal has sites.
        missing.sort(key=lambda number: len(prototypes[number % len(prototypes)].letters))
        for first in range(0, len(missing), MIN_SLOTS):
            numbers = missing[first : first + MIN_SLOTS]
            drawn = batches.draw(numbers, attempt)
            sites = jax.tree.map(lambda leaf, rows=numbers: leaf[np.array(rows) % len(prototypes)], batches.sites)
            reasons = judge(request, replace(unconstrained(config), sites=sites), drawn)
            for row, (number, reason) in enumerate(zip(numbers, reasons, strict=True)):
                if reason is None:
                    found[number] = jax.tree.map(lambda leaf, i=row: leaf[i : i + 1], drawn)
    numbers = sorted(found)
    empty = jax.tree.map(lambda leaf: np.asarray(leaf)[:0], decode.idle_slots(config, 1, 1).drawn)
    drawn = jax.tree.map(lambda *leaves: np.concatenate(leaves), empty, *(found[number] for number in numbers))
    which = np.array(numbers, int) % max(len(prototypes), 1)
    return PrototypeDraws(drawn.crystals, drawn.log_prob, drawn.policy_log_prob, which)


def _compositions(prototypes: Sequence[KnownPrototype], num_species: int) -> Float[np.ndarray, "P S"]:
    """What a network is told of each prototype, if it has a composition as input."""
    sizes = symmetry_table().multiplicity
    rows = []
    for one in prototypes:
        counts = {number: int(sizes[one.space_group - 1, list(own)].sum()) for number, own in one.occupation}
        rows.append(composition_vector(counts, num_species))
    return np.array(rows, np.float32).reshape(len(rows), num_species)


class _Batches:
    """Draws batches whose rows have prototypes of their own."""

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        prototypes: Sequence[KnownPrototype],
        rng_key: Key[Array, ""],
        sharpness: Sharpness,
    ):
        """Prepares the weights."""
        self.config, self.rng_key, self.sharpness = config, rng_key, sharpness
        self.sites = given_sites(prototypes, config.n_max)
        self.space_group = np.array([prototype.space_group for prototype in prototypes], np.int32)
        self.num_sites = (self.sites.letters > 0).sum(1)
        self.told = None if config.composition == "none" else _compositions(prototypes, config.num_species)
        with jax.default_matmul_precision("float32"):
            self.weights = jax.jit(incremental.prepare, static_argnums=1)(params, config)

    def draw(self, numbers: Sequence[int], attempt: int) -> Drawn:
        """One attempt at up to MIN_SLOTS crystals, in their order (numpy)."""
        with jax.default_matmul_precision("float32"):  # by itself JAX would take less on some GPUs
            return self._draw(np.array([*numbers] + [numbers[0]] * (MIN_SLOTS - len(numbers))), len(numbers), attempt)

    def _draw(self, numbers: np.ndarray, count: int, attempt: int) -> Drawn:
        own = numbers % len(self.space_group)
        plain = unconstrained(self.config)
        sites = jax.tree.map(lambda leaf: leaf[own], self.sites)
        told = None if self.told is None else self.told[own]
        policy = Policy(replace(plain, sites=sites), self.sharpness, told)
        common = (self.weights, self.config)
        most = int(self.num_sites[own].max())
        capacity = next((sites for sites, _ in POOL_SITES if most <= sites), self.config.n_max - 1)
        every = np.arange(MIN_SLOTS, dtype=np.int32)
        first = decode.start(
            *common,
            self.rng_key,
            numbers.astype(np.uint32),
            np.full(MIN_SLOTS, attempt, np.uint32),
            self.space_group[own],
            policy,
        )
        slots = decode.idle_slots(self.config, MIN_SLOTS, min(capacity, self.config.n_max - 1) * TOKENS_PER_SITE + 1)
        slots = decode.take_over(slots, first, every, every)
        parts: list[Drawn] = []
        rows: list[int] = []  # finished, in the order of parts
        while len(rows) < count:
            slots, is_finished = decode.advance(*common, slots, policy)
            done = np.asarray(is_finished)
            new = [row for row in range(count) if done[row] and row not in rows]
            if new:
                parts.append(finish_rows(self.config, slots, new, Policy(plain, self.sharpness)))
                rows += new
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[np.argsort(rows)], *parts)
