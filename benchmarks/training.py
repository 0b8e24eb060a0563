"""How fast a model is trained, against what the machine could do, as JSON.

    python benchmarks/training.py DATA [--preset alex20] [--batch-size 32] [--steps 12]

Trains on the lengths of DATA (a sample of `--crystals` of them) with the preset's dropout, as `cfx train` does, and the
same network on full-length padded batches of as many crystals, the public program's way, in the same run. Reported:
crystals a second, after compilation; floating-point operations a second as a share of the machine's matrix-multiply
peak, measured before and after; seconds of compilation. Operations are those of the network as published: 6 for every
weight of a linear layer and every token, and 12 for every pair of tokens, head and channel; cfx does fewer, since it
multiplies the projections of values and output beforehand (`executed_share_of_peak`). The causal mask saves nothing.

`--generators` measures the random numbers of dropout: the hash of `cfx.core.network.random_mask` against JAX's own
generators, alone on an array of attention weights and as a step of training.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from record import add_json, keep

from cfx.config import ModelConfig
from cfx.config.training import PRESETS
from cfx.core import network
from cfx.core.batches import Batch, BatchPlan, mean_tokens, num_tokens
from cfx.core.likelihood import init_params
from cfx.data.dataset import load_dataset
from cfx.training.devices import Devices
from cfx.training.learner import gradient, init_state, update

PUBLIC = 2.8
"""Crystals a second of the public program's training step on two CPU cores (Alex-20 size, batch 32), as reported."""


def operations(config: ModelConfig, tokens: int, executed: bool = False) -> float:
    """Floating-point operations of a training step on one crystal of so many tokens."""
    width = config.num_heads * config.key_size
    attention = (2 * width + config.num_heads * config.model_size) if executed else 4 * width
    weights = config.num_layers * config.model_size * (attention + 2 * config.widening * config.model_size)
    pairs = config.num_layers * tokens * config.num_heads * (config.key_size + config.model_size)
    return 6.0 * tokens * (weights + pairs)


def peak() -> float:
    """Matrix-multiply peak, floating-point operations a second."""
    matrix, size = jnp.ones((2048, 2048)), 2048
    product = jax.jit(lambda a: a @ a)
    product(matrix).block_until_ready()
    return 2.0 * size**3 / min(seconds(lambda: product(matrix)) for _ in range(8))


def seconds(run) -> float:
    """Time until a result is there."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def least(times: int, run, *arguments) -> float:
    """Shortest time of several calls, after one that is not counted."""
    return min([seconds(lambda: run(*arguments)) for _ in range(times + 1)][1:])


class Trainer:
    """Steps of training on a data set, and their times."""

    def __init__(self, preset: str, data, batch_size: int):
        self.config, self.train = PRESETS[preset].model, PRESETS[preset].train
        self.data, self.batch_size, self.devices = data, batch_size, Devices()
        params = init_params(self.config, jax.random.key(0))
        self.state, self.key = self.devices.replicate(init_state(params, self.train, 1000)), jax.random.key(0)

    def step(self, batch: Batch):
        """One step; the state is kept."""
        crystals, weight = self.devices.take(self.data, batch)
        dropout = network.Dropout(self.train.dropout, self.train.attention_dropout)
        total = gradient(
            self.state.params, crystals, weight, self.key, config=self.config, dropout=dropout, precision="float32"
        )
        mean = np.float32(self.batch_size)
        self.state = update(self.state, total, np.int32(self.state.step), mean, train=self.train, num_steps=1000)
        return self.state.step

    def measure(self, batches: list[Batch]) -> dict:
        """Rates over these batches, each length compiled before."""
        compilation = sum(seconds(lambda b=b: self.step(b)) for b in {b.slots: b for b in batches}.values())
        spent = [seconds(lambda b=b: self.step(b)) for b in batches]
        crystals = sum(len(batch.rows) for batch in batches)
        useful = sum(len(b.rows) * operations(self.config, num_tokens(b.slots)) for b in batches)
        executed = sum(b.size * operations(self.config, num_tokens(b.slots), True) for b in batches)
        return {
            "crystals_per_second": crystals / sum(spent),
            "operations_per_second": useful / sum(spent),
            "executed_per_second": executed / sum(spent),
            "tokens_per_crystal": sum(len(b.rows) * num_tokens(b.slots) for b in batches) / crystals,
            "batches": len(batches),
            "seconds": sum(spent),
            "first_steps_seconds": compilation,
        }


def whole_epoch(data, batch_size: int, crystals: int) -> list[Batch]:
    """All batches of an epoch over a random sample of the data, whose lengths are those of the data."""
    rows = np.random.default_rng(0).permutation(len(data))[:crystals]
    plan = BatchPlan(data.num_sites[rows], data.n_max, batch_size * mean_tokens(data.num_sites, data.n_max))
    return [Batch(rows[batch.rows], batch.slots, batch.size) for batch in plan.epoch(0)]


def padded(data, batch_size: int, count: int) -> list[Batch]:
    """Batches of all 21 slots."""
    rows = np.random.default_rng(1).permutation(len(data))[: batch_size * count].reshape(count, batch_size)
    return [Batch(some, data.n_max, batch_size) for some in rows]


def generators(preset: str, data, batch_size: int) -> dict:
    """Times of dropout's random numbers by generator, seconds."""
    hashed, result = network.random_mask, {}
    batch = max(whole_epoch(data, batch_size, 2000), key=lambda batch: len(batch.rows))
    shape = (batch.size, PRESETS[preset].model.num_heads, num_tokens(batch.slots), num_tokens(batch.slots))
    for name in ("hash", "rbg", "threefry2x32"):

        def draw(key, share, shape, name=name):
            if name == "hash":
                return hashed(key, share, shape)
            words = jax.random.key_data(key).ravel()
            data = jnp.concatenate([words, words]) if name == "rbg" else words
            return jax.random.bernoulli(jax.random.wrap_key_data(data, impl=name), share, shape)

        network.random_mask = draw
        jax.clear_caches()
        alone = jax.jit(lambda key, x, draw=draw: jnp.where(draw(key, 0.9, x.shape), x / 0.9, 0))
        trainer = Trainer(preset, data, batch_size)
        result[name] = {
            "attention_mask_seconds": least(8, alone, jax.random.key(1), jnp.ones(shape)),
            "step_seconds": least(5, trainer.step, batch),
        }
    network.random_mask = hashed
    jax.clear_caches()
    return {"shape": shape, **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="crystals, as MP-20")
    parser.add_argument("--preset", default="alex20", choices=PRESETS)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--crystals", type=int, default=2000, help="sample to train on by length")
    parser.add_argument("--steps", type=int, default=4, help="padded batches")
    parser.add_argument("--generators", action="store_true")
    add_json(parser)
    options = parser.parse_args()

    data = load_dataset(options.data)
    before = peak()
    trainer = Trainer(options.preset, data, options.batch_size)
    by_length = trainer.measure(whole_epoch(data, options.batch_size, options.crystals))
    full = trainer.measure(padded(data, options.batch_size, options.steps))
    after = peak()
    best = max(before, after)
    for rates in (by_length, full):
        rates["share_of_peak"] = rates["operations_per_second"] / best
        rates["executed_share_of_peak"] = rates.pop("executed_per_second") / best
    report = {
        "preset": options.preset,
        "batch_size": options.batch_size,
        "peak_operations_per_second": [before, after],
        "by_length": by_length,
        "padded": full,
        "times_padded": by_length["crystals_per_second"] / full["crystals_per_second"],
        "times_public": by_length["crystals_per_second"] / PUBLIC,
    }
    if options.generators:
        report["generators"] = generators(options.preset, data, options.batch_size)
    keep(report, options)


if __name__ == "__main__":
    main()
