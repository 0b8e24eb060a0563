"""How fast crystals are drawn, against what the machine could do, as JSON.

    python benchmarks/sampling.py [--architecture alex20] [--n 2000] [--batch-size 128] [--naive 8] [--ideas]

`alex20` is the published architecture with random weights, drawn in P1, its pad logits set (one column of the output
layer and its bias, by least squares on the network's own rows) so that the numbers of sites follow MP-20 as nearly as
they go; both distributions are printed. `mini` is the bundled model in all space groups it was trained on.

Reported: compilation cold and from the persistent cache; crystals and tokens a second (a crystal of n sites is 5 n + 1
tokens) at the batch size, and with `--ideas` also with one pool, with two, and at other batch sizes; the
matrix-multiply peak of the same machine in the same run and the share of it reached (by the weights' products alone, 2
operations a weight a token); and the rate of a decoder without a cache, which runs the full network over all 105 tokens
for every token it draws. `--looks 1,4,16` instead counts how often the host waits for the device, and times it, where a
slot may advance by 1, 4 or 16 sites between two looks, and compares the crystals bit by bit.

`--public CLONE`, an unchanged clone of github.com/deepmodeling/CrystalFormer, instead times its sampler and this one in
turns, in one process: the same weights, P1, equal batches (`--batch-sizes 8,64`). It draws as its main.py does, with
JAX's 64-bit numbers, and once more in float32, both without its log-probabilities and its file. For each batch size: a
batch alone, with compilation and without; and, for cfx, one request of `--n` crystals in slots of that number (64 at
least). Seconds of the processor show whether other programs on the machine slowed a turn.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from record import add_json, keep

import cfx
from cfx.config import ModelConfig
from cfx.config.training import PRESETS
from cfx.core.likelihood import init_params, output_rows
from cfx.io.upstream import convert
from cfx.sampling import decode, incremental, pools
from cfx.sampling.constraints import unconstrained
from cfx.sampling.policy import Policy, Sharpness
from cfx.sampling.pools import Decoder, Job, pool_shapes

TURN_SECONDS = 10
"""How long a program is run at least in its turn."""

MP20_SITES = [26, 1816, 6258, 2920, 1497, 1005, 527, 400, 276, 225, 88, 146, 36, 34, 29, 45, 12, 79, 18, 45]
"""Crystals of MP-20 (15,482 of its training part) with 1, 2, ..., 20 symmetry-inequivalent sites."""


def random_model(config: ModelConfig, params=None):
    """Random weights, or those given, with crystals in P1 that have about as many sites as those of MP-20."""
    params = jax.tree.map(np.array, params or init_params(config, jax.random.key(0)))
    counts = np.array(MP20_SITES, float)
    hazard = np.clip(counts / counts[::-1].cumsum()[::-1], 1e-3, 0.97)
    # In P1 a site is followed by another `a` or by the pad: logits of 0 and of the pad.
    output = params["output"]
    output["w"][:, :2], output["b"][:2] = 0.0, 0.0
    for _ in range(3):
        drawn = draw_all(cfx.Model("random", config, params), [1] * 512, 128)[0]
        hidden, site = hidden_rows(params, config, drawn)
        target = np.log(hazard / (1 - hazard))[np.minimum(site, 19)]
        design = np.concatenate([hidden, np.ones((len(hidden), 1))], axis=1)
        solution = np.linalg.lstsq(design, target, rcond=1e-6)[0]
        output["w"][:, 0], output["b"][0] = solution[:-1], solution[-1]
    return cfx.Model("random", config, params)


def hidden_rows(params, config: ModelConfig, crystals):
    """What the output layer sees after each Z token, and the site it belongs to."""
    probe = {**params, "output": {"w": np.zeros_like(params["output"]["w"]), "b": np.zeros_like(params["output"]["b"])}}
    size = config.model_size
    probe["output"]["w"][:, :size] = np.eye(size)
    rows = np.asarray(jax.jit(output_rows, static_argnums=1)(probe, config, crystals).rows)[:, 4::5, :size]
    there = np.arange(rows.shape[1]) < crystals.num_sites[:, None]
    return rows[there], np.broadcast_to(np.arange(rows.shape[1]), there.shape)[there]


def decoder_of(model, batch_size: int, steps_per_look: int | None = None, seed: int = 0) -> Decoder:
    """A decoder without constraints."""
    weights = jax.jit(incremental.prepare, static_argnums=1)(model.params, model.config)
    policy = Policy(unconstrained(model.config), Sharpness(np.float32(1), np.float32(1)))
    return Decoder(weights, model.config, policy, jax.random.key(seed), batch_size, None, steps_per_look)


def draw_all(model, groups, batch_size: int, decoder: Decoder | None = None):
    """Crystals in the groups, and the seconds they took."""
    decoder = decoder or decoder_of(model, batch_size)
    start = time.perf_counter()
    parts = [drawn for _, drawn in decoder.drain([Job(i, 0, group) for i, group in enumerate(groups)])]
    seconds = time.perf_counter() - start
    drawn = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    return drawn.crystals, seconds


def rates(model, groups, batch_size: int, repeats: int = 2) -> dict:
    """Crystals and tokens a second, the best of `repeats`, after a run that compiles."""
    draw_all(model, groups[: 2 * batch_size], batch_size)
    crystals, seconds = min((draw_all(model, groups, batch_size) for _ in range(repeats)), key=lambda each: each[1])
    tokens = int((5 * crystals.num_sites + 1).sum())
    mean = tokens / len(groups)
    return {
        "crystals_per_second": len(groups) / seconds,
        "tokens_per_second": tokens / seconds,
        "tokens_per_crystal": mean,
        "crystals_of_5_sites_per_second": tokens / seconds / 26,
        "site_counts": np.bincount(crystals.num_sites, minlength=21)[1:].tolist(),
    }


def with_pools(shapes, model, groups, batch_size: int) -> dict:
    """The rates with other pools."""
    kept, pools.POOL_SITES = pools.POOL_SITES, shapes
    try:
        return rates(model, groups, batch_size)
    finally:
        pools.POOL_SITES = kept


def looks(model, groups, batch_size: int, steps: list[int]) -> dict:
    """How often the host waits by the steps that it orders at a time; the same crystals each time, to the last bit."""
    result, reference = {}, None
    for number in steps:
        draw_all(model, groups[: 3 * batch_size], batch_size, decoder_of(model, batch_size, number))  # compiles
        decoder = decoder_of(model, batch_size, number)
        start, parts = time.perf_counter(), []
        for jobs, drawn in decoder.drain([Job(i, 0, group) for i, group in enumerate(groups)]):
            parts.append(([job.number for job in jobs], drawn))
        seconds = time.perf_counter() - start
        order = np.argsort(np.concatenate([numbers for numbers, _ in parts]))
        found = jax.tree.map(lambda *leaves, i=order: np.concatenate(leaves)[i], *(drawn for _, drawn in parts))
        reference = reference or found
        result[number] = {
            "looks": decoder.looks,
            "looks_per_crystal": decoder.looks / len(groups),
            "crystals_per_second": len(groups) / seconds,
            "same_bits": all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(reference))),
        }
    return result


class PublicProgram:
    """CrystalFormer's own sampler, at the Alex-20 size.

    Attributes:
        model: of cfx, with the same weights.
    """

    def __init__(self, clone: Path):
        sys.path.insert(0, str(clone))
        from crystalformer.src.sample import sample_crystal  # pyright: ignore[reportMissingImports]
        from crystalformer.src.transformer import make_transformer  # pyright: ignore[reportMissingImports]

        config = PRESETS["alex20"].model
        widths = (config.num_heads, config.key_size, config.model_size, config.embed_size)
        params, self._transformer = make_transformer(
            *(jax.random.PRNGKey(42), config.num_frequencies, config.coord_components, config.lattice_components),
            *(config.n_max, config.first_hidden, config.num_layers, *widths, config.num_species, config.num_letters),
            *(0.1, 0.1),  # dropout, not used
        )
        self.model = random_model(config, convert(jax.tree.map(np.array, params), config))
        output = f"linear_{7 + 2 * config.num_layers}"
        self._params, self._sample = {**params, output: self.model.params["output"]}, sample_crystal

    def draw(self, batch_size: int, seed: int, is_64_bit: bool) -> np.ndarray:
        """Numbers of sites of a batch of crystals in P1."""
        config = self.model.config
        with jax.enable_x64(is_64_bit):
            allowed, tied_to = jnp.zeros((config.n_max, config.num_species), int), jnp.arange(config.n_max)
            drawn = self._sample(
                *(jax.random.PRNGKey(seed), self._transformer, self._params, config.n_max, batch_size),
                *(config.num_species, config.num_letters, config.coord_components, config.lattice_components),
                *(1, None, allowed),  # space group, letters
                *(1.0, 1.0, 1.0),  # top p, temperature, that of the first species
                tied_to,
            )
            return np.asarray(drawn[2] > 0).sum(1)


def beside_public(clone: Path, batch_sizes: list[int], rounds: int, n: int) -> dict:
    """Rates of both programs, and their ratios, by batch size."""
    public, result = PublicProgram(clone), {}
    model = public.model

    def draw(seed: int, size: int) -> np.ndarray:
        return draw_all(model, [1] * size, size, decoder_of(model, size, seed=seed))[0].num_sites

    for size in batch_sizes:
        programs = {
            "cfx": partial(draw, size=size),
            "public": partial(public.draw, size, is_64_bit=True),
            "public_float32": partial(public.draw, size, is_64_bit=False),
        }
        figures = in_turns(programs, rounds)
        ours, many = figures["cfx"], rates(model, [1] * n, size, rounds)
        for name in ("public", "public_float32"):
            theirs = figures[name]
            figures[f"ratio_to_{name}"] = {
                "batch": ours["crystals_per_second"] / theirs["crystals_per_second"],
                "batch_with_compilation": theirs["first_seconds"] / ours["first_seconds"],
                "request": many["crystals_per_second"] / theirs["crystals_per_second"],
            }
        result[size] = {**figures, "cfx_request": {**many, "slots": decoder_of(model, size).batch_size}}
        print(f"batch {size}: {result[size]}", flush=True)
    return result


def in_turns(programs: dict[str, Callable[[int], np.ndarray]], rounds: int) -> dict[str, dict[str, Any]]:
    """Mean rates of programs that take a seed and give numbers of sites, each run once before, which compiles."""
    jax.clear_caches()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in programs}
    for turn in range(rounds + 1):
        for name, draw in programs.items():
            began = time.perf_counter()
            while True:  # what is fast is run again: how long a batch takes depends on its longest crystal
                start = time.perf_counter(), time.process_time()
                sites = draw(len(runs[name]))
                wall, processor = time.perf_counter() - start[0], time.process_time() - start[1]
                runs[name].append({"sites": sites, "seconds": wall, "processor_seconds": processor})
                print(f"{name}: {wall:.2f} s", flush=True)
                if not turn or time.perf_counter() - began > TURN_SECONDS:
                    break
    return {name: _mean_rates(*of_program) for name, of_program in runs.items()}


def _mean_rates(first: dict[str, Any], *later: dict[str, Any]) -> dict[str, Any]:
    seconds = [run["seconds"] for run in later]
    sites = np.concatenate([run["sites"] for run in later])
    return {
        "crystals_per_second": len(sites) / sum(seconds),
        "sites_per_second": int(sites.sum()) / sum(seconds),
        "sites_per_crystal": sites.mean(),
        "first_seconds": first["seconds"],
        "seconds": seconds,
        "processor_seconds": [run["processor_seconds"] for run in later],
    }


def compilation(model, batch_size: int) -> dict:
    """Seconds to compile the kernels of one pool, cold and from the persistent cache, without tracing."""
    seconds = {}
    with tempfile.TemporaryDirectory() as directory:
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        for name in ("cold", "cached"):
            jax.clear_caches()
            decoder = decoder_of(model, batch_size)
            slots = decode.idle_slots(model.config, *pool_shapes(batch_size, model.config.n_max - 1)[0])
            trace = time.perf_counter()
            lowered = decode.advance.lower(decoder.weights, model.config, slots, decoder.policy)
            start = time.perf_counter()
            lowered.compile()
            seconds[name] = time.perf_counter() - start
            seconds["trace"] = start - trace
        jax.config.update("jax_compilation_cache_dir", None)
    return {**seconds, "cached_over_cold": seconds["cached"] / seconds["cold"]}


def naive(model, groups, batch_size: int) -> dict:
    """A decoder without a cache: the full network over all tokens for every token (the draws themselves left out)."""
    config, num_tokens = model.config, 5 * (model.config.n_max - 1) + 1
    crystals, _ = draw_all(model, groups, batch_size)
    forward = jax.jit(output_rows, static_argnums=1)
    batch = crystals[:batch_size]
    jax.block_until_ready(forward(model.params, config, batch))
    start = time.perf_counter()
    for _ in range(3):
        jax.block_until_ready(forward(model.params, config, batch))
    seconds = (time.perf_counter() - start) / 3 * num_tokens
    return {"crystals_per_second": len(batch) / seconds, "passes_per_crystal": num_tokens, "passes_timed": 3}


def matmul_peak(size: int = 2048) -> float:
    """GFLOP/s of a square float32 product."""
    matrix, product = jnp.ones((size, size)), jax.jit(lambda x: x @ x)
    jax.block_until_ready(product(matrix))
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(product(matrix))
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def weight_flops(config: ModelConfig) -> int:
    """Floating-point operations of a token with the decoder's weights: values and output are one matrix."""
    heads = config.num_heads * config.key_size
    block = 2 * heads + config.num_heads * config.model_size + 2 * config.widening * config.model_size
    return 2 * config.model_size * (config.num_layers * block + config.output_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="alex20", choices=["alex20", "mini"])
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--naive", type=int, default=8, help="batch of the decoder without a cache")
    parser.add_argument("--ideas", action="store_true", help="also measure other pools and batch sizes")
    parser.add_argument("--public", type=Path, metavar="CLONE", help="of CrystalFormer, to time beside cfx")
    parser.add_argument("--batch-sizes", default="8,64", help="with --public")
    parser.add_argument(
        "--rounds", type=int, default=2, help="turns of each program after the first run, with --public"
    )
    parser.add_argument("--looks", help="steps that the host orders at a time, as 1,4,16; nothing else is measured")
    add_json(parser)
    arguments = parser.parse_args()
    if arguments.public:
        sizes = [int(each) for each in arguments.batch_sizes.split(",")]
        figures = beside_public(arguments.public, sizes, arguments.rounds, arguments.n)
        keep({"batches": figures, "matmul_peak_gflops": matmul_peak()}, arguments)
        return
    if arguments.architecture == "mini":
        model = cfx.load_model("mini")
        seen = [int(group) for group, count in model.info["space_groups"].items() for _ in range(count)]
        groups = np.random.default_rng(0).choice(seen, arguments.n).tolist()
    else:
        model, groups = random_model(PRESETS[arguments.architecture].model), [1] * arguments.n
    if arguments.looks:
        steps = [int(each) for each in arguments.looks.split(",")]
        keep({"looks": looks(model, groups, arguments.batch_size, steps)}, arguments)
        return
    measure = partial(rates, model, groups)
    result = {"architecture": arguments.architecture, "n": arguments.n, "batch_size": arguments.batch_size}
    result["matmul_peak_gflops"] = matmul_peak()
    result |= measure(arguments.batch_size)
    result["mp20_site_counts"] = MP20_SITES
    result["weights_mflop_per_token"] = weight_flops(model.config) / 1e6
    reached = result["tokens_per_second"] * weight_flops(model.config) / 1e9
    result["share_of_peak"] = reached / result["matmul_peak_gflops"]
    result["naive"] = naive(model, groups[: max(arguments.naive, 64)], arguments.naive)
    result["ratio_to_naive"] = result["crystals_per_second"] / result["naive"]["crystals_per_second"]
    if arguments.ideas:
        result["one_pool_of_101_tokens"] = with_pools(((20, 1),), model, groups, arguments.batch_size)
        result["two_pools"] = with_pools(((6, 1), (20, 2)), model, groups, arguments.batch_size)
        result["batch_sizes"] = {size: measure(size)["tokens_per_second"] for size in (65, 256)}
    result["compilation_seconds"] = compilation(model, arguments.batch_size)
    keep(result, arguments)


if __name__ == "__main__":
    main()
