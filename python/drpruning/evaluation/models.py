"""The models of a command's arguments, and whether they use a corpus's token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from drpruning.errors import ConfigError
from drpruning.records import ModelMeasured, RunStarted, read_records, recorded_corpus
from drpruning.run_folder import EXPORT, PRUNED, RECIPE, RunFolder

if TYPE_CHECKING:
    from drpruning.config import RunConfig
    from drpruning.corpus import Corpus

MODEL_FOLDERS = {PRUNED: "pruned", EXPORT: "recovered"}  # in a run folder -> the name of the model in its records

Ids = Literal["corpus", "unchecked", "own"]
"""Ids on which a model is measured: the corpus's; assumed to be the corpus's, without a way to check; its own."""


@dataclass(frozen=True)
class NamedModel:
    """A model on the disk or the hub.

    Args:
        name: Name in tables.
        path: Folder, or name on the Hugging Face hub.
        run: The run folder of the model, if any.
        role: Name in the run's records: ``base``, ``pruned`` or ``recovered``.
    """

    name: str
    path: str
    run: Path | None = None
    role: str | None = None


def find_models(arguments: Sequence[str]) -> list[NamedModel]:
    """Return the models of the arguments of a command.

    A folder with a model, or a name on the hub, is one model; a run folder gives the existing ones of its base, pruned
    and recovered models.

    Raises:
        ConfigError: A folder is neither a model nor a run, or a run has no model yet.
    """
    found: list[NamedModel] = []
    for argument in arguments:
        folder = Path(argument).expanduser()
        if not folder.is_dir() or (folder / "config.json").is_file():
            found.append(_single(argument, folder))
        elif RunFolder(folder).exists:
            found.extend(_of_run(folder, prefix=f"{folder.resolve().name}/" if len(arguments) > 1 else ""))
        else:
            raise ConfigError(
                f"{argument} holds neither a model (config.json) nor a run ({RECIPE})",
                "Give a model folder, the folder of a run, or the name of a model on the Hugging Face hub.",
            )
    return _distinct(found)


def _single(argument: str, folder: Path) -> NamedModel:
    run = folder.resolve().parent
    if folder.is_dir() and folder.resolve().name in MODEL_FOLDERS and RunFolder(run).exists:
        return NamedModel(
            name=folder.resolve().name, path=str(folder), run=run, role=MODEL_FOLDERS[folder.resolve().name]
        )
    return NamedModel(name=folder.resolve().name if folder.is_dir() else argument, path=argument)


def _of_run(folder: Path, prefix: str) -> list[NamedModel]:
    records = RunFolder(folder).metrics
    measured = [item for item in read_records(records) if isinstance(item, ModelMeasured)] if records.is_file() else []
    paths = {item.model: item.path for item in measured if item.path is not None}
    for name, role in MODEL_FOLDERS.items():  # the present paths: the run folder may have been moved
        if (folder / name / "config.json").is_file():
            paths[role] = str(folder / name)
        else:
            paths.pop(role, None)
    if not paths:
        raise ConfigError(f"the run {folder} has no model yet", "Wait until a stage has ended, or name another model.")
    return [NamedModel(name=f"{prefix}{role}", path=path, run=folder, role=role) for role, path in paths.items()]


def _distinct(models: list[NamedModel]) -> list[NamedModel]:
    """Return the models; models with equal names are named by their paths."""
    names = [model.name for model in models]
    return [
        model if names.count(model.name) == 1 else NamedModel(model.path, model.path, model.run, model.role)
        for model in models
    ]


def run_recipe(models: Sequence[NamedModel]) -> RunConfig | None:
    """Return the recipe of the first model of a run, which has its corpus and row length; None without a run."""
    from drpruning.recipes import parse_recipe  # noqa: PLC0415

    for model in models:
        if model.run is not None:
            try:
                return parse_recipe(RunFolder(model.run).read_recipe())
            except ConfigError as error:
                raise ConfigError(
                    f"{RunFolder(model.run).recipe} is damaged: {error}", "Give --corpus and --seq-len."
                ) from error
    return None


def check_corpus(models: Sequence[NamedModel], corpus: Corpus) -> None:
    """Check that each run of ``models`` was trained and measured on ``corpus``.

    Raises:
        CorpusError: A run has another corpus.
    """
    for run in dict.fromkeys(model.run for model in models if model.run is not None):
        records = list(read_records(RunFolder(run).metrics)) if RunFolder(run).metrics.is_file() else []
        started = next((record for record in records if isinstance(record, RunStarted)), None)
        was = started.environment.get("corpus_folder") if started is not None else None
        corpus.check_fingerprint(
            recorded_corpus(records),
            f"the run {run}",
            f"Give the run's corpus with --corpus{f' (it was {was})' if was else ''}, or measure on this one with "
            "--other-corpus.",
        )


def which_ids(model: NamedModel, vocabulary: int, model_own: Any, corpus_own: Any, corpus: Corpus) -> Ids:
    """Return on which ids a model is measured.

    Args:
        model: The model, for error messages.
        vocabulary: Rows of the model's embedding.
        model_own: The model's tokenizer, or None.
        corpus_own: The corpus's tokenizer, or None.
        corpus: The corpus.

    Raises:
        ConfigError: The model's ids are not the corpus's, and the text cannot be encoded for the model.
    """
    if model_own is not None and corpus_own is not None and model_own.get_vocab() != corpus_own.get_vocab():
        return "own"
    largest = corpus.vocab_size or 0
    if largest <= vocabulary:
        return "corpus" if model_own is not None and corpus_own is not None else "unchecked"
    missing = "the model has no tokenizer" if model_own is None else "the corpus has no tokenizer"
    raise ConfigError(
        f"the corpus has {largest} token ids, the model {model.name!r} an embedding of {vocabulary}; {missing}",
        "Copy the tokenizer into the model's folder, or prepare the corpus with it: "
        "`drpruning prepare OUT --tokenizer MODEL ...`",
    )
