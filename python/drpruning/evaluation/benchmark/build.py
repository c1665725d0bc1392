"""Builds the benchmark, passage by passage, with a journal so that a build that was stopped goes on where it was."""

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
from drpruning.files import write_text
from drpruning.records import cut_back

FORMAT = 2  # 1 filtered by acc_norm
JOURNAL, SUMMARY = "_journal.jsonl", "benchmark.json"  # no domain's name begins with a low line
CHUNK = 16  # passages between two looks at what is there: models read that many at once
FAILURES = 8  # of a generator in a row, after which it is not asked any more

ProgressCallback = Callable[[str, int, int], None]
"""Told of progress: the domain, its items so far, how many are wanted."""


@dataclass(frozen=True)
class Prices:
    """What an endpoint costs, in dollars per million tokens, and the most that may be spent."""

    prompt: float = 0.0
    completion: float = 0.0
    most: float | None = None

    def cost(self, spent: TokenUsage) -> float:
        """Dollars."""
        return (spent.prompt_tokens * self.prompt + spent.completion_tokens * self.completion) / 1e6


@dataclass(frozen=True)
class BenchmarkPlan:
    """What is to be built.

    Args:
        name: Prefix of the tasks' names.
        passages: By domain, in the order in which they are tried.
        per_domain: Items wanted of each.
        choices: Of an item, the right one included.
        half: Characters of a half.
        seed: Of the order, of the places of the right choices, and of the generator.
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
    """What the journal holds: by domain the passages done with and the items kept, and what was spent."""

    done: dict[str, set[str]] = field(default_factory=dict)
    items: dict[str, list[Item]] = field(default_factory=dict)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    spent: TokenUsage = field(default_factory=TokenUsage)

    def add(self, domain: str, line: dict[str, Any]) -> None:
        """Takes up one line of the journal; failed passages are not done with."""
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
    """Finds the passages of each domain's held-out documents.

    Raises:
        ConfigError: A setting is out of range, or the corpus does not hold its tokenizer.
        CorpusError: A domain has too few passages; the message says how many it has.
    """
    if per_domain < 1 or num_choices < 2 or context_chars < 40:
        raise ConfigError(
            f"per_domain is {per_domain}, num_choices {num_choices}, context_chars {context_chars}; "
            "expected at least 1, 2 and 40"
        )
    backend = corpus_backend(corpus)
    if backend is None:
        raise ConfigError(
            "the corpus does not hold its tokenizer, so its text cannot be read",
            "Prepare it with `drpruning prepare`, which keeps tokenizer.json.",
        )
    passages: dict[str, list[Passage]] = {}
    for domain in domains:
        documents = held_out_documents(corpus, domain)
        assert corpus.end_token is not None  # or there would be no documents
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
    on_progress: ProgressCallback = lambda domain, items, wanted: None,
) -> dict[str, Any]:
    """Fills ``folder`` with the benchmark; one that is there already is left as it is.

    Args:
        plan: What to build.
        folder: New, or with a journal of the same plan, generator and judge: then it is gone on with.
        generator: Makes the wrong choices.
        judge: Drops items.
        prices: Of the generator.
        on_progress: Told of progress.

    Returns:
        The content of ``benchmark.json``.

    Raises:
        StateError: ``folder`` holds something else, or the most that may be spent is reached; what was made is kept.
        CorpusError: Too few passages of a domain became items; what was made is kept.
        EndpointError: The generator failed many times in a row; what was made is kept.
    """
    settings = _settings(plan, generator, judge)
    progress = _open(folder, settings)
    with (folder / JOURNAL).open("a", encoding="utf-8") as journal:
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
    """Tries the passages of a domain until it has its items."""
    done = progress.done.setdefault(domain, set())
    kept = progress.items.setdefault(domain, [])
    left = [item for item in generator.order(plan.passages[domain]) if item.name not in done]
    failures, at = 0, 0
    on_progress(domain, len(kept), plan.per_domain)
    with ThreadPoolExecutor(max_workers=generator.num_parallel) as pool:
        while at < len(left) and len(kept) < plan.per_domain:
            size = generator.num_parallel if prices.most is not None else CHUNK
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
                    "What was made so far is kept: the same command goes on from there.",
                )


def _judged(
    chunk: Sequence[Passage], made: Sequence[GeneratedChoices], judge: Judge, seed: int
) -> list[dict[str, Any]]:
    """The lines of the journal for some passages."""
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
    """Stops before the most that may be spent is passed, as far as costs can be foreseen."""
    cost = prices.cost(spent)
    next_cost = prices.cost(sum((generator.expected(item, count) for item in chunk), TokenUsage()))
    if prices.most is not None and cost + next_cost > prices.most:
        raise StateError(
            f"${cost:.4f} are spent, the next requests take about ${next_cost:.4f}, and ${prices.most:.4f} are allowed",
            "What was made is kept: the same command with a larger --max-cost goes on from there.",
        )


def _settings(plan: BenchmarkPlan, generator: Generator, judge: Judge) -> dict[str, Any]:
    """All that decides which items come about; ``per_domain`` only decides how many of them."""
    return {
        "corpus": plan.corpus,
        "num_choices": plan.num_choices,
        "context_chars": plan.context_chars,
        "seed": plan.seed,
        "generator": generator.settings(),
        "judge": judge.settings(),
    }


def _open(folder: Path, settings: dict[str, Any]) -> BuildProgress:
    """What is there already.

    Raises:
        StateError: The folder belongs to other settings, or is something else.
    """
    journal = folder / JOURNAL
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    head = {"format": FORMAT, "digest": digest, "settings": settings}
    if not journal.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StateError(f"{folder} is not empty and has no {JOURNAL} of a benchmark", "Give another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        write_text(journal, json.dumps(head, ensure_ascii=False) + "\n")
        return BuildProgress()
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    cut_back(journal, whole)  # a line that was cut off when the build was killed
    progress = BuildProgress()
    try:
        first, *lines = map(json.loads, content[:whole].splitlines())  # of bytes: text has more ends of lines
        if first["format"] != FORMAT or first["digest"] != digest:
            theirs = first["settings"]
            different = [key for key in settings if settings[key] != theirs.get(key)]
            raise StateError(
                f"{folder} was begun with other settings; different: {', '.join(different) or 'the format'}",
                "Give another folder, or the settings it was begun with.",
            )
        for line in lines:
            progress.add(line["domain"], line)
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{journal} is damaged: {error}", "Give another folder.") from error
    return progress


def _too_few(short: Mapping[str, int], wanted: int, what: str) -> CorpusError:
    counts = ", ".join(f"{domain} {count}" for domain, count in short.items())
    least = min(short.values())
    advice = f"Ask for --per-domain {least}, or hold out more text" if least else "Hold out more text"
    return CorpusError(f"too few {what} for {wanted} in each domain: {counts}", f"{advice}, or leave the domain out.")
