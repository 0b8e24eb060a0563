"""Rewards on a real Dask cluster on this machine: in order, and with clear errors."""

from __future__ import annotations

import dataclasses
import json
import os
import sys

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cfx.config import ModelConfig, RewardConfig, RLConfig, SampleConfig
from cfx.config.finetuning import RewardRun
from cfx.errors import DependencyError, RewardError
from cfx.io.cluster import connected
from cfx.model import Model
from cfx.reporter import Interrupted, Mute
from cfx.rl.rewards import make_batch
from cfx.runs.cluster import FEWEST, MOST, chunk_size, cluster_reward, joined
from cfx.runs.fine_tuning import fine_tune

distributed = pytest.importorskip("distributed")

REWARD = """
import os, time
import numpy as np
from cfx.rl.rewards import make_batch

class Atoms:
    name, about, unit, kl_coef, failure = "atoms", "their number, and which process said so", "", 0.25, -3.0
    def evaluate(self, structures):
        time.sleep(0.05)
        value = np.array([np.nan if one is None else float(len(one)) for one in structures])
        pid = np.full(len(value), float(os.getpid()))
        return make_batch(value, ["" if one is not None else "no cell" for one in structures], {"process": pid})

class Broken(Atoms):
    def evaluate(self, structures):
        raise KeyError("density\\nof states")

class Deadly(Atoms):
    def evaluate(self, structures):
        os._exit(1)

class Slow(Atoms):
    def evaluate(self, structures):
        time.sleep(2)
"""


def atoms(n: int) -> Structure:
    """A cell of n atoms."""
    return Structure(Lattice.cubic(3.0 * n), ["Na"] * n, np.linspace(0, 0.9, 3 * n).reshape(n, 3))


@pytest.mark.parametrize("crystals, workers, size", [(5, 2, FEWEST), (128, 2, 32), (1000, 2, MOST), (100, 0, 50)])
def test_two_chunks_for_each_worker(crystals, workers, size):
    assert chunk_size(crystals, workers) == size


def test_a_part_that_only_some_chunks_have():
    one, other = make_batch(np.ones(2), [""] * 2, {"a": np.ones(2)}), make_batch(np.zeros(1), ["no"], {"b": np.ones(1)})
    batch = joined([one, other])
    np.testing.assert_array_equal(batch.value, [1, 1, np.nan])
    np.testing.assert_array_equal(batch.metrics["a"], [1, 1, np.nan])
    np.testing.assert_array_equal(batch.metrics["b"], [np.nan, np.nan, 1])
    assert batch.reasons == ["", "", "no"] and batch.ok.tolist() == [True, True, False]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cluster")
    (directory / "own_atoms.py").write_text(REWARD)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(directory))
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            yield cluster


def named(name: str) -> RewardConfig:
    return RewardConfig(reward=f"own_atoms:{name}")


@pytest.mark.integration
def test_crystals_come_back_in_order(cluster):
    structures = [None if n % 7 == 3 else atoms(1 + n % 5) for n in range(45)]
    with connected(cluster.scheduler_address) as client:
        reward = cluster_reward(client, named("Atoms"))
        batch = reward.evaluate(structures)
    assert (reward.kl_coef, reward.failure, reward.name) == (0.25, -3.0, "atoms")
    assert reward.about.endswith("on a Dask cluster")
    np.testing.assert_array_equal(batch.value, [np.nan if one is None else len(one) for one in structures])
    assert batch.reasons == ["no cell" if one is None else "" for one in structures]
    processes = set(batch.metrics["process"])
    assert len(processes) == 2 and os.getpid() not in processes


@pytest.mark.integration
@pytest.mark.parametrize(
    "name, words",
    [
        ("Broken", "the reward on a worker: the reward atoms raised KeyError: 'density"),
        ("Deadly", "the reward on a worker: KilledWorker: "),
    ],
)
def test_an_error_of_a_worker_is_one_line(cluster, name, words):
    with connected(cluster.scheduler_address) as client, pytest.raises(RewardError) as caught:
        cluster_reward(client, named(name)).evaluate([atoms(1)])
    assert words in caught.value.message and "\n" not in caught.value.message and caught.value.hint


@pytest.mark.integration
def test_what_cannot_be_loaded_is_said_before_the_run(cluster):
    words = r"loading the reward on a worker: .*nowhere_to_be_found"
    with connected(cluster.scheduler_address) as client, pytest.raises(DependencyError, match=words):
        cluster_reward(client, RewardConfig(reward="nowhere_to_be_found:Reward"))


@pytest.mark.integration
def test_a_run_is_the_one_without_a_cluster(cluster, tmp_path):
    tiny = ModelConfig(n_max=3, num_layers=1, num_heads=2, key_size=8, model_size=16, embed_size=8, first_hidden=16)
    model = dataclasses.replace(Model.init(tiny, seed=3), name="tiny")
    rl = RLConfig(steps=1, batch_size=24, max_failures=1.0)
    config = RewardRun(model="tiny", sample=SampleConfig(space_groups=(221,)), reward=named("Atoms"), rl=rl)
    with connected(cluster.scheduler_address) as client:
        reward = cluster_reward(client, config.reward)
        fine_tune(tmp_path / "there", config, model, config.reward, Mute(), reward=reward)
    fine_tune(tmp_path / "here", config, model, config.reward, Mute())
    lines = [(tmp_path / name / "crystals.jsonl").read_text().splitlines() for name in ("there", "here")]
    keys = ("reward", "reason", "species", "advantage")
    there, here = ([{key: json.loads(line)[key] for key in keys} for line in some] for some in lines)
    assert there == here and len(here) == 24


@pytest.mark.integration
def test_a_signal_ends_the_wait(cluster, monkeypatch):
    with connected(cluster.scheduler_address) as client:
        reward = cluster_reward(client, named("Slow"))
        monkeypatch.setattr("cfx.reporter.StopRequest.heard", lambda: 15)
        with pytest.raises(Interrupted):
            reward.evaluate([atoms(1)])
