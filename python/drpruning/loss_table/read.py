"""Read a table of losses: detect the kind of file and call its reader."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO

from drpruning.errors import ConfigError, LossTableError
from drpruning.loss_table.columns import Pattern
from drpruning.loss_table.events import event_files, read_events
from drpruning.loss_table.run import is_record, read_run
from drpruning.loss_table.table import LARGEST_COUNT, Evaluations, LossTable
from drpruning.loss_table.text import Line, lines, open_table, read_csv, read_json
from drpruning.run_folder import RunFolder


def read_losses(
    source: str | Path,
    *,
    columns: str | None = None,
    domains: Sequence[str] | None = None,
    tokens_per_step: float | None = None,
    params: float | None = None,
    stage: str | None = None,
    rates: bool = False,
) -> LossTable:
    """Read held-out losses per evaluation and domain from the files of a training run.

    Rows can be in any order; of two losses for the same evaluation the later one counts. An empty, NaN or infinite cell
    is a loss that was not measured. A row without a loss is ignored.

    Args:
        source: A CSV or JSON lines file, ``-`` for standard input, a TensorBoard event file or a folder with some,
            or a run folder of ``drpruning train`` or its ``metrics.jsonl``. The content determines the kind; an
            event file has ``tfevents`` in its name. A table has a column ``step`` or ``tokens`` (or both), perhaps
            ``params``, and a column per domain, or columns ``domain`` and ``loss`` and a row for each pair.
        columns: Pattern of the columns, keys or tags with losses, such as ``eval/loss/<domain>``. Default: all columns
            without another known role; in event files some common tags.
        domains: Domains to read, in this order; all if None.
        tokens_per_step: Tokens per step, for a source that counts steps.
        params: Parameters in use, for a source without them. Only the law's ``A`` depends on it.
        stage: Stage of a run folder; the last one that was evaluated if None.
        rates: Whether to read a column ``lr`` or ``learning_rate`` of a table.

    Raises:
        LossTableError: The source cannot be read as described; the message names line and column.
        ConfigError: ``tokens_per_step`` or ``params`` is not positive and finite, ``columns`` is not a pattern, or an
            argument has no effect on this source: ``columns`` on a run folder, ``stage`` on any other source,
            ``params`` on a source with parameters.
        DiskError: The operating system cannot open the source.
    """
    for what, number in (("tokens per step", tokens_per_step), ("parameters", params)):
        if number is not None and not 0 < number <= LARGEST_COUNT:
            raise ConfigError(f"{what}: got {number}; expected a positive number")
    path, pattern = Path(source), Pattern(columns) if columns is not None else None
    found = Evaluations(
        source="standard input" if str(source) == "-" else str(source),
        tokens_per_step=tokens_per_step,
        params=params,
        domains=None if domains is None else list(dict.fromkeys(domains)),
        reads_rates=rates,
    )
    kind = "table"
    if str(source) == "-":
        kind = _read_text(sys.stdin.buffer, found, pattern, stage)
    elif os.path.isdir(path) and RunFolder(path).metrics.is_file():  # noqa: PTH112
        kind = "run"
        with open_table(RunFolder(path).metrics) as stream:
            read_run(lines(stream, str(RunFolder(path).metrics)), found, stage)
    elif os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for a long name
        files = event_files(path)
        if not files:
            raise LossTableError(
                f"folder {found.source!r} holds neither metrics.jsonl nor TensorBoard event files",
                "Give a file of losses, a folder of event files, or a run folder.",
            )
        read_events(files, path, found, pattern)
    elif "tfevents" in path.name:
        read_events([path], path.parent, found, pattern)
    else:
        with open_table(path) as stream:
            kind = _read_text(stream, found, pattern, stage)
    if kind == "run" and columns is not None:
        raise ConfigError(f"{found.source} is a run of drpruning, where a pattern of columns has no effect")
    if kind != "run" and stage is not None:
        raise ConfigError(
            f"{found.source} is not a run of drpruning and has no stages, so stage {stage!r} has no effect"
        )
    table = found.table()
    if params is not None and found.has_params:
        raise ConfigError(
            f"{found.source} has the parameters of each evaluation, so parameters {params:g} have no effect",
            "Leave out --params.",
        )
    return table


def _read_text(stream: IO[bytes], found: Evaluations, pattern: Pattern | None, stage: str | None) -> str:
    numbered = lines(stream, found.source)
    first = next(numbered, None)
    if first is None:
        raise LossTableError(f"{found.source} is empty; expected a table of losses")
    rows: Iterator[Line] = chain([first], numbered)
    start = first[1].lstrip()
    if start.startswith("["):
        raise LossTableError(
            f"{found.source} begins with a JSON array; expected CSV, or one JSON object on each line",
            "`jq -c '.[]' losses.json` makes lines of an array.",
        )
    if not start.startswith("{"):
        read_csv(rows, found, pattern)
    elif is_record(start):
        read_run(rows, found, stage)
        return "run"
    else:
        read_json(rows, found, pattern)
    return "table"
