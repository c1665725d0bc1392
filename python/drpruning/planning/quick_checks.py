"""Checks of a recipe that need neither torch nor transformers: most mistakes are reported within a second.

:mod:`drpruning.train.preflight` has all checks, with corpus, model and machine.
"""

from __future__ import annotations

from pathlib import Path

from drpruning.config import SHAPES_ONLY, RunConfig
from drpruning.errors import check_installed
from drpruning.hf.files import check_model_exists
from drpruning.planning.model_shape import ModelShape
from drpruning.planning.recipe import source_shape
from drpruning.prepare.recipe_corpus import check_domains, open_folder
from drpruning.pruning.target import Target

BUILT_CORPORA = ("demo", "synthetic")
"""Values of ``data.corpus`` that name no folder; the run builds them."""


def check_quickly(config: RunConfig) -> None:
    """Check packages, corpus, domains, model and target shape of a recipe before anything is loaded or built.

    Raises:
        ConfigError: The corpus or the model does not exist, or the target does not fit the model.
        CorpusError: The corpus is damaged.
        MissingExtraError: A package that the recipe needs is not installed.
    """
    if config.task_eval.tasks:
        check_installed("task_eval.tasks needs", "lm-eval", "accelerate")
    if config.training.cross_entropy == "liger":
        check_installed("`training.cross_entropy: liger` needs", "liger-kernel")
    if config.data.corpus not in BUILT_CORPORA:
        check_domains(config, open_folder(Path(config.data.corpus)))
    if config.model.source not in SHAPES_ONLY:
        check_model_exists(config.model.source)
    check_target_shape(config)


def check_target_shape(config: RunConfig) -> None:
    """Check that the target shape of a recipe, if it has one, fits the large model.

    Raises:
        ConfigError: It does not, or the model has no readable config.
    """
    if config.prune is not None:
        shape = source_shape(config)
        assert isinstance(shape, ModelShape), "a model to prune has an architecture that masks describe"
        Target(**config.prune.target.model_dump()).resolve(shape)  # type: ignore[arg-type] # has the fields that are read
