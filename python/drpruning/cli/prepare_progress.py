"""The progress of `drpruning prepare`: a line for each domain on stderr, if that is a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from drpruning.prepare.gather import DomainSource
from drpruning.prepare.gather import Progress as Step
from drpruning.prepare.units import Trouble

NAMED = 5


@dataclass
class _Domain:
    task: TaskID
    began: float = 0.0  # when the domain before it was done, or the work began
    documents: int = 0
    text_bytes: int = 0
    tokens: int = 0
    made_documents: int = 0
    made_bytes: int = 0


class PrepareProgress:
    """Draws what has been tokenised: documents and MB a second, tokens, and the time left by bytes on disk.

    Args:
        sources: What is to be read, by domain; empty where that is not known.
    """

    def __init__(self, sources: Mapping[str, DomainSource]) -> None:
        self.sizes = {name: source.size for name, source in sources.items()}
        self.domains: dict[str, _Domain] = {}
        self.troubles: list[Trouble] = []
        self.last = 0.0
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
            self._domain(name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def watch(self, step: Step) -> None:
        """Adds what has been done since the last call."""
        self.troubles += step.troubles[: NAMED - len(self.troubles)]
        domain = self._domain(step.domain)
        now = time.monotonic()
        domain.began = domain.began or self.last or step.began
        self.last = now
        domain.documents += step.documents
        domain.text_bytes += step.text_bytes
        domain.tokens += step.tokens
        if not step.was_there:  # what an interrupted preparation had done says nothing of the speed
            domain.made_documents += step.documents
            domain.made_bytes += step.text_bytes
        seconds = max(now - domain.began, 1e-3)
        numbers = (
            f"{domain.documents:,} documents, {domain.text_bytes / 1e6:,.1f} MB, {domain.tokens:,} tokens, "
            f"{domain.made_documents / seconds:,.0f} documents/s, {domain.made_bytes / 1e6 / seconds:.2f} MB/s"
        )
        self.progress.update(domain.task, advance=step.read, numbers=numbers)

    def named(self) -> list[Trouble]:
        """The first few entries that were left out because they cannot be used."""
        return self.troubles

    def _domain(self, name: str) -> _Domain:
        if name not in self.domains:
            size = self.sizes.get(name, 0)
            task = self.progress.add_task(name, total=size or None, numbers="", start=True)
            self.domains[name] = _Domain(task)
        return self.domains[name]
