"""Properties as rewards: targets, ranges, what a model does not know."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cfx.config import RewardConfig
from cfx.errors import UsageError
from cfx.rl.named_rewards import load_reward
from cfx.rl.property_rewards import Aim


@pytest.mark.parametrize(
    ("text", "aim"),
    [
        ("1.5", (1.5, 1.5)),
        ("-2", (-2.0, -2.0)),
        ("1..2", (1.0, 2.0)),
        (".5..1e1", (0.5, 10.0)),
        ("20..", (20.0, math.inf)),
        ("..0.1", (-math.inf, 0.1)),
    ],
)
def test_aims_are_read_and_written(text, aim):
    read = Aim.read(text)
    assert read == aim and Aim.read(str(read)) == read


@pytest.mark.parametrize("text", ["", "..", "1.2.3", "a..b", "1..b", "1:2", "nan", "inf.."])
def test_what_is_no_aim(text):
    assert Aim.read(text) is None


def test_distances_from_an_aim():
    value = np.array([0.5, 1.0, 1.7, 2.0, 3.0, np.nan])
    np.testing.assert_allclose(Aim(1.0, 2.0).distance(value), [0.5, 0, 0, 0, 1, np.nan])
    np.testing.assert_allclose(Aim(1.7, 1.7).distance(value), [1.2, 0.7, 0, 0.3, 1.3, np.nan])
    np.testing.assert_allclose(Aim(2.0, math.inf).distance(value), [1.5, 1, 0.3, 0, 0, np.nan])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ehull=0.1", "ehull has no target"),
        ("gap=2..1", "nothing in the range 2..1"),
        ("hardness=3", "hardness has no target"),
        ("gap=", "no reward called gap="),
    ],
)
def test_aims_that_cannot_be_meant(text, words):
    with pytest.raises(UsageError, match=words):
        load_reward(RewardConfig(reward=text), lambda potential: pytest.fail("no hull is needed"))


def test_a_second_potential_needs_energies_above_the_hull():
    config = RewardConfig(reward="gap", second_potential="chgnet", second_hull="any")
    with pytest.raises(UsageError, match="compared by E_hull"):
        load_reward(config, lambda potential: pytest.fail("no hull is needed"))
