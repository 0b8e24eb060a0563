"""A name that is no setting is told as it was written, with the closest one that exists."""

from __future__ import annotations

import re

import pytest
from pymatgen.core import Lattice, Structure

import cfx
from cfx.config import EvalConfig, ModelConfig, TrainConfig
from cfx.config.fields import sorted_out
from cfx.errors import UsageError

CUBE = Structure(Lattice.cubic(3.35), ["Po"], [[0, 0, 0]])
TINY = ModelConfig(num_layers=1, num_heads=1, key_size=4, model_size=8, embed_size=4, first_hidden=8)


@pytest.fixture(scope="module")
def model() -> cfx.Model:
    return cfx.Model.init(TINY)


CALLS = {
    "evaluate() has no setting 'refrence': did you mean 'reference'?": lambda m: cfx.evaluate(CUBE, refrence="mp-20"),
    "evaluate() has no setting 'step': did you mean 'steps'?": lambda m: cfx.evaluate(CUBE, step=3),
    "sample() has no setting 'element': did you mean 'elements'?": lambda m: m.sample(221, element="O"),
    "sample() has no setting 'space_groups': did you mean 'space_group'?": lambda m: m.sample(221, space_groups=221),
    "predict() has no setting 'draw': did you mean 'draws'?": lambda m: cfx.predict(m, "NaCl", draw=3),
    "discover() has no setting 'sorted': did you mean 'sort'?": lambda m: cfx.discover(m, 221, sorted="density"),
    "train() has no setting 'epoch': did you mean 'epochs'?": lambda m: cfx.train(CUBE, epoch=3),
    "fine_tune() has no setting 'kl_coeff': did you mean 'kl_coef'?": lambda m: cfx.fine_tune(m, len, kl_coeff=1),
    "fine_tune() has no setting 'zzz': there are ": lambda m: cfx.fine_tune(m, len, zzz=1),
    "fine_tune() has no setting 'shape'": lambda m: cfx.fine_tune(m, len, shape=1),
    "fine_tune() has no setting 'refine'": lambda m: cfx.fine_tune(m, len, refine=10),
}


@pytest.mark.parametrize("message", CALLS)
def test_wrong_names(model, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        CALLS[message](model)


def test_names_that_python_itself_checks():
    with pytest.raises(TypeError, match="stepz"):
        cfx.relax(CUBE, stepz=3)


def test_wrong_values(model):
    with pytest.raises(UsageError, match="`fmax` must be positive, not -1"):
        cfx.relax(CUBE, fmax=-1)
    with pytest.raises(UsageError, match="hull needs a potential"):
        cfx.evaluate(CUBE, hull="chgnet-mp")
    with pytest.raises(UsageError, match="there is no preset 'large'"):
        cfx.fine_tune(model, len, preset="large")
    with pytest.raises(UsageError, match="3 is not a reward"):
        cfx.fine_tune(model, 3, space_group=221)


def test_settings_go_to_the_first_configuration_that_has_them():
    train, judge = sorted_out("f", {"seed": 1, "relax": True, "epochs": 2}, TrainConfig, EvalConfig)
    assert (train, judge) == ({"seed": 1, "epochs": 2}, {"relax": True})
