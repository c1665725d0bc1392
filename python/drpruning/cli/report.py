"""`drpruning report`: the page of a run, and its figures as files."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    "report",
    epilog="""\b
Examples:
  drpruning report runs/quickstart
  drpruning report runs/a runs/b --out both.html      # side by side, with paired differences
  drpruning report runs/quickstart --figures paper/    # PNG and SVG of each figure
  drpruning report runs/quickstart --json | jq .worst
  drpruning report --watch runs/quickstart             # live in the browser, until Ctrl-C
""",
)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write the page.  [default: report.html in the first RUN]",
)
@click.option(
    "--figures",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write each figure as PNG and SVG into this folder instead.",
)
@click.option("--other-corpus", is_flag=True, help="Show runs side by side that were measured on different corpora.")
@click.option("--json", "as_json", is_flag=True, help="Print losses before and after as JSON instead.")
@click.option("--watch", "live", is_flag=True, help="Serve the page and keep it up to date, until Ctrl-C.")
@click.option("--host", help="Address for --watch; others need its token.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port for --watch, 0 for any.  [default: 8642, else any]")
@click.option("--open/--no-open", "show", default=None, help="Open a browser with --watch.  [default: on a terminal]")
def command(
    runs: tuple[Path, ...],
    out: Path | None,
    figures: Path | None,
    other_corpus: bool,
    as_json: bool,
    live: bool,
    host: str | None,
    port: int | None,
    show: bool | None,
) -> None:
    """Write the report of RUN, a folder that `drpruning train` wrote, as one HTML file, and print its path.

    The run may still be going on: the page shows what has been recorded so far. Of several runs the first is shown
    with the others beside it. Alone, a run has those in RUN/compare/NAME beside it: the same recipe with another
    strategy.
    """
    if sum((out is not None, figures is not None, as_json, live)) > 1:
        raise click.UsageError("Give at most one of --out, --figures, --json and --watch.")
    if not live and (host, port, show) != (None, None, None):
        raise click.UsageError("--host, --port, --open and --no-open are of --watch.")

    from drpruning.report import open_run, write_report
    from drpruning.report.read.run import check_corpora, run_folders

    first, *others = runs
    folders = run_folders(first, *others)
    if not other_corpus:
        check_corpora(folders)
    if live:
        from drpruning.cli.live_page import watch

        watch(runs, host or "127.0.0.1", port, show=show)
    elif as_json:
        import json

        from drpruning.report.summary_json import summary_json

        click.echo(json.dumps(summary_json(open_run(first, *others)), indent=2, ensure_ascii=False))
    elif figures is not None:
        from drpruning.report.figures.plots import Plots

        for path in Plots(open_run(first, *others)).save(figures):
            click.echo(path)
    else:
        click.echo(write_report(first, out, others=others))
