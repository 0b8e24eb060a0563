"""Space groups as text and back."""

from __future__ import annotations

import dataclasses

import jax
import pytest
import tomli_w
from typer.main import get_command
from typer.testing import CliRunner

from cfx.cli import values
from cfx.cli.app import app
from cfx.cli.options import Fields
from cfx.cli.train import UNSEEN
from cfx.config import DiscoverConfig, RLConfig, TrainConfig, TrainRun, finetuning
from cfx.config.finetuning import PairsRun, read_run
from cfx.config.training import PRESETS, read_toml
from cfx.errors import UsageError


@pytest.mark.parametrize("text", ["194", "2,14,62", "1-230", "2,14,62-65,221-230", "230,1"])
def test_space_groups_and_their_text(text):
    groups, weights = values.space_groups(text)
    assert values.space_group_text(groups) == text and weights == ()


@pytest.mark.parametrize("text", ["0", "0-3", "231", "225-231", "3-1", "p", "data:"])
def test_no_space_groups(text):
    with pytest.raises(UsageError):
        values.check_space_groups(text)


def test_data_sets_are_read_later():
    values.check_space_groups("data:no-such-file.csv")


def options_of(name: str) -> dict:
    return {option: parameter for parameter in get_command(app).commands[name].params for option in parameter.opts}


def test_a_flag_is_made_from_its_field():
    rate = options_of("train")["--lr"]
    assert (rate.name, rate.default) == ("learning_rate", None)
    assert rate.help == "Peak learning rate. [default: 0.004]"
    assert options_of("rl")["--lr"].help.endswith("[default: 0.0002]"), "of the preset mini"
    assert "learning_rate: Peak learning rate." in TrainConfig.__doc__


def test_a_list_may_be_given_in_parts():
    words = ["-o", "x", "--property", "band_gap", "--property", "dielectric,gap=matgl:x", "--inputs", "vasp"]
    given = get_command(app).commands["discover"].make_context("discover", words).params
    taken = Fields(DiscoverConfig).take(given)
    assert taken == {"properties": ("band_gap", "dielectric", "gap=matgl:x"), "inputs": ("vasp",)}


def test_a_bound_is_said_with_the_name_of_the_field():
    with pytest.raises(UsageError, match="`clip_range` must be positive, not 0"):
        RLConfig(clip_range=0)
    with pytest.raises(UsageError, match=r"`symprec` must be a length in angstrom, not 0\.0"):
        result = CliRunner().invoke(app, ["score", "none.csv", "--symprec", "0"])
        raise result.exception


FILE = {
    **{"epochs": 11, "batch_size": 12, "accumulate": 3, "optimizer": "adamw", "learning_rate": 0.5},
    **{"schedule": "inverse", "warmup_steps": 13, "decay": 0.25, "weight_decay": 0.125, "clip_norm": 2.5},
    **{"dropout": 0.75, "attention_dropout": 0.625, "ema_decay": 0.375, "precision": "float32", "seed": 14},
    **{"log_steps": 15, "checkpoint_steps": 16},
}
FLAGGED = {
    **{"epochs": 21, "batch_size": 22, "accumulate": 4, "learning_rate": 0.05, "warmup_steps": 23, "decay": 0.0625},
    **{"weight_decay": 0.03125, "clip_norm": 3.5, "dropout": 0.15, "attention_dropout": 0.875, "ema_decay": 0.9},
    **{"precision": "bfloat16", "seed": 24, "log_steps": 25, "checkpoint_steps": 26},
}


def given(command: str, words: list[str], fields: Fields) -> dict:
    """Fields of a configuration that a command line sets, through the options that are made from them."""
    context = get_command(app).commands[command].make_context(command, words)
    return fields.take(dict(context.params))


@pytest.mark.parametrize("name", FLAGGED)
def test_a_flag_of_train_wins_over_the_file_and_the_file_over_the_preset(name, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps({"preset": "mp20", "train": FILE}))
    [flag] = [option for option, parameter in options_of("train").items() if parameter.name == name]
    fields = Fields(TrainConfig, without=("keep_checkpoints",))
    flagged = {"train": given("train", ["-o", "run", flag, str(FLAGGED[name])], fields)}
    assert flagged == {"train": {name: FLAGGED[name]}}
    unflagged = {"train": given("train", ["-o", "run"], fields)}
    assert TrainRun.layered(read_toml(path), unflagged).train == TrainConfig(**FILE)
    assert TrainRun.layered(read_toml(path), flagged).train == TrainConfig(**{**FILE, name: FLAGGED[name]})
    assert getattr(PRESETS["mp20"].train, name) not in (FILE[name], FLAGGED[name])


def test_flags_of_rl_win_over_the_preset():
    preset = finetuning.PRESETS["published"]
    flagged = given("rl", ["--lr", "0.5", "--steps", "3"], Fields(RLConfig, without=UNSEEN))
    config = dataclasses.replace(preset, **flagged)
    assert (config.learning_rate, config.steps, config.batch_size, config.likelihood) == (0.5, 3, 1000, "published")


@pytest.mark.parametrize("name", sorted(set(get_command(app).commands) - {"hull"}))
def test_every_command_has_examples_that_it_can_parse(name):
    command = get_command(app).commands[name]
    lines = [line.split() for line in command.epilog.splitlines() if line.startswith("  cfx ")]
    assert 2 <= len(lines) <= 3
    for words in lines:
        assert words[1] == name
        command.make_context(name, words[2:])


def test_a_run_of_dpo_written_by_cfx_rl_is_still_read(tmp_path):
    (tmp_path / "config.toml").write_text(
        'model = "mini"\npairs = "pairs.jsonl"\n\n[dpo]\nepochs = 3\nbatch_size = 64\nbeta = 0.1\n'
        "learning_rate = 1e-05\nclip_norm = 1.0\nseed = 0\ncheckpoint_steps = 100\nkeep_checkpoints = 2\n"
    )
    run = read_run(tmp_path)
    assert isinstance(run, PairsRun) and (run.pairs, run.dpo.epochs) == ("pairs.jsonl", 3)


def test_compiled_programs_are_kept_in_the_cache_or_where_jax_is_told(own_cache):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_default_matmul_precision")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        values.start_jax()
        assert (
            jax.config.jax_compilation_cache_dir == before["jax_compilation_cache_dir"] != str(own_cache / "compiled")
        )
        jax.config.update("jax_compilation_cache_dir", None)
        values.start_jax()
        assert jax.config.jax_compilation_cache_dir == str(own_cache / "compiled")
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
