"""Every knob of a run: frozen dataclasses, with unit and source per field, checked at construction.

A module receives its own dataclass, never the whole configuration. "Paper" is Oquab et al. 2023
(arXiv 2304.07193), "official" the configuration files and code that Meta published with it.
Field docstrings are what `--help` prints.
"""

from dinov2_zoo.config.checks import all_problems, from_dict, nearest_multiples, to_dict
from dinov2_zoo.config.data import CropConfig, FinishConfig, LoaderConfig, MaskConfig
from dinov2_zoo.config.distill import DistillConfig
from dinov2_zoo.config.model import ModelConfig
from dinov2_zoo.config.objective import FeaturesConfig, HeadConfig, ObjectiveConfig, PrototypesConfig
from dinov2_zoo.config.pretrain import PretrainConfig, SelfDistillationConfig
from dinov2_zoo.config.run import RunConfig
from dinov2_zoo.config.teachers import TeachersConfig
from dinov2_zoo.config.training import (
    AgreementConfig,
    CheckpointConfig,
    EvaluationConfig,
    LogConfig,
    OptimConfig,
    RuntimeConfig,
)

__all__ = [
    "AgreementConfig",
    "CheckpointConfig",
    "CropConfig",
    "DistillConfig",
    "EvaluationConfig",
    "FeaturesConfig",
    "FinishConfig",
    "HeadConfig",
    "LoaderConfig",
    "LogConfig",
    "MaskConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "PretrainConfig",
    "PrototypesConfig",
    "RunConfig",
    "RuntimeConfig",
    "SelfDistillationConfig",
    "TeachersConfig",
    "all_problems",
    "from_dict",
    "nearest_multiples",
    "to_dict",
]
