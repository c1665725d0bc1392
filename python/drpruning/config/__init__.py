"""The sections of a recipe with their defaults and ranges, as frozen pydantic models.

A :class:`RunConfig` is complete and consistent; later code does not check it again. :meth:`RunConfig.notices` lists
settings that are allowed but have no effect in this recipe. :mod:`drpruning.recipes` reads the YAML.
"""

from drpruning.config.data import DataConfig
from drpruning.config.distill import DistillConfig
from drpruning.config.mixture import (
    ChangeConfig,
    MixtureConfig,
    ScheduleConfig,
    StrategyName,
)
from drpruning.config.model import SHAPES_ONLY, ArchitectureConfig, ModelConfig
from drpruning.config.run import RunConfig, uniform
from drpruning.config.section import Section
from drpruning.config.stages import (
    CalibrationConfig,
    ContinueConfig,
    MeasuresConfig,
    PretrainConfig,
    ProtectConfig,
    PruneConfig,
    StageConfig,
    TargetConfig,
)
from drpruning.config.task_eval import TaskEvalConfig
from drpruning.config.training import TrainingConfig

__all__ = [
    "SHAPES_ONLY",
    "ArchitectureConfig",
    "CalibrationConfig",
    "ChangeConfig",
    "ContinueConfig",
    "DataConfig",
    "DistillConfig",
    "MeasuresConfig",
    "MixtureConfig",
    "ModelConfig",
    "PretrainConfig",
    "ProtectConfig",
    "PruneConfig",
    "RunConfig",
    "ScheduleConfig",
    "Section",
    "StageConfig",
    "StrategyName",
    "TargetConfig",
    "TaskEvalConfig",
    "TrainingConfig",
    "uniform",
]
