"""Tokenized blocks: the tokens of a block of text in the work folder, so that no text is tokenized twice.

The name of a tokenized block is a hash of the text and of all settings that decide its tokens. Every process that
writes it writes the same bytes, and writes are atomic. Layout, little-endian:

    tokens     uint16 or int32, concatenated documents
    digests    16 bytes per document
    groups     16 bytes per document: the digest of its group, or its own digest
    lengths    i64 per document, in tokens
    sizes      i64 per document, in bytes of UTF-8
    stats      JSON
    end        u64 length of the JSON, and the magic
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
from drpruning.files import open_new
from drpruning.prepare.readers.blocks import BLOCK_SIZE, Block, InputError
from drpruning.prepare.readers.field_mapping import FieldMapping
from drpruning.prepare.readers.text import Utf8
from drpruning.prepare.tokenize.chunking import CHUNK_CHARACTERS

MAGIC = b"drblock3"
SUFFIX = ".tokens"
DIGEST_SIZE = 16

CONTENT_VERSION = 4
"""Increased when the same text and settings yield other tokenized blocks than before."""


@dataclass(frozen=True, kw_only=True)
class TokenizeSettings:
    """Settings that decide the tokens of a text, and the folder of tokenized blocks.

    Args:
        blocks: Folder of tokenized blocks.
        tokenizer: Folder of the saved tokenizer.
        tokenizer_name: Name or path that the user gave.
        end_token: Text of the token that ends a document.
        tokenizer_sha256: Checksum of the tokenizer.
        end_id: The token that ends a document.
        vocab_size: The largest id + 1.
        dtype: Type of the tokens in tokenized blocks.
        utf8: Policy for invalid UTF-8.
        block_size: Bytes of text in a block.
    """

    blocks: Path
    tokenizer: Path
    tokenizer_name: str
    end_token: str
    tokenizer_sha256: str
    end_id: int
    vocab_size: int
    dtype: str
    utf8: Utf8 = "replace"
    block_size: int = BLOCK_SIZE

    def new_hash(self, block: Block, fields: FieldMapping) -> hashlib.blake2b:
        """Start the hash that names a tokenized block: the settings. The caller adds the content of the block."""
        settings = {
            "content": CONTENT_VERSION,
            "tokenizer": self.tokenizer_sha256,
            "end": self.end_id,
            "dtype": self.dtype,
            "utf8": self.utf8,
            "part": CHUNK_CHARACTERS,
            "kind": block.kind,
            "fields": fields.to_dict() if block.kind == "lines" else None,
        }
        return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=20)


@dataclass(frozen=True)
class TokenizedBlock:
    """Name and statistics of a tokenized block.

    Args:
        name: Hash of its text and settings.
        dtype: Type of the tokens.
        documents: Number of documents.
        tokens: Number of tokens, end tokens included.
        text_bytes: Bytes of UTF-8.
        left_out: Documents dropped or repaired, by reason.
        errors: Number of input errors by reason.
        error_examples: The first few input errors: reason, number within the block from 0, message.
        kinds: Number of ``unknown`` tokens and of ``bytes``, which are parts of a character.
    """

    name: str
    dtype: str
    documents: int
    tokens: int
    text_bytes: int
    left_out: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    error_examples: tuple[tuple[str, int, str], ...] = ()
    kinds: dict[str, int] = field(default_factory=dict)

    @property
    def itemsize(self) -> int:
        """Bytes of a token."""
        return np.dtype(self.dtype).itemsize

    @property
    def _digests_offset(self) -> int:
        return self.tokens * self.itemsize

    def digests(self, folder: Path) -> npt.NDArray[np.uint64]:
        """Read the digest of each document: the two big-endian words as uint64 ``[documents, 2]``."""
        return self._read_digests(folder, self._digests_offset)

    def groups(self, folder: Path) -> npt.NDArray[np.uint64]:
        """Read the digest of each document's group, as :meth:`digests`; its own digest if it has no group."""
        return self._read_digests(folder, self._digests_offset + DIGEST_SIZE * self.documents)

    def lengths(self, folder: Path) -> npt.NDArray[np.int64]:
        """Read the number of tokens of each document."""
        return self._read_array(folder, self._digests_offset + 2 * DIGEST_SIZE * self.documents, "<i8", self.documents)

    def sizes(self, folder: Path) -> npt.NDArray[np.int64]:
        """Read the number of UTF-8 bytes of each document."""
        offset = self._digests_offset + (2 * DIGEST_SIZE + 8) * self.documents
        return self._read_array(folder, offset, "<i8", self.documents)

    def read_tokens(self, folder: Path) -> npt.NDArray[Any]:
        """Read the tokens of all documents."""
        path = tokenized_block_path(folder, self.name)
        return np.fromfile(path, np.dtype(self.dtype).newbyteorder("<"), self.tokens)

    def open(self, folder: Path) -> BinaryIO:
        """Open the file at the first token."""
        return tokenized_block_path(folder, self.name).open("rb")

    def _read_digests(self, folder: Path, offset: int) -> npt.NDArray[np.uint64]:
        words = self._read_array(folder, offset, ">u8", 2 * self.documents)
        return words.reshape(-1, 2).astype(np.uint64)

    def _read_array(self, folder: Path, offset: int, dtype: str, count: int) -> npt.NDArray[Any]:
        path = tokenized_block_path(folder, self.name)
        values = np.fromfile(path, dtype, count, offset=offset)
        if len(values) != count:
            raise CorpusError(f"{path}: expected {count} documents, found {len(values)}")
        return values


@dataclass
class DomainBlocks:
    """The tokenized blocks of one domain.

    Args:
        blocks: In the order of the text.
        names: Their names, also if the text was only hashed.
        left_out: Documents dropped or repaired and input errors, by reason.
        error_examples: The first few input errors.
    """

    blocks: list[TokenizedBlock] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    error_examples: list[InputError] = field(default_factory=list)


def tokenized_block_path(folder: Path, name: str) -> Path:
    """Return the path of a tokenized block. Blocks are spread over subfolders, since a large corpus has a million."""
    return folder / name[:2] / (name + SUFFIX)


def find_tokenized_block(folder: Path, name: str) -> TokenizedBlock | None:
    """Find a complete tokenized block; None if it does not exist.

    Raises:
        CorpusError: The file is not a tokenized block.
    """
    path = tokenized_block_path(folder, name)
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 16, 0))
            tail = file.read(16)
            length = struct.unpack("<Q", tail[:8])[0] if len(tail) == 16 and tail[8:] == MAGIC else size
            if length > size - 16:
                raise CorpusError(f"{path} is not a tokenized block", "Remove the work folder and run again.")
            file.seek(size - 16 - length)
            stats = json.loads(file.read(length))
        examples = tuple((reason, number, message) for reason, number, message in stats.pop("error_examples"))
        return TokenizedBlock(name=name, error_examples=examples, **stats)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorpusError(f"{path} is damaged ({error})", "Remove the work folder and run again.") from error


class TokenizedBlockWriter:
    """Writes one tokenized block, document by document.

    Args:
        file: The file to fill.
        dtype: Type of the tokens.
    """

    def __init__(self, file: BinaryIO, dtype: str) -> None:
        self.file = file
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.digests = bytearray()
        self.groups = bytearray()
        self.lengths = array("q")
        self.sizes = array("q")
        self.tokens = 0
        self.kinds: Counter[str] = Counter()

    def add_tokens(self, ids: npt.NDArray[np.uint32], kinds: npt.NDArray[np.uint8]) -> None:
        """Append tokens; :meth:`add_document` then sets document boundaries."""
        self.file.write(ids.astype(self.dtype).tobytes())
        self.tokens += len(ids)
        counts = np.bincount(kinds[ids], minlength=3)
        self.kinds["unknown"] += int(counts[1])
        self.kinds["bytes"] += int(counts[2])

    def add_document(self, digest: bytes, length: int, size: int, group: bytes | None = None) -> None:
        """End the next document: its digest, number of tokens, bytes of UTF-8, and the digest of its group."""
        self.digests += digest
        self.groups += digest if group is None else group
        self.lengths.append(length)
        self.sizes.append(size)

    def finish(self, left_out: Counter[str], errors: Counter[str], examples: list[tuple[str, int, str]]) -> None:
        """Write the arrays and statistics after the tokens."""
        block = TokenizedBlock(
            name="",
            dtype=self.dtype.name,
            documents=len(self.lengths),
            tokens=self.tokens,
            text_bytes=sum(self.sizes),
            left_out=dict(sorted(left_out.items())),
            errors=dict(sorted(errors.items())),
            error_examples=tuple(examples),
            kinds=dict(sorted(self.kinds.items())),
        )
        body = asdict(block)
        del body["name"]
        stats = json.dumps(body).encode()
        self.file.write(self.digests + self.groups)
        for numbers in (self.lengths, self.sizes):
            self.file.write(np.frombuffer(numbers, np.int64).astype("<i8").tobytes())
        self.file.write(stats + struct.pack("<Q", len(stats)) + MAGIC)


@contextmanager
def new_tokenized_block(folder: Path, name: str, dtype: str) -> Iterator[TokenizedBlockWriter]:
    """Yield the writer of a tokenized block, and rename its file into place after the block.

    Several processes may write the same block at once: each has its own partial file, and the results are equal.
    """
    path = tokenized_block_path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_new(path) as file:
        yield TokenizedBlockWriter(file, dtype)
