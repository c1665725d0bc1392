"""One run of a comparison in a separate process: if the run fails, the others continue."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from drpruning.comparison.baseline_model import measure_baseline
from drpruning.comparison.results import DocumentSums
from drpruning.comparison.runs import BASELINE, DOCUMENTS
from drpruning.config import RunConfig
from drpruning.errors import DrpruningError, ExitCode
from drpruning.evaluation.document_losses import row_document_losses
from drpruning.files import write_text
from drpruning.formatting import printable
from drpruning.hf.models import load
from drpruning.prepare.recipe_corpus import open_corpus
from drpruning.progress import LogFile
from drpruning.recipes import parse_recipe
from drpruning.records import ModelMeasured, read_records
from drpruning.run_folder import RunFolder
from drpruning.train.device import choose_device
from drpruning.train.loop import Interrupted
from drpruning.train.model_runtime import prepare
from drpruning.train.run import train
from drpruning.train.signals import stop_on_signal


def work(recipe: dict[str, Any], folder: Path, base: Path, model: str | None) -> None:
    """Train a run and measure its models by document; or only measure a baseline model.

    The process exits with 75 (SIGTERM, SIGUSR1) or 130 (SIGINT) if it was interrupted and everything is saved, and with
    1 if it failed.

    Args:
        recipe: The recipe as JSON-able data.
        folder: The run folder.
        base: File of the unpruned model's losses by document; written if it does not exist.
        model: Folder or name of the baseline model; None for a run.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = parse_recipe(recipe)
        if model is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / BASELINE, json.dumps(measure_baseline(model, config, open_corpus(config))))
            return
        with stop_on_signal("finishing this step and writing a checkpoint") as stop:
            stop.include_interrupt()
            train(config, folder, resume=True, watchers=[LogFile(folder)], stop=stop)
        measure(config, folder, base)
    except Interrupted:
        sys.exit(stop.exit_code)
    except DrpruningError as error:
        print(f"{type(error).__name__}: {printable(' '.join(error.message.split()))}", file=sys.stderr)
        sys.exit(ExitCode.FAILED)


def measure(config: RunConfig, folder: Path, base: Path) -> None:
    """Write the losses by document of a run's base, if no run has done so, and then those of the run's final model.

    A run with the second file is finished.
    """
    if not base.is_file():
        for record in read_records(RunFolder(folder).metrics):
            if isinstance(record, ModelMeasured) and record.model == "base" and record.path is not None:
                base.parent.mkdir(parents=True, exist_ok=True)
                write_text(base, json.dumps(_documents(config, record.path)))
    if not (folder / DOCUMENTS).is_file():
        write_text(folder / DOCUMENTS, json.dumps(_documents(config, folder / "export")))


def _documents(config: RunConfig, model_folder: str | Path) -> dict[str, dict[str, Any]]:
    """Measure the model of a folder on every domain, by document."""
    training, corpus = config.training, open_corpus(config)
    device = choose_device(training.device)
    model = load(model_folder).to(device).eval()
    prepare(model, training, config.data, corpus.end_token)
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=training.dtype == "bfloat16")
    documents = {}
    for domain in config.domains:
        losses = row_document_losses(
            model,
            corpus,
            domain,
            seq_len=config.data.seq_len,
            max_tokens=training.final_eval_tokens,
            batch_size=training.eval_batch_size,
            autocast=autocast,
        )
        documents[domain] = DocumentSums.of(losses.tokens, losses.nats, losses.groups).model_dump()
    return documents
