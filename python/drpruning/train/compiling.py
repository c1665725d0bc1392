"""Compilation of decoder blocks, and a record where torch stops compiling one.

All blocks of a model share one compiled version while their inputs have the same properties; evaluation, other sizes
and pruned units take further versions. At the recompile limit torch logs one warning and runs that code uncompiled from
then on. So each model starts with no versions, the limit is raised, and a hit becomes an
:class:`~drpruning.records.Incident`.
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
"""Versions of a block's code, by default 8 in torch: ten times those of ``tests/train/test_compiling.py``."""
LIMITS = ("recompile_limit", "cache_size_limit")  # the setting's name in torch, newest first
LOGGER, SENTENCE = "torch._dynamo.convert_frame", "torch._dynamo hit config."


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile the blocks of a model at their first calls, and drop the versions of earlier models."""
    torch.compiler.reset()
    for block in blocks:
        block.compile()


@contextmanager
def compiling(sink: Sink) -> Iterator[None]:
    """Set the recompile limit to :data:`LIMIT` within the context; write a record to ``sink`` where it is hit."""
    config: Any = torch._dynamo.config
    limit = next(name for name in LIMITS if hasattr(config, name))
    logger, handler = logging.getLogger(LOGGER), _LimitHandler(sink)
    with ExitStack() as stack:
        stack.enter_context(config.patch({limit: max(LIMIT, getattr(config, limit))}))
        logger.addHandler(handler)
        stack.callback(logger.removeHandler, handler)
        yield


class _LimitHandler(logging.Handler):
    """Writes torch's warnings about the limit as records, one for each function."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(logging.WARNING)
        self.sink = sink
        self.seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if not message.startswith(SENTENCE):
            return
        lines = [line.strip() for line in message.splitlines()]
        function = next((line for line in lines if line.startswith("function:")), lines[0])
        if function in self.seen:
            return
        self.seen.add(function)
        self.sink.write(
            Incident(what="compiler's limit", detail=f"{lines[0]}: runs uncompiled from here on; {function}")
        )
