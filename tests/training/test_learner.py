"""Steps of training: what a gradient is divided by, the update, and what both leave alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cfx.config import ModelConfig, TrainConfig
from cfx.core.batches import BatchPlan, fill
from cfx.core.crystal import CrystalBatch
from cfx.core.network import NO_DROPOUT, parameter_shapes
from cfx.training.learner import (
    Gradient,
    TrainState,
    add,
    gradient,
    init_state,
    learning_rate_schedule,
    loss_sums,
    update,
)

pytestmark = pytest.mark.integration

TINY = ModelConfig(
    num_layers=2, num_heads=2, key_size=8, model_size=16, embed_size=8, first_hidden=16, coord_components=4
)
PLAIN = TrainConfig(schedule="constant", clip_norm=1e6)
DECAYED = dataclasses.replace(PLAIN, optimizer="adamw", weight_decay=0.5, learning_rate=0.1)
AVERAGED = dataclasses.replace(PLAIN, ema_decay=0.3, learning_rate=0.1)
PARTS = ("wyckoff", "species", "coords", "lattice")
SHORT, LONG = 2, 3
"""Slots of the crystals with one site, and with two."""


def numpy(tree: Any) -> Any:
    """A copy that outlives the buffers that `update` and `add` reuse."""
    return jax.tree.map(np.array, tree)


def random_params() -> dict[str, dict[str, np.ndarray]]:
    """Of TINY, without the compilation that initial ones would cost."""
    rng, params = np.random.default_rng(0), {}
    for (module, name), shape in parameter_shapes(TINY).items():
        params.setdefault(module, {})[name] = 0.2 * rng.normal(size=shape).astype(np.float32)
    return params


PARAMS = random_params()


def compute(batch: CrystalBatch, weight: np.ndarray, precision: str = "float32") -> Gradient:
    key = jax.random.key(0)
    return gradient(PARAMS, batch, weight, key, config=TINY, dropout=NO_DROPOUT, precision=precision)


def used(total: Gradient, crystals_per_step: float) -> Any:
    """The gradient that a first update follows: Adam's mean is a tenth of it."""
    state = init_state(PARAMS, DECAYED, 100)
    state = update(state, total, np.int32(0), np.float32(crystals_per_step), train=DECAYED, num_steps=100)
    return jax.tree.map(lambda leaf: np.array(leaf) / (1 - 0.9), optax.tree.get(state.opt_state, "mu"))


def assert_close(ours: Any, expected: Any, tolerance: float) -> None:
    """Distance of two trees relative to the norm of the second."""
    difference = jax.tree.map(lambda one, other: np.asarray(one) - np.asarray(other), ours, expected)
    assert optax.tree.norm(difference) < tolerance * optax.tree.norm(expected)


@pytest.fixture(scope="module")
def data(rotary) -> CrystalBatch:
    """24 crystals, every second one with one site, the others with two."""
    rows = [np.flatnonzero(rotary.batch.num_sites == count)[:12] for count in (1, 2)]
    return rotary.batch.numpy()[np.stack(rows, axis=1).ravel()]


@pytest.fixture(scope="module")
def padded(data) -> Gradient:
    """The sum of all of them, in equal batches of one length."""
    parts = [compute(data.take(np.arange(start, start + 8), LONG), np.ones(8, np.float32)) for start in (0, 8, 16)]
    return jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *parts)


# The gradient of a step.


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_crystal_weighs_the_same_over_an_epoch(data, padded, accumulate):
    """Steps of 12, 8 and 4 crystals (or 2 batches a step) give, on average, the mean gradient over the data."""
    batches = BatchPlan(data.num_sites, 21, 88.0).epoch(seed=0)
    assert sorted((batch.slots, batch.size, len(batch.rows)) for batch in batches) == [
        (SHORT, 16, 12),
        (LONG, 8, 4),
        (LONG, 8, 8),
    ]
    steps = [batches[start : start + accumulate] for start in range(0, 3, accumulate)]
    mean = jax.tree.map(np.zeros_like, PARAMS)
    for step in steps:
        total = None
        for batch in step:
            rows, weight = fill(batch)
            one = compute(data.take(rows, batch.slots), weight)
            total = one if total is None else add(total, one)
        mean = jax.tree.map(lambda sum, part: sum + part / len(steps), mean, used(total, 24 / len(steps)))
    assert_close(mean, jax.tree.map(lambda leaf: leaf / 24, padded.params), 1e-5)


def test_two_batches_added_are_the_joined_batch(data):
    """In gradient, sums and update alike."""
    rows, places = np.flatnonzero(data.num_sites == 2), np.arange(8)
    one = compute(data.take(rows[[0, 1, 2, 3, 4, 0, 0, 0]], LONG), np.float32(places < 5))
    other = compute(data.take(rows[[5, 6, 5, 5, 5, 5, 5, 5]], LONG), np.float32(places < 2))
    joined = compute(data.take(rows[[0, 1, 2, 3, 4, 5, 6, 0]], LONG), np.float32(places < 7))
    total = numpy(add(one, other))
    assert_close(total.params, joined.params, 1e-5)
    assert total.sums.keys() == joined.sums.keys() == {*PARTS, "crystals"}
    for name, value in joined.sums.items():
        assert total.sums[name] == pytest.approx(float(value), rel=1e-5)
    assert total.sums["crystals"] == 7
    assert_close(used(total, 12), used(joined, 12), 1e-5)


def test_validation_sums_are_those_of_a_gradient(data, padded):
    filled = data.take(np.resize(np.arange(24), 32), LONG)
    sums = loss_sums(PARAMS, filled, np.float32(np.arange(32) < 24), config=TINY)
    assert sums.keys() == padded.sums.keys()
    for name, value in sums.items():
        assert value == pytest.approx(float(padded.sums[name]), rel=1e-5)


def test_batches_of_one_length_share_a_compilation(data):
    """Whatever their space groups and the number of rows that weigh."""
    rows = np.flatnonzero(data.num_sites == 2)
    compute(data.take(rows[:8], LONG), np.ones(8, np.float32))
    before = gradient._cache_size()
    for start in (1, 2, 4):
        batch = data.take(rows[start : start + 8], LONG)
        assert len(set(batch.space_group.tolist())) > 3
        compute(batch, np.float32(np.arange(8) < start))
    assert gradient._cache_size() == before


# Precision.


def products(jaxpr: Any, inside: bool = False):
    """(inside the blocks?, sizes of all axes, precision) of every matrix product; the blocks are a scan."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            sizes = {size for operand in equation.invars for size in operand.aval.shape}
            yield inside, sizes, equation.params["precision"]
        for value in jax.tree.leaves(list(equation.params.values())):
            if hasattr(value, "eqns"):
                yield from products(value, inside or equation.primitive.name == "scan")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_products_that_make_logits_are_exact(data, precision):
    """Forward and backward: bfloat16 is for those inside the network, and float32 is exact everywhere."""
    batch = data[:5].with_slots(LONG)
    found = list(products(jax.make_jaxpr(lambda: compute(batch, np.ones(5, np.float32), precision))()))
    exact = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
    logits = [kind for _, sizes, kind in found if sizes & {TINY.output_size, TINY.num_letters}]
    assert logits == [exact] * 6
    others = {(inside, kind) for inside, sizes, kind in found if not sizes & {TINY.output_size, TINY.num_letters}}
    kind = {"float32": exact, "bfloat16": jax.lax.DotAlgorithmPreset.BF16_BF16_F32}[precision]
    assert others == {(True, kind), (False, kind)}


def test_bfloat16_runs_on_any_machine(data):
    """A CPU may compute it in float32."""
    batch, weight = data.take(np.arange(1, 17, 2), LONG), np.ones(8, np.float32)
    exact, rounded = compute(batch, weight), compute(batch, weight, "bfloat16")
    for name in PARTS:
        assert rounded.sums[name] == pytest.approx(float(exact.sums[name]), rel=0.02)
    assert_close(rounded.params, exact.params, 0.1)
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {np.dtype(np.float32)}


# The schedule.


def test_constant_and_inverse_schedules():
    constant = learning_rate_schedule(TrainConfig(schedule="constant", learning_rate=0.02), 100)
    assert [float(constant(step)) for step in (0, 50, 99)] == pytest.approx([0.02] * 3)
    inverse = learning_rate_schedule(TrainConfig(schedule="inverse", learning_rate=0.02, decay=0.5), 100)
    assert [float(inverse(step)) for step in (0, 1, 98)] == pytest.approx([0.02, 0.02 / 1.5, 0.02 / 50])


@pytest.mark.parametrize(("warmup_steps", "warmup"), [(200, 100), (100, 100), (20, 20), (1, 1), (0, 0)])
def test_cosine_schedule(warmup_steps, warmup):
    """In a straight line to the peak, within a tenth of the run; then half a cosine to 1 % at the last step."""
    config = TrainConfig(schedule="cosine", learning_rate=0.02, warmup_steps=warmup_steps)
    schedule = learning_rate_schedule(config, 1000)
    number = np.array([1, 2, *range(10, 1001, 10)])  # of the step, from 1
    rates = np.array([float(schedule(step)) for step in number - 1]) / 0.02
    rising = number < warmup
    np.testing.assert_allclose(rates[rising], number[rising] / max(warmup, 1), atol=1e-6)
    cosine = (1 + np.cos(np.pi * (number - warmup) / (1000 - warmup))) / 2
    np.testing.assert_allclose(rates[~rising], (0.01 + 0.99 * cosine)[~rising], atol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 9])
def test_no_step_of_a_short_run_is_in_vain(num_steps):
    schedule = learning_rate_schedule(TrainConfig(schedule="cosine", learning_rate=0.02), num_steps)
    rates = [float(schedule(step)) for step in range(num_steps)]
    assert rates[0] == pytest.approx(0.02)
    assert all(0.0002 - 1e-9 < rate <= 0.02 + 1e-9 for rate in rates)


# The update, on a few parameters with the names of real ones.

DECAYING = {("~", "letter"), ("output", "w"), ("blocks/block", "value_w")}
SMALL = {
    "~": {"letter": (3, 2)},
    "output": {"w": (2, 3), "b": (3,)},
    "blocks/block": {"value_w": (2, 2, 2), "value_b": (2, 2)},
    "final_norm": {"scale": (2,), "offset": (2,)},
}


def draw(seed: int) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return {
        module: {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for module, shapes in SMALL.items()
    }


def drawn_gradient(seed: int, scale: float = 1.0) -> Gradient:
    """Sums over 4 crystals, of which the parts of the loss are 1, 2, 3 and 4 times `seed`."""
    sums = {name: np.float32(seed * (i + 1)) for i, name in enumerate(PARTS)} | {"crystals": np.float32(4)}
    return Gradient(jax.tree.map(lambda leaf: leaf * np.float32(scale), draw(seed)), sums)


def run(config: TrainConfig, gradients: list[Gradient], crystals_per_step: float = 5.0) -> list[TrainState]:
    """The state before the first update and after every one."""
    state = init_state(draw(0), config, 100)
    states = [numpy(state)]
    for step, total in enumerate(gradients):
        state = update(state, total, np.int32(step), np.float32(crystals_per_step), train=config, num_steps=100)
        states.append(numpy(state))
    return states


def adam(config: TrainConfig, gradients: list[Any]) -> Any:
    """The parameters after Adam (1412.6980) or AdamW (1711.05101) with the inverse schedule."""
    after = draw(0)
    for module, leaves in after.items():
        for name, value in leaves.items():
            mean = square = 0.0
            decay = config.weight_decay if (module, name) in DECAYING else 0.0
            for step, tree in enumerate(gradients):
                mean = 0.9 * mean + 0.1 * tree[module][name]
                square = 0.999 * square + 0.001 * tree[module][name] ** 2
                direction = mean / (1 - 0.9 ** (step + 1)) / (np.sqrt(square / (1 - 0.999 ** (step + 1))) + 1e-8)
                rate = config.learning_rate / (1 + config.decay * step)
                value = value - rate * (direction + decay * value)
            leaves[name] = value
    return after


@pytest.mark.parametrize(("optimizer", "weight_decay"), [("adam", 0.0), ("adamw", 0.3)])
def test_update_is_adam(optimizer, weight_decay):
    """On gradients per crystal, at the learning rate of the step; only weights decay."""
    config = TrainConfig(
        optimizer=optimizer,
        weight_decay=weight_decay,
        schedule="inverse",
        decay=0.5,
        learning_rate=0.1,
        clip_norm=1e6,
    )
    gradients = [drawn_gradient(seed) for seed in (1, 2, 3)]
    expected = adam(config, [jax.tree.map(lambda leaf: leaf / 5, one.params) for one in gradients])
    final = run(config, gradients)[-1]
    assert final.step == 3
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=2e-5), final.params, expected)


def test_weights_decay_and_nothing_else():
    """Of a whole network: neither biases nor norms."""
    params = jax.tree.map(np.ones_like, PARAMS)
    total = Gradient(jax.tree.map(np.zeros_like, params), drawn_gradient(1).sums)
    state = init_state(params, DECAYED, 100)
    state = update(state, total, np.int32(0), np.float32(1), train=DECAYED, num_steps=100)
    for module, leaves in state.params.items():
        for name, value in leaves.items():
            expected = 1.0 if name in ("b", "value_b", "scale", "offset") else 0.95
            np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=f"{module}/{name}")


def test_muon_makes_the_updates_of_matrices_orthogonal():
    """Its steps of the blocks' matrices have nearly equal singular values, of Adam's size; the rest is NAdam's."""
    drawn = [np.random.default_rng(i).normal(size=leaf.shape) for i, leaf in enumerate(jax.tree.leaves(PARAMS))]
    total = Gradient(jax.tree.unflatten(jax.tree.structure(PARAMS), drawn), drawn_gradient(1).sums)
    config = dataclasses.replace(PLAIN, optimizer="muon", learning_rate=0.1, clip_norm=1e6)
    state = init_state(PARAMS, config, 100)
    before = jax.tree.map(np.array, PARAMS)
    after = update(state, total, np.int32(0), np.float32(1), train=config, num_steps=100).params
    nadam, _ = optax.nadam(0.1).update(total.params, optax.nadam(0.1).init(before))
    for module, leaves in jax.tree.map(np.subtract, after, before).items():
        for name, step in leaves.items():
            if not (module.startswith("blocks/") and name in ("w", "value_w")):
                np.testing.assert_allclose(step, nadam[module][name], atol=1e-5, err_msg=f"{module}/{name}")
                continue
            for matrix in step.reshape(*step.shape[:2], -1):
                sizes = np.linalg.svd(matrix, compute_uv=False)
                assert sizes.max() < 2 * np.quantile(sizes, 0.2), (module, name)
                assert 0.7 < np.sqrt(np.mean(matrix**2)) / (0.2 * 0.1) < 1.3


@pytest.mark.parametrize("scale", [1e-3, 100.0])
def test_gradients_are_clipped_by_their_global_norm(scale):
    """Longer ones keep their direction, shorter ones stay; metrics have the norm before."""
    config = dataclasses.replace(PLAIN, clip_norm=0.5)
    total = drawn_gradient(1, scale)
    norm = optax.tree.norm(total.params) / 5
    state = run(config, [total])[-1]
    followed = jax.tree.map(lambda leaf: leaf / (1 - 0.9), optax.tree.get(state.opt_state, "mu"))
    assert_close(followed, jax.tree.map(lambda leaf: leaf / 5 * min(1, 0.5 / norm), total.params), 1e-5)
    assert state.totals["grad_norm"] == pytest.approx(float(norm), rel=1e-5)


def test_moving_average():
    """Short at first: (1 + step) / (10 + step) of the old until that exceeds the rate asked for."""
    states = run(AVERAGED, [drawn_gradient(seed) for seed in range(1, 7)])
    average = draw(0)
    for step, state in enumerate(states[1:]):
        keep = min(0.3, (1 + step) / (10 + step))
        average = jax.tree.map(lambda old, new, keep=keep: keep * old + (1 - keep) * new, average, state.params)
        assert_close(state.average, average, 1e-6)
        assert state.best_params is state.average
    assert optax.tree.norm(jax.tree.map(np.subtract, average, states[-1].params)) > 1e-2


def test_without_a_moving_average_the_best_are_the_last():
    state = run(PLAIN, [drawn_gradient(1)])[-1]
    assert state.average is None
    assert state.best_params is state.params


def test_totals_are_sums_over_steps():
    """Norms too: a mean over steps is theirs by `steps`."""
    gradients = [drawn_gradient(seed) for seed in (1, 2, 5)]
    before, *_, state = run(PLAIN, gradients)
    norms = [float(optax.tree.norm(one.params)) / 5 for one in gradients]
    expected = {name: 8.0 * (i + 1) for i, name in enumerate(PARTS)}
    expected |= {"crystals": 12.0, "steps": 3.0, "grad_norm": sum(norms)}
    assert state.totals == pytest.approx(expected, rel=1e-5)
    assert before.totals == dict.fromkeys(expected, 0)


def spoilt(kind: str) -> Gradient:
    """A gradient with one number that is not finite."""
    total = drawn_gradient(2)
    if kind == "loss":
        total.sums["lattice"] = np.float32(np.inf)
    else:
        total.params["output"]["b"][1] = np.float32(kind)
    return total


@pytest.mark.parametrize("kind", ["nan", "-inf", "loss"])
def test_an_update_that_is_not_finite_is_not_made(kind):
    """Nor any after it, so that the state is the last good one whenever the host looks."""
    _, good, *stuck = run(AVERAGED, [drawn_gradient(1), spoilt(kind), drawn_gradient(3), drawn_gradient(4)])
    assert good.step == 1
    for state in stuck:
        jax.tree.map(np.testing.assert_array_equal, state, good)
    # The step that failed may be made again.
    again = update(good, drawn_gradient(2), np.int32(1), np.float32(5), train=AVERAGED, num_steps=100)
    assert again.step == 2
    assert again.params["output"]["b"][1] != good.params["output"]["b"][1]


def test_update_compiles_once():
    """The state that it returns is of the kind that it takes."""
    config = dataclasses.replace(PLAIN, learning_rate=0.07)
    state, before = jax.tree.map(jnp.array, init_state(draw(0), config, 100)), update._cache_size()
    for step in range(3):
        state = update(state, drawn_gradient(1), np.int32(step), np.float32(5), train=config, num_steps=100)
    assert update._cache_size() == before + 1
