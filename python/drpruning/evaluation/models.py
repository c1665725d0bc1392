"""Which models a command means, and whether a corpus's ids are theirs."""

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
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")

Ids = Literal["corpus", "unchecked", "own"]
"""Which ids a model is measured on: the corpus's; the corpus's, but nothing says that they are the model's; its own."""


@dataclass(frozen=True)
class NamedModel:
    """A model on the disk or the hub.

    Args:
        name: What tables call it.
        path: Folder, or name on the Hugging Face hub.
        run: The run folder it belongs to, if any.
        role: What that run calls it: ``base``, ``pruned`` or ``recovered``.
    """

    name: str
    path: str
    run: Path | None = None
    role: str | None = None


def find_models(arguments: Sequence[str]) -> list[NamedModel]:
    """The models that arguments of the command line stand for.

    A folder with a model, or a name on the hub, is itself; a run folder stands for its base, its pruned model and its
    recovered one, as far as they are there.

    Raises:
        ConfigError: A folder is neither, or a run has no model yet.
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
    for name, role in MODEL_FOLDERS.items():  # where they are now: a run may have been moved since it was recorded
        if (folder / name / "config.json").is_file():
            paths[role] = str(folder / name)
        else:
            paths.pop(role, None)
    if not paths:
        raise ConfigError(f"the run {folder} has no model yet", "Wait until a stage is over, or name another model.")
    return [NamedModel(name=f"{prefix}{role}", path=path, run=folder, role=role) for role, path in paths.items()]


def _distinct(models: list[NamedModel]) -> list[NamedModel]:
    """The same models; those of the same name are called by their paths."""
    names = [model.name for model in models]
    return [
        model if names.count(model.name) == 1 else NamedModel(model.path, model.path, model.run, model.role)
        for model in models
    ]


def run_recipe(models: Sequence[NamedModel]) -> RunConfig | None:
    """The recipe of the first model that belongs to a run: it tells the corpus and the row length it was trained on."""
    import yaml  # noqa: PLC0415 -- only for run folders

    from drpruning.recipes import parse_recipe  # noqa: PLC0415

    for model in models:
        if model.run is not None:
            try:
                return parse_recipe(RunFolder(model.run).read_recipe())
            except (yaml.YAMLError, TypeError, ValueError) as error:
                raise ConfigError(
                    f"{RunFolder(model.run).recipe} is damaged: {error}", "Give --corpus and --seq-len."
                ) from error
    return None


def check_corpus(models: Sequence[NamedModel], corpus: Corpus) -> None:
    """Makes sure that ``corpus`` is the one that each run of ``models`` was trained and measured on.

    Raises:
        CorpusError: It is another one.
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


def which_ids(model: NamedModel, vocabulary: int, theirs: Any, ours: Any, corpus: Corpus) -> Ids:
    """Whether the corpus's ids are the model's.

    Args:
        model: Whose name errors say.
        vocabulary: Rows of the model's embedding.
        theirs: The model's tokenizer, or None.
        ours: The corpus's tokenizer, or None.
        corpus: The corpus.

    Raises:
        ConfigError: The model's ids are not the corpus's, and there is no way to read the text again.
    """
    if theirs is not None and ours is not None and theirs.get_vocab() != ours.get_vocab():
        return "own"
    largest = corpus.vocab_size or 0
    if largest <= vocabulary:
        return "corpus" if theirs is not None and ours is not None else "unchecked"
    missing = "brings no tokenizer" if theirs is None else "brings one, but the corpus does not hold its own"
    raise ConfigError(
        f"the corpus has {largest} token ids, the model {model.name!r} an embedding of {vocabulary}; it {missing}",
        "Put its tokenizer into the model's folder, or prepare the corpus with it: "
        "`drpruning prepare OUT --tokenizer MODEL ...`",
    )
