"""Small language models from large ones, good in every domain."""

from drpruning.chi2 import Solution, project, worst_case
from drpruning.reweight import STRATEGIES, Constant, DRPruning, Observation, ShearedLoading, Strategy, Update
from drpruning.scaling import ScalingLaw, fit_scaling_law

__all__ = [
    "STRATEGIES",
    "Constant",
    "DRPruning",
    "Observation",
    "ScalingLaw",
    "ShearedLoading",
    "Solution",
    "Strategy",
    "Update",
    "fit_scaling_law",
    "project",
    "worst_case",
]
