"""The published log-probability of crystals under a model (2403.15734, Eq. 1)."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
from jax.scipy.special import i0e, logsumexp
from jaxtyping import Array, Bool, Float, Int, Key

from cfx.config import ModelConfig
from cfx.core import AnyArray, Params, heads, lattice, network
from cfx.core.batches import num_tokens
from cfx.core.composition import compositions
from cfx.core.crystal import CrystalBatch
from cfx.core.symmetry import symmetry_table


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LogProb:
    """Log-probabilities of crystals in nats, by what they are the probability of."""

    wyckoff: Float[AnyArray, " B"]
    species: Float[AnyArray, " B"]
    coords: Float[AnyArray, " B"]
    lattice: Float[AnyArray, " B"]

    @property
    def total(self) -> Float[AnyArray, " B"]:
        """The log-probability of whole crystals: the sum of the parts, nats [B]."""
        return self.wyckoff + self.species + self.coords + self.lattice

    def parts(self) -> dict[str, Float[AnyArray, " B"]]:
        """The parts of the log-probability by name, see `PARTS`: nats [B] each."""
        return {name: getattr(self, name) for name in PARTS}


PARTS = tuple(field.name for field in dataclasses.fields(LogProb))
"""What a log-probability, a loss and an entropy are the sum of: wyckoff, species, coords, lattice."""


class OutputRows(NamedTuple):
    """Raw rows of the network over whole crystals; see `heads` for their meaning.

    Attributes:
        first: for the first letter.
        rows: T = 5 N - 4 of them; row 5 i follows the letter of slot i.
        composition: what the network was told, if it has a composition as input.
    """

    first: Float[Array, "B W"]
    rows: Float[Array, "B T output_size"]
    composition: Float[Array, "B S"] | None = None

    def after(self, kind: str) -> Float[Array, "B slots output_size"]:
        """Rows after the tokens of a kind: N after letters, N - 1 after others, which the last slot does not have."""
        # Tokens of a kind are TOKENS_PER_SITE apart: a strided slice, where an index would gather.
        return self.rows[:, network.TOKEN_KINDS.index(kind) :: network.TOKENS_PER_SITE]

    def for_lattice(self, batch: CrystalBatch) -> Float[Array, "B output_size"]:
        """Rows after the letter of the first pad, which predict the lattice."""
        return jnp.take_along_axis(self.after("letter"), batch.num_sites[:, None, None], axis=1)[:, 0]

    def species_logits(self, batch: CrystalBatch, num_species: int) -> Float[Array, "B N S"]:
        """Log-probabilities of the species of all slots."""
        told = None if self.composition is None else self.composition[:, None]
        return heads.species_logits(self.after("letter"), batch.wyckoff, num_species, told)


def output_rows(
    params: Params,
    config: ModelConfig,
    batch: CrystalBatch,
    rng_key: Key[Array, ""] | None = None,
    dropout: network.Dropout = network.NO_DROPOUT,
    composition: Float[AnyArray, "*B S"] | None = None,
) -> OutputRows:
    """Raw output rows of a batch whose crystals leave their last slot to a pad.

    The tokens after the last slot's letter predict nothing that is used, and are not computed.

    Args:
        batch: B crystals.
        dropout: rates.
        composition: what the network is told, if it has a composition as input: by default each crystal's own.
    """
    return hk.transform(lambda: _forward(config, batch, dropout, composition)).apply(params, rng_key)


def _forward(
    config: ModelConfig, batch: CrystalBatch, dropout: network.Dropout, composition: Float[AnyArray, "*B S"] | None
) -> OutputRows:
    told = _told(config, batch, composition)
    tokens = network.embed_sites(
        config, batch.space_group, batch.wyckoff, batch.multiplicity, batch.species, batch.frac_coords, told
    )[:, : num_tokens(batch.num_slots)]
    first = network.first_letter(config, batch.space_group, told)
    return OutputRows(first, network.transformer(config, tokens, dropout), told)


def _told(
    config: ModelConfig, batch: CrystalBatch, composition: Float[AnyArray, "*B S"] | None
) -> Float[Array, "B S"] | None:
    """The compositions that the network is told of, if any."""
    if config.composition == "none":
        return None
    if composition is None:
        return compositions(batch, config.num_species)
    return jnp.broadcast_to(jnp.asarray(composition), (len(batch), config.num_species))


def space_group_log_prob(
    params: Params, config: ModelConfig, composition: Float[AnyArray, "B S"]
) -> Float[Array, "B 230"]:
    """log p(space group | composition) of a model that has a composition as input, nats, for groups 1 to 230."""
    raw = hk.transform(lambda: network.space_group(config, composition)).apply(params, None)
    return jax.nn.log_softmax(raw)


def init_params(config: ModelConfig, rng_key: Key[Array, ""]) -> Params:
    """Random weights of a network."""
    one = jnp.ones((1, 2), jnp.int32)
    batch = CrystalBatch(one[:, 0], jnp.ones((1, 6)), jnp.zeros((1, 2, 3)), one, one)

    def everything() -> None:
        rows = _forward(config, batch, network.NO_DROPOUT, None)
        if rows.composition is not None:
            network.space_group(config, rows.composition)

    return jax.jit(hk.transform(everything).init)(rng_key)


def log_prob(
    params: Params,
    config: ModelConfig,
    batch: CrystalBatch,
    rng_key: Key[Array, ""] | None = None,
    dropout: network.Dropout = network.NO_DROPOUT,
    composition: Float[AnyArray, "*B S"] | None = None,
) -> LogProb:
    """Published log-probability of each crystal in its space group, nats.

    Args:
        batch: B crystals; the last slot of each must be a pad.
        dropout: rates; none outside training.
        composition: what it is given, if the model has a composition as input: by default each crystal's own.
    """
    raw = output_rows(params, config, batch, rng_key, dropout, composition)
    free = jnp.asarray(symmetry_table().free_mask)[batch.space_group[:, None] - 1, batch.wyckoff]
    model_frame = lattice.to_model_frame(batch.lattice, batch.num_atoms, jnp)
    return LogProb(
        wyckoff=_letters_log_prob(raw, config, batch),
        species=pick(raw.species_logits(batch, config.num_species), batch.species).sum(1),
        coords=coords_log_prob(raw, config, batch, free),
        lattice=lattice_log_prob(heads.lattice_mixture(raw.for_lattice(batch), config), model_frame, batch.space_group),
    )


def pick(log_probs: Float[AnyArray, "... n"], index: Int[AnyArray, "..."]) -> Float[Array, "..."]:
    """The log-probabilities at `index`."""
    return jnp.take_along_axis(log_probs, index[..., None], axis=-1)[..., 0]


def _letters_log_prob(raw: OutputRows, config: ModelConfig, batch: CrystalBatch) -> Float[Array, " B"]:
    first_logits = heads.first_letter_logits(raw.first, batch.space_group)
    next_logits = heads.next_letter_logits(
        raw.after("z"), batch.space_group[:, None], batch.wyckoff[:, :-1], config.num_letters
    )
    return pick(first_logits, batch.wyckoff[:, 0]) + pick(next_logits, batch.wyckoff[:, 1:]).sum(1)


def coords_log_prob(
    raw: OutputRows,
    config: ModelConfig,
    batch: CrystalBatch,
    counted: Bool[Array, "B N 3"],
    adapt: Callable[[heads.VonMisesMixture, str], heads.VonMisesMixture] = lambda mixture, token: mixture,
) -> Float[Array, " B"]:
    """Log-density, in the angles, of coordinates.

    Args:
        counted: the coordinates that count.
        adapt: what is done to each mixture of the model; it is given the token that the mixture comes after, too.
    """

    def along(axis: int, token_before: str) -> Float[Array, " B"]:
        mixture = adapt(heads.coordinate_mixture(raw.after(token_before), config), token_before)
        # Slots before the last: that one is a pad, and its rows are not computed.
        density = von_mises_log_prob(mixture, batch.frac_coords[:, :-1, axis])
        return jnp.where(counted[:, :-1, axis], density, 0.0).sum(1)

    return along(0, "species") + along(1, "x") + along(2, "y")


def lattice_log_prob(
    mixture: heads.LatticeMixture, model_frame: Float[Array, "B 6"], space_group: Int[AnyArray, " B"]
) -> Float[Array, " B"]:
    """Log-density of the free parameters of lattices in the model frame; dimensions are independent."""
    free = jnp.asarray(lattice.FREE_DIMENSIONS)[lattice.crystal_family(space_group)]
    return jnp.where(free, normal_log_prob(mixture, model_frame), 0.0).sum(1)


def von_mises_log_prob(mixture: heads.VonMisesMixture, x: Float[AnyArray, "..."]) -> Float[Array, "..."]:
    """Log-density, in the angle, of fractional coordinates x."""
    angle = 2 * jnp.pi * (x[..., None] - 0.5) - mixture.loc
    deviation = -2.0 * jnp.sin(angle / 2) ** 2  # cos - 1, without the cancellation
    # i0e(kappa) is I0(kappa) exp(-kappa): the other half of that subtraction, and finite at any concentration.
    component = mixture.kappa * deviation - jnp.log(2 * jnp.pi * i0e(mixture.kappa))
    return logsumexp(mixture.logits + component, axis=-1)


def normal_log_prob(mixture: heads.LatticeMixture, value: Float[AnyArray, "... 6"]) -> Float[Array, "... 6"]:
    """Log-density of each lattice parameter on its own."""
    return logsumexp(mixture.logits[..., None] + normal_components(mixture, value), axis=-2)


def normal_components(mixture: heads.LatticeMixture, value: Float[AnyArray, "... 6"]) -> Float[Array, "... C 6"]:
    """Log-density of lattice parameters under each component by itself."""
    z = (value[..., None, :] - mixture.mean) / mixture.sigma
    return -0.5 * z**2 - jnp.log(mixture.sigma) - 0.5 * jnp.log(2 * jnp.pi)
