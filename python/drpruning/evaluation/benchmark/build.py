"""Build the benchmark, passage by passage, with a journal from which an interrupted build resumes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from drpruning.corpus import Corpus
from drpruning.errors import ConfigError, CorpusError, EndpointError, StateError
from drpruning.evaluation.benchmark.generator import GeneratedChoices, Generator, TokenUsage
from drpruning.evaluation.benchmark.items import Item, make_item
from drpruning.evaluation.benchmark.judge import Judge
from drpruning.evaluation.benchmark.passages import Passage, find_passages
from drpruning.evaluation.benchmark.task_folder import write_task_folder
from drpruning.evaluation.held_out_text import corpus_backend, decoded, held_out_documents
from drpruning.files import open_to_append, truncate, write_text

FORMAT = 2  # format 1 filtered by acc_norm
JOURNAL, SUMMARY = "_journal.jsonl", "benchmark.json"  # no domain's name begins with an underscore
CHUNK = 16  # passages per batch of the models, and between two writes of the journal
FAILURES = 8  # consecutive failures of a generator that end the build

ProgressCallback = Callable[[str, int, int], None]
"""Called with the domain, its items so far, and the target number of items."""


@dataclass(frozen=True)
class Prices:
    """Prices of an endpoint in dollars per million tokens, and the budget in dollars (None: no limit)."""

    prompt: float = 0.0
    completion: float = 0.0
    budget: float | None = None

    def cost(self, spent: TokenUsage) -> float:
        """Return the cost in dollars."""
        return (spent.prompt_tokens * self.prompt + spent.completion_tokens * self.completion) / 1e6


@dataclass(frozen=True)
class BenchmarkPlan:
    """Settings and passages of a benchmark.

    Args:
        name: Prefix of the tasks' names.
        passages: Passages by domain, in the order in which they are tried.
        per_domain: Number of items of each domain.
        num_choices: Number of choices of an item, the right one included.
        context_chars: Characters of the context, and of each choice.
        seed: Seed of the order, of the positions of the right choices, and of the generator.
        corpus: Fingerprint of the corpus.
    """

    name: str
    passages: Mapping[str, Sequence[Passage]]
    per_domain: int
    num_choices: int
    context_chars: int
    seed: int
    corpus: str


@dataclass
class BuildProgress:
    """Content of the journal: by domain the finished passages and the kept items, and the tokens used."""

    done: dict[str, set[str]] = field(default_factory=dict)
    items: dict[str, list[Item]] = field(default_factory=dict)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    spent: TokenUsage = field(default_factory=TokenUsage)

    def add(self, domain: str, line: dict[str, Any]) -> None:
        """Add one line of the journal; failed passages count as unfinished."""
        self.spent += TokenUsage(**line["spent"])
        if line["failed"]:
            return
        self.done.setdefault(domain, set()).add(line["passage"])
        if line["item"] is None:
            self.dropped.setdefault(domain, Counter())[line["dropped"]] += 1
        else:
            self.items.setdefault(domain, []).append(Item.from_json(line["item"]))


def plan_benchmark(
    corpus: Corpus,
    *,
    name: str,
    domains: Sequence[str],
    per_domain: int,
    num_choices: int,
    context_chars: int,
    seed: int,
) -> BenchmarkPlan:
    """Find the passages of each domain's held-out documents.

    Raises:
        ConfigError: A setting is out of range, or the corpus has no tokenizer.
        CorpusError: A domain has too few passages; the message has their number.
    """
    if per_domain < 1 or num_choices < 2 or context_chars < 40:
        raise ConfigError(
            f"per_domain is {per_domain}, num_choices {num_choices}, context_chars {context_chars}; "
            "expected at least 1, 2 and 40"
        )
    backend = corpus_backend(corpus)
    if backend is None:
        raise ConfigError(
            "the corpus has no tokenizer.json, so its text cannot be decoded",
            "Prepare it with `drpruning prepare`, which keeps tokenizer.json.",
        )
    passages: dict[str, list[Passage]] = {}
    for domain in domains:
        documents = held_out_documents(corpus, domain)
        assert corpus.end_token is not None  # without an end token there are no documents
        texts = decoded(backend, documents, corpus.end_token)
        passages[domain] = find_passages(domain, texts, context_chars)
    short = {domain: len(found) for domain, found in passages.items() if len(found) < per_domain}
    if short:
        raise _too_few(short, per_domain, "passages")
    return BenchmarkPlan(name, passages, per_domain, num_choices, context_chars, seed, corpus.fingerprint)


def build_benchmark(
    plan: BenchmarkPlan,
    folder: Path,
    generator: Generator,
    judge: Judge,
    prices: Prices,
    on_progress: ProgressCallback = lambda domain, items, target: None,
) -> dict[str, Any]:
    """Write the benchmark to ``folder``; a complete benchmark stays unchanged.

    Args:
        plan: Settings and passages.
        folder: A new folder, or one with a journal of the same plan, generator and judge, which is resumed.
        generator: Generates the wrong choices.
        judge: Drops items.
        prices: Prices and budget of the generator.
        on_progress: Called after each batch of passages.

    Returns:
        The content of ``benchmark.json``.

    Raises:
        StateError: ``folder`` has other content, or the budget is spent; the items so far are kept.
        CorpusError: Too few passages of a domain became items; the items so far are kept.
        EndpointError: The generator failed many times in a row; the items so far are kept.
    """
    settings = _settings(plan, generator, judge)
    progress = _open(folder, settings)
    with open_to_append(folder / JOURNAL) as journal:
        for domain in plan.passages:
            _fill(domain, plan, journal, progress, generator, judge, prices, on_progress)
    short = {
        domain: len(progress.items.get(domain, []))
        for domain in plan.passages
        if len(progress.items.get(domain, [])) < plan.per_domain
    }
    if short:
        raise _too_few(short, plan.per_domain, "usable items")
    items = {domain: progress.items[domain][: plan.per_domain] for domain in plan.passages}
    write_task_folder(folder, plan.name, items)
    summary = {
        "format": FORMAT,
        "name": plan.name,
        **settings,
        "per_domain": plan.per_domain,
        "domains": {
            domain: {
                "items": len(items[domain]),
                "passages": len(plan.passages[domain]),
                "tried": len(progress.done[domain]),
                "dropped": dict(progress.dropped.get(domain, {})),
            }
            for domain in plan.passages
        },
        "spent": {**asdict(progress.spent), "dollars": round(prices.cost(progress.spent), 6)},
    }
    write_text(folder / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary


def _fill(
    domain: str,
    plan: BenchmarkPlan,
    journal: Any,
    progress: BuildProgress,
    generator: Generator,
    judge: Judge,
    prices: Prices,
    on_progress: ProgressCallback,
) -> None:
    """Try the passages of a domain until it has its number of items."""
    done = progress.done.setdefault(domain, set())
    kept = progress.items.setdefault(domain, [])
    left = [item for item in generator.order(plan.passages[domain]) if item.name not in done]
    failures, at = 0, 0
    on_progress(domain, len(kept), plan.per_domain)
    with ThreadPoolExecutor(max_workers=generator.num_parallel) as pool:
        while at < len(left) and len(kept) < plan.per_domain:
            size = generator.num_parallel if prices.budget is not None else CHUNK
            chunk = left[at : at + min(size, max(generator.num_parallel, plan.per_domain - len(kept)))]
            at += len(chunk)
            _check_spending(progress.spent, chunk, plan.num_choices - 1, generator, prices)
            if generator.num_parallel > 1:
                made = list(pool.map(lambda item: generator.make(item, plan.num_choices - 1), chunk))
            else:
                made = [generator.make(item, plan.num_choices - 1) for item in chunk]
            for line in _judged(chunk, made, judge, plan.seed):
                journal.write(json.dumps({"domain": domain, **line}, ensure_ascii=False) + "\n")
                progress.add(domain, line)
                failures = failures + 1 if line["failed"] else 0
            journal.flush()
            on_progress(domain, len(kept), plan.per_domain)
            if failures >= FAILURES:
                raise EndpointError(
                    f"the generator failed {failures} times in a row, in domain {domain!r}: {made[-1].dropped}",
                    "The items so far are kept: the same command resumes.",
                )


def _judged(
    chunk: Sequence[Passage], made: Sequence[GeneratedChoices], judge: Judge, seed: int
) -> list[dict[str, Any]]:
    """Return the lines of the journal for a batch of passages."""
    results: list[Item | str] = [
        result.dropped if result.dropped is not None else make_item(passage, result, seed)
        for passage, result in zip(chunk, made, strict=True)
    ]
    found = [result for result in results if isinstance(result, Item)]
    verdicts = dict(zip((item.name for item in found), judge.judge(found), strict=True))
    lines = []
    for passage, result, outcome in zip(chunk, made, results, strict=True):
        line: dict[str, Any] = {
            "passage": passage.name,
            "dropped": None,
            "failed": result.failed,
            "item": None,
            "spent": asdict(result.spent),
        }
        if isinstance(outcome, str):
            line["dropped"] = outcome
        else:
            reason, notes = verdicts[outcome.name]
            outcome.provenance.update(notes)
            line |= {"dropped": reason, "item": None if reason is not None else outcome.to_json()}
        lines.append(line)
    return lines


def _check_spending(
    spent: TokenUsage, chunk: Sequence[Passage], count: int, generator: Generator, prices: Prices
) -> None:
    """Raise StateError if the expected cost of the next batch exceeds the budget."""
    cost = prices.cost(spent)
    next_cost = prices.cost(sum((generator.expected(item, count) for item in chunk), TokenUsage()))
    if prices.budget is not None and cost + next_cost > prices.budget:
        raise StateError(
            f"${cost:.4f} are spent, the next requests cost about ${next_cost:.4f}; the budget is ${prices.budget:.4f}",
            "The items so far are kept: the same command with a larger --max-cost resumes.",
        )


def _settings(plan: BenchmarkPlan, generator: Generator, judge: Judge) -> dict[str, Any]:
    """Return the settings that determine the items; ``per_domain`` only determines their number."""
    return {
        "corpus": plan.corpus,
        "num_choices": plan.num_choices,
        "context_chars": plan.context_chars,
        "seed": plan.seed,
        "generator": generator.settings(),
        "judge": judge.settings(),
    }


def _is_foreign(path: Path) -> bool:
    """Return whether a file of a folder is not what a build leaves that was killed while it wrote its first line."""
    return not (path.name.startswith(f".{JOURNAL}.") and path.name.endswith(".partial"))


def _open(folder: Path, settings: dict[str, Any]) -> BuildProgress:
    """Read the progress of the folder, or create its journal.

    Raises:
        StateError: The folder has a benchmark with other settings, or other content.
    """
    journal = folder / JOURNAL
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    head = {"format": FORMAT, "digest": digest, "settings": settings}
    if not journal.is_file():
        if folder.exists() and (not folder.is_dir() or any(map(_is_foreign, folder.iterdir()))):
            raise StateError(f"{folder} is not empty and has no {JOURNAL} of a benchmark", "Give another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        write_text(journal, json.dumps(head, ensure_ascii=False) + "\n")
        return BuildProgress()
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    truncate(journal, whole)  # a line that was incomplete when the build was killed
    progress = BuildProgress()
    try:
        first, *lines = map(json.loads, content[:whole].splitlines())  # bytes: text splits at more characters
        if first["format"] != FORMAT or first["digest"] != digest:
            previous = first["settings"]
            different = [key for key in settings if settings[key] != previous.get(key)]
            raise StateError(
                f"{folder} was created with other settings; different: {', '.join(different) or 'the format'}",
                "Give another folder, or the settings of that benchmark.",
            )
        for line in lines:
            progress.add(line["domain"], line)
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{journal} is damaged: {error}", "Give another folder.") from error
    return progress


def _too_few(short: Mapping[str, int], per_domain: int, what: str) -> CorpusError:
    counts = ", ".join(f"{domain} {count}" for domain, count in short.items())
    least = min(short.values())
    advice = f"Use --per-domain {least}, or hold out more text" if least else "Hold out more text"
    return CorpusError(
        f"too few {what} for {per_domain} in each domain: {counts}", f"{advice}, or leave the domain out."
    )
