"""A run on the terminal: progress while it goes, tables and paths when it is done, the way on when it is stopped."""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from drpruning.cli.render.run_outcome import print_tables
from drpruning.config import RunConfig
from drpruning.errors import DrpruningError, ExitCode
from drpruning.progress import LogFile, ProgressLine
from drpruning.records import read_records
from drpruning.report import open_run, write_report
from drpruning.report.summary_json import summary_json
from drpruning.report.verdicts import verdicts


def train_and_show(
    config: RunConfig, folder: Path, *, resume: bool, again: str, as_json: bool = False, judged: bool = False
) -> None:
    """Runs ``config`` in ``folder`` and prints what came of it.

    Args:
        config: The recipe.
        folder: The run folder.
        resume: Go on with what is there.
        again: The command that goes on with this run, printed when it is interrupted.
        as_json: Print the outcome as JSON, not as tables.
        judged: Print the verdicts on the run as well, and exit with 1 if one is not passed.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    errors = Console(stderr=True)
    with errors.status("loading torch and transformers") if errors.is_terminal else nullcontext():
        from transformers.utils import logging

        from drpruning.train.loop import Interrupted
        from drpruning.train.ranks import joined, told_elsewhere
        from drpruning.train.run import train
        from drpruning.train.stop import stop_on_signal
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    first = speaks()

    def announce() -> None:
        if first:
            errors.print("finishing this step and writing a checkpoint (once more to stop at once)")

    steps = {name: config.stage(name).steps for name in config.stages}
    shown = errors if first else Console(quiet=True)
    with ProgressLine(shown, steps) as line, closing(LogFile(folder)) as log, stop_on_signal(announce) as stop:
        try:
            with joined(config.training.device, config.training.timeout) as ranks:
                train(config, folder, resume=resume, watchers=[line, log], stop=stop, ranks=ranks)
        except Interrupted:
            line.progress.stop()
            if first:
                said = f"interrupted; everything is saved. Go on with:\n  {again}"
                errors.print(said, soft_wrap=True, highlight=False, markup=False)
            sys.exit(ExitCode.INTERRUPTED)
        except (DrpruningError, OSError) as error:
            if told_elsewhere(error):
                sys.exit(getattr(error, "exit_code", ExitCode.ERROR))
            raise
    if not first:
        return
    page = write_report(folder)
    found = verdicts(read_records(folder / "metrics.jsonl")) if judged else []
    if as_json:
        outcome = summary_json(open_run(folder)) | {"model": str(folder / "export"), "report": str(page)}
        if judged:
            outcome["verdicts"] = [asdict(verdict) for verdict in found]
        print(json.dumps(outcome, indent=2))
    else:
        print_tables(Console(), folder)
        for verdict in found:
            print(f"{'passed' if verdict.passed else 'FAILED'}  {verdict.name}: {verdict.detail}")
        print(f"model   {folder / 'export'}")
        print(f"report  {page}")
    if not all(verdict.passed for verdict in found):
        sys.exit(ExitCode.FAILED)


def speaks() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one: the others say nothing."""
    return os.environ.get("RANK", "0") == "0"
