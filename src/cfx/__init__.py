"""cfx: crystals from a space group, with CrystalFormer.

import cfx
model = cfx.load_model("mini")
structures = model.sample(space_group=194, n=100, seed=0).to_structures()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cfx.config import ModelConfig, SampleConfig, Template
    from cfx.core.crystal import CrystalBatch
    from cfx.core.likelihood import LogProb
    from cfx.data.dataset import encode
    from cfx.model import Model, load_model
    from cfx.runs.discover import discover
    from cfx.runs.predict import predict

__all__ = [
    "CrystalBatch",
    "LogProb",
    "Model",
    "ModelConfig",
    "SampleConfig",
    "Template",
    "discover",
    "encode",
    "load_model",
    "predict",
]

_PUBLIC = {
    "load_model": "cfx.model",
    "Model": "cfx.model",
    "ModelConfig": "cfx.config",
    "SampleConfig": "cfx.config",
    "Template": "cfx.config",
    "CrystalBatch": "cfx.core.crystal",
    "LogProb": "cfx.core.likelihood",
    "encode": "cfx.data.dataset",
    "discover": "cfx.runs.discover",
    "predict": "cfx.runs.predict",
}


def __getattr__(name: str):
    """Imports a public name when it is first asked for, so that `import cfx` costs nothing."""
    from importlib import import_module

    if name not in _PUBLIC:
        raise AttributeError(f"module 'cfx' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
