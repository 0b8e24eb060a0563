"""Rewards by name, their sums and their shapes."""

from __future__ import annotations

import os
import sys
import warnings

import jax
import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cfx.config import RewardConfig, Shape
from cfx.errors import DependencyError, RewardError, UsageError
from cfx.rl.named_rewards import choose_models, load_reward, parse_rewards
from cfx.rl.rewards import Diversity, RewardBatch, evaluate_checked, make_batch, shape_values, weighted_sum


class Constant:
    """A reward of one value, and NaN for what is not a structure."""

    about, unit, kl_coef, failure = "a constant", "eV", 0.5, -1.0

    def __init__(self, value: float = 2.0, name: str = "constant"):
        self.value, self.name = value, name

    def evaluate(self, structures):
        value = [np.nan if one is None else self.value for one in structures]
        return make_batch(np.array(value), ["" if one is not None else "none" for one in structures])


def no_hull(potential):
    raise AssertionError("no hull is needed")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("ehull", [("ehull", 1.0)]),
        ("ehull:1,fom:0.2", [("ehull", 1.0), ("fom", 0.2)]),
        ("property:/some/model:0.5", [("property:/some/model", 0.5)]),
        ("gap=1.5,dielectric=20..:0.5", [("gap=1.5", 1.0), ("dielectric=20..", 0.5)]),
        ("property:/some/model=1..2", [("property:/some/model=1..2", 1.0)]),
        ("package.module:Class", [("package.module:Class", 1.0)]),
        ("package.module:Class:1e-2, energy", [("package.module:Class", 0.01), ("energy", 1.0)]),
    ],
)
def test_names_and_weights(text, expected):
    assert parse_rewards(text) == expected


@pytest.mark.parametrize("text", ["", "ehull,", "ehull:0", ","])
def test_a_name_or_a_weight_left_out_is_refused(text):
    with pytest.raises(UsageError, match="is not a reward with a weight"):
        parse_rewards(text)


def test_a_negative_weight_is_refused():
    """A failure would count as the best of all crystals."""
    with pytest.raises(UsageError, match="negative weight") as error:
        parse_rewards("ehull:1,gap:-0.5")
    assert "`target`" in error.value.hint


def test_unknown_rewards_are_refused():
    with pytest.raises(UsageError, match="there is no reward called hardness"):
        load_reward(RewardConfig(reward="hardness"), no_hull)
    with pytest.raises(DependencyError, match="cannot be imported"):
        load_reward(RewardConfig(reward="no_such_module:Class"), no_hull)
    with pytest.raises(UsageError, match="there is no Nothing"):
        load_reward(RewardConfig(reward="collections:Nothing"), no_hull)
    for name in (":Class", "collections:", ".collections:OrderedDict"):
        with pytest.raises(UsageError, match="does not name a class"):
            load_reward(RewardConfig(reward=name), no_hull)
    with pytest.raises(UsageError, match="is not a reward: it has no name"):
        load_reward(RewardConfig(reward="collections:OrderedDict"), no_hull)


def test_one_s_own_reward(tmp_path, monkeypatch):
    (tmp_path / "own_reward.py").write_text(
        "import numpy as np\n"
        "from cfx.rl.rewards import make_batch\n"
        "class Ones:\n"
        "    name, about, unit, kl_coef, failure = 'ones', 'always 1', '', 0.1, 0.0\n"
        "    def evaluate(self, structures):\n"
        "        return make_batch(np.ones(len(structures)), [''] * len(structures))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    reward = load_reward(RewardConfig(reward="own_reward:Ones:3"), no_hull)
    np.testing.assert_array_equal(reward.evaluate(["a", "b"]).value, [3, 3])
    assert reward.about == "always 1"


def test_sums_need_all_their_parts():
    both = weighted_sum(((Constant(2.0, "one"), 1.0), (Constant(5.0, "two"), -0.5)))
    batch = both.evaluate(["crystal", None])
    np.testing.assert_allclose(batch.value, [-0.5, np.nan])
    assert batch.ok.tolist() == [True, False]
    assert batch.reasons == ["", "none"]
    assert both.failure == pytest.approx(-1 + 0.5)
    assert both.kl_coef == pytest.approx(0.75)
    assert set(batch.metrics) == {"one reward", "two reward"}


def test_shapes():
    values = np.array([-3.0, 0.0, 2.0, np.nan])
    np.testing.assert_allclose(shape_values(values, Shape(clip=(-1.0, 1.0))), [-1, 0, 1, np.nan])
    np.testing.assert_allclose(shape_values(values, Shape(log1p=True)), [-np.log(4), 0, np.log(3), np.nan])
    np.testing.assert_allclose(shape_values(values, Shape(threshold=0.0)), [0, 1, 1, np.nan])
    with pytest.raises(UsageError, match="cannot be clipped"):
        Shape(clip=(1.0, -1.0))


def test_infinite_and_missing_values_are_failures():
    batch = make_batch(np.array([1.0, np.inf, np.nan, 2.0]), ["", "", "", "broken"])
    assert batch.ok.tolist() == [True, False, False, False]
    assert batch.reasons == ["", *["the reward is not a finite number"] * 2, "broken"]
    assert np.isnan(batch.value[1:]).all()


def test_penalties_for_a_repeated_structure_and_a_repeated_composition():
    def salt(edge: float, coordinate: float = 0.5, symbols=("Na", "Cl")) -> Structure:
        return Structure(Lattice.cubic(edge), symbols, [[0, 0, 0], [coordinate] * 3])

    other = Structure(Lattice.hexagonal(4, 9), ["Na", "Na", "Cl", "Cl"], [[0, 0, z] for z in (0, 0.1, 0.4, 0.8)])
    crystals = [salt(3.5), salt(3.5), other, None, salt(3.5, symbols=("K", "Cl")), None]
    value, nothing = np.array([3.0, 3.0, 2.0, -5.0, 3.0, -5.0]), np.zeros(6, bool)

    def taken_off(**penalties) -> np.ndarray:
        return value - Diversity(**penalties).apply(value, -5.0, crystals, nothing)[0]

    _, found = Diversity().apply(value, -5.0, crystals, nothing)
    assert found["unique"][:3].tolist() == [1, 0, 1]
    np.testing.assert_allclose(taken_off(), 0)
    np.testing.assert_allclose(taken_off(composition_penalty=0.3), [0, 0.3, 0.3, 0, 0, 0])
    np.testing.assert_allclose(taken_off(duplicate_penalty=1, composition_penalty=0.3), [0, 1.3, 0.3, 0, 0, 0])
    np.testing.assert_allclose(taken_off(duplicate_penalty=None), [0, 8, 0, 0, 0, 0])  # as a failure
    np.testing.assert_allclose(taken_off(duplicate_penalty=None, composition_penalty=0.3), [0, 8.3, 0.3, 0, 0, 0])


def test_a_run_records_which_models_auto_means():
    """A model that is fetched later must not change the reward of a run that is resumed."""
    chosen = choose_models(RewardConfig(reward="fom", dielectric_model="matgl:/some/model"))
    assert (chosen.gap_model, chosen.dielectric_model) == ("bundled", "matgl:/some/model")
    assert RewardConfig().gap_model == RewardConfig().dielectric_model == "auto"


class Own(Constant):
    """A reward that does something first."""

    def __init__(self, does):
        super().__init__(name="own")
        self.does = does

    def evaluate(self, structures):
        self.does(structures)
        return super().evaluate(structures)


def cells() -> list[Structure | None]:
    return [Structure(Lattice.cubic(4 + i), ["Cu"], [[0, 0, 0]]) for i in range(3)] + [None]


@pytest.mark.parametrize("raised", [SystemExit(0), GeneratorExit(), KeyboardInterrupt(), MemoryError()])
def test_a_reward_cannot_end_the_run_without_a_word(raised):
    def end(structures):
        raise raised

    with pytest.raises(RewardError, match=f"own raised {type(raised).__name__}(: 0)?$"):
        evaluate_checked(Own(end), cells())


@pytest.mark.parametrize(
    "change",
    [
        lambda structures: structures.clear() or structures.extend(cells()),
        lambda structures: [one.replace(0, "Au") for one in structures if one is not None],
        lambda structures: structures[0].make_supercell(2),
        lambda structures: structures[1].add_oxidation_state_by_element({"Cu": 1}),
    ],
)
def test_a_reward_cannot_change_the_crystals(change):
    given = cells()
    batch = evaluate_checked(Own(change), given)
    assert given == cells() and batch.value[:3].tolist() == [2, 2, 2]


def test_a_reward_changes_nothing_for_others(tmp_path):
    def change(structures):
        os.chdir(tmp_path)
        np.seterr(all="raise")
        warnings.simplefilter("error")
        jax.config.update("jax_enable_x64", True)

    before = os.getcwd(), np.geterr(), list(warnings.filters)
    evaluate_checked(Own(change), cells())
    assert (os.getcwd(), np.geterr(), list(warnings.filters)) == before
    assert jax.numpy.zeros(1).dtype == "float32"


def test_an_answer_that_cannot_be_looked_at():
    reward = Constant()
    reward.evaluate = lambda structures: RewardBatch(np.ones(4), np.ones(4, bool), None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RewardError, match="constant raised TypeError"):
        evaluate_checked(reward, cells())


def test_metrics_have_names():
    reward = Constant()
    reward.evaluate = lambda structures: make_batch(np.ones(4), [""] * 4, {1: np.ones(4)})
    with pytest.raises(RewardError, match="metrics whose names are no text"):
        evaluate_checked(reward, cells())


OWN = """
import sys
class Good:
    name, about, unit, kl_coef, failure = "good", "", "", 0.1, 0.0
    def evaluate(self, structures): ...
class NoName(Good): name = None
class NoUnit(Good): unit = None
class NoCoefficient(Good): kl_coef = "0.1"
class NoFailure(Good): failure = None
class NanFailure(Good): failure = float("nan")
class Divides(Good):
    def __init__(self): 1 / 0
class Exits(Good):
    def __init__(self): sys.exit(0)
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NoName", "its name is not text"),
        ("NoUnit", "its unit is not text"),
        ("NoCoefficient", "its kl_coef is not a finite number"),
        ("NoFailure", "its failure is not a finite number"),
        ("NanFailure", "its failure is not a finite number"),
        ("Divides", "raised ZeroDivisionError: division by zero"),
        ("Exits", "raised SystemExit: 0"),
    ],
)
def test_what_is_no_reward_is_refused_before_the_run(tmp_path, monkeypatch, name, words):
    (tmp_path / "own_ones.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_ones", raising=False)
    assert load_reward(RewardConfig(reward="own_ones:Good"), no_hull).failure == 0
    with pytest.raises(UsageError, match=words):
        load_reward(RewardConfig(reward=f"own_ones:{name}"), no_hull)


@pytest.mark.parametrize("line", ["1 / 0", "def", "import sys; sys.exit(0)", "raise AttributeError('a\\nb')"])
def test_a_module_that_raises_is_one_line(tmp_path, monkeypatch, line):
    (tmp_path / "own_broken.py").write_text(line + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match="own_broken cannot be imported: it raised") as error:
        load_reward(RewardConfig(reward="own_broken:Any"), no_hull)
    assert "\n" not in error.value.message
