"""Rewards that are functions."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cfx.api.fine_tune import FunctionReward, _parts
from cfx.config import RewardConfig
from cfx.errors import RewardError
from cfx.reporter import Silent
from cfx.rl.rewards import NO_STRUCTURE, make_batch, weighted_sum

CUBES = [Structure(Lattice.cubic(a), ["Po"], [[0, 0, 0]]) for a in (3.0, 4.0)]


def volume(structure):
    """Volume of the cell."""
    return structure.volume


def light(structure):
    return None if structure.volume > 30 else -structure.density


def volumes(structures):
    return [one.volume for one in structures]


class Sites:
    name, about, unit, kl_coef, failure = "sites", "atoms", "", 0.3, -1.0

    def evaluate(self, structures):
        return make_batch(np.array([np.nan if one is None else len(one) for one in structures]), [""] * len(structures))


@pytest.mark.parametrize(("function", "batched"), [(volume, False), (volumes, True)])
def test_functions_of_a_structure_and_of_a_list(function, batched):
    reward = FunctionReward.of(function, batched, failure=-3)
    batch = reward.evaluate([CUBES[0], None, CUBES[1]])
    assert batch.value.tolist() == pytest.approx([27, np.nan, 64], nan_ok=True)
    assert batch.reasons == ["", NO_STRUCTURE, ""] and reward.failure == -3
    assert reward.evaluate([None]).ok.tolist() == [False]


def test_what_has_no_value_is_a_failure():
    batch = FunctionReward.of(light, False, 0).evaluate(CUBES)
    assert batch.ok.tolist() == [True, False] and batch.reasons[1]


def test_names():
    reward = FunctionReward.of(volume, False, 0)
    assert (reward.name, reward.about) == ("volume", "Volume of the cell.")
    assert FunctionReward.of(lambda one: 1, False, 0).name == "lambda"


def test_sums_of_functions_and_objects():
    parts = _parts({volume: 2.0, Sites: 0.5, Sites(): 1.0}, RewardConfig(), False, -1.0, Silent())
    total = weighted_sum(parts)
    assert total.evaluate(CUBES).value.tolist() == pytest.approx([54 + 1.5, 128 + 1.5])
    assert total.failure == -2 - 1.5


@pytest.mark.parametrize(
    ("function", "batched", "said"),
    [
        (lambda one: 1 / 0, False, "the reward lambda raised ZeroDivisionError: division by zero"),
        (lambda all: [1.0], True, "the reward lambda raised ValueError: 1 numbers for 2 crystals"),
        (lambda one: "much", False, "raised ValueError: could not convert string to float: 'much'"),
    ],
)
def test_a_function_that_fails_is_named(function, batched, said):
    reward = weighted_sum([(FunctionReward.of(function, batched, 0), 1.0)])
    with pytest.raises(RewardError, match=said):
        reward.evaluate(CUBES)
