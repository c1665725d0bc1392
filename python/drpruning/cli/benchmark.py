"""`drpruning benchmark build`: a multiple-choice benchmark of a corpus's domains, for lm-evaluation-harness."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drpruning.cli.options import examples, json_option

if TYPE_CHECKING:
    from drpruning.evaluation.benchmark.build import BenchmarkPlan, Prices
    from drpruning.evaluation.benchmark.generator import Generator
    from drpruning.evaluation.benchmark.judge import ScoringModel


@click.group(
    short_help="Build a benchmark of a corpus's domains.",
    epilog=examples("""
  drpruning benchmark build corpus/ bench/ --per-domain 200
  drpruning eval tasks runs/quickstart --task bench/"""),
)
def benchmark() -> None:
    """Build multiple-choice questions from a corpus's held-out documents, domain by domain."""


@dataclass(frozen=True)
class GeneratorRequest:
    """The options that choose the generator of wrong choices.

    Attributes:
        kind: ``offline``, ``local`` or ``openai``.
        source: Model of ``local``, URL of ``openai``.
        endpoint_model: Name of the endpoint's model.
        api_key_env: Environment variable with the endpoint's key.
        num_neighbors: Similar passages from which wrong choices are drawn.
    """

    kind: str
    source: str
    endpoint_model: str | None
    api_key_env: str
    num_neighbors: int


@benchmark.command(
    "build",
    short_help="Write the items and their tasks.",
    epilog=examples("""
  drpruning benchmark build corpus/ bench/ --per-domain 200
  drpruning benchmark build corpus/ bench/ --strong-model models/large --weak-model models/small
  drpruning benchmark build corpus/ bench/ --generator local:models/large
  drpruning benchmark build corpus/ bench/ --generator openai:https://api.openai.com/v1 --endpoint-model gpt-4o \\
      --price-in 2.5 --price-out 10 --max-cost 20 --estimate"""),
)
@click.argument("folder", metavar="CORPUS", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--per-domain", type=click.IntRange(1), default=400, show_default=True, help="Number of items of each domain."
)
@click.option("--domain", "domains", multiple=True, help="Build items of this domain only. Repeatable.")
@click.option(
    "--generator",
    default="offline",
    show_default=True,
    help="Generator of the wrong choices: offline, local:MODEL, or openai:URL of a chat endpoint.",
)
@click.option("--endpoint-model", help="Name of the endpoint's model.")
@click.option(
    "--api-key-env",
    default="OPENAI_API_KEY",
    show_default=True,
    help="Environment variable that contains the endpoint's API key.",
)
@click.option("--price-in", type=click.FloatRange(0), default=0.0, help="Dollars per million prompt tokens.")
@click.option("--price-out", type=click.FloatRange(0), default=0.0, help="Dollars per million completion tokens.")
@click.option("--max-cost", type=click.FloatRange(0), help="Stop when this number of dollars is spent.")
@click.option("--estimate", is_flag=True, help="Print the expected requests, tokens and dollars, and stop.")
@click.option("--strong-model", help="Keep only items that this model answers correctly.")
@click.option("--weak-model", help="Keep only items that this model answers wrongly.")
@click.option(
    "--max-bits-per-byte",
    type=click.FloatRange(0),
    help="Drop items whose right choice costs --strong-model more than this number of bits per byte.",
)
@click.option(
    "--min-margin",
    type=float,
    default=0.0,
    show_default=True,
    help="Drop items whose right choice is not this number of bits better than the others for --strong-model.",
)
@click.option(
    "--num-choices", type=click.IntRange(2), default=4, show_default=True, help="Number of choices of an item."
)
@click.option(
    "--context-chars",
    type=click.IntRange(40),
    default=160,
    show_default=True,
    help="Characters of the context, and of each choice.",
)
@click.option(
    "--num-neighbors",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="Draw wrong choices (or endings) from this number of similar passages; a smaller number is harder.",
)
@click.option("--seed", default=17, show_default=True, help="Seed of the items.")
@click.option("--name", default="drpruning", show_default=True, help="Prefix of the tasks' names.")
@json_option()
def benchmark_build(
    *,
    folder: Path,
    out: Path,
    per_domain: int,
    domains: tuple[str, ...],
    generator: str,
    endpoint_model: str | None,
    api_key_env: str,
    price_in: float,
    price_out: float,
    max_cost: float | None,
    estimate: bool,
    strong_model: str | None,
    weak_model: str | None,
    max_bits_per_byte: float | None,
    min_margin: float,
    num_choices: int,
    context_chars: int,
    num_neighbors: int,
    seed: int,
    name: str,
    as_json: bool,
) -> None:
    """Build questions from CORPUS's held-out documents and write them to the folder OUT.

    Each question shows the first half of a passage; the right choice is its second half. Offline, the wrong choices are
    continuations of similar passages, one of them from the same document; with a local model or a chat endpoint, they
    are continuations of a corrupted first half. OUT has one JSONL file per domain, with the provenance of every choice,
    and the tasks for lm-evaluation-harness: `drpruning eval tasks MODEL --task OUT`. The same command resumes a build
    that was interrupted.
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
        num_choices=num_choices,
        context_chars=context_chars,
        seed=seed,
    )
    prices = Prices(price_in, price_out, max_cost)
    if max_cost is not None and price_in == price_out == 0:
        raise ConfigError("--max-cost needs the endpoint's prices", "Give --price-in and --price-out.")
    kind, _, source = generator.partition(":")
    if kind not in ("offline", "local", "openai") or (kind == "offline") == bool(source):
        raise ConfigError(
            f"--generator is {generator!r}; expected offline, local:MODEL or openai:URL",
            "For example --generator openai:http://localhost:8000/v1",
        )
    request = GeneratorRequest(kind, source, endpoint_model, api_key_env, num_neighbors)
    if estimate:
        click.echo(_estimate(plan, _make_generator(plan, request) if kind == "openai" else None, prices))
        return
    console = Console(stderr=True)
    with console.status("reading models") as status:
        from drpruning.evaluation.benchmark.judge import Judge

        chosen = _make_generator(plan, request)
        judge = Judge(_load_model(strong_model), _load_model(weak_model), max_bits_per_byte, min_margin)
        summary = build_benchmark(
            plan,
            out,
            chosen,
            judge,
            prices,
            on_progress=lambda domain, items, target: status.update(f"{domain}: {items} of {target} items"),
        )
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    _print_summary(summary, out)


def _make_generator(plan: BenchmarkPlan, request: GeneratorRequest) -> Generator:
    from drpruning.errors import ConfigError
    from drpruning.evaluation.benchmark.neighbors import Neighbors
    from drpruning.evaluation.benchmark.offline import Offline

    if request.kind == "openai":
        from drpruning.evaluation.benchmark.chat import Chat
        from drpruning.evaluation.benchmark.endpoint import Endpoint

        if request.endpoint_model is None:
            raise ConfigError("--generator openai:URL needs the name of a model", "Give --endpoint-model.")
        return Chat(Endpoint(request.source, request.endpoint_model, request.api_key_env), plan.seed)
    neighbors = {domain: Neighbors.of(passages) for domain, passages in plan.passages.items()}
    if request.kind == "offline":
        return Offline(neighbors, plan.num_choices, plan.seed, request.num_neighbors)
    from drpruning.evaluation.benchmark.local import Local

    scoring = _load_model(request.source)
    assert scoring is not None
    return Local(
        request.source, scoring.model, scoring.tokenizer, neighbors, plan.seed, num_neighbors=request.num_neighbors
    )


def _load_model(name: str | None) -> ScoringModel | None:
    """Load a model with its tokenizer, on the first GPU if there is one; None stays None."""
    if name is None:
        return None
    from transformers.utils import logging

    from drpruning.errors import ConfigError
    from drpruning.evaluation.benchmark.judge import ScoringModel
    from drpruning.hf.models import load
    from drpruning.hf.tokenizers import model_tokenizer
    from drpruning.train.device import choose_device

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = load(name).to(choose_device("auto")).eval()
    tokenizer = model_tokenizer(name)
    if tokenizer is None or tokenizer.eos_token_id is None:
        raise ConfigError(
            f"the model {name!r} has no tokenizer with an end token, so it cannot read text",
            "Add its tokenizer to the model's folder.",
        )
    return ScoringModel(name, model, tokenizer)


def _estimate(plan: BenchmarkPlan, generator: Generator | None, prices: Prices) -> str:
    from drpruning.evaluation.benchmark.generator import TokenUsage

    count = plan.per_domain * len(plan.passages)
    if generator is None:
        return f"{count:,} items; no request to an endpoint"
    tried = [passage for passages in plan.passages.values() for passage in passages[: plan.per_domain]]
    usage = sum((generator.expected(passage, plan.num_choices - 1) for passage in tried), TokenUsage())
    cost = prices.cost(usage)
    money = f", ${cost:.2f}" if cost else "; with --price-in and --price-out also dollars"
    return (
        f"about {count:,} requests, {usage.prompt_tokens:,} prompt tokens and {usage.completion_tokens:,} completion "
        f"tokens{money}; more for passages that are dropped"
    )


def _print_summary(summary: dict[str, Any], out: Path) -> None:
    from rich.console import Console

    from drpruning.tables import Row, Table
    from drpruning.tables.terminal import print_table

    console = Console(highlight=False)
    rows = []
    for domain, counts in summary["domains"].items():
        reasons = "; ".join(f"{count} {reason}" for reason, count in counts["dropped"].items())
        rows.append(Row.of(domain, f"{counts['items']:,}", f"{counts['passages']:,}", f"{counts['tried']:,}", reasons))
    print_table(console, Table(["domain", "items", "passages", "tried", "dropped"], rows, text_columns=("dropped",)))
    usage = summary["spent"]
    if usage["requests"]:
        console.print(
            f"{usage['requests']:,} requests, {usage['prompt_tokens']:,} prompt tokens, "
            f"{usage['completion_tokens']:,} completion tokens, ${usage['dollars']:.2f}"
        )
    console.print(f"{out}: try it with `drpruning eval tasks MODEL --task {out}`", soft_wrap=True)
