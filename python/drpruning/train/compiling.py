"""Compiling decoder blocks, and a record where torch gives it up.

All blocks of a model share one compiled version of their code as long as what they are given looks alike; the compiler
makes another version for evaluation, for other sizes, and for closed units. At a limit of versions it stops, warns once
in a log, and runs that code uncompiled from then on. So each model starts with no versions, the limit is raised, and a
hit becomes an :class:`~drpruning.records.Incident`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from drpruning.records import Incident, Sink

LIMIT = 64
"""Versions of a block's code: ten times what a prune stage took in ``tests/train/test_compiling.py``.
torch allows 8 unless it is changed."""
LIMITS = ("recompile_limit", "cache_size_limit")  # its name in torch, newest first
LOGGER, SENTENCE = "torch._dynamo.convert_frame", "torch._dynamo hit config."


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile the blocks of a model at their first calls, without the versions of the models before it."""
    torch.compiler.reset()
    for block in blocks:
        block.compile()


@contextmanager
def compiling(sink: Sink) -> Iterator[None]:
    """Within the context the limit of versions is :data:`LIMIT`, and ``sink`` gets a record where it is hit."""
    config: Any = torch._dynamo.config
    limit = next(name for name in LIMITS if hasattr(config, name))
    logger, handler = logging.getLogger(LOGGER), _Hits(sink)
    with ExitStack() as stack:
        stack.enter_context(config.patch({limit: max(LIMIT, getattr(config, limit))}))
        logger.addHandler(handler)
        stack.callback(logger.removeHandler, handler)
        yield


class _Hits(logging.Handler):
    """Write the warnings about a limit as records, once for each function; ignore what else torch logs."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(logging.WARNING)
        self.sink = sink
        self.seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if not said.startswith(SENTENCE):
            return
        lines = [line.strip() for line in said.splitlines()]
        function = next((line for line in lines if line.startswith("function:")), lines[0])
        if function in self.seen:
            return
        self.seen.add(function)
        self.sink.write(
            Incident(what="compiler's limit", detail=f"{lines[0]}: runs uncompiled from here on; {function}")
        )
