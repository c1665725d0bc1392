"""`drpruning compare`: methods side by side, in paired runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from drpruning.cli.options import complete_recipe, examples, json_option, parse_names, set_option

if TYPE_CHECKING:
    from drpruning.comparison.results import Results
    from drpruning.comparison.runs import Comparison, Equal, Job
    from drpruning.comparison.scheduler import Outcome
    from drpruning.tables import Table

SHOWN = ("Primary", "Held-out", "Excess", "Paired", "Cost")
"""How the titles of the tables begin that the terminal shows; the files have all tables."""
WITH_NOTE = ("Primary", "Paired")
"""How the titles of the tables begin whose notes are printed: the number of comparisons, and warnings."""


@click.command(
    short_help="Compare methods in paired runs, with intervals.",
    epilog=examples("""
  drpruning compare quickstart --strategies constant,drpruning --seeds 3
  drpruning compare my.yaml --strategies constant,sheared,sheared-base,drpruning,group_dro,cvar,chi_square --jobs 4
  drpruning compare my.yaml --methods ablations --seeds 5 --out runs/ablations
  drpruning compare my.yaml --methods static --against drpruning-average
  drpruning compare my.yaml --methods mine.yaml --equal flops
  drpruning compare my.yaml --methods mine.yaml --against drpruning --figure
  drpruning compare my.yaml --model EleutherAI/pythia-1.4b --model models/small"""),
)
@click.argument("recipe", shell_complete=complete_recipe)
@click.option(
    "--strategies",
    metavar="A,B,...",
    help="Names of the methods to run: methods of --methods, shipped methods, or strategies.  [default: all methods]",
)
@click.option(
    "--methods",
    "sources",
    metavar="FILE",
    multiple=True,
    help="A YAML file of methods, or the name of a shipped one: paper, ablations, static. Repeatable.  "
    "[default: paper]",
)
@click.option(
    "--model",
    "models",
    metavar="MODEL",
    multiple=True,
    help="Add a baseline model as a row: it is measured, not trained. Repeatable.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Number of runs per method.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for all runs.  [default: runs/NAME-compare]")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Number of runs at a time.")
@click.option(
    "--equal",
    type=click.Choice(["tokens", "flops"]),
    default="tokens",
    show_default=True,
    help="What runs with the same seed have in common. `flops`: the steps of the stage continue are those that charge "
    "the FLOPs of the first method.",
)
@click.option(
    "--against",
    metavar="METHOD",
    multiple=True,
    help="Show the differences of all methods to this one. Repeatable.  [default: the first method]",
)
@click.option(
    "--figure", is_flag=True, help="Also write worst excess against weighted mean as compare.png and compare.svg."
)
@set_option("Change one setting of the recipe for all methods. Repeatable.")
@json_option("Print results.json instead of the tables.")
def compare(
    recipe: str,
    strategies: str | None,
    sources: tuple[str, ...],
    models: tuple[str, ...],
    seeds: int,
    out: Path | None,
    jobs: int,
    equal: Equal,
    against: tuple[str, ...],
    figure: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run RECIPE with several methods and seeds, and print which method is better, with intervals.

    Runs with the same seed are a pair: they share the base, the order of the data, and the number of tokens, or with
    --equal flops the charged FLOPs. The first seed is the recipe's, the others follow it. If the command is interrupted
    or runs fail, the same command resumes them; it can also add seeds and methods to the same folder. Tables with 95%
    intervals are printed, and written as compare.html, compare.md and compare.tex next to results.json, which has all
    numbers. The page has a figure of worst excess against weighted mean.

    Exit code 1: some runs failed; the tables have the others.
    """
    import os
    import sys
    from dataclasses import replace

    from drpruning.comparison.methods import choose_methods, read_primary
    from drpruning.comparison.runs import Comparison
    from drpruning.comparison.scheduler import run_jobs
    from drpruning.errors import MODEL_PACKAGES, ConfigError, ExitCode, check_installed, did_you_mean
    from drpruning.recipes import load_recipe, with_shares
    from drpruning.train.signals import stop_on_signal

    config = load_recipe(recipe, overrides)
    names = parse_names(strategies)
    if names == []:
        raise ConfigError("--strategies names no method", "For example --strategies constant,drpruning")
    has_references = config.mixture.reference_loss not in (None, "base")
    methods = choose_methods(names or [], sources, models, has_references=has_references)
    for name in against:
        if name not in methods:
            raise ConfigError(f"--against names {name!r}, which is not compared", did_you_mean(name, methods))
    comparison = Comparison(
        recipe=recipe,
        overrides=overrides,
        methods=methods,
        seeds=range(config.seed, config.seed + seeds),
        folder=out or Path("runs") / f"{config.name}-compare",
        threads=max(1, (os.cpu_count() or 1) // jobs),
        primary=read_primary(sources),
        equal=equal,
    )
    if comparison.names_mixtures():
        from drpruning.prepare.recipe_corpus import open_corpus

        tokens = open_corpus(config).tokens()
        domains = with_shares(config, tokens).domains  # those of the recipe, in all runs
        comparison = replace(comparison, domain_tokens={name: tokens[name] for name in domains if name in tokens})
    comparison.check()
    is_finished = all(job.finished for job in comparison.jobs())
    if comparison.recorded_corpora() and (not is_finished or comparison.names_other_corpus()):
        from drpruning.prepare.recipe_corpus import open_corpus

        comparison.check_corpus(open_corpus(config))
    if not is_finished:
        stored = comparison.stored_threads
        if config.training.threads == "auto" and stored not in (None, comparison.threads):
            click.echo(
                f"training.threads is {stored}, as in the runs of {comparison.folder}; by --jobs {jobs} and the cores "
                f"of this machine it would be {comparison.threads}",
                err=True,
            )
        check_installed("`drpruning compare` needs", *MODEL_PACKAGES)  # or each of the runs would fail
    comparison.declare_primary()
    with stop_on_signal("finishing the current steps and writing checkpoints (Ctrl-C to stop at once)") as stop:
        stop.include_interrupt()
        schedule = run_jobs(comparison, parallel=jobs, on_end=JobPrinter(comparison), stop=stop)
    show = ShowOptions(list(against) or [next(iter(methods))], figure=figure, as_json=as_json)
    results = _show_results(comparison, schedule.failed, show, interrupted=schedule.interrupted)
    if schedule.interrupted:
        click.echo("interrupted; everything is saved. Rerun the same command to resume.", err=True)
        sys.exit(stop.exit_code)
    if schedule.failed or (results is not None and results.failed):
        sys.exit(ExitCode.FAILED)


class JobPrinter:
    """Print a line for each run that ends, on stderr."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.total = len(comparison.jobs())
        self.ended = 0

    def __call__(self, job: Job, outcome: Outcome, detail: str) -> None:
        """Print the line of ``job``."""
        from drpruning.comparison.scheduler import log_path

        self.ended += outcome != "interrupted"
        messages = {
            "finished": _final_losses(job) if outcome == "finished" else "",
            "existing": "finished before",
            "failed": f"failed: {detail} (see {log_path(self.comparison.folder, job)})",
            "interrupted": "interrupted; can be resumed",
        }
        click.echo(f"[{self.ended}/{self.total}] {job.label}: {messages[outcome]}", err=True)


def _final_losses(job: Job) -> str:
    """Describe the final losses of a finished run."""
    from drpruning.comparison.runs import read_model
    from drpruning.formatting import flops_in_words
    from drpruning.records import BUDGET, Incident, ModelMeasured, RunEnded

    if model := read_model(job):
        return f"mean loss {sum(model['losses'].values()) / len(model['losses']):.3f}"
    records = job.records()
    losses = {record.model: record.losses for record in records if isinstance(record, ModelMeasured)}
    ended = next(record for record in reversed(records) if isinstance(record, RunEnded))
    recovered, base = losses["recovered"], losses.get("base")
    text = f"mean loss {sum(recovered.values()) / len(recovered):.3f}"
    if base is not None:
        worst = max(recovered, key=lambda domain: recovered[domain] - base[domain])
        text += f", worst excess {recovered[worst] - base[worst]:+.3f} in {worst}"
    budget = next((record for record in records if isinstance(record, Incident) and record.what == BUDGET), None)
    changes = "" if budget is None else f" ({budget.detail})"
    return f"{text}, {ended.seconds:.0f} s, {flops_in_words(ended.charged_flops)}{changes}"


@dataclass(frozen=True)
class ShowOptions:
    """Which differences are shown, whether files of the figure are written, and whether JSON is printed."""

    against: list[str]
    figure: bool
    as_json: bool


def _show_results(
    comparison: Comparison, failed: dict[Job, str], show: ShowOptions, *, interrupted: bool
) -> Results | None:
    """Write results and tables, and print them; an interrupted comparison may have none yet."""
    from drpruning.comparison.export_tables import export_tables
    from drpruning.comparison.metrics import RunMetrics
    from drpruning.comparison.pareto import pareto_of, write_pareto
    from drpruning.comparison.results import collect, write_results
    from drpruning.comparison.tables import compared_with, make_tables, results_verdict
    from drpruning.errors import StateError

    try:
        results: Results = collect(comparison, failed)
    except StateError:
        if interrupted:
            return None
        raise
    for label in results.failed.keys() - {job.label for job in failed}:
        click.echo(f"{label} is not in the tables: {results.failed[label]}", err=True)
    if omitted := results.omitted_seeds():
        restore = " Copy the folder bases to it, or remove documents.json of a run of the seed and rerun the command."
        click.echo(omitted + (restore if results.base else ""), err=True)
    against = compared_with(results, show.against)
    if missing := [name for name in show.against if name not in against]:
        click.echo(f"{', '.join(missing)}: no finished run; differences are to {', '.join(against)}", err=True)
    raw = write_results(results, comparison.folder)
    metrics = RunMetrics(results)
    tables, verdict = make_tables(results, against, metrics), results_verdict(results, against, metrics)
    plot = pareto_of(results, against[0])
    files = export_tables(results, tables, comparison.folder, plot, verdict)
    if show.figure and plot is not None:
        files += write_pareto(plot, comparison.folder)
    if show.as_json:
        click.echo(raw.read_text(encoding="utf-8"), nl=False)
        return results
    _print_tables(tables, verdict)
    click.echo(f"\ntables   {', '.join(str(file) for file in files)}\nnumbers  {raw}")
    return results


def _print_tables(tables: list[Table], verdict: str) -> None:
    from dataclasses import replace

    from rich.console import Console

    from drpruning.tables.terminal import print_table, split_columns

    console = Console(highlight=False)
    if verdict:
        console.print(verdict, style="bold", markup=False)
    for table in tables:
        if table.title.startswith(SHOWN):
            console.print()
            if table.title.startswith("Primary"):  # all of it was declared to be read
                for number, part in enumerate(split_columns(table, console.width, 2)):
                    print_table(console, part if number == 0 else replace(part, title=""))
            else:
                fitting = fit_to_terminal(table, console.width)
                print_table(console, fitting)
                if missing := [name for name in table.columns if name not in fitting.columns]:
                    console.print(f"Not shown: {', '.join(missing)}. The files below have all columns.", style="dim")
            if table.title.startswith(WITH_NOTE):
                console.print(table.note, style="dim", markup=False)


def fit_to_terminal(table: Table, width: int) -> Table:
    """Keep the columns that fit: names and seeds, then means and the worst excess, then domains."""
    from drpruning.comparison.difference_table import SUMMARY
    from drpruning.tables.terminal import choose_columns

    summary = [at for at, name in enumerate(table.columns) if name in (*SUMMARY, "mean")]
    return choose_columns(table, width, [0, 1, *summary])
