"""Requests on several devices, on devices without enough memory, and as they stream."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import cfx
from cfx.config import SampleConfig
from cfx.core.crystal import concatenate
from cfx.sampling.ledger import AHEAD

pytestmark = pytest.mark.integration

REQUEST = SampleConfig(space_groups=(225, 62, 14), n=90, seed=3)

ON_TWO_DEVICES = """
import json, sys
import jax
import cfx
from cfx.config import SampleConfig
from cfx.core.crystal import concatenate

model = cfx.load_model("mini")
request = SampleConfig(space_groups=(225, 62, 14), n=90, seed=3)
crystals = concatenate([draws.crystals for draws in model.draws(request)])
names = ("space_group", "wyckoff", "species", "frac_coords", "lattice")
print(json.dumps({"devices": len(jax.local_devices()), **{name: getattr(crystals, name).tolist() for name in names}}))
"""


@pytest.fixture(scope="module")
def model():
    return cfx.load_model("mini")


@pytest.fixture(scope="module")
def crystals(model):
    return concatenate([draws.crystals for draws in model.draws(REQUEST)])


@pytest.mark.slow
def test_two_devices_draw_what_one_does(crystals):
    """In the same order, too."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    command = [sys.executable, "-c", ON_TWO_DEVICES]
    result = subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["devices"] == 2
    for name in ("space_group", "wyckoff", "species"):
        np.testing.assert_array_equal(found[name], getattr(crystals, name))
    np.testing.assert_allclose(found["frac_coords"], crystals.frac_coords, atol=1e-4)
    np.testing.assert_allclose(found["lattice"], crystals.lattice, rtol=1e-4)


@pytest.mark.slow
def test_a_batch_beyond_memory_gives_way_to_a_smaller_one(model, crystals):
    """Caches of 40 million slots take terabytes, which no device gives."""
    huge = SampleConfig(space_groups=REQUEST.space_groups, n=3, seed=3, batch_size=40_000_000)
    draws = list(model.draws(huge))
    assert any("no memory for a batch of 40000000" in note for note in draws[-1].notes)
    found = concatenate([each.crystals for each in draws])
    np.testing.assert_array_equal(found.wyckoff, crystals.wyckoff[:3])
    np.testing.assert_allclose(found.frac_coords, crystals.frac_coords[:3], atol=1e-4)


@pytest.mark.parametrize("batch_size", [7, 256])
def test_batch_sizes_agree(model, crystals, batch_size):
    other = model.sample(REQUEST.space_groups, REQUEST.n, seed=REQUEST.seed, batch_size=batch_size)
    np.testing.assert_array_equal(other.wyckoff, crystals.wyckoff)
    np.testing.assert_array_equal(other.species, crystals.species)
    distance = other.frac_coords - crystals.frac_coords
    assert np.abs(distance - np.rint(distance)).max() < 1e-4
    np.testing.assert_allclose(other.lattice, crystals.lattice, rtol=1e-4)


def test_a_request_of_any_size_streams(model):
    """The first crystals of four thousand million come after a few steps, and hold no more than is ahead of them."""
    stream = model.draws(SampleConfig(space_groups=(225,), n=2**32, batch_size=64))
    first = next(stream)
    assert 0 < len(first.crystals) <= 64 < AHEAD
    assert [job.number for job in first.jobs] == list(range(len(first.jobs)))
    stream.close()
