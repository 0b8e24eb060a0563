"""Checkpoint directories: exact, whole or not there, and refused when damaged."""

import json
import shutil

import jax
import numpy as np
import optax
import pytest

from cfx.config import ModelConfig
from cfx.errors import CheckpointError, OutputError
from cfx.io.checkpoint import Checkpoint, flatten, load_checkpoint, load_opt_state, save_checkpoint


@pytest.fixture(scope="module")
def opt_state(rotary):
    """A state of Adam with a number of its own in every place."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(optimizer.init, rotary.params)
    return jax.tree.map(lambda leaf: np.asarray(100 * rng.normal(size=leaf.shape)).astype(leaf.dtype), shapes)


@pytest.fixture
def saved(rotary, opt_state, tmp_path):
    path = tmp_path / "run" / "checkpoint"
    info = {"step": 12, "run": {"data": {"source": "crystals.csv"}}}
    save_checkpoint(path, Checkpoint(rotary.config, rotary.params, info), opt_state)
    return path


def test_round_trip(rotary, saved):
    loaded = load_checkpoint(saved)
    assert loaded.config == rotary.config
    assert loaded.info == {"step": 12, "run": {"data": {"source": "crystals.csv"}}}
    assert jax.tree.structure(loaded.params) == jax.tree.structure(rotary.params)
    for (path, ours), (_, theirs) in zip(
        jax.tree_util.tree_leaves_with_path(loaded.params),
        jax.tree_util.tree_leaves_with_path(rotary.params),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs, err_msg=jax.tree_util.keystr(path))
        assert ours.dtype == np.float32
    assert sorted(file.name for file in saved.iterdir()) == [
        "checkpoint.json", "opt_state.safetensors", "params.safetensors"
    ]  # fmt: skip


def test_optimiser_state_is_exact(saved, opt_state):
    template = jax.tree.map(np.zeros_like, opt_state)
    loaded = load_opt_state(saved, template)
    assert jax.tree.structure(loaded) == jax.tree.structure(opt_state)
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(opt_state), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    assert any(leaf.dtype == np.int32 and leaf.shape == () for leaf in jax.tree.leaves(loaded))


def test_optimiser_state_of_another_kind(saved, opt_state, rotary):
    other = optax.sgd(1e-3, momentum=0.9).init(rotary.params)
    with pytest.raises(CheckpointError, match="another optimiser") as error:
        load_opt_state(saved, other)
    assert error.value.hint
    wider = jax.tree.map(lambda leaf: np.zeros((*leaf.shape, 2)), opt_state)
    with pytest.raises(CheckpointError, match="another optimiser"):
        load_opt_state(saved, wider)


def test_optimiser_state_that_is_not_there(rotary, tmp_path, opt_state):
    save_checkpoint(tmp_path / "bare", Checkpoint(rotary.config, rotary.params))
    assert not (tmp_path / "bare" / "opt_state.safetensors").exists()
    with pytest.raises(CheckpointError, match="opt_state"):
        load_opt_state(tmp_path / "bare", opt_state)


def test_float16_storage_loads_as_float32(rotary, tmp_path):
    save_checkpoint(tmp_path / "half", Checkpoint(rotary.config, rotary.params), dtype="float16")
    save_checkpoint(tmp_path / "full", Checkpoint(rotary.config, rotary.params))
    sizes = [(tmp_path / name / "params.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    for ours, theirs in zip(
        jax.tree.leaves(load_checkpoint(tmp_path / "half").params),
        jax.tree.leaves(rotary.params),
        strict=True,
    ):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs.astype(np.float16).astype(np.float32))


def test_an_older_checkpoint_is_replaced(rotary, saved):
    save_checkpoint(saved, Checkpoint(rotary.config, rotary.params, {"step": 13}))
    assert load_checkpoint(saved).info == {"step": 13}
    assert not (saved / "opt_state.safetensors").exists()
    assert [entry.name for entry in saved.parent.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"format_version": 1, "mod',
        "[]",
        "3",
        "null",
        '"text"',
        "{}",
        '{"format_version": 99, "model": {}}',
        '{"format_version": 1}',
        '{"format_version": 1, "model": 3}',
        '{"format_version": 1, "model": []}',
        '{"format_version": 1, "model": {"num_layers": 0}}',
        '{"format_version": 1, "model": {"num_layers": "three"}}',
        '{"format_version": 1, "model": {"number_of_layers": 3}}',
        '{"format_version": 1, "model": {"position": "relative"}}',
        '{"a":' * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"format_version": 1, "model": {"num_layers": ' + "9" * 400 + "}}",
        '{"format_version": 1, "model": {"num_layers": ' + "9" * 5000 + "}}",
        '{"format_version": 1, "model": {"sigma_min": 1e999}}',
    ],
    ids=lambda content: content[:50],
)
def test_damaged_json(saved, content):
    (saved / "checkpoint.json").write_text(content)
    with pytest.raises(CheckpointError):
        load_checkpoint(saved)


def test_json_that_is_no_text(saved):
    (saved / "checkpoint.json").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(CheckpointError):
        load_checkpoint(saved)


@pytest.mark.parametrize("name", ["checkpoint.json", "params.safetensors"])
def test_a_missing_file(saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(saved)


def test_a_missing_directory(tmp_path):
    with pytest.raises(CheckpointError, match="not a checkpoint directory"):
        load_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["params.safetensors", "opt_state.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_safetensors_cut_short(saved, opt_state, name, share):
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(saved) if name.startswith("params") else load_opt_state(saved, opt_state)


def test_safetensors_of_random_bytes(saved):
    (saved / "params.safetensors").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(CheckpointError, match=r"params\.safetensors"):
        load_checkpoint(saved)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("what", ["params", "opt_state"])
def test_numbers_that_are_none(rotary, opt_state, tmp_path, what, value):
    tree = jax.tree.map(np.array, {"params": rotary.params, "opt_state": opt_state})
    jax.tree.leaves(tree[what])[-1].flat[-1] = value
    save_checkpoint(tmp_path / "bad", Checkpoint(rotary.config, tree["params"], {}), tree["opt_state"])
    with pytest.raises(CheckpointError, match=rf"{what}\.safetensors: .* holds NaN or infinite numbers"):
        load_checkpoint(tmp_path / "bad")
        load_opt_state(tmp_path / "bad", opt_state)


@pytest.mark.parametrize(("dtype", "size"), [("BF16", 2), ("F8_E4M3", 1), ("F8_E5M2", 1), ("C64", 8), ("F4", 1)])
def test_tensors_of_types_that_numpy_lacks(saved, dtype, size):
    header = json.dumps({"a/w": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}}).encode()
    (saved / "params.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(saved)
    assert "\n" not in error.value.message


def test_parameters_that_do_not_fit_the_architecture(saved):
    """An edited checkpoint.json is noticed when it is read, not in the middle of a run."""
    content = json.loads((saved / "checkpoint.json").read_text())
    content["model"]["num_layers"] += 1
    (saved / "checkpoint.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError):
        load_checkpoint(saved)


def test_a_pickle_is_no_checkpoint(rotary, tmp_path):
    (tmp_path / "directory").mkdir()
    shutil.copy(rotary.path, tmp_path / "directory" / "params.safetensors")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "directory")
    with pytest.raises(CheckpointError):
        load_checkpoint(rotary.path)


@pytest.mark.parametrize("below", ["checkpoint", "deep/checkpoint"])
def test_a_place_that_cannot_be_written(rotary, tmp_path, below):
    """The parent is a file: an OutputError, and nothing is left."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="cannot write"):
        save_checkpoint(tmp_path / "file" / below, Checkpoint(rotary.config, rotary.params))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_flatten_names_leaves_by_path():
    tree = {"blocks/block/query": {"w": 1, "b": 2}, "~": {"letter": 3}}
    assert flatten(tree) == {"blocks/block/query/w": 1, "blocks/block/query/b": 2, "~/letter": 3}


def test_default_config_round_trip(tmp_path):
    save_checkpoint(tmp_path / "a", Checkpoint(ModelConfig(), {"a": {"w": np.ones(2, np.float32)}}))
    content = json.loads((tmp_path / "a" / "checkpoint.json").read_text())
    assert content["model"]["num_layers"] == 16
    assert content["format_version"] == 1
