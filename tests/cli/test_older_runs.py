"""Runs whose config.toml an earlier version of cfx wrote are read and continued.

The texts are what cfx wrote before its options were made from the fields of configurations.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from cfx.cli.app import app
from cfx.config import (
    DataConfig,
    ModelConfig,
    RewardConfig,
    RewardRun,
    RLConfig,
    SampleConfig,
    Shape,
    Template,
    TrainConfig,
    TrainRun,
)
from cfx.config.finetuning import read_run
from cfx.training.run import RunDirectory

from ..density_reward import DENSITY

GOLDEN = Path(__file__).parents[1] / "golden"

TRAIN = """\
[model]
position = "rotary"
num_frequencies = 5
coord_components = 4
lattice_components = 4
n_max = 21
first_hidden = 16
num_layers = 2
num_heads = 2
key_size = 8
model_size = 16
embed_size = 8
num_species = 119
num_letters = 28
widening = 4
sigma_min = 0.001

[train]
epochs = 4
batch_size = 4
accumulate = 1
optimizer = "adam"
learning_rate = 0.001
schedule = "cosine"
warmup_steps = 200
decay = 0.0
weight_decay = 0.0
clip_norm = 1.0
dropout = 0.1
attention_dropout = 0.0
ema_decay = 0.0
precision = "auto"
seed = 0
log_steps = 5
checkpoint_steps = 5
keep_checkpoints = 2

[data]
train = "crystals"
symprec = 0.01
"""

RL = """\
model = "mini"

[sample]
space_groups = [
    221,
]
n = 1
seed = 0
temperature = 1.0
top_p = 1.0
weights = []
shard = [
    1,
    1,
]
elements = [
    "Na",
    "Cl",
    "O",
]
exclude = []
radioactive = true
require = []
formula = []
bias = [
    [
        "O",
        1.5,
    ],
]
max_sites = 2
exact = false
refine = 0
unique = false
min_distance = 0.0
keep_invalid = false
max_attempts = 10000

[sample.template]
letters = []
species = []
tied = []
frac_coords = []
lattice = []

[reward]
reward = "own_older_reward:Density"
potential = "chgnet"
hull = "chgnet-mp"
e_hull_limit = 2.0
e_hull_floor = -0.2
gap_model = "bundled"
dielectric_model = "bundled"
property_name = "property"
distance = "square"
novelty_bonus = 0.0
composition_penalty = 0.0
device = "cpu"

[reward.shape]
clip = [
    0.0,
    20.0,
]
log1p = false

[rl]
algorithm = "ppo"
steps = 2
batch_size = 16
group_size = 16
inner_epochs = 1
minibatches = 2
learning_rate = 0.0005
clip_norm = 1.0
clip_range = 0.2
baseline = "group"
baseline_decay = 0.95
likelihood = "policy"
target_kl = 0.0
max_kl = 0.0
max_failures = 0.5
seed = 0
keep = 100
checkpoint_steps = 1
keep_checkpoints = 2
"""

TEMPLATE = """\
[sample.template]
letters = [
    "a",
    "b",
]
species = [
    [
        "Na",
    ],
    [],
]
tied = [
    [
        0,
        1,
    ],
]
frac_coords = []
lattice = [
    4.0,
    4.0,
    4.0,
    90.0,
    90.0,
    90.0,
]
"""


def begun(path: Path, text: str) -> Path:
    """The directory of a run that was killed when it had written its configuration."""
    path.mkdir()
    (path / "config.toml").write_text(text)
    return path


def test_a_training_run_is_read(tmp_path):
    model = ModelConfig(
        num_layers=2, num_heads=2, key_size=8, model_size=16, embed_size=8, first_hidden=16, coord_components=4
    )
    train = TrainConfig(epochs=4, batch_size=4, attention_dropout=0.0, log_steps=5, checkpoint_steps=5)
    expected = TrainRun(model=model, train=train, data=DataConfig(train="crystals"))
    assert RunDirectory(begun(tmp_path / "run", TRAIN)).config() == expected


def test_a_model_that_was_trained_further_is_read(tmp_path):
    text = 'from = "mini"\n\n' + TRAIN[TRAIN.index("[train]") :]
    config = RunDirectory(begun(tmp_path / "run", text)).config()
    assert (config.start, config.model, config.train.checkpoint_steps) == ("mini", None, 5)


def test_a_run_with_a_reward_is_read(tmp_path):
    expected = RewardRun(
        model="mini",
        sample=SampleConfig(space_groups=(221,), elements=("Na", "Cl", "O"), bias=(("O", 1.5),), max_sites=2),
        reward=RewardConfig(
            reward="own_older_reward:Density", shape=Shape(clip=(0.0, 20.0)),
            gap_model="bundled", dielectric_model="bundled",
        ),
        rl=RLConfig(
            steps=2, batch_size=16, inner_epochs=1, minibatches=2, learning_rate=5e-4, baseline="group",
            checkpoint_steps=1,
        ),
    )  # fmt: skip
    assert read_run(begun(tmp_path / "run", RL)) == expected
    start, end = RL.index("[sample.template]"), RL.index("[reward]")
    on_a_prototype = read_run(begun(tmp_path / "prototype", RL[:start] + TEMPLATE + "\n" + RL[end:]))
    template = Template(
        letters=("a", "b"), species=(("Na",), ()), tied=((0, 1),), lattice=(4.0, 4.0, 4.0, 90.0, 90.0, 90.0)
    )
    sample = dataclasses.replace(expected.sample, template=template)
    assert on_a_prototype == dataclasses.replace(expected, sample=sample)


def cfx(*words: object) -> None:
    result = CliRunner().invoke(app, [*map(str, words)])
    if result.exception is not None:
        raise result.exception


def continued(run: Path, command: str, result: str) -> None:
    """Continues a run twice: from its configuration alone, and from the checkpoint before the last one."""
    cfx(command, "--resume", "-o", run)
    whole = (run / result / "params.safetensors").read_bytes()
    for path in sorted((run / "checkpoints").iterdir())[-1], run / "final", run / "best":
        shutil.rmtree(path, ignore_errors=True)
    assert not (run / result).exists()
    cfx(command, "--resume", "-o", run)
    assert (run / result / "params.safetensors").read_bytes() == whole


def test_a_training_run_is_continued(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crystals").mkdir()
    num_sites = (np.load(GOLDEN / "v042_dev_expected.npz")["W"] > 0).sum(1)
    entries = json.loads((GOLDEN / "v042_dev_cifs.json").read_text())
    for row in np.flatnonzero(num_sites == 1):
        (tmp_path / "crystals" / f"{row}.cif").write_text(entries[row]["cif"])
    continued(begun(tmp_path / "run", TRAIN), "train", "checkpoints/step_00000012")


def test_a_run_with_a_reward_is_continued(tmp_path, monkeypatch):
    (tmp_path / "own_older_reward.py").write_text(DENSITY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    continued(begun(tmp_path / "run", RL), "rl", "final")
