"""Configurations: what they refuse, and their way through JSON."""

import dataclasses
import json
import pickle

import pytest
import tomli_w

from cfx import errors
from cfx.config import (
    DataConfig,
    DPOConfig,
    EvalConfig,
    ModelConfig,
    RewardConfig,
    RLConfig,
    SampleConfig,
    Template,
    TrainConfig,
    from_dict,
)
from cfx.config.training import MINI, PRESETS, TrainRun, read_toml
from cfx.errors import UsageError


@pytest.mark.parametrize(
    "config",
    [*(part for preset in PRESETS.values() for part in (preset.model, preset.train)), DataConfig(train="a.csv")],
)
def test_json_round_trip(config):
    assert from_dict(type(config), json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_a_request_as_json_holds_every_field():
    template = Template(letters=("a", "b"), tied=((0, 1),), lattice=(4.0, 4.0, 4.0, 90.0, 90.0, 90.0))
    request = SampleConfig(
        space_groups=(2, 194), n=7, formula=(("Sr", 1),), bias=(("O", 0.5),), shard=(1, 2), template=template
    )
    stored = json.loads(json.dumps(dataclasses.asdict(request)))
    assert set(stored) == {field.name for field in dataclasses.fields(SampleConfig)}
    assert (stored["space_groups"], stored["n"], stored["formula"]) == ([2, 194], 7, [["Sr", 1]])
    assert stored["template"]["lattice"] == list(template.lattice) and stored["template"]["tied"] == [[0, 1]]


def test_shards_are_the_parts_of_a_request():
    for n, parts in [(1, 1), (10, 3), (2, 5), (100, 16)]:
        numbers = [
            list(SampleConfig(space_groups=(1,), n=n, shard=(part, parts)).numbers) for part in range(1, parts + 1)
        ]
        assert [number for part in numbers for number in part] == list(range(n))
        assert max(map(len, numbers)) - min(map(len, numbers)) <= 1


def test_unknown_fields_are_named():
    with pytest.raises(UsageError, match="ModelConfig has no field depth, width"):
        from_dict(ModelConfig, {"width": 3, "depth": 3, "num_layers": 2})


def test_published_sizes():
    assert ModelConfig().output_size == 171
    assert PRESETS["alex20"].model == ModelConfig()
    assert PRESETS["mp20"].model.position == "absolute"
    assert PRESETS["mini"].model == MINI


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
        (TrainConfig, {"optimizer": "adamw", "weight_decay": -1.0}),
        (TrainConfig, {"schedule": "inverse", "decay": -0.1}),
        (TrainConfig, {"schedule": "inverse", "decay": float("inf")}),
        (TrainConfig, {"schedule": "linear"}),
        (TrainConfig, {"optimizer": "sgd"}),
        (TrainConfig, {"precision": "float16"}),
        (TrainConfig, {"learning_rate": float("inf")}),
        (TrainConfig, {"clip_norm": 0.0}),
        (TrainConfig, {"ema_decay": 1.0}),
        (TrainConfig, {"accumulate": 0}),
        (TrainConfig, {"batch_size": 0}),
        (TrainConfig, {"log_steps": 0}),
        (TrainConfig, {"checkpoint_steps": 0}),
        (TrainConfig, {"keep_checkpoints": 0}),
        (TrainConfig, {"warmup_steps": -1}),
        (TrainConfig, {"seed": 2**32}),
        (DataConfig, {"symprec": 0.0}),
        (DataConfig, {"symprec": float("nan")}),
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
        (EvalConfig, {"fmax": 0.0}),
        (EvalConfig, {"steps": 0}),
        (EvalConfig, {"e_hull_floor": 0.0}),
        (RewardConfig, {"e_hull_limit": 0.0}),
        (RewardConfig, {"e_hull_floor": 0.1}),
        (RewardConfig, {"duplicate_penalty": -1.0}),
        (RewardConfig, {"distance": "cubic"}),
        (RewardConfig, {"relax_steps": -1}),
        (RewardConfig, {"max_disagreement": 0.0}),
        (RewardConfig, {"classes": ("element", "salts")}),
        (RLConfig, {"steps": 0}),
        (RLConfig, {"batch_size": 2.5}),
        (RLConfig, {"kl_coef": -0.1}),
        (RLConfig, {"baseline": "median"}),
        (RLConfig, {"baseline_decay": 1.0}),
        (RLConfig, {"max_failures": 0.0}),
        (RLConfig, {"seed": 2**63}),
        (DPOConfig, {"beta": 0.0}),
        (DPOConfig, {"epochs": 0}),
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
        ({"weights": (1.0,)}, "one non-negative weight"),
        ({"weights": (1.0, -1.0)}, "one non-negative weight"),
        ({"shard": (0, 3)}, "no shard 0 of 3"),
        ({"shard": (4, 3)}, "no shard 4 of 3"),
        ({"refine": -1}, "must not be negative"),
        ({"min_distance": -0.5}, "length in angstrom"),
        ({"min_distance": float("nan")}, "length in angstrom"),
        ({"temperature": float("inf")}, "between 1e-6 and 1e6"),
        ({"n": 2**32 + 1}, "at most 2\\^32"),
        ({"bias": (("Fe", float("nan")),)}, "bias of Fe"),
        ({"formula": (("Fe", 300),)}, "1 to 256 atoms"),
        ({"exact": True, "bias": (("Fe", 1.0),)}, "not a filter"),
        ({"keep_invalid": True, "min_distance": 1.0}, "`keep_invalid`"),
    ],
)
def test_requests_that_cannot_be_meant(values, message):
    with pytest.raises(UsageError, match=message):
        SampleConfig(**{"space_groups": (1, 2), **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"class_penalty": 1.0}, "penalty for other classes needs those that are wanted"),
        ({"disagreement_penalty": 1.0}, "no second potential"),
        ({"second_hull": "7net-mp"}, "no second potential"),
        ({"second_potential": "orb:orb-v2"}, "needs a hull of its own"),
        ({"novelty_bonus": 1.0}, "needs known crystals"),
    ],
)
def test_rewards_that_cannot_be_meant(values, message):
    with pytest.raises(UsageError, match=message):
        RewardConfig(**values)


def test_a_second_potential_brings_its_own_hull():
    assert RewardConfig(second_potential="ase:sevenn.calculator:SevenNetCalculator").second_hull == "7net-mp"
    assert RewardConfig(second_potential="chgnet", second_hull="own.npz").second_hull == "own.npz"


# Configurations of training runs.

FULL = TrainRun(
    model=ModelConfig(num_layers=3, position="absolute", sigma_min=0.01),
    train=TrainConfig(epochs=7, optimizer="adamw", weight_decay=0.1, learning_rate=3e-4, ema_decay=0.99, accumulate=2),
    data=DataConfig(train="crystals: a, b.csv", validation="validation.csv", symprec=0.1),
)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_model_and_how_it_is_trained(name):
    config = TrainRun.layered({"preset": name})
    assert (config.model, config.train) == (PRESETS[name].model, PRESETS[name].train)
    assert (config.data, config.start) == (DataConfig(), None)


def test_nothing_said_is_the_small_model():
    assert TrainRun.layered() == TrainRun.layered({"preset": "mini"})


def test_later_layers_win():
    """Field by field: a table does not replace the whole of an earlier one, and a preset is below all of them."""
    file = {"train": {"epochs": 3, "seed": 5}, "model": {"num_layers": 2}, "data": {"train": "a.csv"}}
    options = {"preset": "mp20", "train": {"seed": 6}, "data": {"validation": "b.csv"}}
    config = TrainRun.layered(file, options)
    published = PRESETS["mp20"]
    assert config.train == dataclasses.replace(published.train, epochs=3, seed=6)
    assert config.model == dataclasses.replace(published.model, num_layers=2)
    assert config.data == DataConfig(train="a.csv", validation="b.csv")
    assert TrainRun.layered(options, file).train.seed == 5
    assert file["train"] == {"epochs": 3, "seed": 5}


def test_a_model_that_is_trained_further_keeps_its_architecture():
    config = TrainRun.layered({"preset": "alex20"}, {"from": "alex20", "train": {"epochs": 2}})
    assert (config.start, config.model) == ("alex20", None)
    assert config.train == dataclasses.replace(PRESETS["alex20"].train, epochs=2)
    for layers in [
        [{"from": "alex20", "model": {"num_layers": 2}}],
        [{"from": "alex20"}, {"model": {"num_layers": 2}}],
        [{"model": {"num_layers": 2}}, {"from": "alex20"}],
    ]:
        with pytest.raises(UsageError, match="keeps its architecture") as error:
            TrainRun.layered(*layers)
        assert "`from`" in error.value.hint


@pytest.mark.parametrize(
    ("layer", "message", "hint"),
    [
        ({"preset": "maxi"}, "no preset 'maxi'", "alex20, mp20, mini"),
        ({"train": {"epoch": 3, "lr": 1.0}}, "TrainConfig has no field epoch, lr", "learning_rate"),
        ({"model": {"depth": 3}}, "ModelConfig has no field depth", "num_layers"),
        ({"data": {"test": "a.csv"}}, "DataConfig has no field test", "validation"),
        ({"data": {"validation": "0%"}}, "'0%' is not a share of the data", "write it as 10%"),
        ({"data": {"validation": "100%"}}, "'100%' is not a share", "write it as 10%"),
        ({"data": {"validation": "a tenth%"}}, "'a tenth%' is not a share", "write it as 10%"),
        ({"train": {"optimizer": "adam", "weight_decay": 0.1}}, "adam has no weight decay", "adamw"),
        ({"train": {"decay": 0.1}}, "the cosine schedule has no decay", "inverse"),
        ({"train": {"schedule": "constant", "decay": 0.1}}, "the constant schedule has no decay", "inverse"),
    ],
)
def test_names_and_values_that_do_not_belong_there(layer, message, hint):
    with pytest.raises(UsageError, match=message) as error:
        TrainRun.layered(layer)
    assert hint in error.value.hint


def test_a_share_of_the_data_is_held_out():
    """It is no name of a file, and of no data set."""
    for text, share in (("10%", 0.1), ("2.5 %", 0.025)):
        data = DataConfig(train="a.csv", validation=text)
        assert data.held_out == pytest.approx(share) and data.names() == ["a.csv"]
    assert DataConfig(train="a.csv", validation="b.csv").names() == ["a.csv", "b.csv"]
    assert DataConfig(validation="b.csv").held_out is None


def test_decay_is_for_the_schedule_and_the_optimizer_that_have_it():
    train = TrainRun.layered({"preset": "alex20", "train": {"decay": 0.5}}).train
    assert (train.schedule, train.decay) == ("inverse", 0.5)
    assert TrainConfig(optimizer="adamw", weight_decay=0.1).weight_decay == 0.1


@pytest.mark.parametrize(
    ("table", "values", "kind"),
    [
        ("train", {"epochs": True}, "a whole number"),
        ("train", {"epochs": 3.0}, "a whole number"),
        ("train", {"epochs": "3"}, "a whole number"),
        ("train", {"learning_rate": "1e-3"}, "a number"),
        ("train", {"learning_rate": True}, "a number"),
        ("train", {"dropout": [0.1]}, "a number"),
        ("train", {"schedule": 1}, "one of constant, inverse, cosine"),
        ("train", {"seed": {"a": 1}}, "a whole number"),
        ("data", {"train": 3}, "text"),
        ("data", {"train": ["a.csv"]}, "text"),
        ("data", {"symprec": "0.1"}, "a number"),
        ("model", {"num_layers": True}, "a whole number"),
        ("model", {"num_layers": 2.0}, "a whole number"),
        ("model", {"num_layers": "2"}, "a whole number"),
        ("model", {"position": 3}, "one of rotary, absolute"),
    ],
)
def test_values_of_another_type(table, values, kind):
    with pytest.raises(UsageError, match=next(iter(values))) as error:
        TrainRun.layered({table: values})
    assert kind in error.value.message and repr(next(iter(values.values()))) in error.value.message


def test_a_whole_number_will_do_for_a_float():
    config = TrainRun.layered({"train": {"learning_rate": 1, "dropout": 0}, "data": {"symprec": 1}})
    assert (config.train.learning_rate, config.train.dropout, config.data.symprec) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize(
    "config",
    [
        FULL,
        TrainRun(model=None, train=TrainConfig(), data=DataConfig(train="a.csv"), start="alex20"),
        TrainRun.layered({"preset": "mp20"}),
    ],
    ids=["full", "from", "preset"],
)
def test_tables_are_the_configuration_again(config, tmp_path):
    """Directly, and through a file, where there is no None."""
    assert TrainRun.layered(config.tables()) == config
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(config.tables()))
    assert read_toml(path) == config.tables()
    assert TrainRun.layered(read_toml(path)) == config


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(TrainRun)])
def test_tables_of_different_runs_differ(field):
    """A resumed run is refused by them."""
    other = TrainRun(model=None, train=TrainConfig(epochs=8), data=DataConfig(), start="alex20")
    assert dataclasses.replace(FULL, **{field: getattr(other, field)}).tables() != FULL.tables()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optimizer]\nname = 'adam'", "optimizer is not part of"),
        ("epochs = 3", "epochs is not part of"),
        ("train = 3", "train must be a table"),
        ("preset = ['mini']", "preset must be a name"),
        ("[train", "cannot read the configuration"),
        ("preset = 'caf\xe9'", "cannot read the configuration"),
    ],
)
def test_files_that_are_no_configuration(text, message, tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=message) as error:
        read_toml(path)
    assert str(path) in error.value.message


def test_a_configuration_that_is_not_there(tmp_path):
    for path in (tmp_path, tmp_path / "none.toml"):
        with pytest.raises(UsageError, match="cannot read the configuration"):
            read_toml(path)


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
    "RewardError": 9,
}


@pytest.mark.parametrize("name", EXIT_CODES)
def test_errors_keep_message_hint_and_exit_code(name):
    """Through a pickle too: worker processes hand them over."""
    error = pickle.loads(pickle.dumps(getattr(errors, name)("what is wrong", "what to do")))
    assert isinstance(error, errors.CfxError)
    assert (error.message, error.hint, error.exit_code) == ("what is wrong", "what to do", EXIT_CODES[name])
    assert str(error) == "what is wrong"
    assert getattr(errors, name)("alone").hint is None


@pytest.mark.parametrize(
    "layer", [{"optimizer": {"name": "adam"}}, {"epochs": 3}, {"preset": ["mini"]}, {"train": 3}, {"from": ""}]
)
def test_layers_that_are_no_configuration(layer):
    with pytest.raises(UsageError, match=next(iter(layer))):
        TrainRun.layered(layer)


@pytest.mark.parametrize("value", ["x", -1.0, 0.0, float("nan"), None])
def test_the_smallest_width_is_positive(value):
    with pytest.raises(UsageError, match="sigma_min"):
        ModelConfig(sigma_min=value)


MANY_PARTS = "a" + ".a" * 100_000


@pytest.mark.parametrize("text", [f"{MANY_PARTS} = 1", f"[{MANY_PARTS}]", f"x = {{{MANY_PARTS} = 1}}", "#" * 2_000_000])
def test_keys_of_many_parts_cost_nothing(tmp_path, text):
    """For the first, tomllib would take 40 GB."""
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(UsageError, match="dots in a line"):
        read_toml(tmp_path / "x.toml")
