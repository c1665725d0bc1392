"""`drpruning prepare`: from text to a tokenised corpus."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from drpruning.prepare.from_files import Preparation


@click.command(
    epilog="""\b
Examples:
  drpruning prepare corpus/ --tokenizer meta-llama/Llama-2-7b-hf \\
      --domain web=data/web/ --domain code='data/code/*.jsonl.zst' --text-field content
  drpruning prepare corpus/ --tokenizer model/ --domain books=books/ --held-out 0.01
  drpruning prepare corpus/ --append --domain web=more/           # the rest is not done again
  drpruning prepare corpus/ --recipe redpajama --tokenizer meta-llama/Llama-2-7b-hf
  drpruning prepare corpus/ --demo    # seven small domains from text on this machine, no download""",
)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--tokenizer", metavar="PATH_OR_NAME", help="Folder, tokenizer.json, .model or .tiktoken, or a Hugging Face name."
)
@click.option("--end-token", metavar="TOKEN", help="Ends each document. [default: the tokenizer's]")
@click.option(
    "--domain",
    "domains",
    metavar="NAME=PATH",
    multiple=True,
    help="A domain and its text: .txt, .jsonl, .json (also .gz, .zst, .bz2, .xz), .parquet, .arrow, MDS; a file, a "
    "folder, a pattern, - for JSON lines on stdin, or hf:owner/name; repeatable, also for one domain.",
)
@click.option("--recipe", metavar="FILE_OR_NAME", help="Domains and settings from a YAML file, or a shipped one.")
@click.option("--demo", is_flag=True, help="Make the demo corpus from text of the installed packages.")
@click.option("--append", is_flag=True, help="Add these domains, or this text to its domains, to the corpus OUT.")
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the documents to hold out of each domain; doubled, up to 0.2, where it is less than 16384 tokens. "
    "[default: 0.05; demo: 0.1]",
)
@click.option("--text-field", metavar="KEY", help="Where the text is in a JSON object or a row. [default: text]")
@click.option(
    "--utf8", type=click.Choice(["replace", "skip", "fail"]), help="What becomes of invalid UTF-8. [default: replace]"
)
@click.option(
    "--max-bad",
    type=click.IntRange(0),
    metavar="N",
    help="Leave out up to N entries or files that cannot be used, and report them. [default: 0]",
)
@click.option(
    "--near-duplicates",
    is_flag=True,
    help="Also leave out documents that resemble an earlier one (MinHash, datatrove).",
)
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Processes. [default: one for each core]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    *,
    out: Path,
    tokenizer: str | None,
    end_token: str | None,
    domains: tuple[str, ...],
    recipe: str | None,
    demo: bool,
    append: bool,
    held_out: float | None,
    text_field: str | None,
    utf8: str | None,
    max_bad: int | None,
    near_duplicates: bool,
    workers: int | None,
    as_json: bool,
) -> None:
    """Tokenise text, domain by domain, into the corpus folder OUT: Megatron token files and a corpus.json.

    Held-out documents are chosen by a hash of their text, so a document is always on the same side. Documents that
    occur twice are kept once. OUT appears when all is done. Interrupted, the same command goes on where it was; when
    all is done, it changes nothing.
    """
    import json
    from dataclasses import replace

    from rich.console import Console

    from drpruning.cli.inspect import described, print_domains
    from drpruning.cli.prepare_progress import PrepareProgress
    from drpruning.errors import ConfigError
    from drpruning.prepare import HeldOut, prepare_demo
    from drpruning.prepare.demo import DEMO_HELD_OUT

    before = (out / "corpus.json").exists()
    stamp = (out / "corpus.json").stat().st_mtime_ns if before else 0
    if demo:
        given = (tokenizer, domains, text_field, recipe, append, end_token, utf8, max_bad, near_duplicates)
        if any(item for item in given):
            raise ConfigError("--demo brings its own text and tokenizer; of the options only --held-out goes with it")
        rule = DEMO_HELD_OUT if held_out is None else replace(DEMO_HELD_OUT, fraction=held_out)
        with PrepareProgress({}) as progress:
            manifest = prepare_demo(out, held_out=rule, watch=progress.watch)
    else:
        preparation, tokenizer = _described(out, tokenizer, domains, recipe, append=append, text_field=text_field)
        options = preparation.options
        if held_out is not None:
            options = replace(options, held_out=replace(options.held_out or HeldOut(), fraction=held_out))
        changes = {"end_token": end_token, "utf8": utf8, "max_bad": max_bad, "near_duplicates": near_duplicates or None}
        options = replace(options, **{key: value for key, value in changes.items() if value is not None})  # type: ignore[arg-type]
        workers = workers or _cores()
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a worker is one core
        preparation = replace(preparation, options=replace(options, workers=workers))
        with PrepareProgress(preparation.sources()) as progress:
            manifest = preparation.run(tokenizer, append=append, watch=progress.watch)
    unchanged = before and (out / "corpus.json").stat().st_mtime_ns == stamp
    if unchanged:
        click.echo(f"{out} is this corpus already; nothing to do", err=True)
    for trouble in progress.named():
        click.echo(f"left out: {trouble}", err=True)
    if as_json:
        body = {"corpus": str(out), "unchanged": unchanged} | described(manifest)
        body["unusable"] = [str(trouble) for trouble in progress.named()]
        click.echo(json.dumps(body, indent=2, ensure_ascii=False))
    else:
        print_domains(Console(), manifest)


def _described(
    out: Path,
    tokenizer: str | None,
    domains: tuple[str, ...],
    recipe: str | None,
    *,
    append: bool,
    text_field: str | None,
) -> tuple[Preparation, str | None]:
    """What is to be done, from a recipe and from options, which come after it."""
    from drpruning.errors import ConfigError
    from drpruning.prepare.from_files import Options, Preparation, named_texts
    from drpruning.prepare.recipe import read_recipe

    texts: dict[str, Any] = {}
    options = Options()
    if recipe is not None:
        read = read_recipe(recipe)
        folder = Path(recipe).parent if Path(recipe).is_file() else Path()
        texts.update(read.texts(folder))
        options = Options(
            held_out=read.rule(),
            utf8=read.utf8,
            max_bad=read.max_bad,
            end_token=read.end_token,
            near_duplicates=read.near_duplicates,
        )
        tokenizer = tokenizer or read.tokenizer
        if text_field is not None:
            raise ConfigError("--text-field and --recipe both say where the text is", "Write it into the recipe.")
    texts |= named_texts(_by_name(domains), text_field or "text") if domains else {}
    if not texts or not (tokenizer or append):
        missing = "--domain" if tokenizer or append else "--tokenizer"
        raise ConfigError(f"{missing} is missing", "Try `drpruning prepare OUT --demo` for a corpus without any text.")
    return Preparation(out, named_texts(texts), options), tokenizer


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _by_name(domains: tuple[str, ...]) -> dict[str, list[str]]:
    """``NAME=PATH`` options by name."""
    from drpruning.errors import ConfigError

    by_name: dict[str, list[str]] = {}
    for option in domains:
        name, equals, path = option.partition("=")
        if not (name and equals and path):
            raise ConfigError(f"--domain {option!r}: wanted NAME=PATH")
        by_name.setdefault(name, []).append(path)
    return by_name
