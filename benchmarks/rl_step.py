"""What an update of cfx rl costs at the size of a model, as JSON.

    python benchmarks/rl_step.py DATA [--crystals 128]

A step scores its crystals twice, under the policy and the reference, and makes `inner epochs` passes of gradients. Both
are timed after compilation, in the batches that cfx rl makes, on crystals of DATA (lengths decide, so weights may be
random): for `mini` and for the published Alex-20 size, with the passes of the preset `mini` and of the paper. Drawing
as many crystals is printed by benchmarks/sampling.py.

Rewarding is timed on as many draws of `mini` with the bundled models, in space group 225 and in all groups: as it is
done, and `as before`, with primitive cells that are searched for and a forward pass of CHGNet for each reward.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax
import numpy as np
from record import add_json, keep

from cfx.config import ModelConfig, RewardConfig, SampleConfig
from cfx.config.finetuning import PRESETS
from cfx.core.batches import BatchPlan, fill, num_tokens
from cfx.core.crystal import concatenate
from cfx.core.lattice import is_physical
from cfx.core.likelihood import init_params
from cfx.data.dataset import load_dataset
from cfx.evaluation.hull import Hull
from cfx.evaluation.hull_files import read_hull
from cfx.fetch.names import hull_path
from cfx.model import Model, load_model
from cfx.predictors.base import Potential
from cfx.predictors.bundled import shared_extractor
from cfx.reporter import Mute
from cfx.rl.named_rewards import load_reward
from cfx.rl.rollout import primitive_cell, primitive_cells
from cfx.rl.updates import LENGTHS
from cfx.training.learner import loss_gradient, score
from cfx.training.objectives import PPOBatch, ppo_loss


def seconds(run) -> float:
    """The shorter of two times, after one call that compiles."""
    run()
    times = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(params, config: ModelConfig, crystals) -> dict[str, float]:
    """Seconds of scoring and of a pass of gradients, with the published likelihood."""
    tokens = max(len(crystals) // 8, 8) * num_tokens(6)
    batches = BatchPlan(crystals.num_sites, config.n_max, tokens, LENGTHS).epoch()

    def scoring():
        for batch in batches:
            rows, _ = fill(batch)
            jax.block_until_ready(score(params, config, crystals.take(rows, batch.slots), None))

    def gradients():
        for batch in batches:
            rows, weight = fill(batch)
            rollout = PPOBatch(*(np.zeros(len(rows), np.float32),) * 3)
            part = crystals.take(rows, batch.slots)
            coefs = (np.float32(0.1), np.float32(0.2))
            jax.block_until_ready(loss_gradient(ppo_loss, params, config, part, weight, rollout, None, *coefs))

    found = {"scoring": seconds(scoring), "gradients": seconds(gradients)}
    for name in PRESETS:
        found[f"step, preset {name}"] = 2 * found["scoring"] + PRESETS[name].inner_epochs * found["gradients"]
    return found


def rewarding(model: Model, groups: tuple[int, ...], num: int) -> dict[str, float]:
    """Seconds of making structures and rewarding them, by reward."""
    request = SampleConfig(space_groups=groups, n=num, seed=1, keep_invalid=True)
    drawn = concatenate([draws.crystals for draws in model.draws(request)])
    crystals = drawn[is_physical(np.asarray(drawn.lattice))]
    found: dict[str, float] = {"crystals": len(crystals)}

    def hull(potential: Potential) -> Hull:
        return read_hull(hull_path("chgnet-mp", Mute()), None)

    for name in ("ehull", "fom", "ehull,fom"):
        bundled = {"gap_model": "bundled", "dielectric_model": "bundled"}
        together = load_reward(RewardConfig(reward=name, **bundled), hull)
        alone = [load_reward(RewardConfig(reward=one, **bundled), hull) for one in name.split(",")]

        def as_before(alone=alone):
            structures = [primitive_cell(one) for one in crystals.to_structures()]
            for reward in alone:
                forget()
                reward.evaluate(structures)

        def now(together=together):
            forget()
            together.evaluate(primitive_cells(crystals))

        found |= {f"{name}, as before": seconds(as_before), name: seconds(now)}
    return found


def forget() -> None:
    """New crystals come with every step."""
    shared_extractor("cpu").evaluate([])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--crystals", type=int, default=128)
    add_json(parser)
    options = parser.parse_args()
    data = load_dataset(options.data, n_max=21)
    rows = np.random.default_rng(0).choice(len(data), options.crystals, replace=False)
    crystals = data.take(np.sort(rows), 21)
    mini, alex20 = load_model("mini"), ModelConfig()
    result = {
        "crystals": options.crystals,
        "rewarding, space group 225": rewarding(mini, (225,), options.crystals),
        "rewarding, all space groups": rewarding(mini, tuple(range(1, 231)), options.crystals),
        "mini": measure(mini.params, mini.config, crystals),
        "alex20": measure(init_params(alex20, jax.random.key(0)), alex20, crystals),
    }
    keep(result, options)


if __name__ == "__main__":
    main()
