"""Configurations: what they refuse, and their way through JSON."""

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest

from cfx import errors
from cfx.config import PRESETS, ModelConfig, SampleConfig, Template, TrainConfig, from_dict, to_dict
from cfx.errors import UsageError


@pytest.mark.parametrize("config", [*PRESETS.values(), TrainConfig(epochs=3)])
def test_json_round_trip(config):
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def test_a_request_as_json_holds_every_field():
    template = Template(letters=("a", "b"), tied=((0, 1),), lattice=(4.0, 4.0, 4.0, 90.0, 90.0, 90.0))
    request = SampleConfig((2, 194), n=7, formula=(("Sr", 1),), bias=(("O", 0.5),), shard=(1, 2), template=template)
    stored = json.loads(json.dumps(to_dict(request)))
    assert set(stored) == {field.name for field in dataclasses.fields(SampleConfig)}
    assert (stored["space_groups"], stored["n"], stored["formula"]) == ([2, 194], 7, [["Sr", 1]])
    assert stored["template"]["lattice"] == list(template.lattice) and stored["template"]["tied"] == [[0, 1]]


def test_shards_are_the_parts_of_a_request():
    for n, parts in [(1, 1), (10, 3), (2, 5), (100, 16)]:
        numbers = [list(SampleConfig((1,), n=n, shard=(part, parts)).numbers) for part in range(1, parts + 1)]
        assert [number for part in numbers for number in part] == list(range(n))
        assert max(map(len, numbers)) - min(map(len, numbers)) <= 1


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
        (SampleConfig, {"space_groups": (0,)}),
        (SampleConfig, {"space_groups": (1, 231)}),
        (SampleConfig, {"space_groups": (1,), "n": 0}),
        (SampleConfig, {"space_groups": (1,), "temperature": 0.0}),
        (SampleConfig, {"space_groups": (1,), "temperature": float("nan")}),
        (SampleConfig, {"space_groups": (1,), "top_p": 0.0}),
        (SampleConfig, {"space_groups": (1,), "top_p": 1.1}),
        (SampleConfig, {"space_groups": (1,), "seed": -1}),
        (SampleConfig, {"space_groups": (1,), "batch_size": 0}),
        (SampleConfig, {"space_groups": (1,), "max_atoms": 0}),
        (SampleConfig, {"space_groups": (1,), "max_sites": 0}),
        (SampleConfig, {"space_groups": (1,), "max_attempts": 0}),
    ],
)
def test_values_out_of_range(cls, values):
    with pytest.raises(UsageError) as error:
        cls(**values)
    value = next(reversed(values.values()))
    value = value[-1] if isinstance(value, tuple) else value
    assert str(value) in error.value.message or cls is ModelConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"space_groups": ()}, "no space group"),
        ({"weights": (1.0,)}, "one weight"),
        ({"weights": (1.0, -1.0)}, "one weight"),
        ({"shard": (0, 3)}, "no shard 0 of 3"),
        ({"shard": (4, 3)}, "no shard 4 of 3"),
        ({"refine": -1}, "must not be negative"),
        ({"min_distance": -0.5}, "length in angstrom"),
        ({"min_distance": float("nan")}, "length in angstrom"),
        ({"temperature": float("inf")}, "between 1e-6 and 1e6"),
        ({"n": 2**32 + 1}, "at most 2\\^32"),
        ({"bias": (("Fe", float("nan")),)}, "bias of Fe"),
        ({"formula": (("Fe", 300),)}, "1 to 256 atoms"),
        ({"exact": True, "bias": (("Fe", 1.0),)}, "no filter"),
        ({"keep_invalid": True, "min_distance": 1.0}, "keep-invalid"),
    ],
)
def test_requests_that_cannot_be_meant(values, message):
    with pytest.raises(UsageError, match=message):
        SampleConfig(**{"space_groups": (1, 2), **values})


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
