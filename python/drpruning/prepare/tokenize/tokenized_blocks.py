"""Pieces: what tokenising a block leaves in the work folder, so that nothing is tokenised twice.

A piece is called by a digest of its block and of all settings that decide its tokens. Whoever makes it, and however
often, it has the same bytes; it appears whole or not at all. Layout, little-endian:

    tokens     uint16 or int32, documents back to back
    digests    16 bytes for each document
    lengths    i64 for each document, in tokens
    sizes      i64 for each document, in bytes of UTF-8
    notes      JSON
    end        u64 length of the notes, and "drpiece1"
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from drpruning.errors import CorpusError

MAGIC = b"drpiece1"
SUFFIX = ".piece"
DIGEST_SIZE = 16


@dataclass(frozen=True)
class Piece:
    """What a piece says about itself.

    Args:
        name: Its digest.
        dtype: Of the tokens.
        documents: Documents in it.
        tokens: Tokens in it, end tokens included.
        text_bytes: Bytes of UTF-8.
        left_out: Documents dropped or repaired, by reason.
        troubles: Entries that could not be used, by reason.
        named: The first few of them: reason, number within the block from 0, message.
        kinds: ``unknown`` and ``bytes``: tokens that stand for no text, or for part of a character.
    """

    name: str
    dtype: str
    documents: int
    tokens: int
    text_bytes: int
    left_out: dict[str, int] = field(default_factory=dict)
    troubles: dict[str, int] = field(default_factory=dict)
    named: tuple[tuple[str, int, str], ...] = ()
    kinds: dict[str, int] = field(default_factory=dict)

    @property
    def itemsize(self) -> int:
        """Bytes of a token."""
        return np.dtype(self.dtype).itemsize

    @property
    def _after_tokens(self) -> int:
        return self.tokens * self.itemsize

    def digests(self, folder: Path) -> npt.NDArray[np.uint64]:
        """Digest of each document: big-endian uint64 ``[documents, 2]`` read as numbers."""
        found = self._array(folder, self._after_tokens, ">u8", 2 * self.documents)
        return found.reshape(-1, 2).astype(np.uint64)

    def lengths(self, folder: Path) -> npt.NDArray[np.int64]:
        """Tokens of each document."""
        return self._array(folder, self._after_tokens + DIGEST_SIZE * self.documents, "<i8", self.documents)

    def sizes(self, folder: Path) -> npt.NDArray[np.int64]:
        """Bytes of each document."""
        return self._array(folder, self._after_tokens + (DIGEST_SIZE + 8) * self.documents, "<i8", self.documents)

    def open(self, folder: Path) -> BinaryIO:
        """The file, at the first token."""
        return piece_path(folder, self.name).open("rb")

    def _array(self, folder: Path, offset: int, dtype: str, count: int) -> npt.NDArray[Any]:
        found = np.fromfile(piece_path(folder, self.name), dtype, count, offset=offset)
        if len(found) != count:
            raise CorpusError(f"{piece_path(folder, self.name)}: expected {count} documents, found {len(found)}")
        return found


def piece_path(folder: Path, name: str) -> Path:
    """Where a piece is; spread over folders, since a big corpus has a million."""
    return folder / name[:2] / (name + SUFFIX)


def find_piece(folder: Path, name: str) -> Piece | None:
    """A finished piece, if there is one.

    Raises:
        CorpusError: There is something else under its name.
    """
    path = piece_path(folder, name)
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 16, 0))
            tail = file.read(16)
            length = struct.unpack("<Q", tail[:8])[0] if len(tail) == 16 and tail[8:] == MAGIC else size
            if length > size - 16:
                raise CorpusError(f"{path} is not a piece", "Remove the work folder beside the corpus and run again.")
            file.seek(size - 16 - length)
            notes = json.loads(file.read(length))
    except FileNotFoundError:
        return None
    notes["named"] = tuple((reason, number, message) for reason, number, message in notes["named"])
    return Piece(name=name, **notes)


class PieceWriter:
    """Writes one piece as its documents come.

    Args:
        file: The file to fill.
        dtype: Of the tokens.
    """

    def __init__(self, file: BinaryIO, dtype: str) -> None:
        self.file = file
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.digests = bytearray()
        self.lengths = array("q")
        self.sizes = array("q")
        self.tokens = 0
        self.kinds: Counter[str] = Counter()

    def add_tokens(self, ids: npt.NDArray[np.uint32], kinds: npt.NDArray[np.uint8]) -> None:
        """Appends tokens; :meth:`add_document` says later where documents end."""
        self.file.write(ids.astype(self.dtype).tobytes())
        self.tokens += len(ids)
        counts = np.bincount(kinds[ids], minlength=3)
        self.kinds["unknown"] += int(counts[1])
        self.kinds["bytes"] += int(counts[2])

    def add_document(self, digest: bytes, length: int, size: int) -> None:
        """Says that the next document has these many tokens and bytes."""
        self.digests += digest
        self.lengths.append(length)
        self.sizes.append(size)

    def finish(self, left_out: Counter[str], troubles: Counter[str], named: list[tuple[str, int, str]]) -> None:
        """Writes what comes after the tokens."""
        piece = Piece(
            name="",
            dtype=self.dtype.name,
            documents=len(self.lengths),
            tokens=self.tokens,
            text_bytes=sum(self.sizes),
            left_out=dict(sorted(left_out.items())),
            troubles=dict(sorted(troubles.items())),
            named=tuple(named),
            kinds=dict(sorted(self.kinds.items())),
        )
        body = asdict(piece)
        del body["name"]
        notes = json.dumps(body).encode()
        self.file.write(self.digests)
        for numbers in (self.lengths, self.sizes):
            self.file.write(np.frombuffer(numbers, np.int64).astype("<i8").tobytes())
        self.file.write(notes + struct.pack("<Q", len(notes)) + MAGIC)


@contextmanager
def new_piece(folder: Path, name: str, dtype: str) -> Iterator[PieceWriter]:
    """Yields the writer of a piece that appears when the block ends well.

    Several processes may make the same piece at once: the names under way are their own, the results equal.
    """
    path = piece_path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{name}.{os.getpid()}.partial")
    try:
        with aside.open("wb") as file:
            yield PieceWriter(file, dtype)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def block_digest(settings: str) -> hashlib.blake2b:
    """A hash that has taken in the settings; the block's content comes next."""
    return hashlib.blake2b(settings.encode(), digest_size=20)
