"""The CrystalFormer transformer: the forward pass of training and scoring (2403.15734, Section "Transformer").

A crystal is the token sequence W_0 A_0 X_0 Y_0 Z_0 W_1 ...; the output row of a token predicts the next one. The
decoder runs the same network a token at a time: `incremental`.

Values are not projected one by one: the attention-weighted sum of the layer's inputs, projected once, equals the sum of
projected values, and the input is num_heads * key_size / model_size times narrower (16 times in the published
configuration). The projections of values and output are multiplied first, which saves another quarter of the products.
"""

from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Shaped

from cfx.config import ModelConfig
from cfx.core import AnyArray, Params
from cfx.core.composition import is_given
from cfx.errors import CheckpointError

TOKEN_KINDS = ("letter", "species", "x", "y", "z")
"""The tokens of a site, in order."""

TOKENS_PER_SITE = len(TOKEN_KINDS)

NORM_EPSILON = 1e-5
"""Added to the variance in a layer norm."""

EXACT = jax.lax.Precision.HIGHEST
"""Precision of the products that make logits: float32, where those inside the network may be bfloat16."""


class Dropout(NamedTuple):
    """Rates in force during training: after attention and after the MLP, and on the attention weights."""

    residual: float = 0.0
    attention: float = 0.0


NO_DROPOUT = Dropout()


def space_group(config: ModelConfig, composition: Float[AnyArray, "B S"]) -> Float[Array, "B 230"]:
    """Raw logits of the space group of a composition (2512.18251), for models that have one as input."""
    hidden = jax.nn.gelu(_linear(config.first_hidden, "group_hidden")(_composition_embedding(config, composition)))
    return _linear(230, "group_output")(hidden, precision=EXACT)


def first_letter(
    config: ModelConfig, space_group: Int[AnyArray, " B"], composition: Float[AnyArray, "*B S"] | None = None
) -> Float[Array, "B W"]:
    """Raw logits of the first letter; they come from the space group and the composition alone."""
    condition = _condition(config, space_group, composition)
    hidden = jax.nn.gelu(_linear(config.first_hidden, "first_hidden")(condition))
    return _linear(config.num_letters, "first_output")(hidden, precision=EXACT)


def embed_token(
    config: ModelConfig,
    kind: str,
    space_group: Int[AnyArray, "..."],
    value: Shaped[AnyArray, "..."],
    multiplicity: Int[AnyArray, "..."] | None = None,
    composition: Float[AnyArray, "... S"] | None = None,
) -> Float[Array, "... D"]:
    """Tokens of one kind, embedded.

    Args:
        kind: one of TOKEN_KINDS.
        space_group: 1 to 230, broadcast to `value`.
        value: letter, atomic number or fractional coordinate.
        multiplicity: of the letter; for letters only.
        composition: broadcast to `value`; see `core.composition`. Only for models that have one as input.
    """
    condition = _condition(config, jnp.broadcast_to(space_group, value.shape), composition)
    if multiplicity is not None:
        table = _embedding("letter", config.num_letters, config.embed_size)
        features = [table[value], multiplicity[..., None].astype(condition.dtype)]
    elif kind == "species":
        features = [_embedding("species", config.num_species, config.embed_size)[value]]
    else:
        features = [fourier_features(value, config.num_frequencies)]
    return _linear(config.model_size, f"token_{kind}")(jnp.concatenate([condition, *features], axis=-1))


def embed_sites(
    config: ModelConfig,
    space_group: Int[AnyArray, " B"],
    letter: Int[AnyArray, "B N"],
    multiplicity: Int[AnyArray, "B N"],
    species: Int[AnyArray, "B N"],
    coords: Float[AnyArray, "B N 3"],
    composition: Float[AnyArray, "B S"] | None = None,
) -> Float[Array, "B T D"]:
    """Embeds all tokens of whole crystals, T = 5 N."""
    group, told = space_group[:, None], None if composition is None else composition[:, None]
    tokens = [
        embed_token(config, "letter", group, letter, multiplicity, told),
        embed_token(config, "species", group, species, composition=told),
        *(embed_token(config, kind, group, coords[..., i], composition=told) for i, kind in enumerate("xyz")),
    ]
    stacked = jnp.stack(tokens, axis=2)
    return stacked.reshape(stacked.shape[0], -1, stacked.shape[-1])


def transformer(
    config: ModelConfig, tokens: Float[Array, "B T D"], dropout: Dropout = NO_DROPOUT
) -> Float[Array, "B T output_size"]:
    """Runs the blocks over embedded tokens, each attending to itself and to those before it.

    Args:
        tokens: embedded.
        dropout: rates; a Haiku RNG is needed where they are not zero.

    Returns:
        Raw output rows.
    """
    if config.position == "absolute":
        table = _embedding("position", TOKENS_PER_SITE * config.n_max, config.model_size)
        tokens = tokens + table[: tokens.shape[1]]
    # A gradient computes blocks anew instead of storing what is inside: on a CPU that is faster than the traffic.
    block = hk.remat(lambda stream: Block(config, dropout)(stream), prevent_cse=False)
    stream = hk.layer_stack(config.num_layers, name="blocks")(block)(tokens)
    final = _norm("final_norm")(stream)  # pyright: ignore[reportArgumentType]  # one array, where haiku says a tuple
    return _linear(config.output_size, "output")(final, precision=EXACT)


class Block(hk.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: ModelConfig, dropout: Dropout, name: str = "block"):
        super().__init__(name=name)
        self.config, self.dropout = config, dropout

    def __call__(self, stream: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        config = self.config
        stream = stream + _dropout(self.attend(_norm("attention_norm")(stream)), self.dropout.residual)
        hidden = jax.nn.gelu(_linear(config.widening * config.model_size, "mlp_hidden")(_norm("mlp_norm")(stream)))
        return stream + _dropout(_linear(config.model_size, "mlp_output")(hidden), self.dropout.residual)

    @hk.transparent
    def attend(self, inputs: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Causal attention over tokens."""
        config = self.config
        queries, keys = self._heads("query", inputs), self._heads("key", inputs)
        if config.position == "rotary":
            turn = rotary_table(jnp.arange(inputs.shape[1]), config.key_size, inputs.dtype)
            queries, keys = rotate(queries, *turn), rotate(keys, *turn)
        scores = jnp.einsum("bhtk,bhsk->bhts", queries, keys)
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
        weights = jax.nn.softmax(scores / jnp.sqrt(jnp.asarray(config.key_size, scores.dtype)), axis=-1)
        weights = _dropout(weights, self.dropout.attention)
        size = [config.model_size, config.num_heads, config.key_size]
        value_w = hk.get_parameter("value_w", size, init=hk.initializers.VarianceScaling(fan_in_axes=[0]))
        value_b = hk.get_parameter("value_b", size[1:], init=jnp.zeros)
        output_w, output_b = _LinearWeights("attention_output")(size[1] * size[2], size[0])
        merged_w, merged_b = merge_values(value_w, value_b, output_w)
        summed = jnp.einsum("bhts,bsd->bhtd", weights, inputs)
        # The weights sum to one, so that the bias of a value passes unchanged, unless dropout thins them.
        bias = jnp.einsum("bht,he->bte", weights.sum(-1), merged_b)
        return jnp.einsum("bhtd,hde->bte", summed, merged_w) + bias + output_b

    @hk.transparent
    def _heads(self, name: str, inputs: Float[Array, "B T D"]) -> Float[Array, "B H T K"]:
        heads, size = self.config.num_heads, self.config.key_size
        w, b = _LinearWeights(name)(inputs.shape[-1], heads * size)
        projected = jnp.einsum("btd,dhk->bhtk", inputs, w.reshape(-1, heads, size))
        return projected + b.reshape(heads, 1, size)


class _LinearWeights(hk.Module):
    """The weight and the bias of a linear layer, for a product that `hk.Linear` does not offer."""

    def __call__(self, inputs: int, outputs: int) -> tuple[Float[Array, "inputs outputs"], Float[Array, " outputs"]]:
        init = hk.initializers.TruncatedNormal(inputs**-0.5)
        return hk.get_parameter("w", [inputs, outputs], init=init), hk.get_parameter("b", [outputs], init=jnp.zeros)


def merge_values(
    value_w: Float[AnyArray, "*layers D H K"],
    value_b: Float[AnyArray, "*layers H K"],
    output_w: Float[AnyArray, "*layers HK outputs"],
) -> tuple[Float[Array, "*layers H D outputs"], Float[Array, "*layers H outputs"]]:
    """The projections of values and of the output in one, weights and biases."""
    per_head = output_w.reshape(*value_b.shape, -1)
    return jnp.einsum("...dhk,...hke->...hde", value_w, per_head), jnp.einsum("...hk,...hke->...he", value_b, per_head)


def parameter_shapes(config: ModelConfig) -> dict[tuple[str, str], tuple[int, ...]]:
    """Shape of every parameter by (module, name), as `transformer`, `first_letter` and the embeddings create them."""
    # Written out: to trace the network for its shapes takes a good part of a second of every command's start.
    size, embed, layers = config.model_size, config.embed_size, config.num_layers
    heads = (config.num_heads, config.key_size)
    width, hidden, features = config.num_heads * config.key_size, config.widening * size, 2 * config.num_frequencies
    shapes = {
        ("~", "space_group"): (230, embed),
        ("~", "letter"): (config.num_letters, embed),
        ("~", "species"): (config.num_species, embed),
        ("blocks/block", "value_w"): (layers, size, *heads),
        ("blocks/block", "value_b"): (layers, *heads),
    }
    if config.position == "absolute":
        shapes["~", "position"] = (TOKENS_PER_SITE * config.n_max, size)
    condition, first = config.condition_size, config.first_hidden
    linears = {"first_hidden": (condition, first), "first_output": (first, config.num_letters)}
    if config.composition != "none":
        linears |= {"group_hidden": (embed, first), "group_output": (first, 230)}
    if config.composition == "optional":
        shapes["~", "no_composition"] = (embed,)
    linears |= {"token_letter": (condition + embed + 1, size), "token_species": (condition + embed, size)}
    linears |= {f"token_{axis}": (condition + features, size) for axis in "xyz"}
    linears |= {"output": (size, config.output_size)}
    for name, shape in linears.items():
        shapes |= {(name, "w"): shape, (name, "b"): shape[1:]}
    stacked = {"query": (size, width), "key": (size, width), "attention_output": (width, size)}
    stacked |= {"mlp_hidden": (size, hidden), "mlp_output": (hidden, size)}
    for name, shape in stacked.items():
        shapes |= {(f"blocks/block/{name}", "w"): (layers, *shape), (f"blocks/block/{name}", "b"): (layers, shape[1])}
    for part in ("scale", "offset"):
        shapes |= {(f"blocks/block/{name}", part): (layers, size) for name in ("attention_norm", "mlp_norm")}
        shapes["final_norm", part] = (size,)
    return shapes


def check_shapes(params: Params, config: ModelConfig) -> None:
    """Checks that parameters are those of an architecture.

    Raises:
        CheckpointError: naming the first one that is missing, left over, or of another shape.
    """
    expected = parameter_shapes(config)
    found = {(module, name): value.shape for module, values in params.items() for name, value in values.items()}
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            raise CheckpointError(
                f"parameter {'/'.join(key)} has shape {found.get(key, 'none')}, where the architecture "
                f"has {expected.get(key, 'none')}",
                "weights and sizes must belong to the same model",
            )


def fourier_features(value: Float[AnyArray, "..."], num_frequencies: int) -> Float[Array, "... 2*{num_frequencies}"]:
    """sin and cos of 2 pi f x for f = 1, 2, ..., interleaved."""
    phase = 2 * jnp.pi * value[..., None] * jnp.arange(1, num_frequencies + 1, dtype=value.dtype)
    return jnp.stack([jnp.sin(phase), jnp.cos(phase)], axis=-1).reshape(*value.shape, -1)


def rotary_table(
    positions: Int[Array, "..."], key_size: int, dtype: DTypeLike
) -> tuple[Float[Array, "... half"], Float[Array, "... half"]]:
    """cos and sin of the rotary embedding (2104.09864) at integer positions."""
    half = key_size // 2
    inverse_frequency = 10000.0 ** (-jnp.arange(half, dtype=dtype) / half)
    angle = positions[..., None].astype(dtype) * inverse_frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(
    heads: Float[Array, "... K"], cos: Float[Array, "... half"], sin: Float[Array, "... half"]
) -> Float[Array, "... K"]:
    """Rotary embedding of queries or keys, halves rotated, by a table that broadcasts."""
    half = heads.shape[-1] // 2
    first, second = heads[..., :half], heads[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _embedding(name: str, rows: int, size: int) -> Float[Array, "{rows} {size}"]:
    return hk.get_parameter(name, [rows, size], init=hk.initializers.TruncatedNormal(0.02))


def _condition(
    config: ModelConfig, space_group: Int[AnyArray, "..."], composition: Float[AnyArray, "... S"] | None
) -> Float[Array, "... condition_size"]:
    """What joins every token: the embedding of the space group, after that of the composition if that is an input."""
    group = _embedding("space_group", 230, config.embed_size)[space_group - 1]
    if composition is None:
        return group
    told = _composition_embedding(config, composition)
    return jnp.concatenate([jnp.broadcast_to(told, group.shape), group], axis=-1)


def _composition_embedding(
    config: ModelConfig, composition: Float[AnyArray, "... S"]
) -> Float[Array, "... embed_size"]:
    """The sum of the embeddings of a formula unit's atoms; one of its own where no composition is given."""
    table = _embedding("species", config.num_species, config.embed_size)
    atoms = jnp.matmul(jnp.asarray(composition, table.dtype), table, precision=EXACT)
    if config.composition != "optional":
        return atoms
    nothing = hk.get_parameter("no_composition", [config.embed_size], init=hk.initializers.TruncatedNormal(0.02))
    return jnp.where(is_given(composition), atoms, nothing)


def _linear(size: int, name: str) -> hk.Linear:
    return hk.Linear(size, name=name)


def _norm(name: str) -> hk.LayerNorm:
    return hk.LayerNorm(axis=-1, create_scale=True, create_offset=True, eps=NORM_EPSILON, name=name)


def _dropout(x: Float[Array, "..."], rate: float) -> Float[Array, "..."]:
    return jnp.where(random_mask(hk.next_rng_key(), 1 - rate, x.shape), x / (1 - rate), 0) if rate else x


def random_mask(rng_key: Shaped[Array, "..."], share: float, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """True for about a `share` of entries.

    Each entry's number is hashed with two words of the key (multiply and shift, with the constants of Wellons'
    lowbias32). This fuses into the product it masks, which JAX's own generators do not (`benchmarks/training.py` has
    the times), and an entry depends on its place alone, however the array is spread over devices.
    """
    first, second = jax.random.bits(rng_key, (2,), jnp.uint32)
    number, stride = jnp.uint32(0), 1
    for axis in reversed(range(len(shape))):
        number += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    mixed = number ^ first
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x7FEB352D)
    mixed = ((mixed ^ (mixed >> 15)) * jnp.uint32(0x846CA68B)) ^ second
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x7FEB352D)
    return (mixed ^ (mixed >> 15)) < jnp.uint32(min(round(share * 2**32), 2**32 - 1))
