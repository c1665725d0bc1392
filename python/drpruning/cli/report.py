"""`drpruning report`: write or serve the page of a run, or write its figures."""

from __future__ import annotations

from pathlib import Path

import click

from drpruning.cli.options import examples, json_option


@click.command(
    short_help="Write report.html of a run, or watch the run live.",
    epilog=examples("""
  drpruning report runs/quickstart
  drpruning report runs/a runs/b --out both.html      # side by side, with paired differences
  drpruning report runs/quickstart --figures paper/    # PNG and SVG of each figure
  drpruning report runs/quickstart --json | jq .worst
  drpruning report --watch runs/quickstart             # live in the browser, until Ctrl-C"""),
)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write.  [default: report.html in the first RUN]",
)
@click.option(
    "--figures",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write each figure as PNG and SVG into this folder, instead of the page.",
)
@click.option("--other-corpus", is_flag=True, help="Permit runs that were measured on different corpora.")
@json_option("Print losses before and after as JSON, instead of writing the page.")
@click.option("--watch", "live", is_flag=True, help="Serve the page and update it until Ctrl-C.")
@click.option(
    "--host",
    help="Address for --watch; addresses other than the default need the token that is printed.  [default: 127.0.0.1]",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port for --watch; 0 chooses a free port.  [default: 8642, or a free port]",
)
@click.option("--open/--no-open", "show", default=None, help="Open a browser for --watch.  [default: on a terminal]")
def report(
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

    The run may still be in training: the page shows what has been recorded so far. With several runs, the page shows
    the first and compares it with the others. A single run is compared with the runs in RUN/compare/NAME, which have
    the same recipe and another strategy.
    """
    if sum((out is not None, figures is not None, as_json, live)) > 1:
        raise click.UsageError("Give at most one of --out, --figures, --json and --watch.")
    if not live and (host, port, show) != (None, None, None):
        raise click.UsageError("--host, --port, --open and --no-open need --watch.")

    from drpruning.report import open_run, write_report
    from drpruning.report.read.run import check_corpora, run_folders

    first, *others = runs
    folders = run_folders(first, *others)
    if not other_corpus:
        check_corpora(folders)
    if live:
        from drpruning.cli.live_page import serve_until_interrupted

        serve_until_interrupted(runs, host or "127.0.0.1", port, show=show)
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
