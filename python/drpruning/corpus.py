"""Tokenised text, domain by domain: what there is to draw from.

The format is described in ``docs/corpus.md``. Files are opened here, and read in Rust.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from drpruning import _native
from drpruning.corpus_json import MAX_VOCAB_SIZE, Shard, Tokenizer, read_corpus_json
from drpruning.errors import ConfigError, CorpusError

Split = Literal["train", "eval"]
Shards = dict[str, list[Shard]]

_FINGERPRINT_BYTES = 4096


class Corpus:
    """Domains of tokens, in memory only as file names and counts.

    ``Corpus.open(folder)`` reads a folder with a ``corpus.json``. ``Corpus(domains)`` takes loose token files.

    Args:
        domains: For each domain a path or several: a ``.bin`` file, its path without ``.bin``, or a folder, whose
            ``.bin`` files are taken in the order of their names. The order of domains is kept.
        dtype: Type of the tokens in ``.bin`` files that have no ``.idx`` beside them, ``"uint16"`` for instance.
        vocab_size: Ids must be below this; checked as rows are read. None: ids must be 0 or above.
        end_token: Id of the token at the end of each document. None: not known.

    Raises:
        CorpusError: A file is missing, truncated, grown, altered or not what it claims to be.

    Example:
        >>> import numpy as np, tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> np.arange(1000, dtype="uint16").tofile(f"{folder.name}/books.bin")
        >>> corpus = Corpus({"books": f"{folder.name}/books.bin"}, dtype="uint16")
        >>> corpus.tokens(), corpus.num_rows(seq_len=256)
        ({'books': 1000}, {'books': 3})
        >>> corpus.read_rows("books", [2], seq_len=4)
        array([[ 8,  9, 10, 11]])
        >>> folder.cleanup()
    """

    def __init__(
        self,
        domains: Mapping[str, str | Path | Sequence[str | Path]],
        *,
        dtype: str | None = None,
        vocab_size: int | None = None,
        end_token: int | None = None,
    ) -> None:
        if not domains:
            raise ConfigError("a corpus needs at least one domain")
        if vocab_size is not None and not 1 <= vocab_size <= MAX_VOCAB_SIZE:
            raise ConfigError(f"vocab_size is {vocab_size}; it can be 1 to {MAX_VOCAB_SIZE}")
        if end_token is not None and not 0 <= end_token < (vocab_size or MAX_VOCAB_SIZE):
            raise ConfigError(f"end_token is {end_token}; it can be 0 to {(vocab_size or MAX_VOCAB_SIZE) - 1}")
        train = {name: _loose_shards(paths, dtype) for name, paths in domains.items()}
        self._set(None, None, vocab_size, end_token, train, {name: [] for name in train})

    @classmethod
    def open(cls, folder: str | Path) -> Corpus:
        """The corpus in ``folder``, as its ``corpus.json`` describes it.

        Costs a few small reads for each shard, whatever its size. :meth:`verify` checks every byte.

        Raises:
            CorpusError: ``corpus.json`` or a file it names is missing or not as it says.
        """
        folder = Path(folder)
        tokenizer, train, held_out = read_corpus_json(folder)
        train, held_out = (
            {name: [_as_described(shard) for shard in shards] for name, shards in split.items()}
            for split in (train, held_out)
        )
        self = cls.__new__(cls)
        self._set(folder, tokenizer, tokenizer.vocab_size, tokenizer.eos_id, train, held_out)
        return self

    def _set(
        self,
        folder: Path | None,
        tokenizer: Tokenizer | None,
        vocab_size: int | None,
        end_token: int | None,
        train: Shards,
        held_out: Shards,
    ) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.end_token = end_token
        self.domains = tuple(train)
        self._shards: dict[Split, Shards] = {"train": train, "eval": held_out}
        self._readers = {split: _reader(shards, vocab_size) for split, shards in self._shards.items()}
        self.fingerprint = _fingerprint(train)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_readers"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._readers = {split: _reader(shards, self.vocab_size) for split, shards in self._shards.items()}

    def __repr__(self) -> str:
        where = "" if self.folder is None else f"{str(self.folder)!r}, "
        return f"Corpus({where}tokens={self.tokens()})"

    def tokens(self, split: Split = "train") -> dict[str, int]:
        """Tokens in each domain."""
        return dict(zip(self.domains, self._readers[split].tokens(), strict=True))

    def num_rows(self, seq_len: int, split: Split = "train") -> dict[str, int]:
        """Rows of ``seq_len`` tokens in each domain; the last tokens that do not fill a row are not counted."""
        if seq_len < 1:
            raise ConfigError(f"seq_len is {seq_len}; a row has at least 1 token")
        return {name: tokens // seq_len for name, tokens in self.tokens(split).items()}

    def shards(self, split: Split = "train") -> dict[str, tuple[Shard, ...]]:
        """The files of each domain."""
        return {name: tuple(shards) for name, shards in self._shards[split].items()}

    def reader(self, split: Split = "train") -> _native.TokenReader:
        """The Rust object that reads rows; for the sampler."""
        return self._readers[split]

    def read_rows(self, domain: str, rows: Iterable[int], seq_len: int, split: Split = "train") -> NDArray[np.int64]:
        """Rows of one domain: int64 ``[len(rows), seq_len]``.

        Raises:
            ConfigError: There is no such domain or row.
            CorpusError: A file changed since the corpus was opened, or holds an id outside the vocabulary.
        """
        self._check_domain(domain)
        index = np.fromiter(rows, np.int64)
        count = self.num_rows(seq_len, split)[domain]
        if index.size and not (index.min() >= 0 and index.max() < count):
            raise ConfigError(
                f"domain {domain!r} has rows 0 to {count - 1} of {seq_len} tokens ({split}), not all of {index}"
            )
        out = np.empty((len(index), seq_len), np.int64)
        self._readers[split].gather(np.full(len(index), self.domains.index(domain), np.int32), index, out)
        return out

    def eval_rows(self, domain: str, seq_len: int, max_tokens: int | None = None) -> NDArray[np.int64]:
        """Held-out rows of ``domain`` from the first on, at most ``max_tokens`` tokens: int64 ``[rows, seq_len]``.

        Raises:
            ConfigError: ``max_tokens`` is less than one row, or there is no such domain.
            CorpusError: The domain has no held-out row of this length, or a file changed.
        """
        self._check_domain(domain)
        count = self.num_rows(seq_len, "eval")[domain]
        if count == 0:
            found = self.tokens("eval")[domain]
            raise CorpusError(f"domain {domain!r} has {found} held-out tokens, not one row of {seq_len}")
        if max_tokens is not None:
            if max_tokens < seq_len:
                raise ConfigError(f"max_tokens is {max_tokens}, less than one row of {seq_len} tokens")
            count = min(count, max_tokens // seq_len)
        return self.read_rows(domain, range(count), seq_len, "eval")

    def _check_domain(self, domain: str) -> None:
        if domain not in self.domains:
            raise ConfigError(f"there is no domain {domain!r}; the corpus has {', '.join(self.domains)}")

    def verify(self) -> None:
        """Reads every byte of every file: all sequences of every index, and every checksum there is.

        Raises:
            CorpusError: The first file that is not as it should be.
        """
        if self.tokenizer is not None and self.tokenizer.file is not None:
            _check_sha256(self.tokenizer.file, self.tokenizer.sha256)
        for shards in (*self._shards["train"].values(), *self._shards["eval"].values()):
            for shard in shards:
                if shard.indexed:
                    _native.read_index(shard.path, full=True)
                    _check_sha256(shard.path.with_suffix(".idx"), shard.index_sha256)
                _check_sha256(shard.path, shard.sha256)


def _reader(shards: Shards, vocab_size: int | None) -> _native.TokenReader:
    domains = [(name, [(shard.path, shard.dtype, shard.tokens) for shard in files]) for name, files in shards.items()]
    return _native.TokenReader(domains, vocab_size)


def _as_described(shard: Shard) -> Shard:
    """``shard`` with the dtype its index names, once index and ``corpus.json`` agree."""
    dtype, tokens, documents = _native.read_index(shard.path)
    size = np.dtype(dtype).itemsize
    for what, expected, found in [
        ("tokens", shard.tokens, tokens),
        ("documents", shard.documents, documents),
        ("bytes", shard.bytes, tokens * size),
    ]:
        if expected != found:
            raise CorpusError(f"{shard.path}: expected {expected} {what} (corpus.json), found {found} (index)")
    return shard.with_dtype(dtype)


def _loose_shards(paths: str | Path | Sequence[str | Path], dtype: str | None) -> list[Shard]:
    if isinstance(paths, (str, Path)):
        paths = [paths]
    shards = [_loose_shard(file, dtype) for path in paths for file in _bin_files(Path(path))]
    if not shards:
        raise CorpusError("expected at least one token file for each domain, found an empty list")
    return shards


def _bin_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(path.glob("*.bin"))
        if not files:
            raise CorpusError(f"{path}: expected .bin files in the folder, found none")
        return files
    if path.suffix == ".bin":
        return [path]
    return [path.with_name(path.name + ".bin")]


def _loose_shard(path: Path, dtype: str | None) -> Shard:
    if not path.is_file():
        raise CorpusError(f"{path}: expected a file, found none")
    if path.with_suffix(".idx").exists():
        found, tokens, documents = _native.read_index(path)
        if dtype is not None and dtype != found:
            raise CorpusError(f"{path}: expected {dtype} tokens (dtype=), found {found} (index)")
        return Shard(path=path, dtype=found, tokens=tokens, documents=documents, bytes=path.stat().st_size)
    if dtype is None:
        raise CorpusError(
            f"{path}: expected an index beside it ({path.with_suffix('.idx').name}), found none",
            next_step='If it is a flat token file, say what it holds, for instance dtype="uint16".',
        )
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = np.dtype("O")
    if kind.kind not in "iu" or kind.name != dtype or dtype == "uint64":
        raise ConfigError(f'dtype is {dtype!r}; tokens are "uint8", "uint16", "uint32", "int8", ..., or "int64"')
    size = path.stat().st_size
    if size % kind.itemsize:
        raise CorpusError(f"{path}: expected a multiple of {kind.itemsize} bytes ({dtype}), found {size}")
    return Shard(path=path, dtype=dtype, tokens=size // kind.itemsize, documents=None, bytes=size)


def _fingerprint(train: Shards) -> str:
    digest = hashlib.sha256(b"drpruning rows 1\n")
    for name, shards in train.items():
        digest.update(f"domain {len(name.encode())} {name}\n".encode())
        for shard in shards:
            content = shard.sha256 or _ends_sha256(shard)
            digest.update(f"{shard.dtype} {shard.tokens} {content}\n".encode())
    return digest.hexdigest()


def _ends_sha256(shard: Shard) -> str:
    with shard.path.open("rb") as file:
        digest = hashlib.sha256(file.read(_FINGERPRINT_BYTES))
        file.seek(max(0, shard.bytes - _FINGERPRINT_BYTES))
        digest.update(file.read(_FINGERPRINT_BYTES))
    return "ends:" + digest.hexdigest()


def _check_sha256(path: Path, expected: str | None) -> None:
    if expected is None:
        return
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise CorpusError(f"{path}: expected a file, found none") from None
    if found != expected:
        raise CorpusError(f"{path}: expected content with SHA-256 {expected}, found {found}")
