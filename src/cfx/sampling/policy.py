"""The distributions that crystals are drawn from, the model's under a request's constraints and sharpness, and draws.

The published log-probability (`likelihood`) is what training minimises. The policy's is the exact one of what the
decoder draws (2504.02367, Section "Method"; where the two differ is said in docs/science.md): coordinates
tied to another one are not drawn, the lattice comes from one component for all six parameters, and masks, biases,
temperature and top-p are in force. A step with one possible outcome contributes zero.

Draws take one key a row. A row's draw depends on its own key and on nothing else in the batch, so that a crystal is the
same in a batch of 7 and in one of 256.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, Int, Int32, Integer, Key

from cfx.config import ModelConfig
from cfx.core import AnyArray, Params, heads, lattice
from cfx.core.crystal import CrystalBatch
from cfx.core.likelihood import LogProb, OutputRows, coords_log_prob, normal_components, output_rows, pick
from cfx.core.symmetry import symmetry_table, wrap
from cfx.sampling.constraints import Constraints, Prefix, letter_mask, prefixes, species_mask


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sharpness:
    """How far draws leave the model; scalars, (1, 1) is the model itself.

    Attributes:
        temperature: T divides logits and concentrations and multiplies standard deviations by sqrt(T).
        top_p: every categorical draw keeps the smallest set of entries that reaches this share of the untempered
            probability, one at least.
    """

    temperature: Float[AnyArray, ""] | float = 1.0
    top_p: Float[AnyArray, ""] | float = 1.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Policy:
    """What a request makes of the model's distributions.

    Attributes:
        constraints: what is allowed.
        sharpness: how far draws leave the model.
        composition: what the network is told, if it has a composition as input: of all crystals, or of each.
    """

    constraints: Constraints
    sharpness: Sharpness
    composition: Float[AnyArray, "*B S"] | None = None


def restrict_letters(
    policy: Policy,
    log_probs: Float[AnyArray, "... W"],
    space_group: Int[AnyArray, "..."],
    before: Prefix,
    kept: Bool[AnyArray, "... W"] | bool = True,
) -> Float[Array, "... W"]:
    """Log-probabilities of the next letter, from the model's own, among those `kept`; a dead end is the pad."""
    mask = letter_mask(policy.constraints, space_group, before)
    return _restrict(policy.sharpness, log_probs, mask & kept)


def restrict_species(
    policy: Policy,
    log_probs: Float[AnyArray, "... S"],
    crystals: CrystalBatch,
    before: Prefix,
    letter: Int[AnyArray, " B"] | Int[AnyArray, "B N"],
    kept: Bool[AnyArray, "... S"] | bool = True,
) -> Float[Array, "... S"]:
    """Log-probabilities of one site's or of all sites species, from the model's own, among those `kept`.

    A pad's is the pad.
    """
    group, drawn = crystals.space_group, crystals.species
    if letter.ndim == 2:
        group, drawn = group[:, None], drawn[:, None]
    mask = species_mask(policy.constraints, group, before, letter, drawn) | (letter == 0)[..., None]
    return _restrict(policy.sharpness, log_probs + jnp.asarray(policy.constraints.species_bias), mask & kept)


def _restrict(
    sharpness: Sharpness, log_probs: Float[AnyArray, "... n"], mask: Bool[AnyArray, "... n"]
) -> Float[Array, "... n"]:
    possible = mask & (log_probs > -jnp.inf)
    dead_end = ~possible.any(-1, keepdims=True)
    is_pad = jnp.arange(log_probs.shape[-1]) == 0
    return sharpen(
        jnp.where(dead_end, jnp.where(is_pad, 0.0, -jnp.inf), heads.normalise(log_probs, possible)), sharpness
    )


def sharpen_coordinate(
    policy: Policy, mixture: heads.VonMisesMixture, kept: Bool[AnyArray, "... C"] | bool = True
) -> heads.VonMisesMixture:
    """The mixture that a coordinate is drawn from, of the components `kept`."""
    logits = sharpen(_among(mixture.logits, kept), policy.sharpness)
    return mixture._replace(logits=logits, kappa=mixture.kappa / policy.sharpness.temperature)


def sharpen_lattice(
    policy: Policy, mixture: heads.LatticeMixture, kept: Bool[AnyArray, "... C"] | bool = True
) -> heads.LatticeMixture:
    """The mixture that a lattice is drawn from, of the components `kept`."""
    logits = sharpen(_among(mixture.logits, kept), policy.sharpness)
    return mixture._replace(logits=logits, sigma=mixture.sigma * jnp.sqrt(policy.sharpness.temperature))


def _among(log_probs: Float[AnyArray, "... n"], kept: Bool[AnyArray, "... n"] | bool) -> Float[AnyArray, "... n"]:
    return log_probs if kept is True else jnp.where(kept, log_probs, -jnp.inf)


def sharpen(log_probs: Float[AnyArray, "... n"], sharpness: Sharpness) -> Float[Array, "... n"]:
    """Log-probabilities after top-p and temperature, normalised."""

    def keep(log_probs: Float[Array, "... n"]) -> Float[Array, "... n"]:
        return nucleus(log_probs, sharpness.top_p)

    # A branch at run time: without top-p, which is the rule, nothing is sorted.
    kept = jax.lax.cond(jnp.asarray(sharpness.top_p) < 1, keep, lambda log_probs: log_probs, log_probs)
    # Below the likeliest entry, whose zero is exact: at low temperatures a rounding step of a logit is a large number.
    likeliest = jnp.arange(kept.shape[-1]) == kept.argmax(-1, keepdims=True)
    below = jnp.minimum((kept - kept.max(-1, keepdims=True)) / sharpness.temperature, 0.0)
    below = jnp.where(likeliest, 0.0, below)
    return below - jnp.log(jnp.exp(below).sum(-1, keepdims=True))


def nucleus(log_probs: Float[AnyArray, "... n"], top_p: Float[AnyArray, ""] | float) -> Float[Array, "... n"]:
    """Log-probabilities with all but the likeliest entries that reach `top_p` set to -inf."""
    ordered = jnp.sort(log_probs, axis=-1, descending=True)
    probs = jnp.exp(ordered)
    # An entry stays if those before it do not reach top_p: so the one that reaches it stays, and the first always.
    num_kept = (jnp.cumsum(probs, axis=-1) - probs < top_p).sum(-1, keepdims=True)
    least = jnp.take_along_axis(ordered, jnp.maximum(num_kept - 1, 0), axis=-1)
    above, equal = log_probs > least, log_probs == least
    room = num_kept - above.sum(-1, keepdims=True)  # for entries as likely as the last one kept
    return jnp.where(above | (equal & (jnp.cumsum(equal, axis=-1) <= room)), log_probs, -jnp.inf)


def joint_lattice_log_prob(
    mixture: heads.LatticeMixture, model_frame: Float[AnyArray, "B 6"], space_group: Int[AnyArray, " B"]
) -> Float[Array, " B"]:
    """Log-density of the free parameters of lattices in the model frame; one component makes all of them."""
    free = jnp.asarray(lattice.FREE_DIMENSIONS)[lattice.crystal_family(space_group)]
    each = normal_components(mixture, model_frame)
    return logsumexp(mixture.logits + jnp.where(free[:, None], each, 0.0).sum(-1), axis=-1)


def policy_log_prob(
    params: Params, config: ModelConfig, batch: CrystalBatch, policy: Policy, keeping: Params | None = None
) -> LogProb:
    """Log-probability of drawing each crystal, nats, in the order of its sites.

    Args:
        batch: B crystals as drawn; the last slot of each is a pad.
        policy: what was in force.
        keeping: weights that drew the crystals: what top-p keeps in each draw is what it kept then, whatever `params`
            are, so that both have one support; by default `params`.
    """
    constraints, raw = policy.constraints, output_rows(params, config, batch, composition=policy.composition)
    before, group = prefixes(batch, config.num_species), batch.space_group
    kept = _Kept()
    if keeping is not None:
        drawn_by = output_rows(keeping, config, batch, composition=policy.composition)
        kept = _kept(jax.lax.stop_gradient(drawn_by), config, batch, policy, before)
        policy = replace(policy, sharpness=replace(policy.sharpness, top_p=1.0))
    letter_log_probs = restrict_letters(policy, _letters(raw, config, batch), group[:, None], before, kept.letters)
    num_drawn = batch.num_sites + 1  # letters: those of the sites, and the first pad
    is_drawn = jnp.arange(batch.num_slots) < num_drawn[:, None]
    species_logits = raw.species_logits(batch, config.num_species)
    species_log_probs = restrict_species(policy, species_logits, batch, before, batch.wyckoff, kept.species)
    drawn_coords = jnp.asarray(symmetry_table().drawn_mask)[group[:, None] - 1, batch.wyckoff]
    drawn_coords &= ~_keeps(constraints, "keep_coords")
    model_frame = lattice.to_model_frame(batch.lattice, batch.num_atoms, jnp)
    lattice_mixture = heads.lattice_mixture(raw.for_lattice(batch), config)
    lattice_log_prob = joint_lattice_log_prob(
        sharpen_lattice(policy, lattice_mixture, kept.lattice), model_frame, group
    )

    def sharpened(mixture: heads.VonMisesMixture, token_before: str) -> heads.VonMisesMixture:
        return sharpen_coordinate(policy, mixture, kept.coords.get(token_before, True))

    return LogProb(
        wyckoff=jnp.where(is_drawn, pick(letter_log_probs, batch.wyckoff), 0.0).sum(1),
        species=jnp.where(batch.wyckoff > 0, pick(species_log_probs, batch.species), 0.0).sum(1),
        coords=coords_log_prob(raw, config, batch, drawn_coords, sharpened),
        lattice=jnp.where(_keeps(constraints, "keep_lattice"), 0.0, lattice_log_prob),
    )


class _Kept(NamedTuple):
    """What top-p keeps in the draws of B crystals.

    Attributes:
        letters: at each site, or True for all.
        species: likewise.
        coords: components of the mixture after a token, by the name of that.
        lattice: components.
    """

    letters: Bool[AnyArray, "B N W"] | bool = True
    species: Bool[AnyArray, "B N S"] | bool = True
    coords: Mapping[str, Bool[AnyArray, "B slots C"]] = {}
    lattice: Bool[AnyArray, "B C"] | bool = True


def _kept(raw: OutputRows, config: ModelConfig, batch: CrystalBatch, policy: Policy, before: Prefix) -> _Kept:
    """What a policy keeps, by the rows of the network that drew the crystals."""
    letters = restrict_letters(policy, _letters(raw, config, batch), batch.space_group[:, None], before)
    species_logits = raw.species_logits(batch, config.num_species)
    species = restrict_species(policy, species_logits, batch, before, batch.wyckoff)
    mixtures = {token: heads.coordinate_mixture(raw.after(token), config) for token in ("species", "x", "y")}
    lattice_mixture = sharpen_lattice(policy, heads.lattice_mixture(raw.for_lattice(batch), config))

    def with_drawn(log_probs: Float[Array, "B N n"], drawn: Int[AnyArray, "B N"]) -> Bool[Array, "B N n"]:
        # The decoder's last digits are others: at the edge it may have kept what is left out here.
        return (log_probs > -jnp.inf) | (jnp.arange(log_probs.shape[-1]) == drawn[..., None])

    return _Kept(
        letters=with_drawn(letters, batch.wyckoff),
        species=with_drawn(species, batch.species),
        coords={token: sharpen_coordinate(policy, one).logits > -jnp.inf for token, one in mixtures.items()},
        lattice=lattice_mixture.logits > -jnp.inf,
    )


def _letters(raw: OutputRows, config: ModelConfig, batch: CrystalBatch) -> Float[Array, "B N W"]:
    """The model's log-probabilities of the letter of each slot."""
    group = batch.space_group
    following = heads.next_letter_logits(raw.after("z"), group[:, None], batch.wyckoff[:, :-1], config.num_letters)
    return jnp.concatenate([heads.first_letter_logits(raw.first, group)[:, None], following], axis=1)


def _keeps(constraints: Constraints, what: str) -> Bool[Array, ""]:
    """Whether the request keeps the prototype's coordinates or lattice."""
    return jnp.asarray(False if constraints.prototype is None else getattr(constraints.prototype, what))


_WIDTH = 119


def draw_categorical(keys: Key[Array, " B"], log_probs: Float[Array, "B n"]) -> Int32[Array, " B"]:
    """Draws from log-probabilities."""
    # Letters, species and components are filled up to one width, so that all of them share one trace.
    empty = max(_WIDTH - log_probs.shape[-1], 0)
    return _categorical(keys, jnp.pad(log_probs, ((0, 0), (0, empty)), constant_values=-jnp.inf))


@jax.jit
def _categorical(keys: Key[Array, " B"], log_probs: Float[Array, "B n"]) -> Int32[Array, " B"]:
    return jax.vmap(jax.random.categorical)(keys, log_probs).astype(jnp.int32)


def draw_coordinate(keys: Key[Array, " B"], mixture: heads.VonMisesMixture) -> Float[Array, " B"]:
    """Draws fractional coordinates in [0, 1)."""
    component_keys, angle_keys = split_each(keys, 2)
    component = draw_categorical(component_keys, mixture.logits)[:, None]
    loc = jnp.take_along_axis(mixture.loc, component, axis=1)[:, 0]
    kappa = jnp.take_along_axis(mixture.kappa, component, axis=1)[:, 0]
    return wrap((loc + von_mises(angle_keys, kappa)) / (2 * jnp.pi) + 0.5, jnp)


def draw_lattice(keys: Key[Array, " B"], mixture: heads.LatticeMixture) -> Float[Array, "B 6"]:
    """Draws lattices in the model frame; one component serves all six parameters."""
    component_keys, value_keys = split_each(keys, 2)
    component = draw_categorical(component_keys, mixture.logits)[:, None, None]
    mean = jnp.take_along_axis(mixture.mean, component, axis=1)[:, 0]
    sigma = jnp.take_along_axis(mixture.sigma, component, axis=1)[:, 0]
    return mean + sigma * jax.vmap(lambda key: jax.random.normal(key, (6,), mean.dtype))(value_keys)


def von_mises(keys: Key[Array, " B"], kappa: Float[Array, " B"]) -> Float[Array, " B"]:
    """Draws angles in [-pi, pi] around 0 with concentrations kappa, by rejection (Best and Fisher 1979).

    Written in u = 1 - cos, which keeps float32 exact at any concentration.
    """
    kappa = jnp.clip(kappa, 1e-6, 1e15)  # uniform below, a point above, to the precision of float32
    root = jnp.sqrt(1 + 4 * kappa**2)
    r = 1 + root
    one_minus_rho = (jnp.sqrt(2 * r) - 1 - 1 / (2 * kappa + root)) / (2 * kappa)
    # Best and Fisher's r less 1, by a form without a difference of nearly equal numbers at either end.
    excess = jnp.where(kappa > 0.1, one_minus_rho**2 / (2 * (1 - one_minus_rho)), 1 / kappa - 1)

    def propose(state):
        attempt, angle, accepted = state
        uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, attempt), (3,), kappa.dtype))(keys)
        u = 2 * jnp.sin(jnp.pi / 2 * uniform[:, 0]) ** 2
        versine = excess * u / (excess + 2 - u)
        y = kappa * (excess + versine)
        # A concentration that is nan accepts at once, and gives nan: rejection would never end.
        fits = (jnp.log(y / uniform[:, 1]) + 1 - y >= 0) | jnp.isnan(y)
        new = jnp.sign(uniform[:, 2] - 0.5) * 2 * jnp.arcsin(jnp.sqrt(jnp.clip(versine / 2, 0, 1)))
        new = jnp.where(jnp.isnan(y), jnp.nan, new)
        return attempt + 1, jnp.where(accepted, angle, new), accepted | fits

    state = (jnp.zeros((), jnp.int32), jnp.zeros_like(kappa), jnp.zeros(kappa.shape, bool))
    return jax.lax.while_loop(lambda state: ~state[-1].all(), propose, state)[1]


def request_key(seed: int) -> Key[Array, ""]:
    """jax.random.key(seed), without dropping the upper half of a seed beyond 32 bits."""
    return jax.random.wrap_key_data(jnp.asarray(np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)))


def crystal_keys(
    rng_key: Key[Array, ""], number: Integer[AnyArray, " B"], attempt: Integer[AnyArray, " B"]
) -> Key[Array, " B"]:
    """Keys of attempts at the crystals of a request, by their numbers."""
    # Two folds: a fold takes 32 bits, too few for a number and an attempt in one.
    return fold_each(jax.vmap(jax.random.fold_in, (None, 0))(rng_key, number), attempt)


def fold_each(keys: Key[Array, " B"], data: Integer[AnyArray, " B"] | Integer[AnyArray, ""] | int) -> Key[Array, " B"]:
    """Keys with a number folded into each: its own, or one for all."""
    return jax.vmap(jax.random.fold_in, (0, 0 if jnp.ndim(data) else None))(keys, data)


def split_each(keys: Key[Array, " B"], num: int) -> list[Key[Array, " B"]]:
    """Keys as `num` arrays of keys."""
    return list(jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, num))(keys), 1, 0))
