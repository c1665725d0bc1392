"""`drpruning train`: run a recipe from start to end, or resume it."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from drpruning.cli.options import complete_recipe, examples, json_option, set_option

if TYPE_CHECKING:
    from drpruning.config import RunConfig
    from drpruning.train.signals import StopRequest


@click.command(
    short_help="Prune a model with a recipe.",
    epilog=examples("""
  drpruning train quickstart
  drpruning train quickstart --out runs/again --set mixture.rho=0.2 --set prune.target.layers=3
  drpruning train quickstart --out runs/again --resume
  drpruning train quickstart --watch      # shows the run live in the browser
  drpruning train my-recipe.yaml --set mixture.strategy=constant
  drpruning train my-recipe.yaml --miniature   # only the optimisation, on two cores"""),
)
@click.argument("recipe", required=False, shell_complete=complete_recipe)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder to write.  [default: runs/NAME-STRATEGY]")
@set_option()
@click.option("--watch", is_flag=True, help="Show the run live in the browser on this machine.")
@json_option("Print the outcome as JSON.")
@click.option(
    "--resume",
    is_flag=True,
    help="Resume the run in the folder. On a CPU the result is bit for bit that of one run, on a GPU within rounding.",
)
@click.option(
    "--miniature",
    is_flag=True,
    help="Train a tiny model on synthetic text of the recipe's domains. Steps, learning rates, schedules, evaluations, "
    "bounds and strategy are the recipe's; width, depth, batch size, row length, text and reference losses are not. "
    "Exit with 1 if a mask target is missed by more than 1%, a loss rises by more than 0.02 nats at the extraction, or "
    "a number is not finite.",
)
@click.option(
    "--continue-steps",
    type=click.IntRange(1),
    help="With --miniature: maximum number of steps of the stage continue. Warm-up and decay stay fractions of the "
    "stage, and the interval of evaluations shrinks so that their number stays the recipe's.  [default: 480]",
)
def train(
    recipe: str | None,
    out: Path | None,
    overrides: tuple[str, ...],
    watch: bool,
    as_json: bool,
    resume: bool,
    miniature: bool,
    continue_steps: int | None,
) -> None:
    """Prune a model, or continue its pretraining, with RECIPE: a YAML file, or the name of a shipped recipe.

    Ctrl-C finishes the step, writes a checkpoint, and prints the command that resumes the run; a second Ctrl-C stops at
    once. SIGTERM and SIGUSR1, a scheduler's warnings, do the same from the start of the command, with exit code 75.
    """
    import sys

    from drpruning.errors import ExitCode
    from drpruning.train.signals import stop_on_signal

    if recipe is None:
        _list_recipes()
        sys.exit(ExitCode.ERROR)
    message = "finishing this step and writing a checkpoint (Ctrl-C to stop at once)" if is_first_rank() else ""
    with stop_on_signal(message) as stop:
        config = _load_config(recipe, overrides, miniature, continue_steps)
        folder = out or Path("runs") / f"{config.name}-{config.mixture.strategy}"
        if "RANK" not in os.environ:  # several ranks would print an error each
            from drpruning.planning.quick_checks import check_quickly
            from drpruning.run_folder import RunFolder, check_run_folder

            check_run_folder(RunFolder(folder), resume=resume)
            check_quickly(config)
        request = TrainRequest(
            config=config,
            folder=folder,
            resume=resume,
            resume_command=_resume_command(recipe, folder, overrides, miniature, continue_steps),
            with_verdicts=miniature,
            as_json=as_json,
        )

        from drpruning.cli.live_page import serve_during_training

        with serve_during_training(folder) if watch and is_first_rank() else nullcontext():
            run_training(request, stop)
            if is_first_rank():
                show_outcome(request)


@dataclass(frozen=True)
class TrainRequest:
    """A run on the command line.

    Attributes:
        config: The recipe.
        folder: The run folder.
        resume: Whether to resume the run in ``folder``.
        resume_command: The command that resumes this run, printed when it is interrupted.
        with_verdicts: Whether to print the verdicts on the run, and exit with 1 if one fails.
        as_json: Whether to print the outcome as JSON.
    """

    config: RunConfig
    folder: Path
    resume: bool
    resume_command: str
    with_verdicts: bool
    as_json: bool


def run_training(request: TrainRequest, stop: StopRequest) -> None:
    """Train with a progress line on stderr; exit with 130 on Ctrl-C, with 75 on a scheduler's signal.

    Raises:
        DrpruningError: The run failed; the first rank that failed raises, the others exit.
    """
    import sys
    from contextlib import closing

    from rich.console import Console

    from drpruning.errors import DrpruningError, ExitCode
    from drpruning.progress import LogFile, ProgressLine

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    errors = Console(stderr=True)
    with errors.status("loading torch and transformers") if errors.is_terminal else nullcontext():
        from transformers.utils import logging

        from drpruning.records import StageStarted, read_records
        from drpruning.run_folder import RunFolder
        from drpruning.train.distributed.ranks import join_ranks, reported_by_rank_0
        from drpruning.train.loop import Interrupted
        from drpruning.train.run import train as train_config
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    config, first = request.config, is_first_rank()

    steps = {name: config.stage(name).steps for name in config.stages}
    if request.resume and RunFolder(request.folder).metrics.is_file():  # a budget may have changed them
        records = read_records(RunFolder(request.folder).metrics)
        steps |= {record.stage: record.steps for record in records if isinstance(record, StageStarted)}
    console = errors if first else Console(quiet=True)
    stop.include_interrupt()
    with ProgressLine(console, steps) as line, closing(LogFile(request.folder)) as log:
        try:
            with join_ranks(config.training.device, config.training.distributed_timeout_s) as ranks:
                try:
                    if ranks.any(stop()):  # before the training
                        raise Interrupted
                    train_config(
                        config, request.folder, resume=request.resume, watchers=[line, log], stop=stop, ranks=ranks
                    )
                except Interrupted:
                    stop.follow(by_scheduler=ranks.any(stop.by_scheduler))
                    raise
        except Interrupted:
            line.progress.stop()
            if first:
                message = f"interrupted; everything is saved. Resume with:\n  {request.resume_command}"
                errors.print(message, soft_wrap=True, highlight=False, markup=False)
            sys.exit(stop.exit_code)
        except (DrpruningError, OSError) as error:
            if reported_by_rank_0(error):
                sys.exit(getattr(error, "exit_code", ExitCode.ERROR))
            raise


def show_outcome(request: TrainRequest) -> None:
    """Write the report, print losses and paths, and exit with 1 if a verdict fails."""
    import json
    import sys
    from dataclasses import asdict

    from rich.console import Console

    from drpruning.cli.render.run_outcome import print_tables
    from drpruning.errors import ExitCode
    from drpruning.records import read_records
    from drpruning.report import open_run, write_report
    from drpruning.report.summary_json import summary_json
    from drpruning.report.verdicts import verdicts

    folder = request.folder
    page = write_report(folder)
    found = verdicts(read_records(folder / "metrics.jsonl")) if request.with_verdicts else []
    if request.as_json:
        body = summary_json(open_run(folder)) | {"model": str(folder / "export"), "report": str(page)}
        if request.with_verdicts:
            body["verdicts"] = [asdict(verdict) for verdict in found]
        click.echo(json.dumps(body, indent=2))
    else:
        print_tables(Console(), folder)
        for verdict in found:
            click.echo(f"{'passed' if verdict.passed else 'FAILED'}  {verdict.name}: {verdict.detail}")
        click.echo(f"model   {folder / 'export'}")
        click.echo(f"report  {page}")
    if not all(verdict.passed for verdict in found):
        sys.exit(ExitCode.FAILED)


def _load_config(recipe: str, overrides: tuple[str, ...], miniature: bool, continue_steps: int | None) -> RunConfig:
    """Load the recipe, as a miniature if requested."""
    from drpruning.errors import ConfigError
    from drpruning.recipes import load_recipe

    config = load_recipe(recipe, overrides)
    if continue_steps is not None and not miniature:
        raise ConfigError("--continue-steps needs --miniature", "Add --miniature, or use --set continue.steps=N.")
    if not miniature:
        return config
    from drpruning.prepare.recipe_corpus import with_recorded_shares
    from drpruning.recipes.miniature import CONTINUE_STEPS
    from drpruning.recipes.miniature import miniature as to_miniature

    return to_miniature(with_recorded_shares(config), continue_steps=continue_steps or CONTINUE_STEPS)


def is_first_rank() -> bool:
    """Return whether this is the first process of torchrun, or the only one; other processes print nothing."""
    return os.environ.get("RANK", "0") == "0"


def _list_recipes() -> None:
    from drpruning.recipes import shipped_recipes

    click.echo("Which recipe? A YAML file, or one of these:\n", err=True)
    for name, purpose in shipped_recipes().items():
        click.echo(f"  {name:<22} {purpose}", err=True)
    click.echo(f"\n{_next_command()}", err=True)


def _next_command() -> str:
    """Suggest a command: try the quickstart, resume the latest run, or show its report."""
    from drpruning.report.read.run import Run
    from drpruning.run_folder import METRICS, RunFolder

    latest = max(Path("runs").glob(f"*/{METRICS}"), key=lambda path: path.stat().st_mtime, default=None)
    if latest is None or not RunFolder(latest.parent).exists:
        return "Try: drpruning train quickstart"
    folder = latest.parent
    if Run.open(folder).ended:
        return f"The latest run is complete: drpruning report {folder}"
    return f"The latest run has not ended: drpruning train {RunFolder(folder).recipe} --out {folder} --resume"


def _resume_command(
    recipe: str, folder: Path, overrides: tuple[str, ...], miniature: bool, continue_steps: int | None
) -> str:
    """Return the command that resumes this run."""
    import shlex

    words = [word for item in overrides for word in ("--set", item)]
    words += ["--miniature"] * miniature + ([] if continue_steps is None else ["--continue-steps", str(continue_steps)])
    return shlex.join(["drpruning", "train", recipe, "--out", str(folder), *words, "--resume"])
