"""What an accelerator does with cfx, in one script of a few minutes, as JSON.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --architecture mini --batch-sizes 64,128 --crystals 256     # a trial on a CPU

The model has the Alex-20 size and random weights whose crystals are as long as MP-20's (`benchmarks/sampling.py`), or
is the bundled one. Reported: draws by batch size, with how often the host waits for the device (`looks`; where it looks
how seldom is `STEPS_PER_LOOK` in `sampling.pools`) and the most memory in use; likelihoods; steps of training in
float32 and bfloat16; compilation, cold and from the cache; shares of the peak of a matrix product, measured before in
float32 and bfloat16; and how far log-probabilities are from those of the CPU.

It has been run on a CPU, to its end. No figure of an accelerator has been measured by the authors yet: results are
welcome. A batch of 8,192 has caches of 71 GB at the Alex-20 size; one that does not fit is reported as such.
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
from sampling import compilation, decoder_of, draw_all, random_model, weight_flops
from training import least, operations

import cfx
from cfx.config.training import PRESETS
from cfx.core.batches import BatchPlan, fill, num_tokens
from cfx.core.crystal import CrystalBatch
from cfx.core.network import Dropout
from cfx.training.learner import gradient, init_state, update

MOST_BATCHES = 4
"""Batches of draws that are timed at each size, after one that compiles."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="alex20", choices=["alex20", "mini"])
    parser.add_argument("--batch-sizes", default="512,2048,8192", help="of draws")
    parser.add_argument("--training-batch", type=int, default=1024)
    parser.add_argument("--crystals", type=int, default=4096, help="to score and to train on")
    add_json(parser)
    asked = parser.parse_args()
    model = cfx.load_model("mini") if asked.architecture == "mini" else random_model(PRESETS["alex20"].model)
    peaks = {name: matmul_peak(kind) for name, kind in (("float32", jnp.float32), ("bfloat16", jnp.bfloat16))}
    crystals, _ = draw_all(model, [1] * asked.crystals, 512)
    figures: dict[str, Any] = {"device": jax.devices()[0].device_kind, "peak_operations_per_second": peaks}

    def section(name: str, measure: Callable[[], Any]) -> None:
        """Measures, and tells how long that took: a job that is cut off has printed what it got to."""
        start = time.perf_counter()
        try:
            figures[name] = measure()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            figures[name] = "out of memory"
        print(f"{name}: {figures[name]} ({time.perf_counter() - start:.0f} s)", flush=True)

    for size in map(int, asked.batch_sizes.split(",")):
        section(f"sampling_{size}", lambda size=size: sampling(model, size, peaks["float32"]))
    section("scoring", lambda: scoring(model, crystals))
    for precision in ("float32", "bfloat16"):
        section(
            f"training_{precision}",
            lambda precision=precision: training(model, crystals, asked.training_batch, precision, peaks),
        )
    section("difference_to_cpu", lambda: difference_to_cpu(model, crystals[:256]))
    section("compilation_seconds", lambda: compilation(model, 512))  # last: it changes JAX's cache of programs
    keep(figures, asked)


def matmul_peak(dtype: Any, size: int = 4096) -> float:
    """Operations a second of a square product, of its inputs in full precision."""
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest" if dtype == jnp.float32 else None))
    return 2.0 * size**3 / least(5, product, matrix)


def memory() -> dict[str, float]:
    """GB in use at most since the start; nothing where a device does not tell."""
    stats = jax.devices()[0].memory_stats() or {}
    return {"peak_memory_gb": stats["peak_bytes_in_use"] / 1e9} if "peak_bytes_in_use" in stats else {}


def sampling(model: cfx.Model, batch_size: int, peak: float) -> dict[str, float]:
    """Crystals a second, their mean length, and how often the host waits for the device."""
    draw_all(model, [1] * (2 * batch_size), batch_size)  # compiles
    decoder = decoder_of(model, batch_size)
    groups = [1] * (MOST_BATCHES * batch_size)
    crystals, seconds = draw_all(model, groups, batch_size, decoder)
    tokens = int((5 * crystals.num_sites + 1).sum())
    return {
        "crystals_per_second": len(groups) / seconds,
        "tokens_per_second": tokens / seconds,
        "tokens_per_crystal": tokens / len(groups),
        "looks": decoder.looks,
        "looks_per_crystal": decoder.looks / len(groups),
        "share_of_peak": tokens * weight_flops(model.config) / seconds / peak,
        **memory(),
    }


def scoring(model: cfx.Model, crystals: CrystalBatch) -> dict[str, float]:
    """Log-probabilities a second, after a pass that compiles."""
    model.log_prob(crystals, batch_size=512)
    start = time.perf_counter()
    model.log_prob(crystals, batch_size=512)
    return {"crystals_per_second": len(crystals) / (time.perf_counter() - start), **memory()}


def training(
    model: cfx.Model, crystals: CrystalBatch, batch_size: int, precision: str, peaks: dict[str, float]
) -> dict[str, float]:
    """Crystals a second of steps of training with dropout, by length as `cfx train` takes them."""
    config, train = model.config, PRESETS["alex20"].train
    mean = float(np.mean(crystals.num_sites))
    plan = BatchPlan(np.asarray(crystals.num_sites), config.n_max, int(batch_size * num_tokens(round(mean))))
    state, key = init_state(jax.tree.map(jnp.array, model.params), train, 1000), jax.random.key(0)
    dropout = Dropout(train.dropout, train.attention_dropout)

    def epoch() -> tuple[int, float, float]:
        nonlocal state
        start, done, useful = time.perf_counter(), 0, 0.0
        for batch in plan.epoch(0):
            rows, weight = fill(batch)
            part = crystals.take(rows, batch.slots)
            total = gradient(state.params, part, weight, key, config=config, dropout=dropout, precision=precision)
            state = update(state, total, np.int32(state.step), np.float32(batch_size), train=train, num_steps=1000)
            done += len(batch.rows)
            useful += len(batch.rows) * operations(config, num_tokens(batch.slots))
        jax.block_until_ready(state.params)
        return done, useful, time.perf_counter() - start

    compiled = epoch()[2]
    done, useful, seconds = epoch()
    return {
        "crystals_per_second": done / seconds,
        "share_of_peak": useful / seconds / peaks[precision],
        "first_epoch_seconds": compiled,
        **memory(),
    }


def difference_to_cpu(model: cfx.Model, crystals: CrystalBatch) -> dict[str, float]:
    """Largest difference of log-probabilities, nats, between the first device and the CPU."""
    here = model.log_prob(crystals)
    with jax.default_device(jax.devices("cpu")[0]):
        there = cfx.Model("copy", model.config, jax.tree.map(np.array, model.params)).log_prob(crystals)
    return {name: float(np.abs(getattr(here, name) - getattr(there, name)).max()) for name in ("total", *here.parts())}


if __name__ == "__main__":
    main()
