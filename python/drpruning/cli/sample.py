"""`drpruning sample`: what a mixture yields, and how fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from drpruning.corpus import Corpus
    from drpruning.sampler import Batch, DomainSampler

SHOWN_TOKENS = 96


@click.command(
    epilog="""\b
Examples:
  drpruning sample corpus/
  drpruning sample corpus/ --weights web=.7,code=.3 --steps 100 --show 3
  drpruning sample web=web.bin code=tokens/code/ --dtype uint16 --seq-len 4096 --json""",
)
@click.argument("corpus", nargs=-1, required=True, metavar="CORPUS")
@click.option("--weights", metavar="A=.7,B=.3", help="Weight of each domain. [default: its share of all rows]")
@click.option("--steps", type=click.IntRange(min=1), default=1000, show_default=True, help="Batches to draw.")
@click.option("--seq-len", type=click.IntRange(min=1), default=2048, show_default=True, help="Tokens in a row.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Rows in a batch.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the stream.")
@click.option("--draw", type=click.Choice(["balanced", "random"]), default="balanced", show_default=True)
@click.option("--dtype", metavar="NAME", help="Type of the tokens in flat .bin files, uint16 for instance.")
@click.option("--show", type=click.IntRange(min=0), default=0, metavar="K", help="Print the start of the first K rows.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
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
    """Draw batches from CORPUS and print the mixture reached, against the one asked for, and the speed.

    CORPUS is a folder with a corpus.json, or token files by domain: NAME=PATH ... The speed is that of one thread
    which reads each batch when it is asked for; in a loop that computes, batches are read ahead meanwhile. Files are
    read as they are, so a second run finds them in memory and is faster.
    """
    from drpruning.sampler import DomainSampler

    opened = _opened(corpus, dtype)
    mixture = _shares(opened, seq_len) if weights is None else _parsed(weights)
    sampler = DomainSampler(opened, mixture, seq_len=seq_len, batch_size=batch_size, seed=seed, draw=draw, prefetch=0)
    drawn = _draw(sampler, steps, show)
    if as_json:
        import json

        click.echo(json.dumps(_described(sampler, drawn), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    _print(Console(highlight=False), sampler, drawn)


@dataclass(frozen=True)
class _Drawn:
    """What came out of a sampler, and how long each batch took."""

    rows: dict[str, int]
    taken: list[float]
    bytes: float
    shown: list[tuple[str, int, str]]

    @property
    def total(self) -> int:
        return sum(self.rows.values())

    @property
    def seconds(self) -> float:
        return sum(self.taken)

    def within(self, share: float) -> float:
        """Seconds within which so many of the batches came."""
        return sorted(self.taken)[int(share * (len(self.taken) - 1))]


def _opened(names: tuple[str, ...], dtype: str | None) -> Corpus:
    from drpruning.corpus import Corpus
    from drpruning.errors import ConfigError

    if len(names) == 1 and "=" not in names[0]:
        if dtype is not None:
            raise ConfigError(f"--dtype is for NAME=PATH files; the files of {names[0]} say what they hold")
        return Corpus.open(names[0])
    domains: dict[str, str] = {}
    for item in names:
        name, equals, path = item.partition("=")
        if not (name and equals and path):
            raise ConfigError(f"{item!r}: wanted NAME=PATH, or one folder with a corpus.json")
        if name in domains:
            raise ConfigError(f"domain {name!r} is given twice: {domains[name]} and {path}")
        domains[name] = path
    return Corpus(domains, dtype=dtype)


def _parsed(text: str) -> dict[str, float]:
    """``a=.7,b=.3`` by name."""
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


def _shares(corpus: Corpus, seq_len: int) -> dict[str, float]:
    """Weights that go through all domains at the same pace."""
    from drpruning.errors import CorpusError

    rows = corpus.num_rows(seq_len)
    if not any(rows.values()):
        raise CorpusError(f"the corpus has not one row of {seq_len} tokens: {corpus.tokens()}")
    return {name: float(count) for name, count in rows.items()}


def _draw(sampler: DomainSampler, steps: int, show: int) -> _Drawn:
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
    return _Drawn(
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
    """Domain, number and the beginning of each row: as text if the corpus has a tokenizer, else as ids."""
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


def _described(sampler: DomainSampler, drawn: _Drawn) -> dict[str, Any]:
    return {
        "steps": len(drawn.taken),
        "rows": drawn.total,
        "seq_len": sampler.seq_len,
        "domains": {
            name: {
                "asked": asked,
                "reached": drawn.rows[name] / drawn.total,
                "rows": drawn.rows[name],
                "off_by_rows": _off_by(asked, name, drawn),
                "tokens": drawn.rows[name] * sampler.seq_len,
                "epochs": sampler.epochs[name],
            }
            for name, asked in sampler.weights.items()
        },
        "first_batch_seconds": drawn.taken[0],
        "median_batch_seconds": drawn.within(0.5),
        "p95_batch_seconds": drawn.within(0.95),
        "seconds": drawn.seconds,
        "rows_per_second": drawn.total / drawn.seconds,
        "tokens_per_second": drawn.total * sampler.seq_len / drawn.seconds,
        "megabytes_per_second": drawn.bytes / drawn.seconds / 1e6,
        "shown": [{"domain": domain, "row": row, "begins": text} for domain, row, text in drawn.shown],
    }


def _print(console: Console, sampler: DomainSampler, drawn: _Drawn) -> None:
    from rich.text import Text

    from drpruning.tables.terminal import new_table

    table = new_table(["domain", "asked", "reached", "rows", "off by", "tokens", "epochs"])
    for name, asked in sampler.weights.items():
        rows = drawn.rows[name]
        table.add_row(
            Text(name),
            f"{asked:.4f}",
            f"{rows / drawn.total:.4f}",
            f"{rows:,}",
            f"{_off_by(asked, name, drawn):+.2f}".replace("-", "−"),
            f"{rows * sampler.seq_len:,}",
            f"{sampler.epochs[name]:.3f}",
        )
    console.print(table)
    console.print(
        f"{len(drawn.taken):,} batches of {sampler.batch_size} rows of {sampler.seq_len:,} tokens in "
        f"{drawn.seconds:.2f} s on one thread: each {drawn.within(0.5) * 1000:.2f} ms (median), "
        f"95% within {drawn.within(0.95) * 1000:.2f} ms, the first {drawn.taken[0] * 1000:.1f} ms",
        soft_wrap=True,
    )
    rate = drawn.total / drawn.seconds
    console.print(
        f"{rate:,.0f} rows/s, {rate * sampler.seq_len / 1e6:,.1f} M tokens/s, "
        f"{drawn.bytes / drawn.seconds / 1e6:,.0f} MB/s of files",
        soft_wrap=True,
    )
    if drawn.shown:
        rows_shown = new_table(["domain", "row", "begins with"], text=["begins with"])
        for domain, row, text in drawn.shown:
            rows_shown.add_row(Text(domain), f"{row:,}", Text(text))
        console.print(rows_shown)


def _off_by(asked: float, name: str, drawn: _Drawn) -> float:
    """Rows drawn beyond the domain's exact share."""
    return drawn.rows[name] - asked * drawn.total
