"""`drpruning prepare`: from text to a tokenised corpus."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    short_help="Turn text into a tokenised corpus.",
    epilog="""\b
Examples:
  drpruning prepare corpus/ --tokenizer meta-llama/Llama-2-7b-hf \\
      --domain web=data/web/ --domain code='data/code/*.jsonl.gz' --text-field content
  drpruning prepare corpus/ --tokenizer model/ --domain books=books/ --held-out 0.01
  drpruning prepare corpus/ --demo    # seven small domains from text on this machine, no download""",
)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--tokenizer", metavar="PATH_OR_NAME", help="Folder with tokenizer.json, or a Hugging Face name.")
@click.option(
    "--domain",
    "domains",
    metavar="NAME=PATH",
    multiple=True,
    help="A domain and its text: a .txt or .jsonl file (.gz too), a folder of them, or a pattern; repeatable.",
)
@click.option("--demo", is_flag=True, help="Make the demo corpus from text of the installed packages.")
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the documents to hold out of each domain; doubled, up to 0.2, where it is less than 16384 tokens. "
    "[default: 0.05; demo: 0.1]",
)
@click.option("--text-field", metavar="KEY", help="Where the text is in a .jsonl object. [default: text]")
def command(
    *,
    out: Path,
    tokenizer: str | None,
    domains: tuple[str, ...],
    demo: bool,
    held_out: float | None,
    text_field: str | None,
) -> None:
    """Tokenise text, domain by domain, into the corpus folder OUT: Megatron token files and a corpus.json.

    Held-out documents are chosen by a hash of their text, so a document is always on the same side. Documents that
    occur twice are kept once. OUT appears when all is done; the same command again changes nothing.
    """
    from dataclasses import replace

    from rich.console import Console

    from drpruning.cli.inspect import print_domains
    from drpruning.errors import ConfigError
    from drpruning.prepare import HeldOut, prepare, prepare_demo
    from drpruning.prepare.demo import DEMO_HELD_OUT

    if demo and (tokenizer or domains or text_field):
        raise ConfigError("--demo brings its own text and tokenizer; leave out --tokenizer, --domain and --text-field")
    if not demo and not (tokenizer and domains):
        missing = "--tokenizer" if not tokenizer else "--domain"
        raise ConfigError(f"{missing} is missing", "Try `drpruning prepare OUT --demo` for a corpus without any text.")
    rule = DEMO_HELD_OUT if demo else HeldOut()
    if held_out is not None:
        rule = replace(rule, fraction=held_out)

    before = (out / "corpus.json").exists()
    with _Progress() as progress:
        if demo:
            manifest = prepare_demo(out, held_out=rule, watch=progress.watch)
        else:
            manifest = prepare(
                out,
                _by_name(domains),
                str(tokenizer),
                held_out=rule,
                text_field=text_field or "text",
                watch=progress.watch,
            )
    if before:
        click.echo(f"{out} is this corpus already; nothing to do", err=True)
    print_domains(Console(), manifest)


def _by_name(domains: tuple[str, ...]) -> dict[str, str]:
    """``NAME=PATH`` options by name."""
    from drpruning.errors import ConfigError

    by_name: dict[str, str] = {}
    for option in domains:
        name, equals, path = option.partition("=")
        if not (name and equals and path):
            raise ConfigError(f"--domain {option!r}: wanted NAME=PATH")
        if name in by_name:
            raise ConfigError(
                f"domain {name!r} is given twice: {by_name[name]} and {path}",
                "Give one folder or a quoted pattern: --domain 'NAME=texts/*.jsonl'.",
            )
        by_name[name] = path
    return by_name


class _Progress:
    """A line on stderr while the work goes on, if stderr is a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("reading text")
        self.domain = ""
        self.documents = self.bytes = 0

    def __enter__(self) -> _Progress:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def watch(self, domain: str, documents: int, size: int) -> None:
        """Adds what has been tokenised since the last call."""
        if domain != self.domain:
            self.domain, self.documents, self.bytes = domain, 0, 0
        self.documents += documents
        self.bytes += size
        self.progress.update(
            self.task, description=f"{domain}: {self.documents:,} documents, {self.bytes / 1e6:,.1f} MB tokenised"
        )
