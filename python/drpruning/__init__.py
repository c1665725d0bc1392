"""Prune large language models to a target shape, with a data mixture that follows the domains' losses.

Names are imported on first use, so ``import drpruning`` is fast and needs only numpy. ``STRATEGIES`` maps the name of
each mixture strategy to its class; ``help(drpruning.mixture)`` lists the names.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drpruning import torch as torch
    from drpruning._native import __version__ as __version__
    from drpruning.chi2 import Solution as Solution
    from drpruning.chi2 import Solutions as Solutions
    from drpruning.chi2 import project as project
    from drpruning.chi2 import project_many as project_many
    from drpruning.chi2 import worst_case as worst_case
    from drpruning.chi2 import worst_case_many as worst_case_many
    from drpruning.corpus import Corpus as Corpus
    from drpruning.corpus.documents import Documents as Documents
    from drpruning.corpus.documents import document_boundaries as document_boundaries
    from drpruning.loss_table import LossTable as LossTable
    from drpruning.loss_table import read_losses as read_losses
    from drpruning.mixture import ADO as ADO
    from drpruning.mixture import ODM as ODM
    from drpruning.mixture import STRATEGIES as STRATEGIES
    from drpruning.mixture import Aioli as Aioli
    from drpruning.mixture import Bounds as Bounds
    from drpruning.mixture import ChiSquareDRO as ChiSquareDRO
    from drpruning.mixture import Constant as Constant
    from drpruning.mixture import CVaR as CVaR
    from drpruning.mixture import DoReMi as DoReMi
    from drpruning.mixture import DRPruning as DRPruning
    from drpruning.mixture import GroupDRO as GroupDRO
    from drpruning.mixture import Observation as Observation
    from drpruning.mixture import Schedule as Schedule
    from drpruning.mixture import ShearedLoading as ShearedLoading
    from drpruning.mixture import Strategy as Strategy
    from drpruning.mixture import Update as Update
    from drpruning.mixture import read_schedule as read_schedule
    from drpruning.mixture.static import static_mixture as static_mixture
    from drpruning.report.figures.plots import Plots as Plots
    from drpruning.report.read.metrics import read_metrics as read_metrics
    from drpruning.report.read.run import Run as Run
    from drpruning.sampler import Batch as Batch
    from drpruning.sampler import BatchPlan as BatchPlan
    from drpruning.sampler import DomainSampler as DomainSampler
    from drpruning.scaling import LearningRates as LearningRates
    from drpruning.scaling import ScalingLaw as ScalingLaw
    from drpruning.scaling import fit_scaling_law as fit_scaling_law
    from drpruning.scaling import fit_scaling_laws as fit_scaling_laws
    from drpruning.scaling import parse_learning_rates as parse_learning_rates

# Public name -> module that defines it.
_MODULE_OF = {
    "ADO": "drpruning.mixture",
    "Aioli": "drpruning.mixture",
    "Batch": "drpruning.sampler",
    "BatchPlan": "drpruning.sampler",
    "Bounds": "drpruning.mixture",
    "CVaR": "drpruning.mixture",
    "ChiSquareDRO": "drpruning.mixture",
    "Constant": "drpruning.mixture",
    "Corpus": "drpruning.corpus",
    "DRPruning": "drpruning.mixture",
    "DoReMi": "drpruning.mixture",
    "Documents": "drpruning.corpus.documents",
    "DomainSampler": "drpruning.sampler",
    "GroupDRO": "drpruning.mixture",
    "LearningRates": "drpruning.scaling",
    "LossTable": "drpruning.loss_table",
    "ODM": "drpruning.mixture",
    "Observation": "drpruning.mixture",
    "Plots": "drpruning.report.figures.plots",
    "Run": "drpruning.report.read.run",
    "STRATEGIES": "drpruning.mixture",
    "ScalingLaw": "drpruning.scaling",
    "Schedule": "drpruning.mixture",
    "ShearedLoading": "drpruning.mixture",
    "Solution": "drpruning.chi2",
    "Solutions": "drpruning.chi2",
    "Strategy": "drpruning.mixture",
    "Update": "drpruning.mixture",
    "__version__": "drpruning._native",
    "document_boundaries": "drpruning.corpus.documents",
    "fit_scaling_law": "drpruning.scaling",
    "fit_scaling_laws": "drpruning.scaling",
    "parse_learning_rates": "drpruning.scaling",
    "project": "drpruning.chi2",
    "project_many": "drpruning.chi2",
    "read_losses": "drpruning.loss_table",
    "read_metrics": "drpruning.report.read.metrics",
    "read_schedule": "drpruning.mixture",
    "static_mixture": "drpruning.mixture.static",
    "worst_case": "drpruning.chi2",
    "worst_case_many": "drpruning.chi2",
}

__all__ = [
    "ADO",
    "ODM",
    "STRATEGIES",
    "Aioli",
    "Batch",
    "BatchPlan",
    "Bounds",
    "CVaR",
    "ChiSquareDRO",
    "Constant",
    "Corpus",
    "DRPruning",
    "DoReMi",
    "Documents",
    "DomainSampler",
    "GroupDRO",
    "LearningRates",
    "LossTable",
    "Observation",
    "Plots",
    "Run",
    "ScalingLaw",
    "Schedule",
    "ShearedLoading",
    "Solution",
    "Solutions",
    "Strategy",
    "Update",
    "__version__",
    "document_boundaries",
    "fit_scaling_law",
    "fit_scaling_laws",
    "parse_learning_rates",
    "project",
    "project_many",
    "read_losses",
    "read_metrics",
    "read_schedule",
    "static_mixture",
    "worst_case",
    "worst_case_many",
]


def __getattr__(name: str) -> Any:
    if name == "torch":  # the only public module that needs torch
        return import_module("drpruning.torch")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'drpruning' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "torch"})
