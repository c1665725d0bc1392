"""Store a teacher: run a model over rows of a corpus once, and write its next-token distributions for later runs.

Rows are grouped in blocks. Rows that are stored are not computed again, so a killed job resumes and a later job adds
rows. Several processes of a job share a folder: process k of n computes every n-th block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drpruning.config import DataConfig, TrainingConfig
from drpruning.corpus import Corpus
from drpruning.errors import ConfigError, CorpusError
from drpruning.files import check_unix, clear_partial
from drpruning.hf.models import load
from drpruning.inputs import disk_error
from drpruning.train.distill import teacher_logits, top_k_targets
from drpruning.train.model_runtime import prepare, runtime_of
from drpruning.train.preflight import check_runtime
from drpruning.train.teacher_files import (
    BLOCKS,
    INDEX,
    TeacherIdentity,
    block_path,
    encode_sample,
    encode_top_k,
    read_block,
    write_block,
)
from drpruning.train.teacher_samples import sample, uniform_numbers

BLOCK_TOKENS = 2**20
"""Tokens of a block: what a killed process computes again; 20 to 60 MB."""
FORWARD_TOKENS = 2**13
"""Tokens of a forward pass by default."""


@dataclass(frozen=True)
class RowBlock:
    """Rows that are computed and written together.

    Attributes:
        domain: Number of the domain in the corpus.
        number: Number of the block in its domain.
        rows: Rows of the domain, int64, ascending.
    """

    domain: int
    number: int
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Progress:
    """The progress of a job after a block.

    Attributes:
        blocks: Blocks of this process that have all rows of the job.
        total: Blocks of this process.
        tokens: Tokens computed by this process.
        bytes: Bytes of the blocks that it wrote.
    """

    blocks: int
    total: int
    tokens: int
    bytes: int


def blocks_of(identity: TeacherIdentity, rows: Mapping[str, NDArray[np.int64]]) -> list[RowBlock]:
    """Return the blocks with the given rows of each domain, in the order of the corpus."""
    blocks: list[RowBlock] = []
    for domain, name in enumerate(identity.domains):
        numbers = np.unique(rows.get(name, np.empty(0, np.int64)))
        starts = np.flatnonzero(np.diff(numbers // identity.block_rows, prepend=-1))
        parts = np.split(numbers, starts[1:]) if len(numbers) else []
        blocks += [RowBlock(domain, int(part[0]) // identity.block_rows, part) for part in parts]
    return blocks


def open_teacher_folder(folder: Path, identity: TeacherIdentity, *, resume: bool) -> None:
    """Create the folder of a stored teacher, or check that an existing one is of the same teacher.

    Raises:
        ConfigError: The folder has content and ``resume`` is False, or it is of another teacher.
        CorpusError: Its ``teacher.json`` is damaged.
        PlatformError: The operating system is Windows.
    """
    check_unix()
    if (folder / INDEX).exists():
        if not resume:
            raise ConfigError(
                f"{folder} holds a stored teacher", "Continue it with --resume, or give another folder with --out."
            )
        if difference := TeacherIdentity.read(folder).difference(identity):
            raise ConfigError(f"{folder} holds another stored teacher: its {difference}", "Give another --out.")
    elif folder.exists() and (not folder.is_dir() or any(_is_foreign(path) for path in folder.iterdir())):
        raise ConfigError(f"{folder} is not empty; expected a new folder or a stored teacher", "Give another --out.")
    (folder / BLOCKS).mkdir(parents=True, exist_ok=True)
    if not (folder / INDEX).exists():
        identity.write(folder)


def _is_foreign(path: Path) -> bool:
    """Return whether a path is not of another process that creates the folder now."""
    return path.name != BLOCKS and not path.name.startswith(f".{INDEX}")


def load_teacher(
    identity: TeacherIdentity, device: torch.device, corpus: Corpus, training: TrainingConfig | None = None
) -> Any:
    """Load a teacher to a device, frozen, with the kernels that a run would give it.

    Args:
        identity: The teacher, its dtype, row length and document mask.
        device: Its device.
        corpus: The corpus.
        training: The recipe's section, for ``attention`` and ``deterministic``; None: the defaults.

    Raises:
        ConfigError: It cannot be loaded, the attention function does not support it, or the corpus has no end token,
            which a document mask needs.
        MissingExtraError: The attention function's package is missing.
    """
    if identity.document_mask and corpus.end_token is None:
        raise ConfigError("the corpus has no end token, which --document-mask needs")
    data = DataConfig(
        corpus=str(corpus.folder),
        seq_len=identity.seq_len,
        reference_ratio="natural",
        document_mask=identity.document_mask,
    )
    training = training or TrainingConfig()
    runtime = TrainingConfig(
        dtype="bfloat16" if identity.dtype == "bfloat16" else "float32",
        attention=training.attention,
        deterministic=training.deterministic,
    )
    weights = torch.bfloat16 if runtime.dtype == "bfloat16" else torch.float32
    model = load(identity.source, weights, device).requires_grad_(False)
    check_runtime(runtime, data, corpus.end_token, model.config, device.type)
    prepare(model, runtime, data, corpus.end_token)
    return model


def store_teacher(
    folder: Path,
    identity: TeacherIdentity,
    model: Any,
    corpus: Corpus,
    rows: Mapping[str, NDArray[np.int64]],
    *,
    shard: tuple[int, int] = (0, 1),
    batch_size: int | None = None,
    on_block: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Compute the rows that the blocks of this process lack, and write these blocks with the rows that they have.

    Jobs with different rows must run one after another: two of them would each write a block without the other's rows.

    Args:
        folder: The folder, see :func:`open_teacher_folder`.
        identity: What is stored.
        model: The teacher, see :func:`load_teacher`.
        corpus: The corpus.
        rows: Rows to store, by domain.
        shard: Number of this process, from 0, and of all processes that share the folder.
        batch_size: Rows of a forward pass; None: about :data:`FORWARD_TOKENS` tokens. Draws do not depend on it;
            probabilities do in their last bits, as the sums of a matrix product do.
        on_block: Called after each block.

    Raises:
        CorpusError: A file of the corpus is damaged.
        DiskError: A file cannot be written; stored rows stay intact.
    """
    clear_partial(folder / BLOCKS)
    mine = blocks_of(identity, rows)[shard[0] :: shard[1]]
    batch_size = batch_size or max(1, FORWARD_TOKENS // identity.seq_len)
    device, tokens, size = next(model.parameters()).device, 0, 0
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=identity.dtype == "bfloat16")
    progress = Progress(0, len(mine), 0, 0)
    for number, block in enumerate(mine, 1):
        records = _stored_records(folder, block)
        if records is not None:
            absent = np.setdiff1d(block.rows, [*records])
            for start in range(0, len(absent), batch_size):
                part = absent[start : start + batch_size]
                tokens_BT = torch.from_numpy(corpus.read_rows(identity.domains[block.domain], part, identity.seq_len))
                with torch.no_grad(), autocast:
                    logits_NV = teacher_logits(model, tokens_BT.to(device), runtime_of(model))
                    computed = _records(logits_NV, identity, identity.domains[block.domain], part)
                    records |= zip(part.tolist(), computed, strict=True)
                tokens += tokens_BT.numel()
            try:
                rows_R = np.array(sorted(records), np.int64)
                size += write_block(folder, block.domain, block.number, rows_R, [records[row] for row in rows_R])
            except OSError as error:
                raise disk_error(folder, error) from error
        progress = Progress(number, len(mine), tokens, size)
        on_block(progress)
    return progress


def _stored_records(folder: Path, block: RowBlock) -> dict[int, bytes] | None:
    """Return the undamaged records of a block on the disk by row, also of other jobs; None if it lacks no row."""
    path = block_path(folder, block.domain, block.number)
    if not path.with_suffix(".json").exists():
        return {}
    records: dict[int, bytes] = {}
    try:
        with read_block(path) as found:
            rows = found.rows.astype(np.int64)
            if np.isin(block.rows, rows).all():
                return None
            for row in rows.tolist():
                with suppress(CorpusError):
                    record = found.record(row)
                    assert record is not None
                    records[row] = record
    except CorpusError:
        pass  # no table, so no record can be found
    return records


def _records(logits_NV: Tensor, identity: TeacherIdentity, domain: str, rows: NDArray[np.int64]) -> Iterator[bytes]:
    """Yield the record of each row."""
    count = identity.seq_len - 1
    if identity.method == "top_k":
        targets = top_k_targets(logits_NV, identity.size, identity.temperature)
        by_row = (each.cpu().view(len(rows), count, -1).numpy() for each in targets)
        for ids_TK, logs_TK in zip(*by_row, strict=True):
            yield encode_top_k(ids_TK, logs_TK, identity)
        return
    uniforms = np.concatenate([uniform_numbers(identity.seed, domain, int(row), count) for row in rows])
    uniforms_N = torch.from_numpy(uniforms).to(logits_NV.device)
    drawn = sample(logits_NV, uniforms_N, identity.size, identity.temperature)
    lengths, ids, counts = (each.cpu().numpy() for each in drawn)
    ends = np.cumsum(lengths)[count - 1 :: count]
    for number, (first, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        yield encode_sample(lengths[number * count : (number + 1) * count], ids[first:end], counts[first:end], identity)
