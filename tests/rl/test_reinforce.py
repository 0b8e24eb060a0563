"""Fine-tuning by reinforcement learning on models so small that what it must converge to can be computed."""

from __future__ import annotations

import dataclasses
import json
import signal

import jax
import numpy as np
import pytest

from cfx.config import ModelConfig, RewardConfig, RLConfig, SampleConfig, Template
from cfx.config.finetuning import RewardRun, read_run
from cfx.core.crystal import CrystalBatch
from cfx.core.elements import SYMBOLS
from cfx.errors import NumericsError, RewardError, UsageError
from cfx.io.checkpoint import load_checkpoint
from cfx.model import Model, load_model
from cfx.reporter import Interrupted, Mute
from cfx.rl import reinforce as rl_module
from cfx.rl.reinforce import fine_tune
from cfx.rl.rewards import Diversity, RewardBatch, make_batch, weighted_sum
from cfx.rl.rollout import step_request
from cfx.sampling.request import prepare
from cfx.training.learner import score

pytestmark = pytest.mark.integration

TINY = ModelConfig(
    n_max=3, num_layers=1, num_heads=2, key_size=8, model_size=16, embed_size=8, first_hidden=16, coord_components=2
)
ELEMENTS = ("Na", "K", "Rb", "Cs")
NUMBERS = (11, 19, 37, 55)
LATTICE = (5.0, 5.0, 5.0, 90.0, 90.0, 90.0)

ONE_SITE = SampleConfig(
    space_groups=(221,),
    template=Template(letters=("a",), frac_coords=((0.0, 0.0, 0.0),), lattice=LATTICE),
    elements=ELEMENTS,
)
"""Four crystals: simple cubic, on one site, of one of four elements."""


class Lookup:
    """A reward by element; counts how many crystals it was asked for."""

    name, about, unit, kl_coef, failure = "lookup", "a table", "", 1.0, -5.0

    def __init__(self, table: dict[str, float]):
        self.table, self.asked = table, 0

    def evaluate(self, structures) -> RewardBatch:
        self.asked += len(structures)
        value = np.array([np.nan if one is None else self.table[one[0].specie.symbol] for one in structures])
        return make_batch(value, ["" if one is not None else "none" for one in structures], {"table": value})


REWARDS = dict(zip(ELEMENTS, (0.0, 0.5, 1.0, 1.5), strict=True))


def run_it(path, model, rl, sample=ONE_SITE, reward=None, diversity=None, resume=False):
    parts = weighted_sum(((reward or Lookup(REWARDS), 1.0),))
    config = RewardRun(model="tiny", sample=sample, reward=RewardConfig(reward="lookup"), rl=rl)
    return fine_tune(path, config, model, parts, diversity or Diversity(), Mute(), resume)


def lines(path) -> list[dict]:
    return [json.loads(line)["rl"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def crystals_of(path) -> list[dict]:
    return [json.loads(line) for line in (path / "crystals.jsonl").read_text().splitlines()]


def probabilities(model: Model) -> np.ndarray:
    """Of the four crystals, by the policy that draws them."""
    n = len(NUMBERS)
    species, letters = np.zeros((n, 3), np.int32), np.zeros((n, 3), np.int32)
    species[:, 0], letters[:, 0] = NUMBERS, 1
    batch = CrystalBatch(
        np.full(n, 221, np.int32),
        np.tile(np.array(LATTICE, np.float32), (n, 1)),
        np.zeros((n, 3, 3), np.float32),
        species,
        letters,
    )
    return np.exp(model.policy_log_prob(batch, ONE_SITE).total)


METALS, SALTS = ("Na", "K"), ("Na", "K", "Cl", "Br")
TWO_SITES = SampleConfig(
    space_groups=(221,),
    template=Template(
        letters=("a", "b"),
        frac_coords=((0.0, 0.0, 0.0), (0.5, 0.5, 0.5)),
        lattice=LATTICE,
        species=(METALS, SALTS),
    ),
)
"""Eight crystals of the CsCl type: two elements, two intermetallics, four neutral compounds."""

PAIRS = [(one, other) for one in METALS for other in SALTS]
PAIR_CLASSES = np.array([0 if one == other else 1 if other in METALS else 2 for one, other in PAIRS])
PAIR_REWARDS = 1.5 * (PAIR_CLASSES == 0) + np.array([0.0, 0.3, 0.6, 0.0, 0.3, 0.6, 0.0, 0.9])


class PairLookup(Lookup):
    """A reward by the elements of two sites."""

    def __init__(self):
        super().__init__({})

    def evaluate(self, structures) -> RewardBatch:
        symbols = [tuple(site.specie.symbol for site in sorted(one, key=lambda site: site.z)) for one in structures]
        return make_batch(np.array([PAIR_REWARDS[PAIRS.index(pair)] for pair in symbols]), [""] * len(structures))


def pair_probabilities(model: Model, sample: SampleConfig = TWO_SITES) -> np.ndarray:
    """Of the eight crystals, by the policy that draws them."""
    n = len(PAIRS)
    species, letters, coords = np.zeros((n, 3), np.int32), np.zeros((n, 3), np.int32), np.zeros((n, 3, 3), np.float32)
    species[:, :2], letters[:, :2] = [[SYMBOLS.index(one) for one in pair] for pair in PAIRS], [1, 2]
    coords[:, 1] = 0.5
    lattice = np.tile(np.array(LATTICE, np.float32), (n, 1))
    batch = CrystalBatch(np.full(n, 221, np.int32), lattice, coords, species, letters)
    return np.exp(model.policy_log_prob(batch, sample).total)


GENTLE = RLConfig(steps=60, batch_size=64, learning_rate=5e-3, kl_coef=0.4, inner_epochs=3, seed=1, checkpoint_steps=99)
"""For a tiny model to converge."""


def tilt(before: np.ndarray, rewards: np.ndarray, tau: float = 0.4) -> np.ndarray:
    """p_ref exp(r / tau), normalised."""
    weight = before * np.exp(rewards / tau)
    return weight / weight.sum()


@pytest.fixture(scope="module")
def tiny() -> Model:
    return dataclasses.replace(Model.init(TINY, seed=3), name="tiny")


@pytest.mark.slow
def test_ppo_converges_to_the_tilted_distribution(tiny, tmp_path):
    """p_ref exp(r / tau), normalised: within 0.08 of every probability.

    A step draws 64 crystals; the probabilities of the policy are computed exactly. The seed is fixed.
    """
    tau = 0.4
    before = probabilities(tiny)
    assert before.sum() == pytest.approx(1, abs=1e-5)
    rl = RLConfig(
        steps=60,
        batch_size=64,
        learning_rate=5e-3,
        kl_coef=tau,
        inner_epochs=3,
        seed=1,
        checkpoint_steps=1000,
    )
    run_it(tmp_path / "run", tiny, rl)
    tilted = before * np.exp(np.array(list(REWARDS.values())) / tau)
    tilted /= tilted.sum()
    after = probabilities(load_model(tmp_path / "run" / "final"))
    assert np.abs(before - tilted).max() > 0.2
    np.testing.assert_allclose(after, tilted, atol=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["ema", "class"])
def test_with_quotas_it_converges_to_the_tilt_within_classes(tiny, tmp_path, baseline):
    """The shares of p_ref, each class tilted by exp(r / tau): within 0.08 of every probability, whatever the baseline.

    The seed is fixed.
    """
    before = pair_probabilities(tiny)
    assert before.sum() == pytest.approx(1, abs=1e-5)
    free = tilt(before, PAIR_REWARDS)
    shares = np.bincount(PAIR_CLASSES, before)
    tilted = free * (shares / np.bincount(PAIR_CLASSES, free))[PAIR_CLASSES]
    rl = dataclasses.replace(GENTLE, steps=80, baseline=baseline, quotas="class")
    run_it(tmp_path / "run", tiny, rl, TWO_SITES, PairLookup())
    after = pair_probabilities(load_model(tmp_path / "run" / "final"))
    assert np.abs(free - tilted).max() > 0.2 and np.abs(before - tilted).max() > 0.1
    np.testing.assert_allclose(after, tilted, atol=0.08)
    told = lines(tmp_path / "run")[-1]["classes"]
    assert told["other"] == 0 and sum(told.values()) == pytest.approx(1)


@pytest.mark.slow
def test_with_uniform_replay_it_converges_to_the_tilted_distribution(tiny, tmp_path):
    """Within 0.08 of every probability."""
    before, rewards = probabilities(tiny), np.array(list(REWARDS.values()))
    run_it(tmp_path / "run", tiny, dataclasses.replace(GENTLE, steps=40, replay="uniform"))
    after = probabilities(load_model(tmp_path / "run" / "final"))
    np.testing.assert_allclose(after, tilt(before, rewards), atol=0.08)
    told = lines(tmp_path / "run")
    assert "replayed" not in told[0] and [line["replayed"] for line in told[1:]] == [64] * 39
    assert 0.1 < min(line["replay_effective"] for line in told[1:]) < 1


@pytest.mark.slow
def test_an_entropy_bonus_flattens_the_tilt(tiny, tmp_path):
    """p_ref^(tau / (tau + beta)) exp(r / (tau + beta)), normalised, within 0.08; here letters are given."""
    before, rewards, tau, beta = probabilities(tiny), np.array(list(REWARDS.values())), 0.4, 1.0
    run_it(tmp_path / "run", tiny, dataclasses.replace(GENTLE, entropy_coef=beta))
    flat = tilt(before ** (tau / (tau + beta)), rewards, tau + beta)
    assert np.abs(flat - tilt(before, rewards)).max() > 0.15
    np.testing.assert_allclose(probabilities(load_model(tmp_path / "run" / "final")), flat, atol=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("constraint", ["require", "any_of"])
def test_under_constraints_it_converges_to_the_tilt_of_what_meets_them(tiny, tmp_path, constraint):
    """Within 0.08 of every probability, with draws that do not count drawn again."""
    sample = dataclasses.replace(TWO_SITES, **{constraint: {"require": ("K",), "any_of": ("Na", "Br")}[constraint]})
    wanted = set(getattr(sample, constraint))
    meets = np.array([bool(wanted & set(pair)) for pair in PAIRS])
    before = np.where(meets, pair_probabilities(tiny, sample), 0)
    run_it(tmp_path / "run", tiny, dataclasses.replace(GENTLE, steps=80), sample, PairLookup())
    after = np.where(meets, pair_probabilities(load_model(tmp_path / "run" / "final"), sample), 0)
    tilted = tilt(before, PAIR_REWARDS)
    assert 2 < meets.sum() < 8 and np.abs(before / before.sum() - tilted).max() > 0.2
    np.testing.assert_allclose(after / after.sum(), tilted, atol=0.08)


def test_the_kl_shown_is_that_of_the_policy_that_drew(tiny, tmp_path, monkeypatch):
    """Against the exact one of four crystals: the estimates of a run differ from it by their errors.

    Their sum of 11 scores is within 4 standard deviations, once in 16,000 beyond; the seed is fixed.
    """
    before, exact = probabilities(tiny), []
    step = rl_module._Reinforcement.step

    def watched(self, state, number):
        now = probabilities(dataclasses.replace(tiny, params=state.params))
        exact.append(float(now @ np.log(now / before)))
        return step(self, state, number)

    monkeypatch.setattr(rl_module._Reinforcement, "step", watched)
    rl = RLConfig(steps=12, batch_size=64, learning_rate=5e-3, kl_coef=0.5, inner_epochs=3)
    run_it(tmp_path / "run", tiny, rl)
    shown = [(line["kl_reference"], line["kl_error"]) for line in lines(tmp_path / "run")]
    assert shown[0] == pytest.approx((0, 0), abs=1e-6)
    scores = [(kl - true) / error for (kl, error), true in zip(shown[1:], exact[1:], strict=True)]
    assert abs(np.sum(scores)) < 4 * np.sqrt(len(scores))
    assert exact[-1] > 0.2 and shown[-1][0] == pytest.approx(exact[-1], rel=0.5)


@pytest.mark.parametrize("max_clipped", [0.0, 0.3])
def test_updates_stay_within_the_trust_region(tiny, tmp_path, max_clipped):
    """A learning rate that throws most of a minibatch out of the clip range is halved where it does, and warms up."""
    rl = RLConfig(steps=4, batch_size=64, minibatches=4, inner_epochs=2, learning_rate=0.05, max_clipped=max_clipped)
    run_it(tmp_path / "run", tiny, rl)
    found = lines(tmp_path / "run")
    most, halved = max(line["clipped_most"] for line in found), sum(line["halved"] for line in found)
    if max_clipped:
        assert most <= max_clipped and halved and found[-1]["lr_scale"] < 1
    else:
        assert most > 0.5 and not halved and {line["updates"] for line in found} == {8}


def test_grpo_learns_and_its_groups_share_a_space_group(tiny, tmp_path):
    sample = dataclasses.replace(ONE_SITE, space_groups=(221, 200), weights=(0.5, 0.5))
    rl = RLConfig(algorithm="grpo", steps=8, batch_size=64, group_size=8, learning_rate=1e-2, kl_coef=0.1)
    run_it(tmp_path / "run", tiny, rl, sample)
    found = crystals_of(tmp_path / "run")
    for start in range(0, len(found), 8):
        assert len({line["space_group"] for line in found[start : start + 8]}) == 1
    assert {line["space_group"] for line in found} == {221, 200}
    history = [line["reward"] for line in lines(tmp_path / "run")]
    assert np.mean(history[-3:]) > np.mean(history[:3]) + 0.2


def test_a_step_that_a_signal_ends_is_made_again(tiny, tmp_path):
    """As within a relaxation: the steps before it are kept, and a resumed run ends as if nothing had happened."""

    class Stopped(Lookup):
        def evaluate(self, structures) -> RewardBatch:
            if self.asked:
                raise Interrupted(signal.SIGTERM, "within a relaxation")
            return super().evaluate(structures)

    # Of so many elements that every step has crystals that are new.
    sample, table = dataclasses.replace(ONE_SITE, elements=()), {symbol: z / 100 for z, symbol in enumerate(SYMBOLS)}
    rl = RLConfig(steps=3, batch_size=16, learning_rate=1e-3, checkpoint_steps=1000)
    with pytest.raises(Interrupted, match="stopped at step 1; continue with `resume`") as stopped:
        run_it(tmp_path / "run", tiny, rl, sample, Stopped(table))
    assert stopped.value.signum == signal.SIGTERM and len(lines(tmp_path / "run")) == 1
    run_it(tmp_path / "run", tiny, rl, sample, Lookup(table), resume=True)
    run_it(tmp_path / "whole", tiny, rl, sample, Lookup(table))
    assert crystals_of(tmp_path / "run") == crystals_of(tmp_path / "whole")


def test_resumed_run_equals_an_uninterrupted_one(tiny, tmp_path, monkeypatch):
    """Parameters to the bit, metrics but for the seconds, crystals, and the reward cache."""
    rl = RLConfig(
        steps=6,
        batch_size=16,
        learning_rate=1e-3,
        checkpoint_steps=2,
        max_clipped=0.2,
        quotas="class",
        minibatches=2,
        replay="uniform",
        replay_steps=3,
        entropy_coef=0.1,
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_it(whole, tiny, rl)

    class Killed(BaseException):
        pass

    step = rl_module._Reinforcement.step

    def killed(self, state, number):
        if number == 5:  # after step 5 was logged, whose last checkpoint is that of step 4
            raise Killed
        return step(self, state, number)

    monkeypatch.setattr(rl_module._Reinforcement, "step", killed)
    with pytest.raises(Killed):
        run_it(parts, tiny, rl)
    monkeypatch.setattr(rl_module._Reinforcement, "step", step)
    reward = Lookup(REWARDS)
    moved = load_model(parts / "reference")
    run_it(parts, moved, rl, reward=reward, resume=True)
    assert reward.asked <= 2  # of four crystals: what earlier steps had learnt was not asked again
    assert (whole / "crystals.jsonl").read_bytes() == (parts / "crystals.jsonl").read_bytes()
    assert (whole / "best.cif").read_bytes() == (parts / "best.cif").read_bytes()
    timeless = [
        [{key: value for key, value in line.items() if not key.startswith("seconds")} for line in lines(path)]
        for path in (whole, parts)
    ]
    assert timeless[0] == timeless[1]
    one, other = (load_checkpoint(path / "final").params for path in (whole, parts))
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(left, right)
    for left, right in zip(jax.tree.leaves(tiny.params), jax.tree.leaves(moved.params), strict=True):
        np.testing.assert_array_equal(left, right)  # the reference is still the original policy


class Killed(BaseException):
    """As near to a kill as a process can come that goes on."""


class KilledAt(Lookup):
    """A reward in whose evaluation number `last + 1` the process is killed."""

    def __init__(self, table, last: int):
        super().__init__(table)
        self.left = last

    def evaluate(self, structures) -> RewardBatch:
        if not self.left:
            raise Killed
        self.left -= 1
        return super().evaluate(structures)


def timeless(path) -> list[dict]:
    return [{key: value for key, value in line.items() if not key.startswith("seconds")} for line in lines(path)]


def assert_same_run(one, other):
    """Crystals, metrics without the seconds, and the policy to the bit."""
    assert (one / "crystals.jsonl").read_bytes() == (other / "crystals.jsonl").read_bytes()
    assert (one / "best.cif").read_bytes() == (other / "best.cif").read_bytes()
    assert timeless(one) == timeless(other)
    params = [load_checkpoint(path / "final").params for path in (one, other)]
    for left, right in zip(*map(jax.tree.leaves, params), strict=True):
        np.testing.assert_array_equal(left, right)
    assert not (one / "lock").exists() and not (other / "lock").exists()


def test_rewards_since_the_last_checkpoint_are_kept(tiny, tmp_path):
    """Also those of a run that is killed again before it has come so far."""
    cells = dataclasses.replace(ONE_SITE, template=Template(letters=("a",), frac_coords=((0.0, 0.0, 0.0),)))
    rl = RLConfig(steps=4, batch_size=8, learning_rate=1e-3, checkpoint_steps=100, max_failures=1.0)
    whole, parts, reward = tmp_path / "whole", tmp_path / "parts", Lookup(REWARDS)
    run_it(whole, tiny, rl, cells, reward)
    with pytest.raises(Killed):
        run_it(parts, tiny, rl, cells, KilledAt(REWARDS, 3))
    with pytest.raises(Killed):
        run_it(parts, load_model(parts / "reference"), rl, cells, KilledAt(REWARDS, 0), resume=True)
    again = Lookup(REWARDS)
    run_it(parts, load_model(parts / "reference"), rl, cells, again, resume=True)
    assert 0 < again.asked <= 8 < reward.asked
    assert_same_run(whole, parts)


@pytest.mark.parametrize("resume", [False, True])
def test_killed_before_its_first_checkpoint(tiny, tmp_path, resume):
    """A run can be started again, or resumed from what it was to do."""
    rl = RLConfig(steps=2, batch_size=8)
    run_it(tmp_path / "whole", tiny, rl)
    run = tmp_path / "run"
    (run / "checkpoints" / "step_00000000.partial-7").mkdir(parents=True)
    (run / "reference.partial-7").mkdir()
    (run / "lock").touch()
    (run / "config.toml").write_bytes((tmp_path / "whole" / "config.toml").read_bytes())
    run_it(run, tiny, rl, resume=resume)
    assert_same_run(tmp_path / "whole", run)
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in (tmp_path / "whole").iterdir())


def test_the_first_update_starts_from_the_policy_that_drew(tiny, tmp_path):
    rl = RLConfig(steps=1, batch_size=32, inner_epochs=1)
    run_it(tmp_path / "run", tiny, rl)
    [line] = lines(tmp_path / "run")
    assert line["clipped"] == 0
    assert line["kl_old"] == pytest.approx(0, abs=1e-9)
    assert line["kl_reference"] == pytest.approx(0, abs=1e-6)
    assert line["failures"] == 0
    assert {"seconds_sampling", "seconds_rewarding", "seconds_updating", "grad_norm", "valid", "unique"} <= set(line)
    assert set(line["entropy"]) == {"wyckoff", "species", "coords", "lattice"}


CUBE = {"template": Template(lattice=LATTICE), "elements": ELEMENTS}
CONSTRAINED = {
    "formula": SampleConfig(space_groups=(221, 225), formula=(("Na", 1), ("K", 1)), template=CUBE["template"]),
    "require": SampleConfig(space_groups=(221,), require=("Na", "Cs"), **CUBE),
    "any of": SampleConfig(space_groups=(221, 225), any_of=("Rb", "Cs"), bias=(("Na", 1.0),), **CUBE),
}


@pytest.mark.parametrize("name", CONSTRAINED)
def test_ratios_begin_at_one_under_constraints(tiny, tmp_path, name):
    """What was drawn meets the request, and is scored under the masks that it was drawn with."""
    request, run = CONSTRAINED[name], tmp_path / "run"
    run_it(run, tiny, RLConfig(steps=2, batch_size=32, inner_epochs=1), request)
    first, second = lines(run)
    assert first["clipped"] == second["clipped"] == 0
    assert first["kl_old"] == second["kl_old"] == pytest.approx(0, abs=1e-9)
    assert first["kl_reference"] == pytest.approx(0, abs=1e-6) and second["kl_reference"] != 0
    drawn = [{SYMBOLS[z] for z in crystal["species"] if z} for crystal in crystals_of(run)]
    assert len(drawn) == 64
    if request.formula:
        assert all(symbols == {"Na", "K"} for symbols in drawn)
    assert all(set(request.require) <= symbols for symbols in drawn)
    assert not request.any_of or all(symbols & set(request.any_of) for symbols in drawn)


def test_the_likelihood_of_a_rollout_is_that_of_its_masks(tiny):
    """Scored by the kernel that learns, under the policy of the request, as the decoder drew them."""
    for request in CONSTRAINED.values():
        prepared = prepare(request, tiny.config)
        for draws in tiny.draws(dataclasses.replace(request, n=16, keep_invalid=True), prepared):
            again = score(tiny.params, tiny.config, draws.crystals, prepared.policy).total
            np.testing.assert_allclose(again, draws.policy_log_prob.total, atol=1e-3)


def test_groups_of_grpo_leave_out_what_cannot_meet_the_request(tiny, tmp_path):
    """Ia-3d needs 16 atoms at least: no group of crystals is drawn there, and all groups are whole."""
    request = dataclasses.replace(CONSTRAINED["formula"], space_groups=(230, 221, 230, 225), max_atoms=8)
    rl = RLConfig(steps=3, batch_size=32, group_size=8, algorithm="grpo", inner_epochs=1)
    run_it(tmp_path / "run", tiny, rl, request)
    groups = np.array([crystal["space_group"] for crystal in crystals_of(tmp_path / "run")]).reshape(-1, 8)
    assert (groups == groups[:, :1]).all() and set(groups[:, 0]) == {221, 225}


@pytest.mark.parametrize("minibatches", [1, 2, 5])
def test_minibatches_know_their_own_crystals(tiny, tmp_path, minibatches):
    """With a learning rate next to nothing, they add up to the rollout: no ratio moves, and advantages have no mean."""
    rl = RLConfig(steps=1, batch_size=32, minibatches=minibatches, inner_epochs=2, learning_rate=1e-12)
    run_it(tmp_path / "run", tiny, rl)
    [line] = lines(tmp_path / "run")
    assert line["updates"] == 2 * minibatches
    assert line["clipped"] == 0
    assert line["kl_old"] == pytest.approx(0, abs=1e-9)
    assert line["kl_reference"] == pytest.approx(0, abs=1e-6)
    assert line["objective"] == pytest.approx(0, abs=1e-5)  # the baseline of a first step is its mean reward


@pytest.mark.parametrize(("target_kl", "epochs"), [(0.0, 6), (1e-6, 2), (100.0, 6)])
def test_target_kl_ends_the_inner_epochs(tiny, tmp_path, target_kl, epochs):
    """The first one starts from the policy that drew; after it the KL is known, and 0 is not a target."""
    rl = RLConfig(steps=1, batch_size=32, inner_epochs=6, learning_rate=1e-2, target_kl=target_kl)
    run_it(tmp_path / "run", tiny, rl)
    [line] = lines(tmp_path / "run")
    assert line["updates"] == epochs
    assert 1e-6 < line["kl_old"] < 100


def test_nothing_is_learnt_from_rewards_that_are_no_numbers(tiny, tmp_path):
    class Broken(Lookup):
        def evaluate(self, structures):
            n = len(structures)
            return RewardBatch(np.full(n, np.nan), np.ones(n, bool), [""] * n)

    with pytest.raises(
        NumericsError, match="16 of 16 crystals of step 1 have no reward: 16 x the reward is not a finite"
    ):
        run_it(tmp_path / "run", tiny, RLConfig(steps=3, batch_size=16), reward=Broken(REWARDS))
    params = load_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000000").params
    for left, right in zip(jax.tree.leaves(params), jax.tree.leaves(tiny.params), strict=True):
        np.testing.assert_array_equal(left, right)
    assert not (tmp_path / "run" / "final").exists()


def test_failures_score_worst_and_are_counted(tiny, tmp_path):
    table = REWARDS | {"Na": np.nan}
    run_it(tmp_path / "run", tiny, RLConfig(steps=1, batch_size=64, max_failures=1.0), reward=Lookup(table))
    [line] = lines(tmp_path / "run")
    assert 0 < line["failures"] < 1
    values = [json.loads(text)["reward"] for text in (tmp_path / "run" / "crystals.jsonl").read_text().splitlines()]
    counted = [Lookup.failure if value is None else value for value in values]
    assert line["reward"] == pytest.approx(np.mean(counted))
    assert line["failures"] == pytest.approx(values.count(None) / 64)


def test_a_limit_on_the_kl_ends_the_run(tiny, tmp_path):
    rl = RLConfig(steps=50, batch_size=64, learning_rate=2e-2, kl_coef=0.01, max_kl=0.05)
    result = run_it(tmp_path / "run", tiny, rl)
    assert result.step < 50
    assert "KL" in result.ended
    *others, last = lines(tmp_path / "run")
    assert last["kl_reference"] > 0.05 and last["updates"] == 0
    assert all(line["kl_reference"] <= 0.05 and line["updates"] == 5 for line in others)
    assert (tmp_path / "run" / "final").is_dir()


def test_penalty_for_repeats(tiny, tmp_path):
    run_it(tmp_path / "run", tiny, RLConfig(steps=1, batch_size=32), diversity=Diversity(duplicate_penalty=0.25))
    [line] = lines(tmp_path / "run")
    plain = np.mean(
        [json.loads(text)["reward"] for text in (tmp_path / "run" / "crystals.jsonl").read_text().splitlines()]
    )
    assert line["unique"] <= 4 / 32  # there are four crystals
    assert line["reward"] == pytest.approx(plain - 0.25 * (1 - line["unique"]))


def test_best_crystals_are_unique_and_ordered(tiny, tmp_path):
    result = run_it(tmp_path / "run", tiny, RLConfig(steps=4, batch_size=64, keep=3))
    assert result.best == 3
    text = (tmp_path / "run" / "best.cif").read_text()
    rewards = [float(line.split()[1]) for line in text.splitlines() if line.startswith("_cfx_reward ")]
    assert rewards == [1.5, 1.0, 0.5]


def test_steps_draw_different_crystals_and_the_same_ones_again():
    rl = RLConfig(batch_size=8, seed=5)
    requests = [step_request(ONE_SITE, rl, step) for step in range(3)]
    assert len({request.seed for request in requests}) == 3
    assert step_request(ONE_SITE, rl, 1) == requests[1]
    assert all(request.keep_invalid and request.n == 8 for request in requests)


def test_what_a_run_does_can_be_read_back(tiny, tmp_path):
    rl = RLConfig(steps=1, batch_size=8, kl_coef=0.3)
    run_it(tmp_path / "run", tiny, rl)
    assert read_run(tmp_path / "run") == RewardRun(
        model="tiny", sample=ONE_SITE, reward=RewardConfig(reward="lookup"), rl=rl
    )
    with pytest.raises(UsageError, match="is not a run of cfx rl"):
        read_run(tmp_path)
    with pytest.raises(UsageError, match="is not empty"):
        run_it(tmp_path / "run", tiny, rl)


class Said(Mute):
    """A reporter that keeps warnings."""

    def __init__(self):
        self.warnings = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def answers(answer):
    """A reward that answers something of its own in the second rollout."""

    class Own(Lookup):
        rollouts = 0

        def evaluate(self, structures):
            self.rollouts += 1
            right = super().evaluate(structures)
            return right if self.rollouts == 1 else answer(right)

    return Own(REWARDS)


def fail(right):
    raise KeyError("density\nof states")


WRONG = {
    "raises": (fail, "the reward lookup raised KeyError: 'density\\\\nof states'"),
    "a list": (lambda right: right.value.tolist(), "returned list, not a RewardBatch"),
    "nothing": (lambda right: None, "returned NoneType, not a RewardBatch"),
    "too few": (lambda right: make_batch(right.value[:-1], right.reasons[:-1]), "returned values of shape"),
    "text": (lambda right: dataclasses.replace(right, value=["good"] * len(right.value)), "values that are no numbers"),
    "reasons": (lambda right: dataclasses.replace(right, reasons=[*right.reasons, ""]), "reasons for"),
    "no text": (
        lambda right: dataclasses.replace(right, reasons=[None] * len(right.value)),
        "reasons that are no text",
    ),
    "metrics": (lambda right: dataclasses.replace(right, metrics={"gap": np.zeros(1000)}), "metrics 'gap' of shape"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_reward_that_goes_wrong_is_one_line_with_the_step_and_a_checkpoint(tiny, tmp_path, kind):
    """The run goes on from there to where it would have been."""
    answer, words = WRONG[kind]
    rl = RLConfig(steps=3, batch_size=8, checkpoint_steps=50, learning_rate=1e-2, max_failures=1.0)
    # Rewards are computed once for each crystal: here every rollout has new ones.
    sample = dataclasses.replace(ONE_SITE, template=Template(letters=("a",)))
    with pytest.raises(RewardError) as error:
        run_it(tmp_path / "run", tiny, rl, sample, answers(answer))
    assert error.value.message.startswith("step 2: ") and words.replace("\\\\", "\\") in error.value.message
    assert "\n" not in error.value.message and "step_00000001" in error.value.message
    assert (tmp_path / "run" / "checkpoints" / "step_00000001").is_dir()
    if kind == "raises":
        assert isinstance(error.value.__cause__, RewardError) and isinstance(error.value.__cause__.__cause__, KeyError)
        run_it(tmp_path / "run", tiny, rl, sample, resume=True)
        run_it(tmp_path / "whole", tiny, rl, sample)
        one, other = (tmp_path / name / "final" / "params.safetensors" for name in ("run", "whole"))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_a_step_without_a_single_reward_goes_on_where_that_is_allowed(tiny, tmp_path, algorithm):
    table = dict.fromkeys(ELEMENTS, np.nan)
    rl = RLConfig(steps=2, batch_size=8, group_size=4, max_failures=1.0, algorithm=algorithm)
    result = run_it(tmp_path / "run", tiny, rl, reward=Lookup(table))
    assert result.step == 2 and result.best == 0 and result.last == Lookup.failure
    for line in lines(tmp_path / "run"):
        assert line["failures"] == 1 and line["reward"] == Lookup.failure
        assert not any(name.startswith("reward_q") for name in line)


def test_a_reward_below_that_of_a_failure_is_warned_of_once(tiny, tmp_path):
    for table, times in (({**REWARDS, "Na": -5.5, "K": -6.0}, 1), ({**REWARDS, "Na": -5.0}, 0)):
        said, run = Said(), tmp_path / str(times)
        config = RewardRun(
            model="tiny",
            sample=ONE_SITE,
            reward=RewardConfig(reward="lookup"),
            rl=RLConfig(steps=2, batch_size=32),
        )
        fine_tune(run, config, tiny, weighted_sum(((Lookup(table), 1.0),)), Diversity(), said)
        assert sum("below the -5 that a failure counts as" in text for text in said.warnings) == times
