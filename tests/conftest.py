"""What several tests share: the golden numbers, and a cache directory that no test leaves behind."""

from __future__ import annotations

import functools
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# No test reaches for the real internet; those that need one bring their own (tests/internet.py).
os.environ["HF_HUB_OFFLINE"] = "1"

# Tests spend their time in compilation, and half of that in the backend's optimiser. Set before JAX starts.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import numpy as np
import pytest

from cfx.config import ModelConfig
from cfx.core.crystal import CrystalBatch
from cfx.core.lattice import to_physical_frame
from cfx.io import upstream

from . import internet as stand_in

# Tests send signals to commands, which inherit that a shell ignores them in what it starts in the background.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

GOLDEN = Path(__file__).parent / "golden"
FILES = {
    "rotary": ("v042_dev_epoch_005500.pkl", "v042_dev_expected.npz"),
    "absolute": ("v03_dev_epoch_003800.pkl", "v03_dev_expected.npz"),
    "csp": ("csp_dev_epoch_000000.pkl", "csp_dev_expected.npz"),
}
SIZES = {"rotary": {"num_heads": 4}, "absolute": {"num_heads": 4}, "csp": {"num_heads": 2, "coord_components": 5}}
"""What shapes cannot tell."""


WHOLE_COMMANDS = ("cli", "docs")
"""Folders of tests that are integration tests, all of them."""

HEAVY_FIRST = ("cli", "rl", "docs", "training", "sampling", "predictors")
"""Folders whose tests come first, so that no worker is left with a heavy file at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what runs whole commands, and puts heavy folders first."""
    here = Path(__file__).parent

    def folder(item: pytest.Item) -> str:
        return item.path.relative_to(here).parts[0]

    for item in items:
        if folder(item) in WHOLE_COMMANDS:
            item.add_marker("integration")
    items.sort(key=lambda item: HEAVY_FIRST.index(folder(item)) if folder(item) in HEAVY_FIRST else len(HEAVY_FIRST))


@dataclass(frozen=True)
class Golden:
    """A small published model, 150 crystals, and what the public implementation computes for them.

    Attributes:
        path: of the published pickle.
        published: its parameters, under their published names.
        config: its architecture.
        params: its parameters, under cfx's names; float32.
        batch: the crystals, physical frame; float64.
        expected: logp_w, logp_a, logp_xyz, logp_l [150], and h [8, 106, 171]; of the model that has a composition as
            input, also composition [150, 119], logp_g [150] and group_log_prob [4, 230].
    """

    path: Path
    published: dict[str, dict[str, np.ndarray]]
    config: ModelConfig
    params: dict[str, dict[str, np.ndarray]]
    batch: CrystalBatch
    expected: dict[str, np.ndarray]


@functools.cache
def load_golden(name: str) -> Golden:
    """The golden model of that name; all share the crystals."""
    pickle_name, expected_name = FILES[name]
    published = upstream.load_pickle(GOLDEN / pickle_name)
    config = upstream.recognise(published, **SIZES[name])
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


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory) -> Path:
    """A directory that all processes of a run of the tests share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def pytest_configure(config: pytest.Config) -> None:
    """Programs are compiled once for all tiers, workers and commands; JAX keeps those of each XLA_FLAGS apart.

    Other processes find them by JAX's variables, which cfx heeds.
    """
    directory = config.rootpath / ".pytest_cache" / "compiled"
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(directory), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    for file in [] if hasattr(config, "workerinput") else directory.glob("*"):
        if not file.stat().st_size:  # of a process that was killed before it could write
            file.unlink()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    """CFX_CACHE in a fresh directory."""
    monkeypatch.setenv("CFX_CACHE", str(tmp_path / "cfx-cache"))
    return tmp_path / "cfx-cache"


@pytest.fixture(autouse=True, scope="module")
def compiled_programs():
    """A module's compiled programs end with it: a process that keeps those of all modules is ended by the compiler."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session", params=["rotary", "absolute"])
def golden(request) -> Golden:
    """The golden models, one after the other."""
    return load_golden(request.param)


@pytest.fixture(scope="session")
def rotary() -> Golden:
    """The golden model with rotary positions."""
    return load_golden("rotary")


@pytest.fixture(scope="session")
def csp() -> Golden:
    """The golden model that has a composition as input."""
    return load_golden("csp")


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


@pytest.fixture
def internet(tmp_path):
    """A stand-in for the internet, see tests/internet.py; `internet.environment()` leads a process to it."""
    with stand_in.internet(tmp_path) as net:
        yield net


@functools.cache
def published_pickle(position: str = "rotary", layers: int = 16) -> bytes:
    """A checkpoint as published, with its optimiser state: the released shapes, random weights."""
    import pickle

    import optax

    rng = np.random.default_rng(0)
    params = {
        module: {name: rng.normal(0, 0.05, leaf.shape).astype(np.float32) for name, leaf in leaves.items()}
        for module, leaves in published_shapes(position, layers).items()
    }
    params["~"]["a_embeddings"][104:] *= 0.1  # elements that no data set holds
    moments = [jax.tree.map(np.square, params), jax.tree.map(np.abs, params)]
    return pickle.dumps({"params": params, "opt_state": (optax.ScaleByAdamState(np.array(3), *moments),)})


def published_shapes(position: str = "rotary", layers: int = 16) -> dict[str, dict[str, np.ndarray]]:
    """Zeros in the shapes of the released models, under their Haiku names."""

    def linear(inputs: int, outputs: int) -> dict[str, np.ndarray]:
        return {"w": np.zeros((inputs, outputs), np.float32), "b": np.zeros(outputs, np.float32)}

    def norm() -> dict[str, np.ndarray]:
        return {"scale": np.ones(64, np.float32), "offset": np.zeros(64, np.float32)}

    embeddings = {"g_embeddings": (230, 32), "w_embeddings": (28, 32), "a_embeddings": (119, 32)}
    if position == "absolute":
        embeddings["positional_embeddings"] = (105, 64)
    params = {"~": {name: np.zeros(shape, np.float32) for name, shape in embeddings.items()}}
    params |= {"linear": linear(32, 256), "linear_1": linear(256, 28)}
    params |= {"linear_2": linear(65, 64), "linear_3": linear(64, 64)}
    params |= {f"linear_{i}": linear(42, 64) for i in (4, 5, 6)}
    for i in range(layers):
        attention = f"multi_head_attention_{i}" if i else "multi_head_attention"
        params |= {f"{attention}/{name}": linear(64, 1024) for name in ("query", "key", "value")}
        params[f"{attention}/linear"] = linear(1024, 64)
        params |= {f"linear_{7 + 2 * i}": linear(64, 256), f"linear_{8 + 2 * i}": linear(256, 64)}
        params |= {f"layer_norm_{2 * i}" if i else "layer_norm": norm(), f"layer_norm_{2 * i + 1}": norm()}
    params |= {f"layer_norm_{2 * layers}": norm(), f"linear_{7 + 2 * layers}": linear(64, 171)}
    return params
