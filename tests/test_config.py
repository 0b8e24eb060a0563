"""Configurations: what they refuse, and their way through JSON."""

from __future__ import annotations

import json
import pickle

import pytest

from cfx import errors
from cfx.config import PRESETS, ModelConfig, SampleConfig, TrainConfig, from_dict, to_dict
from cfx.errors import UsageError


@pytest.mark.parametrize("config", [*PRESETS.values(), TrainConfig(epochs=3), SampleConfig(194, n=7)])
def test_json_round_trip(config):
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def test_unknown_fields_are_named():
    with pytest.raises(UsageError, match="ModelConfig has no field depth, width"):
        from_dict(ModelConfig, {"width": 3, "depth": 3, "num_layers": 2})


def test_published_sizes():
    assert ModelConfig().output_size == 171
    assert PRESETS["alex20"] == ModelConfig()
    assert PRESETS["mp20"].position == "absolute"


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (ModelConfig, {"position": "relative"}),
        (ModelConfig, {"num_layers": 0}),
        (ModelConfig, {"key_size": 7}),  # rotation takes halves
        (ModelConfig, {"coord_components": 100}),  # more columns than the output row has
        (TrainConfig, {"epochs": 0}),
        (TrainConfig, {"learning_rate": 0.0}),
        (TrainConfig, {"learning_rate": float("nan")}),
        (TrainConfig, {"dropout": 1.0}),
        (TrainConfig, {"dropout": -0.1}),
        (TrainConfig, {"weight_decay": -1.0}),
        (TrainConfig, {"schedule": "linear"}),
        (SampleConfig, {"space_group": 0}),
        (SampleConfig, {"space_group": 231}),
        (SampleConfig, {"space_group": 1, "n": 0}),
        (SampleConfig, {"space_group": 1, "temperature": 0.0}),
        (SampleConfig, {"space_group": 1, "temperature": float("nan")}),
        (SampleConfig, {"space_group": 1, "top_p": 0.0}),
        (SampleConfig, {"space_group": 1, "top_p": 1.1}),
        (SampleConfig, {"space_group": 1, "seed": -1}),
    ],
)
def test_values_out_of_range(cls, values):
    with pytest.raises(UsageError) as error:
        cls(**values)
    assert str(next(reversed(values.values()))) in error.value.message or cls is ModelConfig


def test_absolute_positions_take_any_head():
    assert ModelConfig(position="absolute", key_size=7).key_size == 7


EXIT_CODES = {
    "CfxError": 1,
    "UsageError": 2,
    "DataError": 3,
    "CheckpointError": 4,
    "NetworkError": 5,
    "DependencyError": 6,
    "NumericsError": 7,
    "OutputError": 8,
}


@pytest.mark.parametrize("name", EXIT_CODES)
def test_errors_keep_message_hint_and_exit_code(name):
    """Through a pickle too: worker processes hand them over."""
    error = pickle.loads(pickle.dumps(getattr(errors, name)("what is wrong", "what to do")))
    assert isinstance(error, errors.CfxError)
    assert (error.message, error.hint, error.exit_code) == ("what is wrong", "what to do", EXIT_CODES[name])
    assert str(error) == "what is wrong"
    assert getattr(errors, name)("alone").hint is None
