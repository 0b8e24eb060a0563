"""The transformer a token at a time, on crystals of different lengths side by side.

Three things make a step cheap: values are summed before projection, so that the cache holds keys and the narrow input
only; the value and output projections are multiplied into one matrix beforehand; and layers are unrolled, each with a
cache of its own, since a scan would copy every layer's keys at every token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from cfx.config import ModelConfig
from cfx.core import AnyArray, Params, network


class Cache(NamedTuple):
    """What each layer remembers of B slots, with room for T tokens; a token's place is its number in its crystal.

    Attributes:
        keys: of the attention.
        inputs: of the attention, normalised.
    """

    keys: tuple[Float[Array, "B H T K"], ...]
    inputs: tuple[Float[Array, "B T D"], ...]

    @property
    def capacity(self) -> int:
        """T, the tokens that there is room for."""
        return self.inputs[0].shape[1]


class Layer(NamedTuple):
    """Weights of a block, as `extend` wants them."""

    attention_norm: tuple[Float[Array, "*layers D"], Float[Array, "*layers D"]]
    query_key_w: Float[Array, "*layers D 2*H*K"]  # queries already divided by sqrt(K)
    query_key_b: Float[Array, "*layers 2*H*K"]
    output_w: Float[Array, "*layers H*D D"]  # values and output in one
    output_b: Float[Array, "*layers D"]
    mlp_norm: tuple[Float[Array, "*layers D"], Float[Array, "*layers D"]]
    hidden_w: Float[Array, "*layers D hidden"]
    hidden_b: Float[Array, "*layers hidden"]
    mlp_w: Float[Array, "*layers hidden D"]
    mlp_b: Float[Array, "*layers D"]


class Weights(NamedTuple):
    """A model's parameters, prepared for decoding.

    Attributes:
        params: the model's own.
        layers: its blocks.
        rotary: cos and sin of every position, 5 n_max of them; not used by absolute positions.
    """

    params: Params
    layers: tuple[Layer, ...]
    rotary: tuple[Float[Array, "positions half"], Float[Array, "positions half"]]


def prepare(params: Params, config: ModelConfig) -> Weights:
    """The weights of `extend`."""
    block = {name.removeprefix("blocks/block/"): value for name, value in params.items() if "blocks/block" in name}
    own, out = block.pop("blocks/block"), block["attention_output"]
    merged_w, merged_b = network.merge_values(own["value_w"], own["value_b"], out["w"])
    query, key, scale = block["query"], block["key"], 1 / jnp.sqrt(jnp.asarray(config.key_size, out["w"].dtype))
    stacked = Layer(
        attention_norm=(block["attention_norm"]["scale"], block["attention_norm"]["offset"]),
        query_key_w=jnp.concatenate([query["w"] * scale, key["w"]], axis=-1),
        query_key_b=jnp.concatenate([query["b"] * scale, key["b"]], axis=-1),
        output_w=merged_w.reshape(config.num_layers, -1, config.model_size),
        output_b=merged_b.sum(1) + out["b"],
        mlp_norm=(block["mlp_norm"]["scale"], block["mlp_norm"]["offset"]),
        hidden_w=block["mlp_hidden"]["w"],
        hidden_b=block["mlp_hidden"]["b"],
        mlp_w=block["mlp_output"]["w"],
        mlp_b=block["mlp_output"]["b"],
    )
    layers = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(config.num_layers))
    positions = jnp.arange(network.TOKENS_PER_SITE * config.n_max)
    return Weights(params, layers, network.rotary_table(positions, config.key_size, out["w"].dtype))


def empty_cache(config: ModelConfig, num_slots: int, capacity: int, dtype: DTypeLike = jnp.float32) -> Cache:
    """A cache that nothing was written to."""
    # A token's inputs serve in place of its values, which are num_heads * key_size wide where inputs are model_size:
    # of the published architecture, 1,024 and 64. Keys have to be kept by head, since they are rotated.
    keys, inputs = (num_slots, config.num_heads, capacity, config.key_size), (num_slots, capacity, config.model_size)
    return Cache(
        tuple(jnp.zeros(keys, dtype) for _ in range(config.num_layers)),
        tuple(jnp.zeros(inputs, dtype) for _ in range(config.num_layers)),
    )


def extend(
    weights: Weights, config: ModelConfig, token: Float[Array, "B D"], cache: Cache, age: Int[AnyArray, " B"]
) -> tuple[Float[Array, "B output_size"], Cache]:
    """Shows every slot its next token.

    Args:
        token: embedded.
        cache: with the tokens before it.
        age: how many tokens of its own each slot has seen, fewer than the cache's capacity.

    Returns:
        Raw output rows and the cache with the token in it.
    """
    params, stream = weights.params, token
    age = jnp.minimum(age, network.TOKENS_PER_SITE * config.n_max - 1)  # slots that nobody reads any more
    if config.position == "absolute":
        stream = stream + params["~"]["position"][age]
        turn = None
    else:
        turn = tuple(table[age][:, None, None] for table in weights.rotary)
    seen, slots = jnp.arange(cache.capacity) <= age[:, None], jnp.arange(len(age))
    keys, inputs = [], []
    for layer, past_keys, past_inputs in zip(weights.layers, cache.keys, cache.inputs, strict=True):
        own = _layer_norm(stream, *layer.attention_norm)
        heads = (own @ layer.query_key_w + layer.query_key_b).reshape(-1, 2, config.num_heads, config.key_size)
        heads = network.rotate(heads, *turn) if turn else heads
        keys.append(past_keys.at[slots, :, age].set(heads[:, 1], mode="drop", unique_indices=True))
        inputs.append(past_inputs.at[slots, age].set(own, mode="drop", unique_indices=True))
        scores = jnp.einsum("bhk,bhtk->bht", heads[:, 0], keys[-1])
        attention = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
        summed = jnp.einsum("bht,btd->bhd", attention, inputs[-1])
        stream = stream + summed.reshape(len(token), -1) @ layer.output_w + layer.output_b
        hidden = jax.nn.gelu(_layer_norm(stream, *layer.mlp_norm) @ layer.hidden_w + layer.hidden_b)
        stream = stream + hidden @ layer.mlp_w + layer.mlp_b
    final = _layer_norm(stream, params["final_norm"]["scale"], params["final_norm"]["offset"])
    row = final @ params["output"]["w"] + params["output"]["b"]
    return row, Cache(tuple(keys), tuple(inputs))


def _layer_norm(
    stream: Float[Array, "B D"], scale: Float[Array, " D"], offset: Float[Array, " D"]
) -> Float[Array, "B D"]:
    centred = stream - stream.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + network.NORM_EPSILON) * scale + offset


def take_over(target: Cache, source: Cache, rows: Int[AnyArray, " n"], slots: Int[AnyArray, " n"]) -> Cache:
    """Copies slots of one cache into another that holds no fewer tokens.

    Args:
        target: cache to write to.
        source: cache to read from.
        rows: slots of `source`.
        slots: where in `target` they go; a number past its last slot is left out.
    """
    held = source.capacity
    return Cache(
        tuple(
            into.at[slots, :, :held].set(out_of[rows], mode="drop")
            for into, out_of in zip(target.keys, source.keys, strict=True)
        ),
        tuple(
            into.at[slots, :held].set(out_of[rows], mode="drop")
            for into, out_of in zip(target.inputs, source.inputs, strict=True)
        ),
    )
