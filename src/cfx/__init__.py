"""cfx: crystals from a space group, with CrystalFormer.

import cfx
model = cfx.load_model("mini")
sample = model.sample(space_group=194, n=100, seed=0)
cfx.evaluate(sample, reference="mp-20").report("report.html")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cfx.api.describe import Description, describe
    from cfx.api.discover import discover
    from cfx.api.dpo import PreferenceTuning, dpo
    from cfx.api.evaluate import Evaluation, evaluate
    from cfx.api.fine_tune import FineTuning, fine_tune
    from cfx.api.hull import HullTable, build_hull, hull
    from cfx.api.predict import predict
    from cfx.api.relax import Relaxation, relax
    from cfx.api.retrieve import Retrieval, retrieve
    from cfx.api.score import Scoring, score
    from cfx.api.selftrain import SelfTraining, selftrain
    from cfx.api.train import Training, train
    from cfx.api.view import View, view
    from cfx.config import ModelConfig, SampleConfig, Template
    from cfx.core.crystal import CrystalBatch
    from cfx.core.likelihood import LogProb
    from cfx.data.dataset import encode
    from cfx.model import Model, load_model
    from cfx.sampling.sample import Sample

    __version__: str

__all__ = [
    "CrystalBatch",
    "Description",
    "Evaluation",
    "FineTuning",
    "HullTable",
    "LogProb",
    "Model",
    "ModelConfig",
    "PreferenceTuning",
    "Relaxation",
    "Retrieval",
    "Sample",
    "SampleConfig",
    "Scoring",
    "SelfTraining",
    "Template",
    "Training",
    "View",
    "build_hull",
    "describe",
    "discover",
    "dpo",
    "encode",
    "evaluate",
    "fine_tune",
    "hull",
    "load_model",
    "predict",
    "relax",
    "retrieve",
    "score",
    "selftrain",
    "train",
    "view",
]

_PUBLIC = {
    "load_model": "cfx.model",
    "Model": "cfx.model",
    "ModelConfig": "cfx.config",
    "SampleConfig": "cfx.config",
    "Template": "cfx.config",
    "CrystalBatch": "cfx.core.crystal",
    "LogProb": "cfx.core.likelihood",
    "Sample": "cfx.sampling.sample",
    "encode": "cfx.data.dataset",
    "discover": "cfx.api.discover",
    "predict": "cfx.api.predict",
    "evaluate": "cfx.api.evaluate",
    "Evaluation": "cfx.api.evaluate",
    "relax": "cfx.api.relax",
    "Relaxation": "cfx.api.relax",
    "score": "cfx.api.score",
    "Scoring": "cfx.api.score",
    "train": "cfx.api.train",
    "Training": "cfx.api.train",
    "view": "cfx.api.view",
    "View": "cfx.api.view",
    "fine_tune": "cfx.api.fine_tune",
    "FineTuning": "cfx.api.fine_tune",
    "Description": "cfx.api.describe",
    "describe": "cfx.api.describe",
    "PreferenceTuning": "cfx.api.dpo",
    "dpo": "cfx.api.dpo",
    "HullTable": "cfx.api.hull",
    "hull": "cfx.api.hull",
    "build_hull": "cfx.api.hull",
    "Retrieval": "cfx.api.retrieve",
    "retrieve": "cfx.api.retrieve",
    "SelfTraining": "cfx.api.selftrain",
    "selftrain": "cfx.api.selftrain",
}


def __getattr__(name: str):
    """Imports a public name when it is first asked for, so that `import cfx` costs nothing."""
    from importlib import import_module, metadata

    if name == "__version__":
        value = metadata.version("cfx-crystal")
    elif name in _PUBLIC:
        value = getattr(import_module(_PUBLIC[name]), name)
    else:
        raise AttributeError(f"module 'cfx' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
