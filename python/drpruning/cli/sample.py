"""`drpruning sample`: draw batches with a mixture and measure the loader."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drpruning.cli.options import examples, json_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from drpruning.corpus import Corpus
    from drpruning.sampler import Batch, DomainSampler

SHOWN_TOKENS = 96


@click.command(
    short_help="Draw batches with a mixture and measure the loader.",
    epilog=examples("""
  drpruning sample corpus/
  drpruning sample corpus/ --weights web=.7,code=.3 --steps 100 --show 3
  drpruning sample corpus/ --weights temperature:0.5
  drpruning sample web=web.bin code=tokens/code/ --dtype uint16 --seq-len 4096 --json"""),
)
@click.argument("corpus", nargs=-1, required=True, metavar="CORPUS")
@click.option(
    "--weights",
    metavar="A=.7,B=.3|NAME",
    help="Weight of each domain; or a static mixture: natural, uniform, temperature:0.5, unimax:4 (epochs over the "
    "tokens of --steps), average:RUN.  [default: its share of all rows]",
)
@click.option("--steps", type=click.IntRange(min=1), default=1000, show_default=True, help="Number of batches to draw.")
@click.option("--seq-len", type=click.IntRange(min=1), default=2048, show_default=True, help="Tokens in a row.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Rows in a batch.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the stream.")
@click.option(
    "--draw",
    type=click.Choice(["balanced", "random"]),
    default="balanced",
    show_default=True,
    help="How the domain of each row is chosen: exactly by the weights, or independently at random.",
)
@click.option("--dtype", metavar="NAME", help="Type of the tokens in flat .bin files, for instance uint16.")
@click.option("--show", type=click.IntRange(min=0), default=0, metavar="K", help="Print the start of the first K rows.")
@json_option()
def sample(
    *,
    corpus: tuple[str, ...],
    weights: str | None,
    steps: int,
    seq_len: int,
    batch_size: int,
    seed: int,
    draw: Any,
    dtype: str | None,
    show: int,
    as_json: bool,
) -> None:
    """Draw batches from CORPUS and print the mixture reached, next to the given weights, and the speed.

    CORPUS is a folder with a corpus.json, or token files by domain: NAME=PATH ... The speed is that of one thread
    without prefetching; a training loop prefetches batches while it computes. A second run
    reads from the page cache and is faster.
    """
    from drpruning.errors import check_installed
    from drpruning.sampler import DomainSampler

    if show:
        check_installed("--show needs", "tokenizers")
    opened = _open_corpus(corpus, dtype)
    if weights is None:
        mixture = _row_shares(opened, seq_len)
    elif "=" in weights:
        mixture = _parse_weights(weights)
    else:
        from drpruning.mixture.static import static_mixture

        mixture = static_mixture(weights, opened.tokens(), steps * batch_size * seq_len)
    sampler = DomainSampler(opened, mixture, seq_len=seq_len, batch_size=batch_size, seed=seed, draw=draw, prefetch=0)
    drawn = _draw(sampler, steps, show)
    if as_json:
        import json

        click.echo(json.dumps(_to_dict(sampler, drawn), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    _print(Console(highlight=False), sampler, drawn)


@dataclass(frozen=True)
class DrawResult:
    """The rows drawn from a sampler, and the seconds of each batch."""

    rows: dict[str, int]
    taken: list[float]
    bytes: float
    shown: list[tuple[str, int, str]]

    @property
    def total(self) -> int:
        """Number of rows."""
        return sum(self.rows.values())

    @property
    def seconds(self) -> float:
        """Seconds for all batches."""
        return sum(self.taken)

    def quantile(self, share: float) -> float:
        """Return the seconds within which this share of the batches was drawn."""
        return sorted(self.taken)[int(share * (len(self.taken) - 1))]


def _open_corpus(names: tuple[str, ...], dtype: str | None) -> Corpus:
    from drpruning.corpus import Corpus
    from drpruning.errors import ConfigError

    if len(names) == 1 and ("=" not in names[0] or Path(names[0], "corpus.json").is_file()):
        if dtype is not None:
            raise ConfigError(f"--dtype is for NAME=PATH files; the corpus.json of {names[0]} has the type")
        return Corpus.open(names[0])
    domains: dict[str, str] = {}
    for item in names:
        name, equals, path = item.partition("=")
        if not (name and equals and path):
            raise ConfigError(f"{item!r}: expected NAME=PATH, or one folder with a corpus.json")
        if name in domains:
            raise ConfigError(f"domain {name!r} is given twice: {domains[name]} and {path}")
        domains[name] = path
    return Corpus(domains, dtype=dtype)


def _parse_weights(text: str) -> dict[str, float]:
    """Parse ``a=.7,b=.3`` into weights by name."""
    from drpruning.errors import WeightError

    weights: dict[str, float] = {}
    for item in text.split(","):
        name, _, value = (part.strip() for part in item.rpartition("="))
        try:
            weight = float(value)
        except ValueError:
            weight = None
        if not name or weight is None:
            raise WeightError(f"--weights {text!r}: {item!r} is not NAME=NUMBER")
        if name in weights:
            raise WeightError(f"--weights {text!r}: domain {name!r} has two weights")
        weights[name] = weight
    return weights


def _row_shares(corpus: Corpus, seq_len: int) -> dict[str, float]:
    """Return weights with which all domains end at the same time."""
    from drpruning.errors import CorpusError
    from drpruning.formatting import printable

    rows = corpus.num_rows(seq_len)
    tokens = corpus.tokens()
    if not any(rows.values()):
        raise CorpusError(f"the corpus has no row of {seq_len} tokens; tokens by domain: {tokens}", "Lower --seq-len.")
    short = [f"{name} ({tokens[name]:,})" for name, count in rows.items() if not count]
    if short:
        click.echo(f"weight 0, fewer tokens than a row of {seq_len:,}: {printable(', '.join(short))}", err=True)
    return {name: float(count) for name, count in rows.items()}


def _draw(sampler: DomainSampler, steps: int, show: int) -> DrawResult:
    from time import perf_counter

    import numpy as np

    names = sampler.corpus.domains
    counts = np.zeros(len(names), np.int64)
    first: list[Batch] = []
    taken = []
    for step in range(steps):
        started = perf_counter()
        batch = next(sampler)
        taken.append(perf_counter() - started)
        if step * sampler.batch_size < show:
            first.append(batch)
        counts += np.bincount(batch.domains, minlength=len(names))
    rows = dict(zip(names, counts.tolist(), strict=True))
    shards = sampler.corpus.shards()
    return DrawResult(
        rows=rows,
        taken=taken,
        bytes=sum(
            count * sampler.seq_len * sum(shard.bytes for shard in shards[name]) / sampler.corpus.tokens()[name]
            for name, count in rows.items()
            if count
        ),
        shown=_texts(sampler.corpus, first)[:show],
    )


def _texts(corpus: Corpus, batches: list[Batch]) -> list[tuple[str, int, str]]:
    """Return domain, number and beginning of each row, as text if the corpus has a tokenizer, else as ids."""
    if not batches:
        return []
    decode = _decoder(corpus)
    return [
        (corpus.domains[domain], row, decode(tokens[:SHOWN_TOKENS].tolist()))
        for batch in batches
        for domain, row, tokens in zip(batch.domains.tolist(), batch.rows.tolist(), batch.tokens, strict=True)
    ]


def _decoder(corpus: Corpus) -> Callable[[list[int]], str]:
    if corpus.tokenizer is None or corpus.tokenizer.file is None:
        return lambda ids: " ".join(map(str, ids))
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(corpus.tokenizer.file))
    return lambda ids: " ".join(tokenizer.decode(ids, skip_special_tokens=False).split())


def _to_dict(sampler: DomainSampler, drawn: DrawResult) -> dict[str, Any]:
    return {
        "steps": len(drawn.taken),
        "rows": drawn.total,
        "seq_len": sampler.seq_len,
        "domains": {
            name: {
                "weight": weight,
                "reached": drawn.rows[name] / drawn.total,
                "rows": drawn.rows[name],
                "off_by_rows": _row_error(weight, name, drawn),
                "tokens": drawn.rows[name] * sampler.seq_len,
                "epochs": sampler.epochs[name],
            }
            for name, weight in sampler.weights.items()
        },
        "first_batch_seconds": drawn.taken[0],
        "median_batch_seconds": drawn.quantile(0.5),
        "p95_batch_seconds": drawn.quantile(0.95),
        "seconds": drawn.seconds,
        "rows_per_second": drawn.total / drawn.seconds,
        "tokens_per_second": drawn.total * sampler.seq_len / drawn.seconds,
        "megabytes_per_second": drawn.bytes / drawn.seconds / 1e6,
        "shown": [{"domain": domain, "row": row, "begins": text} for domain, row, text in drawn.shown],
    }


def _print(console: Console, sampler: DomainSampler, drawn: DrawResult) -> None:
    from drpruning.tables import Row, Table
    from drpruning.tables.terminal import print_table

    domain_rows = []
    for name, weight in sampler.weights.items():
        rows = drawn.rows[name]
        domain_rows.append(
            Row.of(
                name,
                f"{weight:.4f}",
                f"{rows / drawn.total:.4f}",
                f"{rows:,}",
                f"{_row_error(weight, name, drawn):+.2f}".replace("-", "−"),
                f"{rows * sampler.seq_len:,}",
                f"{sampler.epochs[name]:.3f}",
            )
        )
    columns = ["domain", "weight", "reached", "rows", "off by", "tokens", "epochs"]
    print_table(console, Table(columns, domain_rows))
    console.print(
        f"{len(drawn.taken):,} batches of {sampler.batch_size} rows of {sampler.seq_len:,} tokens in "
        f"{drawn.seconds:.2f} s on one thread: each {drawn.quantile(0.5) * 1000:.2f} ms (median), "
        f"95% within {drawn.quantile(0.95) * 1000:.2f} ms, the first {drawn.taken[0] * 1000:.1f} ms",
        soft_wrap=True,
    )
    rate = drawn.total / drawn.seconds
    console.print(
        f"{rate:,.0f} rows/s, {rate * sampler.seq_len / 1e6:,.1f} M tokens/s, "
        f"{drawn.bytes / drawn.seconds / 1e6:,.0f} MB/s of files",
        soft_wrap=True,
    )
    if drawn.shown:
        shown = [Row.of(domain, f"{row:,}", text) for domain, row, text in drawn.shown]
        print_table(console, Table(["domain", "row", "begins with"], shown, text_columns=("begins with",)))


def _row_error(weight: float, name: str, drawn: DrawResult) -> float:
    """Return the rows drawn minus the domain's exact share."""
    return drawn.rows[name] - weight * drawn.total
