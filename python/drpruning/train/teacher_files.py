"""A stored teacher: its next-token distributions by (domain, row), in files that are checked as they are read.

    teacher.json                what was stored: corpus, model, method (:class:`TeacherIdentity`)
    blocks/DDD-NNNNNNNNN.bin    rows of block N of the corpus's domain D
    blocks/DDD-NNNNNNNNN.json   domain, number of rows, bytes, SHA-256 of the table; written after the block

While a block is replaced by one with more rows, its JSON file describes both, so that one of them can be read at any
time.

A block begins with a table: for each row its number in the domain (uint64), the end of its record in the file (uint64)
and the CRC-32 of the record (uint32), all little-endian, in three arrays. A record holds the T - 1 distributions of a
row of T tokens. Method ``sample``: the number of tokens of each (uint8), then all ids, then all counts (uint8). Method
``top_k``: the ids [T - 1, k], then the log-probabilities [T - 1, k + 1] (float32), the last of all other tokens
together. Ids are uint16, or uint32 for a vocabulary of more than 65,536.

Files are read with ``pread``, not mapped: a file that another process truncates is an exception, not SIGBUS.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from drpruning.errors import ConfigError, CorpusError
from drpruning.files import open_new, write_text
from drpruning.inputs import open_file, parse_json, read_file, shown

FORMAT = 1
INDEX, BLOCKS = "teacher.json", "blocks"
DRAWS = 50
"""Default number of draws (Anshumann et al. 2025)."""
OPEN_FILES = 64
"""Blocks that a reader keeps open."""
LARGEST_SIDECAR = 1 << 12
LARGEST_INDEX = 1 << 20
TABLE_ENTRY = 8 + 8 + 4
"""Bytes of a row in the table of its block."""

Method = Literal["sample", "top_k"]


@dataclass(frozen=True)
class TeacherIdentity:
    """What determines a stored teacher.

    Attributes:
        corpus: Fingerprint of the corpus.
        domains: Domains of the corpus, in its order.
        model: Fingerprint of the teacher, see :func:`drpruning.hf.fingerprint.model_fingerprint`.
        source: Folder or name of the teacher, for messages.
        vocabulary: Number of logits.
        seq_len: Tokens of a row.
        document_mask: Whether attention stays within documents.
        method: ``sample`` or ``top_k``.
        size: Draws from each distribution, 1 to 255, or k.
        temperature: Temperature of the softmax.
        seed: Seed of the draws.
        dtype: Dtype of the teacher's forward pass.
        block_rows: Rows of a block.
    """

    corpus: str
    domains: tuple[str, ...]
    model: str
    source: str
    vocabulary: int
    seq_len: int
    document_mask: bool
    method: Method
    size: int
    temperature: float
    seed: int
    dtype: str
    block_rows: int

    def __post_init__(self) -> None:
        for what, value, low, high in (
            ("seq_len", self.seq_len, 2, 2**31 - 1),
            ("draws" if self.method == "sample" else "top_k", self.size, 1, 255 if self.method == "sample" else 2**20),
            ("vocabulary", self.vocabulary, 1, 2**31 - 1),
            ("seed", self.seed, 0, 2**63 - 1),
            ("block_rows", self.block_rows, 1, 2**31 - 1),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{what} of the stored teacher is {value}; expected {low} to {high}")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature of the stored teacher is {self.temperature}; expected a positive number")

    @property
    def id_type(self) -> np.dtype[Any]:
        """Type of token ids in the files."""
        return np.dtype("<u2" if self.vocabulary <= 2**16 else "<u4")

    @property
    def description(self) -> str:
        """The method in words."""
        return f"{self.size} draws" if self.method == "sample" else f"top_k {self.size}"

    def write(self, folder: Path) -> None:
        """Write ``teacher.json`` into a folder."""
        write_text(folder / INDEX, json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> TeacherIdentity:
        """Read the ``teacher.json`` of a folder.

        Raises:
            ConfigError: There is none.
            CorpusError: It is damaged, or of another version.
        """
        path = folder / INDEX
        if not path.is_file():
            raise ConfigError(
                f"{folder} holds no stored teacher: there is no {INDEX}",
                "Make one with `drpruning teach CORPUS --model MODEL --out FOLDER`.",
            )
        body = parse_json(read_file(path, CorpusError, LARGEST_INDEX), path, CorpusError)
        if not isinstance(body, dict) or body.pop("format", None) != FORMAT:
            raise CorpusError(f"{path}: expected format {FORMAT} of a stored teacher", "Store the teacher again.")
        kinds = {"str": str, "int": int, "float": (int, float), "bool": bool, "tuple[str, ...]": list, "Method": str}
        for field in fields(cls):
            value, kind = body.get(field.name), kinds[str(field.type)]
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):  # type: ignore[arg-type]
                raise CorpusError(f"{path}: expected {field.name} ({field.type}), found {shown(value)}")
        if body["method"] not in ("sample", "top_k") or not all(isinstance(name, str) for name in body["domains"]):
            raise CorpusError(f"{path}: expected method sample or top_k and names of domains, found others")
        try:
            return cls(**{field.name: body[field.name] for field in fields(cls)} | {"domains": tuple(body["domains"])})
        except ConfigError as error:
            raise CorpusError(f"{path}: {error.message}") from None

    def difference(self, other: TeacherIdentity) -> str | None:
        """Return the first difference from another teacher, in words; None if both are the same but for ``source``."""
        for field in fields(self):
            own, theirs = getattr(self, field.name), getattr(other, field.name)
            if own != theirs and field.name != "source":
                return f"{field.name} is {shown(own, 40)}, not {shown(theirs, 40)}"
        return None


@dataclass(frozen=True)
class SampledTargets:
    """Random samples of N distributions.

    Attributes:
        ids: int32 [N, K] token ids, each at most once in a row; padded with 0.
        probabilities: float32 [N, K]: counts divided by the number of draws, 0 for padding; rows sum to one.
    """

    ids: NDArray[np.int32]
    probabilities: NDArray[np.float32]


@dataclass(frozen=True)
class TopKTargets:
    """The likeliest tokens of N distributions.

    Attributes:
        ids: int64 [N, k].
        log_probabilities: float32 [N, k + 1]; the last is that of all other tokens together.
    """

    ids: NDArray[np.int64]
    log_probabilities: NDArray[np.float32]


Targets = SampledTargets | TopKTargets


# ---- write


def block_path(folder: Path, domain: int, block: int) -> Path:
    """Return the path of a block."""
    return folder / BLOCKS / f"{domain:03d}-{block:09d}.bin"


def encode_sample(lengths: NDArray[Any], ids: NDArray[Any], counts: NDArray[Any], identity: TeacherIdentity) -> bytes:
    """Return the record of one row: tokens of each distribution [T - 1], and all ids and counts, one after another."""
    return b"".join(
        (lengths.astype("u1").tobytes(), ids.astype(identity.id_type).tobytes(), counts.astype("u1").tobytes())
    )


def encode_top_k(ids: NDArray[Any], log_probabilities: NDArray[Any], identity: TeacherIdentity) -> bytes:
    """Return the record of one row: ids [T - 1, k] and log-probabilities [T - 1, k + 1]."""
    return ids.astype(identity.id_type).tobytes() + log_probabilities.astype("<f4").tobytes()


def write_block(folder: Path, domain: int, block: int, rows: NDArray[np.int64], records: Sequence[bytes]) -> int:
    """Write a block, then the file that marks it as complete; return the bytes of the block.

    If the process is killed, a block that was there before can be read, or the new one.

    Args:
        folder: The folder of the stored teacher.
        domain: Number of the domain in the corpus.
        block: Number of the block.
        rows: Rows of the domain, ascending.
        records: The record of each row.

    Raises:
        OSError: A file cannot be written.
    """
    path = block_path(folder, domain, block)
    path.parent.mkdir(parents=True, exist_ok=True)
    start = TABLE_ENTRY * len(rows)
    ends = start + np.cumsum([len(record) for record in records], dtype=np.uint64)
    checksums = np.array([zlib.crc32(record) for record in records], "<u4")
    table = rows.astype("<u8").tobytes() + ends.astype("<u8").tobytes() + checksums.tobytes()
    size, sidecar = len(table) + sum(map(len, records)), path.with_suffix(".json")
    body = _description(domain, len(rows), size, table)
    with suppress(CorpusError), read_block(path) as old:  # there is none, or it cannot be read
        table_before = b"".join(each.tobytes() for each in (old.rows, old.ends, old.checksums))
        before = _description(domain, len(old.rows), int(old.ends[-1]), table_before)
        write_text(sidecar, json.dumps({**body, "replaced": before}) + "\n")
    with open_new(path) as file:
        file.write(table)
        for record in records:
            file.write(record)
    write_text(sidecar, json.dumps(body) + "\n")
    return size


def _description(domain: int, rows: int, size: int, table: bytes) -> dict[str, Any]:
    return {"domain": domain, "rows": rows, "bytes": size, "table_sha256": hashlib.sha256(table).hexdigest()}


# ---- read


@dataclass(frozen=True)
class OpenBlock:
    """An open block of a stored teacher: its descriptor, and its table; a context that closes it."""

    path: Path
    handle: int
    rows: NDArray[np.uint64]
    ends: NDArray[np.uint64]
    checksums: NDArray[np.uint32]

    def __enter__(self) -> OpenBlock:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self.handle)

    def record(self, row: int) -> bytes | None:
        """Return the record of a row; None if the block does not have it.

        Raises:
            CorpusError: The file was truncated or altered.
        """
        place = int(np.searchsorted(self.rows, row))
        if place == len(self.rows) or self.rows[place] != row:
            return None
        first = int(self.ends[place - 1]) if place else TABLE_ENTRY * len(self.rows)
        size = int(self.ends[place]) - first
        content = os.pread(self.handle, size, first)
        if len(content) != size or zlib.crc32(content) != self.checksums[place]:
            raise CorpusError(f"{self.path}: the record of row {row} is damaged", _AGAIN.format(self.path.stem))
        return content


_AGAIN = "Delete {}.* in its folder of blocks, then rerun `drpruning teach` with --resume."


def read_block(path: Path) -> OpenBlock:
    """Open a block and check its size and its table.

    Raises:
        CorpusError: It is missing, damaged, or not complete.
    """
    sidecar, again = path.with_suffix(".json"), _AGAIN.format(path.stem)
    body = parse_json(read_file(sidecar, CorpusError, LARGEST_SIDECAR), sidecar, CorpusError)
    keys = {"domain": int, "rows": int, "bytes": int, "table_sha256": str}
    before = body.pop("replaced", None) if isinstance(body, dict) else None
    for each in (body,) if before is None else (body, before):
        if not isinstance(each, dict) or any(type(each.get(key)) is not kind for key, kind in keys.items()):
            raise CorpusError(f"{sidecar}: expected {', '.join(keys)}, found {shown(each)}", again)
    if before is not None:  # the process that replaced the block was killed
        with suppress(CorpusError):
            return _open_block(path, before, again)
    return _open_block(path, body, again)


def _open_block(path: Path, body: dict[str, Any], again: str) -> OpenBlock:
    """Open a block that its description fits."""
    with open_file(path, CorpusError) as file:
        count, size = body["rows"], os.fstat(file.fileno()).st_size
        if size != body["bytes"] or not 0 < count <= size // TABLE_ENTRY:
            raise CorpusError(f"{path}: expected {body['bytes']} bytes and {count} rows, found {size} bytes", again)
        table = file.read(TABLE_ENTRY * count)
        if hashlib.sha256(table).hexdigest() != body["table_sha256"]:
            raise CorpusError(f"{path}: the table differs from its SHA-256 in {path.stem}.json", again)
        handle = os.dup(file.fileno())
    rows, ends = np.frombuffer(table, "<u8", count), np.frombuffer(table, "<u8", count, 8 * count)
    starts = np.concatenate([np.array([len(table)], np.uint64), ends[:-1]])
    if (rows[1:] <= rows[:-1]).any() or (starts > ends).any() or ends[-1] != size:
        os.close(handle)
        raise CorpusError(f"{path}: expected ascending rows and ends within the file, found others", again)
    return OpenBlock(path, handle, rows, ends, np.frombuffer(table, "<u4", count, 16 * count))


def _close(blocks: dict[tuple[int, int], OpenBlock]) -> None:
    while blocks:
        os.close(blocks.popitem()[1].handle)


class StoredTeacher:
    """Random access to a stored teacher.

    Args:
        folder: The folder that `drpruning teach` wrote.

    Raises:
        ConfigError: It holds no stored teacher.
        CorpusError: ``teacher.json`` is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.identity = TeacherIdentity.read(folder)
        self._blocks: OrderedDict[tuple[int, int], OpenBlock] = OrderedDict()
        self.close = weakref.finalize(self, _close, self._blocks)
        """Closes all files; called when the object is freed, at the latest."""

    def rows(self, domain: int) -> NDArray[np.int64]:
        """Return the stored rows of a domain, ascending.

        Raises:
            CorpusError: A block is damaged.
        """
        found = []
        for sidecar in sorted((self.folder / BLOCKS).glob(f"{domain:03d}-*.json")):
            with read_block(sidecar.with_suffix(".bin")) as block:
                found.append(block.rows.astype(np.int64))
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def has(self, domains: Iterable[int], rows: Iterable[int]) -> list[bool]:
        """Return whether each of these rows is stored."""
        return [self._has_row(int(domain), int(row)) for domain, row in zip(domains, rows, strict=True)]

    def _has_row(self, domain: int, row: int) -> bool:
        block = self._block(domain, row)
        if block is None:
            return False
        place = int(np.searchsorted(block.rows, row))
        return place < len(block.rows) and int(block.rows[place]) == row

    def read(self, domains: Iterable[int], rows: Iterable[int]) -> Targets:
        """Read the distributions of rows.

        Args:
            domains: Number of each row's domain in the corpus.
            rows: Number of each row in its domain.

        Returns:
            N = rows times (seq_len - 1) distributions, row after row.

        Raises:
            ConfigError: A row is not stored.
            CorpusError: A file is damaged.
        """
        records = []
        for domain, row in zip(domains, rows, strict=True):
            block = self._block(int(domain), int(row))
            record = None if block is None else block.record(int(row))
            if record is None:
                raise ConfigError(
                    f"{self.folder} lacks row {row} of domain {self.identity.domains[domain]!r}",
                    "Store it with `drpruning teach ... --resume`, or set distill.missing to compute.",
                )
            records.append(record)
        return self._sampled_targets(records) if self.identity.method == "sample" else self._top_k(records)

    def _block(self, domain: int, row: int) -> OpenBlock | None:
        """Return the block that would have a row, open; None if there is none."""
        key = domain, row // self.identity.block_rows
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return self._blocks[key]
        path = block_path(self.folder, *key)
        if not path.with_suffix(".json").exists():
            return None
        self._blocks[key] = read_block(path)
        if len(self._blocks) > OPEN_FILES:
            os.close(self._blocks.popitem(last=False)[1].handle)
        return self._blocks[key]

    def _sampled_targets(self, records: Sequence[bytes]) -> SampledTargets:
        count, kind, draws = self.identity.seq_len - 1, self.identity.id_type, self.identity.size
        lengths, ids, counts = [], [], []
        for record in records:
            each, rest = divmod(len(record) - count, kind.itemsize + 1)
            if rest or each < count:
                raise self._damage_error("the length of a record does not fit its content")
            lengths.append(np.frombuffer(record, "u1", count))
            ids.append(np.frombuffer(record, kind, each, count))
            counts.append(np.frombuffer(record, "u1", each, count + each * kind.itemsize))
            if lengths[-1].sum(dtype=np.int64) != each or not lengths[-1].all():
                raise self._damage_error("the number of tokens of a record does not fit its content")
        lengths_N, ids_M, counts_M = (np.concatenate(parts) for parts in (lengths, ids, counts))
        starts = np.concatenate([[0], np.cumsum(lengths_N[:-1], dtype=np.int64)])
        if (
            np.add.reduceat(counts_M, starts, dtype=np.int64) != draws
        ).any() or ids_M.max() >= self.identity.vocabulary:
            raise self._damage_error("ids or counts of a record are out of range")
        places = np.arange(int(lengths_N.max())) < lengths_N[:, None]
        padded_ids, probabilities = np.zeros(places.shape, np.int32), np.zeros(places.shape, np.float32)
        padded_ids[places] = ids_M
        probabilities[places] = counts_M / np.float32(draws)
        return SampledTargets(padded_ids, probabilities)

    def _top_k(self, records: Sequence[bytes]) -> TopKTargets:
        count, k, kind = self.identity.seq_len - 1, self.identity.size, self.identity.id_type
        ids, logs = [], []
        for record in records:
            if len(record) != count * (k * kind.itemsize + (k + 1) * 4):
                raise self._damage_error("the length of a record does not fit its content")
            ids.append(np.frombuffer(record, kind, count * k).reshape(count, k).astype(np.int64))
            logs.append(np.frombuffer(record, "<f4", count * (k + 1), count * k * kind.itemsize).reshape(count, k + 1))
        ids_NK, logs_NK = np.concatenate(ids), np.concatenate(logs)
        if ids_NK.max() >= self.identity.vocabulary or np.isnan(logs_NK).any() or logs_NK.max() > 1:
            raise self._damage_error("ids or probabilities of a record are out of range")
        return TopKTargets(ids_NK, logs_NK)

    def _damage_error(self, reason: str) -> CorpusError:
        return CorpusError(f"the stored teacher in {self.folder} is damaged: {reason}", "Store the teacher again.")
