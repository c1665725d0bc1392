"""One run of a comparison, in a process of its own: whatever happens to it, the others go on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from drpruning.comparison.baseline_model import measure_model
from drpruning.comparison.documents import Documents, document_losses
from drpruning.comparison.runs import DOCUMENTS, FINISHED_MODEL
from drpruning.config import RunConfig
from drpruning.errors import DrpruningError, ExitCode
from drpruning.files import write_text
from drpruning.progress import LogFile
from drpruning.pruning.loading import load
from drpruning.recipes import parse_recipe
from drpruning.records import ModelMeasured, read_records
from drpruning.train.device import choose_device
from drpruning.train.execution import prepare
from drpruning.train.folder import RECORDS
from drpruning.train.inputs import open_corpus
from drpruning.train.loop import Interrupted
from drpruning.train.run import train
from drpruning.train.stop import stop_on_signal


def work(recipe: dict[str, Any], folder: Path, base: Path, model: str | None) -> None:
    """Trains and measures by document, or only measures a finished model.

    Ends the process with 130 when stopped with everything saved, 1 when it failed.

    Args:
        recipe: The recipe as plain data.
        folder: The run folder.
        base: Where the unpruned model's losses by document are, or are to be.
        model: The finished model, if it is one.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = parse_recipe(recipe)
        if model is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / FINISHED_MODEL, json.dumps(measure_model(model, config, open_corpus(config))))
            return
        with stop_on_signal(lambda: print("finishing this step and writing a checkpoint", file=sys.stderr)) as stop:
            train(config, folder, resume=True, watchers=[LogFile(folder)], stop=stop)
        measure(config, folder, base)
    except Interrupted:
        sys.exit(ExitCode.INTERRUPTED)
    except DrpruningError as error:
        print(f"{type(error).__name__}: {' '.join(error.message.split())}", file=sys.stderr)
        sys.exit(ExitCode.FAILED)


def measure(config: RunConfig, folder: Path, base: Path) -> None:
    """Writes the losses by document of a run's base, if no run has yet, and then its own, with which it is finished."""
    if not base.is_file():
        for record in read_records(folder / RECORDS):
            if isinstance(record, ModelMeasured) and record.model == "base" and record.path is not None:
                base.parent.mkdir(parents=True, exist_ok=True)
                write_text(base, json.dumps(_of_model(config, record.path)))
    if not (folder / DOCUMENTS).is_file():
        write_text(folder / DOCUMENTS, json.dumps(_of_model(config, folder / "export")))


def _of_model(config: RunConfig, folder: str | Path) -> Documents:
    training, corpus = config.training, open_corpus(config)
    device = choose_device(training.device)
    model = load(folder).to(device).eval()
    prepare(model, training, config.data, corpus.end_token)
    return document_losses(
        model,
        corpus,
        config.domains,
        seq_len=config.data.seq_len,
        tokens=training.measurement_tokens,
        batch_size=training.evaluation_batch_size,
        autocast=torch.autocast(device.type, dtype=torch.bfloat16, enabled=training.dtype == "bfloat16"),
    )
