"""What several tests share: the golden numbers, and a cache directory that no test leaves behind."""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Tests spend their time in compilation, and half of that in the backend's optimiser. Set before JAX starts.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import numpy as np
import pytest

from cfx.config import ModelConfig
from cfx.core.crystal import CrystalBatch
from cfx.core.lattice import to_physical_frame
from cfx.io import upstream

GOLDEN = Path(__file__).parent / "golden"
FILES = {
    "rotary": ("v042_dev_epoch_005500.pkl", "v042_dev_expected.npz"),
    "absolute": ("v03_dev_epoch_003800.pkl", "v03_dev_expected.npz"),
}


@dataclass(frozen=True)
class Golden:
    """A small published model, 150 crystals, and what the public implementation computes for them.

    Attributes:
        path: of the published pickle.
        published: its parameters, under their published names.
        config: its architecture.
        params: its parameters, under cfx's names; float32.
        batch: the crystals, physical frame; float64.
        expected: logp_w, logp_a, logp_xyz, logp_l [150], and h [8, 106, 171].
    """

    path: Path
    published: dict[str, dict[str, np.ndarray]]
    config: ModelConfig
    params: dict[str, dict[str, np.ndarray]]
    batch: CrystalBatch
    expected: dict[str, np.ndarray]


@functools.cache
def load_golden(position: str) -> Golden:
    """The golden model with that position scheme; both schemes share the crystals."""
    pickle_name, expected_name = FILES[position]
    published = upstream.load_pickle(GOLDEN / pickle_name)
    config = upstream.recognise(published, num_heads=4)
    stored = dict(np.load(GOLDEN / FILES["rotary"][1]))
    batch = CrystalBatch(
        space_group=stored["G"],
        lattice=to_physical_frame(stored["L"].astype(float), stored["M"].sum(1)),
        frac_coords=stored["XYZ"].astype(float),
        species=stored["A"],
        wyckoff=stored["W"],
    )
    expected = dict(np.load(GOLDEN / expected_name))
    params = upstream.convert(published, config)
    return Golden(GOLDEN / pickle_name, published, config, params, batch, expected)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    """CFX_CACHE in a fresh directory."""
    monkeypatch.setenv("CFX_CACHE", str(tmp_path / "cfx-cache"))
    return tmp_path / "cfx-cache"


@pytest.fixture(scope="session", params=["rotary", "absolute"])
def golden(request) -> Golden:
    """The golden models, one after the other."""
    return load_golden(request.param)


@pytest.fixture(scope="session")
def rotary() -> Golden:
    """The golden model with rotary positions."""
    return load_golden("rotary")


@pytest.fixture(scope="session")
def golden_gradient() -> dict[str, np.ndarray]:
    """Loss, its parts and its gradient on the first 64 crystals, rotary model."""
    return dict(np.load(GOLDEN / "v042_dev_grad.npz"))


@pytest.fixture(scope="session")
def golden_structures() -> list:
    """The golden crystals as pymatgen Structures."""
    from pymatgen.core import Structure

    records = json.loads((GOLDEN / "v042_dev_cifs.json").read_text())
    return [Structure.from_str(record["cif"], fmt="cif") for record in records]


@pytest.fixture(scope="session")
def cast():
    """cast(tree, dtype): a pytree whose floating-point leaves have another type."""

    def cast(tree: Any, dtype: type) -> Any:
        def convert(leaf):
            return np.asarray(leaf, dtype) if np.issubdtype(leaf.dtype, np.floating) else leaf

        return jax.tree.map(convert, tree)

    return cast
