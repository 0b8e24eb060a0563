"""Where the time of a token goes: the parts of a decoding step at the Alex-20 size, each alone, as JSON.

    python benchmarks/token_time.py [--slots 128] [--capacity 16]

Every part runs for all layers in one program, on arrays as large as the decoder's, so that caches come from memory as
they do there. Parts are timed in turns, and the least of the turns is reported: other programs on the machine take from
all of them. `network` is `incremental.extend`; `with_draws` is a fifth of `decode.advance`, a site's five tokens in one
program. Parts do not quite add up, since XLA fuses some with their neighbours.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from record import add_json, keep
from sampling import matmul_peak, weight_flops

from cfx.config.training import PRESETS
from cfx.core.likelihood import init_params
from cfx.core.network import NORM_EPSILON, TOKENS_PER_SITE
from cfx.sampling import decode, incremental
from cfx.sampling.constraints import unconstrained
from cfx.sampling.policy import Policy, Sharpness

TURNS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=128)
    parser.add_argument("--capacity", type=int, default=16, help="tokens that the caches hold")
    add_json(parser)
    asked = parser.parse_args()
    config = PRESETS["alex20"].model
    weights = jax.jit(incremental.prepare, static_argnums=1)(init_params(config, jax.random.key(0)), config)
    seconds = least(parts(weights, config, asked))
    seconds["with_draws"] /= TOKENS_PER_SITE
    milliseconds = {name: round(1000 * each, 2) for name, each in seconds.items()}
    cache = incremental.empty_cache(config, 1, 1)
    result = {"slots": asked.slots, "capacity": asked.capacity, "milliseconds": milliseconds}
    result["gigabytes_of_keys"] = sum(leaf.nbytes for leaf in cache.keys) * asked.slots * asked.capacity / 1e9
    result["gigaflop_of_weights"] = weight_flops(config) * asked.slots / 1e9
    result["read_gigabytes_per_second"] = 1 / least({"sum": summing(1 << 28)})["sum"]
    result["matmul_peak_gflops"] = matmul_peak()
    keep(result, asked)


def least(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of each, the least of TURNS, in turns, after one that compiles."""
    seconds = {name: [] for name in runs}
    for turn in range(TURNS + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: min(each) for name, each in seconds.items()}


def summing(numbers: int) -> Callable[[], Any]:
    """Reads a gigabyte, for as many as 2^28 numbers."""
    array, total = jnp.ones(numbers, jnp.float32), jax.jit(jnp.sum)
    return lambda: total(array)


def parts(weights, config, asked: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Programs by name, each a part of a token for all layers."""
    slots, heads, size = asked.slots, config.num_heads, config.model_size
    ages = np.random.default_rng(0).integers(0, asked.capacity, slots).astype(np.int32)
    stream, query = jnp.ones((slots, size)), jnp.ones((slots, heads, config.key_size))
    attention = jnp.ones((slots, heads, asked.capacity)) / asked.capacity
    seen = jnp.arange(asked.capacity) <= ages[:, None]
    policy = Policy(unconstrained(config), Sharpness(np.float32(1), np.float32(1)))
    state = {"cache": incremental.empty_cache(config, slots, asked.capacity)}
    state["slots"] = decode.idle_slots(config, slots, asked.capacity)

    def each_layer(part: Callable) -> Callable[[], Any]:
        """A part for every layer, one after another."""

        @jax.jit
        def program(layers, cache, carry):
            for layer, keys, inputs in zip(layers, cache.keys, cache.inputs, strict=True):
                carry = part(layer, keys, inputs, carry)
            return carry

        return lambda: program(weights.layers, state["cache"], stream)

    def products(layer, keys, inputs, carry):
        wide = carry @ layer.query_key_w
        carry = carry + jnp.tile(wide[:, : heads * size // 2], (1, 2))[:, : heads * size] @ layer.output_w
        return carry + (carry @ layer.hidden_w) @ layer.mlp_w

    def scores(layer, keys, inputs, carry):
        return carry + jnp.einsum("bhk,bhtk->bht", query + carry[0, 0], keys).sum((1, 2))[:, None]

    def softmax(layer, keys, inputs, carry):
        return carry + jax.nn.softmax(jnp.where(seen[:, None], attention + carry[0, 0], -jnp.inf), axis=-1).sum()

    def weighted_sum(layer, keys, inputs, carry):
        return carry + jnp.einsum("bht,btd->bhd", attention + carry[0, 0], inputs).sum(1)

    def norms(layer, keys, inputs, carry):
        for _ in range(2):
            centred = carry - carry.mean(-1, keepdims=True)
            carry = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + NORM_EPSILON)
        return carry

    def gelu(layer, keys, inputs, carry):
        return carry + jax.nn.gelu(jnp.tile(carry, (1, config.widening))).reshape(slots, -1, size).sum(1)

    def whole():
        row, state["cache"] = extend(weights, stream, state["cache"], ages)
        return row

    def site():
        state["slots"], finished = decode.advance(weights, config, state["slots"], policy)
        return finished

    def write():
        state["cache"] = write_all(state["cache"], query, stream)
        return state["cache"]

    extend = jax.jit(lambda w, token, cache, age: incremental.extend(w, config, token, cache, age), donate_argnums=2)

    def written(cache, query, stream):
        every = jnp.arange(slots)
        return incremental.Cache(
            tuple(keys.at[every, :, ages].set(query, unique_indices=True) for keys in cache.keys),
            tuple(inputs.at[every, ages].set(stream, unique_indices=True) for inputs in cache.inputs),
        )

    write_all = jax.jit(written, donate_argnums=0)
    layered = {"products": products, "scores": scores, "softmax": softmax, "weighted_sum": weighted_sum}
    layered |= {"norms": norms, "gelu": gelu}
    programs = {"network": whole, "with_draws": site, "cache_writes": write}
    return {**programs, **{name: each_layer(part) for name, part in layered.items()}}


if __name__ == "__main__":
    main()
