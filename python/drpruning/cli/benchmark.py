"""`drpruning benchmark build`: a multiple-choice benchmark of a corpus's domains, for lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from drpruning.evaluation.benchmark.build import Plan, Prices
    from drpruning.evaluation.benchmark.generator import Generator
    from drpruning.evaluation.benchmark.judge import Reader


@click.group(
    "benchmark",
    epilog="""\b
Examples:
  drpruning benchmark build corpus/ bench/ --per-domain 200
  drpruning eval runs/quickstart --tasks bench/
  drpruning benchmark build --help""",
)
def command() -> None:
    """Multiple-choice questions from a corpus's held-out documents, domain by domain."""


@command.command(
    short_help="Write the items and their tasks.",
    epilog="""\b
Examples:
  drpruning benchmark build corpus/ bench/ --per-domain 200
  drpruning benchmark build corpus/ bench/ --strong models/large --weak models/small
  drpruning benchmark build corpus/ bench/ --generator local:models/large
  drpruning benchmark build corpus/ bench/ --generator openai:https://api.openai.com/v1 --endpoint-model gpt-4o \\
      --price-in 2.5 --price-out 10 --max-cost 20 --estimate""",
)
@click.argument("folder", metavar="CORPUS", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--per-domain", type=click.IntRange(1), default=400, show_default=True, help="Items of each domain.")
@click.option("--domain", "domains", multiple=True, help="Build for this domain only; repeatable.")
@click.option(
    "--generator",
    "source",
    default="offline",
    show_default=True,
    help="Of wrong choices: offline, local:MODEL, or openai:URL of a chat endpoint.",
)
@click.option("--endpoint-model", help="The endpoint's model.")
@click.option("--key-variable", default="OPENAI_API_KEY", show_default=True, help="Where the endpoint's key is.")
@click.option("--price-in", type=click.FloatRange(0), default=0.0, help="Dollars per million tokens asked.")
@click.option("--price-out", type=click.FloatRange(0), default=0.0, help="Dollars per million tokens answered.")
@click.option("--max-cost", type=click.FloatRange(0), help="Stop when so many dollars are spent.")
@click.option("--estimate", is_flag=True, help="Print what it would take, and stop.")
@click.option("--strong", help="Keep items that this model answers.")
@click.option("--weak", help="Keep items that this model does not answer.")
@click.option("--max-bits", type=click.FloatRange(0), help="Most bits per byte of --strong for the right choice.")
@click.option("--min-margin", type=float, default=0.0, show_default=True, help="Of --strong, in bits.")
@click.option("--choices", type=click.IntRange(2), default=4, show_default=True, help="Choices of an item.")
@click.option("--half", type=click.IntRange(40), default=160, show_default=True, help="Characters of a half.")
@click.option(
    "--nearest",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="Draw wrong choices (or endings) from so many similar passages; fewer is harder.",
)
@click.option("--seed", default=17, show_default=True)
@click.option("--name", default="drpruning", show_default=True, help="Prefix of the tasks' names.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def build(
    *,
    folder: Path,
    out: Path,
    per_domain: int,
    domains: tuple[str, ...],
    source: str,
    endpoint_model: str | None,
    key_variable: str,
    price_in: float,
    price_out: float,
    max_cost: float | None,
    estimate: bool,
    strong: str | None,
    weak: str | None,
    max_bits: float | None,
    min_margin: float,
    choices: int,
    half: int,
    nearest: int,
    seed: int,
    name: str,
    as_json: bool,
) -> None:
    """Make questions of CORPUS's held-out documents and write them to the folder OUT.

    Each shows the first half of a passage; the right choice is the true second half. The wrong ones are, offline,
    continuations of similar passages, one of the same document; of a local model or a chat endpoint, continuations of
    a corrupted first half. OUT holds one JSONL for each domain, with the provenance of every choice, and the tasks for
    lm-evaluation-harness: `drpruning eval MODEL --tasks OUT`. The same command goes on with a build that was stopped.
    """
    import json

    from rich.console import Console

    from drpruning.corpus import Corpus
    from drpruning.errors import ConfigError
    from drpruning.evaluation.benchmark.build import Prices, build_benchmark, plan_benchmark

    corpus = Corpus.open(folder)
    plan = plan_benchmark(
        corpus,
        name=name,
        domains=domains or corpus.domains,
        per_domain=per_domain,
        choices=choices,
        half=half,
        seed=seed,
    )
    prices = Prices(price_in, price_out, max_cost)
    if max_cost is not None and price_in == price_out == 0:
        raise ConfigError("--max-cost needs the endpoint's prices", "Give --price-in and --price-out.")
    kind, _, where = source.partition(":")
    if kind not in ("offline", "local", "openai") or (kind == "offline") == bool(where):
        raise ConfigError(
            f"--generator is {source!r}",
            "Give offline, local:MODEL or openai:URL, e.g. openai:http://localhost:8000/v1.",
        )
    if estimate:
        generator = _generator(plan, kind, where, endpoint_model, key_variable, nearest) if kind == "openai" else None
        click.echo(_estimate(plan, generator, prices))
        return
    console = Console(stderr=True)
    with console.status("reading models") as status:
        from drpruning.evaluation.benchmark.judge import Judge

        generator = _generator(plan, kind, where, endpoint_model, key_variable, nearest)
        judge = Judge(_reader(strong), _reader(weak), max_bits, min_margin)
        summary = build_benchmark(
            plan,
            out,
            generator,
            judge,
            prices,
            watch=lambda domain, items, wanted: status.update(f"{domain}: {items} of {wanted} items"),
        )
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    _print(summary, out)


def _generator(
    plan: Plan, kind: str, where: str, endpoint_model: str | None, key_variable: str, nearest: int
) -> Generator:
    from drpruning.errors import ConfigError
    from drpruning.evaluation.benchmark.neighbors import Neighbors
    from drpruning.evaluation.benchmark.offline import Offline

    if kind == "openai":
        from drpruning.evaluation.benchmark.chat import Chat
        from drpruning.evaluation.benchmark.endpoint import Endpoint

        if endpoint_model is None:
            raise ConfigError("--generator openai:URL needs the name of a model", "Give --endpoint-model.")
        return Chat(Endpoint(where, endpoint_model, key_variable), plan.seed)
    neighbors = {domain: Neighbors.of(passages) for domain, passages in plan.passages.items()}
    if kind == "offline":
        return Offline(neighbors, plan.choices, plan.seed, nearest)
    from drpruning.evaluation.benchmark.local import Local

    reader = _reader(where)
    assert reader is not None
    return Local(where, reader.model, reader.tokenizer, neighbors, plan.seed, nearest=nearest)


def _reader(name: str | None) -> Reader | None:
    """A model with its tokenizer, on the first GPU where there is one."""
    if name is None:
        return None
    from transformers.utils import logging

    from drpruning.errors import ConfigError
    from drpruning.evaluation.benchmark.judge import Reader
    from drpruning.evaluation.models import model_tokenizer
    from drpruning.pruning.loading import load
    from drpruning.train.device import choose_device

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = load(name).to(choose_device("auto")).eval()
    tokenizer = model_tokenizer(name)
    if tokenizer is None or tokenizer.eos_token_id is None:
        raise ConfigError(f"the model {name!r} brings no tokenizer with an end token, so it cannot read text")
    return Reader(name, model, tokenizer)


def _estimate(plan: Plan, generator: Generator | None, prices: Prices) -> str:
    from drpruning.evaluation.benchmark.generator import Spent

    count = plan.per_domain * len(plan.passages)
    if generator is None:
        return f"{count:,} items; no endpoint is asked"
    tried = [passage for passages in plan.passages.values() for passage in passages[: plan.per_domain]]
    spent = sum((generator.expected(passage, plan.choices - 1) for passage in tried), Spent())
    cost = prices.cost(spent)
    money = f", ${cost:.2f}" if cost else "; with --price-in and --price-out also dollars"
    return (
        f"about {count:,} requests, {spent.prompt_tokens:,} tokens asked and {spent.completion_tokens:,} answered"
        f"{money}; more for passages that are dropped"
    )


def _print(summary: dict[str, Any], out: Path) -> None:
    from rich.console import Console

    from drpruning.tables.terminal import new_table

    console = Console(highlight=False)
    table = new_table(["domain", "items", "passages", "tried", "dropped"], text=["dropped"])
    for domain, found in summary["domains"].items():
        reasons = "; ".join(f"{count} {reason}" for reason, count in found["dropped"].items())
        table.add_row(domain, f"{found['items']:,}", f"{found['passages']:,}", f"{found['tried']:,}", reasons)
    console.print(table)
    spent = summary["spent"]
    if spent["requests"]:
        console.print(
            f"{spent['requests']:,} requests, {spent['prompt_tokens']:,} tokens asked, "
            f"{spent['completion_tokens']:,} answered, ${spent['dollars']:.2f}"
        )
    console.print(f"{out}: try it with `drpruning eval MODEL --tasks {out}`", soft_wrap=True)
