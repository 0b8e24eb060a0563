"""What a command is asked to do, frozen and checked; nothing here imports more than the standard library."""

from cfx.config.discovery import DiscoverConfig, DiscoverRun
from cfx.config.evaluation import EvalConfig, RelaxConfig, ShortlistConfig
from cfx.config.fields import from_dict
from cfx.config.finetuning import (
    DPOConfig,
    PairsRun,
    RewardConfig,
    RewardRun,
    RLConfig,
    Shape,
)
from cfx.config.prediction import PredictConfig
from cfx.config.sampling import SampleConfig, Template
from cfx.config.selftraining import SelfTrainConfig, SelfTrainRun
from cfx.config.training import SYMPREC, DataConfig, ModelConfig, TrainConfig, TrainRun

__all__ = [
    "SYMPREC",
    "DPOConfig",
    "DataConfig",
    "DiscoverConfig",
    "DiscoverRun",
    "EvalConfig",
    "ModelConfig",
    "PairsRun",
    "PredictConfig",
    "RLConfig",
    "RelaxConfig",
    "RewardConfig",
    "RewardRun",
    "SampleConfig",
    "SelfTrainConfig",
    "SelfTrainRun",
    "Shape",
    "ShortlistConfig",
    "Template",
    "TrainConfig",
    "TrainRun",
    "from_dict",
]
