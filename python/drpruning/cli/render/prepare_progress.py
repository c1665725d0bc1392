"""Progress display of `drpruning prepare`: a line for each domain on stderr; without a terminal, one now and then."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from drpruning.formatting import printable
from drpruning.prepare.pipeline.tokenize_all import TokenizeProgress
from drpruning.prepare.readers.blocks import DomainSource, InputError

MAX_EXAMPLES = 5
"""Input errors that are kept to be printed."""
LINE_SECONDS = 30.0
"""Seconds between lines where stderr is not a terminal: a sign of life in the log of a batch job."""


@dataclass
class _DomainProgress:
    task: TaskID
    began: float = 0.0  # end of the domain before, or start of the tokenization
    documents: int = 0
    text_bytes: int = 0
    tokens: int = 0
    new_documents: int = 0  # without those of an interrupted preparation, which say nothing about the speed
    new_bytes: int = 0


class PrepareProgress:
    """Displays documents and MB per second, tokens, and the remaining time by bytes on disk.

    Attributes:
        errors: The first few input errors.

    Args:
        sources: Text by domain; empty if unknown.
    """

    def __init__(self, sources: Mapping[str, DomainSource]) -> None:
        self.sizes = {name: source.size for name, source in sources.items()}
        self.domains: dict[str, _DomainProgress] = {}
        self.errors: list[InputError] = []
        self.last = 0.0
        self.printed = time.monotonic()
        console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> PrepareProgress:
        self.progress.start()
        for name in self.sizes:
            self._find_domain(name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def update(self, step: TokenizeProgress) -> None:
        """Add the progress since the previous call."""
        self.errors += step.errors[: MAX_EXAMPLES - len(self.errors)]
        domain = self._find_domain(step.domain)
        now = time.monotonic()
        domain.began = domain.began or self.last or step.began
        self.last = now
        domain.documents += step.documents
        domain.text_bytes += step.text_bytes
        domain.tokens += step.tokens
        if not step.cached:
            domain.new_documents += step.documents
            domain.new_bytes += step.text_bytes
        seconds = max(now - domain.began, 1e-3)
        numbers = (
            f"{domain.documents:,} documents, {domain.text_bytes / 1e6:,.1f} MB, {domain.tokens:,} tokens, "
            f"{domain.new_documents / seconds:,.0f} documents/s, {domain.new_bytes / 1e6 / seconds:.2f} MB/s"
        )
        self.progress.update(domain.task, advance=step.bytes_read, numbers=numbers)
        if not self.progress.console.is_terminal and now - self.printed >= LINE_SECONDS:
            self.printed = now
            done = next((task.percentage for task in self.progress.tasks if task.id == domain.task), 0.0)
            line = f"{printable(step.domain)}: {done:.0f}%, {numbers}"
            self.progress.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _find_domain(self, name: str) -> _DomainProgress:
        if name not in self.domains:
            size = self.sizes.get(name, 0)
            task = self.progress.add_task(name, total=size or None, numbers="", start=True)
            self.domains[name] = _DomainProgress(task)
        return self.domains[name]
