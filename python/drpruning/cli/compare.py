"""`drpruning compare`: methods beside each other, in paired runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from drpruning.comparison.runs import Comparison, Job
    from drpruning.comparison.scheduler import Outcome, Progress
    from drpruning.comparison.tables import Table

GAP = 2  # between columns, as new_table has it


@click.command(
    epilog="""\b
Examples:
  drpruning compare quickstart --strategies constant,drpruning --seeds 3
  drpruning compare my.yaml --strategies constant,sheared,sheared-base,drpruning,group_dro,cvar,chi_square --jobs 4
  drpruning compare my.yaml --methods ablations --seeds 5 --out runs/ablations
  drpruning compare my.yaml --methods mine.yaml --against drpruning
  drpruning compare my.yaml --model EleutherAI/pythia-1.4b --model models/small""",
)
@click.argument("recipe")
@click.option(
    "--strategies", metavar="A,B,...", help="Methods to run: of --methods, shipped ones, or names of strategies."
)
@click.option(
    "--methods",
    "sources",
    metavar="FILE",
    multiple=True,
    help="A YAML file of methods, or a shipped one: paper, ablations; repeatable.  [default: paper]",
)
@click.option(
    "--model", "models", metavar="MODEL", multiple=True, help="A finished model, measured as one more row; repeatable."
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of each method.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder.  [default: runs/NAME-compare]")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at a time.")
@click.option(
    "--against", metavar="METHOD", multiple=True, help="Take differences to it; repeatable.  [default: the first]"
)
@click.option("--set", "overrides", metavar="A.B=C", multiple=True, help="Change one setting for all; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print results.json in place of the tables.")
def command(
    recipe: str,
    strategies: str | None,
    sources: tuple[str, ...],
    models: tuple[str, ...],
    seeds: int,
    out: Path | None,
    jobs: int,
    against: tuple[str, ...],
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run RECIPE under several methods and seeds, and say which is better and how sure that is.

    Runs with the same seed are a pair: the same base, the same order of the data, the same number of tokens. The first
    seed is the recipe's, the others follow it. The same command goes on where it was stopped or where runs have failed,
    and takes more seeds and methods into the same folder. Tables with 95% intervals are printed, and written as
    compare.html, compare.md and compare.tex beside results.json, which holds all numbers.

    Exit code 1: some runs have failed; the others are in the tables.
    """
    import os
    import sys

    from drpruning.comparison.methods import choose_methods
    from drpruning.comparison.runs import Comparison
    from drpruning.comparison.scheduler import execute
    from drpruning.errors import ConfigError, ExitCode, did_you_mean
    from drpruning.recipes import load_recipe
    from drpruning.train.stop import stop_on_signal

    config = load_recipe(recipe, overrides)
    names = [name.strip() for name in strategies.split(",") if name.strip()] if strategies is not None else []
    if strategies is not None and not names:
        raise ConfigError("--strategies names no method", "For example --strategies constant,drpruning")
    given = config.mixture.reference_loss not in (None, "base")
    methods = choose_methods(names, sources, models, references_given=given)
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
    )
    comparison.check()
    if comparison.recorded_corpora() and not all(job.finished for job in comparison.jobs()):
        from drpruning.train.inputs import open_corpus

        comparison.check_corpus(open_corpus(config))
    with stop_on_signal(lambda: click.echo("finishing the steps under way and writing checkpoints", err=True)) as stop:
        progress = execute(comparison, parallel=jobs, tell=_Lines(comparison), stop=stop)
    _show(comparison, progress, list(against) or [next(iter(methods))], as_json)
    if progress.stopped:
        click.echo("interrupted; everything is saved. The same command goes on from here.", err=True)
        sys.exit(ExitCode.INTERRUPTED)
    if progress.failed:
        sys.exit(ExitCode.FAILED)


class _Lines:
    """Prints a line for each run that ends, on stderr."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.total = len(comparison.jobs())
        self.ended = 0

    def __call__(self, job: Job, outcome: Outcome, detail: str) -> None:
        from drpruning.comparison.scheduler import log_of

        self.ended += outcome != "stopped"
        words = {
            "finished": _reached(job) if outcome == "finished" else "",
            "found": "is there already",
            "failed": f"failed: {detail} (see {log_of(self.comparison.folder, job)})",
            "stopped": "stopped, to be gone on with",
        }
        click.echo(f"[{self.ended}/{self.total}] {job.label}: {words[outcome]}", err=True)


def _reached(job: Job) -> str:
    from drpruning.comparison.runs import read_model
    from drpruning.records import ModelMeasured, RunEnded

    if model := read_model(job):
        return f"mean loss {sum(model['losses'].values()) / len(model['losses']):.3f}"
    records = job.records()
    losses = {record.model: record.losses for record in records if isinstance(record, ModelMeasured)}
    seconds = next(record.seconds for record in reversed(records) if isinstance(record, RunEnded))
    recovered, base = losses["recovered"], losses.get("base")
    text = f"mean loss {sum(recovered.values()) / len(recovered):.3f}"
    if base is not None:
        worst = max(recovered, key=lambda domain: recovered[domain] - base[domain])
        text += f", worst excess {recovered[worst] - base[worst]:+.3f} in {worst}"
    return f"{text}, {seconds:.0f} s"


def _show(comparison: Comparison, progress: Progress, against: list[str], as_json: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    from drpruning.comparison.export_tables import write_pages
    from drpruning.comparison.results import collect, write_results
    from drpruning.comparison.tables import make_tables
    from drpruning.errors import StateError
    from drpruning.tables.terminal import new_table

    try:
        results = collect(comparison, progress.failed)
    except StateError:
        if progress.stopped:
            return
        raise
    raw = write_results(results, comparison.folder)
    tables = make_tables(results, against)
    files = write_pages(results, tables, comparison.folder)
    if as_json:
        click.echo(raw.read_text(encoding="utf-8"), nl=False)
        return
    console = Console(highlight=False)
    for table in tables:
        if not table.title.startswith(("Held-out", "Excess", "Paired")):
            continue
        kept = _that_fit(table, console.width)
        shown = new_table([table.columns[at] for at in kept])
        for index, row in enumerate(table.rows):
            shown.add_row(
                *(Text(row[at].strip("*"), style="bold" if (index, at) in table.strong else "") for at in kept)
            )
        console.print(f"\n{table.title}", style="bold")
        console.print(shown)
    click.echo(f"\ntables   {', '.join(str(file) for file in files)}\nnumbers  {raw}")


def _that_fit(table: Table, width: int) -> list[int]:
    """The columns that fit on the terminal: names and seeds, what sums up, then domains; the pages have them all."""
    from drpruning.comparison.tables import SUMMARY

    names = table.columns
    sums_up = [at for at, name in enumerate(names) if name in (*SUMMARY, "mean")]
    kept: list[int] = []
    for at in dict.fromkeys([0, 1, *sums_up, *range(len(names))]):
        width -= GAP + max(len(row[at]) for row in [names, *table.rows])
        if width < -GAP and len(kept) > 2:
            break
        kept.append(at)
    return sorted(kept)
