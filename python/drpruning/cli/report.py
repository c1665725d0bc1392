"""``drpruning report``: writes the page of a run."""

from pathlib import Path

import click


@click.command(
    "report",
    short_help="Write report.html for a run.",
    epilog="""\b
Examples:
  drpruning report runs/quickstart
  drpruning report runs/quickstart --out quickstart.html
""",
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write the page; RUN/report.html if not given.",
)
def command(run: Path, out: Path | None) -> None:
    """Write the report of RUN, a folder that `drpruning train` wrote, as one HTML file, and print its path.

    The run may still be going on: the page shows what has been recorded so far. Runs of the same recipe with another
    strategy in RUN/compare/NAME are shown beside it.
    """
    from drpruning.report import write_report

    click.echo(write_report(run, out))
