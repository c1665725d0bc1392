"""Tokenized text by domain, from which a sampler draws rows.

``docs/corpus.md`` describes the formats. This module finds the files; Rust opens and reads them.
"""

from __future__ import annotations

import glob
import hashlib
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpruning import _native
from drpruning.corpus.manifest import (
    MAX_VOCAB_SIZE,
    SPLITS,
    VALIDATION_SHARE,
    Shard,
    Shards,
    Split,
    Tokenizer,
    read_corpus_json,
)
from drpruning.corpus.mds import DTYPES, MDS_INDEX, MdsShard, read_mds_index
from drpruning.errors import ConfigError, CorpusError
from drpruning.files import cache_folder
from drpruning.inputs import open_file, shown, unreadable

GROUPS = ".groups"
"""Suffix of the file with the group of each document of a held-out shard: a u64, equal in one group."""

HELD_OUT_KEY = 0x68656C64
"""Key of the permutations that choose held-out rows and documents: "held" in ASCII. Another key selects other text."""
READ_TOKENS = 4096  # tokens that :meth:`Corpus.read_tokens` reads as one row

# A file for Rust to open: a .bin file and the dtype of its tokens, or a shard that an index.json describes.
_File = tuple[str | Path, str | None] | MdsShard


class Corpus:
    """Domains of tokens. Only file names and counts are in memory.

    ``Corpus.open(folder)`` opens a folder with a ``corpus.json``. ``Corpus(domains)`` opens token files without one.

    Args:
        domains: For each domain a path or several: a ``.bin`` file (Megatron's if it has an ``.idx``, else
            flat, with or without llm.c's header), its path without ``.bin``, a folder with MosaicML's ``index.json``,
            any other folder, whose ``.bin`` files are taken, or a pattern with ``*``, ``?``, ``[...]`` or ``**``.
            Files of a folder or a pattern are sorted by name (by code point: ``web-10`` before ``web-2``). The order
            of domains is kept.
        dtype: Type of the tokens in files that do not record it, for example ``"uint16"``: flat files without a
            header, and ``bytes`` columns. A file with another type is an error. A mapping sets it by domain.
        column: The MDS column that holds the tokens. None: ``tokens``, else ``input_ids``, else the only one that
            can. A mapping sets it by domain.
        vocab_size: Ids must be below this; checked when rows are read. None: ids must be 0 or above.
        end_token: Id of the token at the end of each document. None: unknown.

    Raises:
        ConfigError: An argument is not as described.
        CorpusError: A file is missing, truncated, grown, altered or of another format.

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
        dtype: str | Mapping[str, str] | None = None,
        column: str | Mapping[str, str] | None = None,
        vocab_size: int | None = None,
        end_token: int | None = None,
    ) -> None:
        if not isinstance(domains, Mapping):
            raise ConfigError(
                f"domains is {domains!r}; expected a mapping from each domain's name to its files",
                'For example Corpus({"web": "web.bin"}); a folder with a corpus.json: Corpus.open(folder).',
            )
        if not domains:
            raise ConfigError("domains is empty; expected at least one", 'For example Corpus({"web": "web.bin"}).')
        for name in domains:
            if not isinstance(name, str) or not name or not name.isprintable():
                raise ConfigError(f"a domain is named {shown(name)}; expected printable characters")
        for what, value in {"vocab_size": vocab_size, "end_token": end_token}.items():
            if value is not None and not isinstance(value, int | np.integer):
                raise ConfigError(f"{what} is {shown(value)}; expected an integer or None")
        if vocab_size is not None and not 1 <= vocab_size <= MAX_VOCAB_SIZE:
            raise ConfigError(f"vocab_size is {vocab_size}; expected 1 to {MAX_VOCAB_SIZE}")
        if end_token is not None and not 0 <= end_token < (vocab_size or MAX_VOCAB_SIZE):
            raise ConfigError(f"end_token is {end_token}; expected 0 to {(vocab_size or MAX_VOCAB_SIZE) - 1}")
        dtypes, columns = _by_domain("dtype", dtype, domains), _by_domain("column", column, domains)
        for kind in dtypes.values():
            if kind is not None and kind not in DTYPES:
                raise ConfigError(f"dtype is {shown(kind)}; expected one of {', '.join(DTYPES)}")
        self._file_arguments = {name: (paths, columns[name], dtypes[name]) for name, paths in domains.items()}
        self._grouped: frozenset[Path] = frozenset()
        files = {name: _find_files(*arguments) for name, arguments in self._file_arguments.items()}
        self._open_readers(None, None, vocab_size, end_token, {"train": files})

    @classmethod
    def open(cls, folder: str | Path) -> Corpus:
        """Open the corpus in ``folder``, which has a ``corpus.json``.

        Costs a few small reads per shard of any size. :meth:`verify` checks every byte.

        Raises:
            CorpusError: ``corpus.json`` or a file it names is missing, or they disagree.
        """
        folder = Path(folder)
        tokenizer, splits = read_corpus_json(folder)
        self = cls.__new__(cls)
        self._file_arguments = {}
        files: dict[Split, dict[str, list[_File]]] = {
            split: {name: [(entry.path, None) for entry in entries] for name, entries in shards.items()}
            for split, shards in splits.items()
        }
        self._open_readers(folder, tokenizer, tokenizer.vocab_size, tokenizer.eos_id, files)
        for split, shards in splits.items():
            self._check_counts(split, shards)
        self._grouped = _shards_with_groups(splits)
        self.fingerprint = _fingerprint(self._readers["train"], self.domains, splits["train"])
        return self

    def _open_readers(
        self,
        folder: Path | None,
        tokenizer: Tokenizer | None,
        vocab_size: int | None,
        end_token: int | None,
        files: Mapping[Split, dict[str, list[_File]]],
    ) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.end_token = end_token
        self.domains = tuple(files["train"])
        nothing: dict[str, list[_File]] = {name: [] for name in self.domains}
        cache = cache_folder() / "mds"
        self._readers: dict[Split, _native.TokenReader] = {
            split: _native.TokenReader(list(files.get(split, nothing).items()), vocab_size, cache=cache)
            for split in SPLITS
        }

    def _check_counts(self, split: Split, manifest: Shards) -> None:
        """Raise if an index disagrees with ``corpus.json``."""
        for name, shards in self.shards(split).items():
            for entry, shard in zip(manifest[name], shards, strict=True):
                for what, expected, found in [
                    ("tokens", entry.tokens, shard.tokens),
                    ("documents", entry.documents, shard.documents),
                    ("bytes", entry.bytes, shard.bytes),
                ]:
                    if expected != found:
                        raise CorpusError(
                            f"{entry.path}: expected {expected} {what} (corpus.json), found {found} (index)"
                        )

    def __reduce__(self) -> tuple[Callable[..., Corpus], tuple[Any, ...]]:
        if self.folder is not None:
            return Corpus.open, (self.folder,)
        return _open_files, (self._file_arguments, self.vocab_size, self.end_token)

    def __repr__(self) -> str:
        where = "" if self.folder is None else f"{str(self.folder)!r}, "
        return f"Corpus({where}tokens={self.tokens()})"

    def tokens(self, split: Split = "train") -> dict[str, int]:
        """Return the number of tokens in each domain."""
        return dict(zip(self.domains, self.reader(split).tokens(), strict=True))

    def num_rows(self, seq_len: int, split: Split = "train") -> dict[str, int]:
        """Return the number of rows of ``seq_len`` tokens in each domain; an incomplete last row is not counted."""
        if not isinstance(seq_len, int | np.integer) or seq_len < 1:
            raise ConfigError(f"seq_len is {shown(seq_len)}; expected an integer of at least 1")
        return {name: tokens // seq_len for name, tokens in self.tokens(split).items()}

    def shards(self, split: Split = "train") -> dict[str, tuple[Shard, ...]]:
        """Return the files of each domain."""
        reader = self.reader(split)
        return {
            name: tuple(
                Shard(path=path, dtype=dtype, tokens=tokens, documents=documents, bytes=size)
                for path, dtype, tokens, documents, size in reader.shards(number)
            )
            for number, name in enumerate(self.domains)
        }

    def reader(self, split: Split = "train") -> _native.TokenReader:
        """Return the Rust object that reads rows, for the sampler.

        Raises:
            ConfigError: There is no such split.
        """
        if split not in SPLITS:
            raise ConfigError(f"split is {shown(split)}; expected one of {', '.join(SPLITS)}")
        return self._readers[split]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the data that determines the training rows; see ``docs/corpus.md``.

        Raises:
            CorpusError: A file changed since the corpus was opened.
        """
        return _fingerprint(self._readers["train"], self.domains, None)

    def check_fingerprint(self, expected: str | None, owner: str, next_step: str) -> None:
        """Raise if this is not the corpus of a run or a file.

        Args:
            expected: The fingerprint that the run recorded; None if it recorded none: then any corpus passes.
            owner: Name of the run or file that recorded it, for the error.
            next_step: Advice for the error, one sentence.

        Raises:
            CorpusError: The fingerprints differ.
        """
        if expected is not None and expected != self.fingerprint:
            where = "this corpus" if self.folder is None else str(self.folder)
            raise CorpusError(
                f"{owner} belongs to another corpus: its fingerprint is {expected[:16]}, that of {where} is "
                f"{self.fingerprint[:16]}",
                next_step,
            )

    def read_rows(self, domain: str, rows: Iterable[int], seq_len: int, split: Split = "train") -> NDArray[np.int64]:
        """Read rows of one domain: int64 ``[len(rows), seq_len]``.

        Raises:
            ConfigError: The domain is unknown, or a row number is out of range.
            CorpusError: The domain is shorter than one row, a file changed since the corpus was opened, or an id is
                outside the vocabulary.
        """
        self._check_domain(domain)
        try:
            index = np.fromiter(map(operator.index, rows), np.int64)
        except (TypeError, OverflowError) as error:
            raise ConfigError(f"rows of domain {domain!r} are not integers of 64 bits: {shown(error)}") from None
        count = self.num_rows(seq_len, split)[domain]
        if index.size and count == 0:
            self._raise_too_short(domain, seq_len, split)
        if index.size and not (index.min() >= 0 and index.max() < count):
            raise ConfigError(
                f"domain {domain!r} has rows 0 to {count - 1} of {seq_len} tokens ({split}), not all of {index}"
            )
        out = np.empty((len(index), seq_len), np.int64)
        self.reader(split).gather(np.full(len(index), self.domains.index(domain), np.int32), index, out)
        return out

    def read_tokens(self, domain: str, start: int, stop: int, split: Split = "train") -> NDArray[np.int64]:
        """Read tokens ``start`` to ``stop`` of one domain, in the order of its files: int64 ``[stop - start]``.

        Raises:
            ConfigError: The domain is unknown, or ``0 <= start <= stop <= tokens`` does not hold.
            CorpusError: A file changed, or an id is outside the vocabulary.
        """
        self._check_domain(domain)
        count = self.tokens(split)[domain]
        if not all(isinstance(value, int | np.integer) for value in (start, stop)) or not 0 <= start <= stop <= count:
            raise ConfigError(
                f"domain {domain!r} has tokens 0 to {count} ({split}), not {shown(start)} to {shown(stop)}"
            )
        whole = self.num_rows(READ_TOKENS, split).get(domain, 0)  # later tokens are read one by one
        first, last = start // READ_TOKENS, min(-(-stop // READ_TOKENS), whole)
        blocks = self.read_rows(domain, range(first, last), READ_TOKENS, split).ravel()
        rest = self.read_rows(domain, range(max(start, whole * READ_TOKENS), stop), 1, split).ravel()
        return np.concatenate([blocks[start - first * READ_TOKENS : stop - first * READ_TOKENS], rest])

    def held_out_row_numbers(
        self, domain: str, seq_len: int, max_tokens: int | None = None, split: Split = "test"
    ) -> NDArray[np.int64]:
        """Return the rows of ``domain`` that an evaluation or a final measurement reads: int64 ``[rows]``, ascending.

        They are the first rows of a permutation of all rows of the split with a constant key (:data:`HELD_OUT_KEY`):
        spread over all text of the split, identical on every machine, and a subset of the rows for a larger
        ``max_tokens``. They index the rows of :meth:`held_out_source`. If only one of validation and test has shards,
        both divide its rows, see :func:`held_out_order`: no row is in both, whatever ``max_tokens``, but a document
        may be.

        Args:
            domain: Name of the domain.
            seq_len: Tokens of a row.
            max_tokens: Maximum number of tokens; None: all rows of the split.
            split: ``validation`` (strategies, reference losses, curves) or ``test`` (final measurements).

        Raises:
            ConfigError: ``max_tokens`` is less than one row, the domain is unknown, or the split is ``train``.
            CorpusError: The domain has no held-out row of this length, or a single row for both splits.
        """
        source = self.held_out_source(domain, split)
        count = self.num_rows(seq_len, source)[domain]
        if count == 0:
            self._raise_too_short(domain, seq_len, source)
        if max_tokens is not None and max_tokens < seq_len:
            raise ConfigError(f"max_tokens is {max_tokens}; expected at least one row, {seq_len} tokens")
        order = held_out_order(count, split, divided=self.divides_held_out(domain))
        if not len(order):
            raise CorpusError(
                f"domain {domain!r} has 1 held-out row of {seq_len} tokens; expected 2 or more: validation and test",
                "Prepare the corpus with a larger --holdout, or use a smaller data.seq_len.",
            )
        return np.sort(order if max_tokens is None else order[: max_tokens // seq_len])

    def held_out_rows(
        self, domain: str, seq_len: int, max_tokens: int | None = None, split: Split = "test"
    ) -> NDArray[np.int64]:
        """Read held-out rows of ``domain``, at most ``max_tokens`` tokens: int64 ``[rows, seq_len]``.

        :meth:`held_out_row_numbers` selects the rows; they are in the order of the text.

        Raises:
            ConfigError: As :meth:`held_out_row_numbers`.
            CorpusError: As :meth:`held_out_row_numbers`, or a file changed.
        """
        numbers = self.held_out_row_numbers(domain, seq_len, max_tokens, split)
        return self.read_rows(domain, numbers, seq_len, self.held_out_source(domain, split))

    def held_out_source(self, domain: str, split: Split = "test") -> Split:
        """Return the split whose shards hold the text of a held-out split: the other one if it has no tokens itself.

        Raises:
            ConfigError: The domain is unknown, or the split is ``train``.
        """
        self._check_domain(domain)
        if split == "train":
            raise ConfigError("the split train is not held out; expected validation or test")
        other: Split = "validation" if split == "test" else "test"
        return other if self.tokens(other)[domain] and not self.tokens(split)[domain] else split

    def divides_held_out(self, domain: str) -> bool:
        """Return whether validation and test divide the shards of one of them, the only one of ``domain`` with tokens.

        Raises:
            ConfigError: The domain is unknown.
        """
        return self.held_out_source(domain, "validation") == self.held_out_source(domain, "test")

    def held_out_groups(self, domain: str, split: Split = "test") -> NDArray[np.int64] | None:
        """Return the group of each held-out document: int64 ``[documents]``, equal numbers for documents of one group.

        Documents of one group are from one source, such as a file or a package, and are not independent. Groups are
        numbered from 0 within the shards of :meth:`held_out_source`, whose documents are in the order of the text.

        Returns:
            None if the corpus has no groups.

        Raises:
            ConfigError: As :meth:`held_out_source`.
            CorpusError: A file is missing or damaged.
        """
        shards = self.shards(self.held_out_source(domain, split))[domain]
        files = [self._groups_file(shard) for shard in shards]
        if not files or None in files:
            return None
        keys = np.concatenate([np.fromfile(path, "<u8") for path in files if path is not None])
        documents = sum(shard.documents or 0 for shard in shards)
        if len(keys) != documents:
            raise CorpusError(f"{files[0]}: expected {documents} groups in domain {domain!r}, found {len(keys)}")
        return np.unique(keys, return_inverse=True)[1].astype(np.int64)

    def _groups_file(self, shard: Shard) -> Path | None:
        """Return the file with the groups of a shard's documents; None if ``corpus.json`` names none."""
        if shard.path not in self._grouped:
            return None
        path = shard.path.with_suffix(GROUPS)
        if not path.exists():
            raise CorpusError(f"{path}: expected a file, found none")
        return path

    def _raise_too_short(self, domain: str, seq_len: int, split: Split) -> None:
        kind = "tokens" if split == "train" else f"{split} tokens"
        raise CorpusError(f"domain {domain!r} has {self.tokens(split)[domain]} {kind}, less than one row of {seq_len}")

    def _check_domain(self, domain: str) -> None:
        if domain not in self.domains:
            raise ConfigError(f"unknown domain {domain!r}; the corpus has {', '.join(self.domains)}")

    def verify(self) -> None:
        """Read every byte of every file and check all sequences and samples of every index and all checksums.

        Raises:
            CorpusError: A file is damaged; the first one is named.
        """
        if self.tokenizer is not None and self.tokenizer.file is not None:
            _check_hash(self.tokenizer.file, "sha256", self.tokenizer.sha256)
        if self.folder is not None:
            _, splits = read_corpus_json(self.folder)
            for shard in (shard for split in splits.values() for shards in split.values() for shard in shards):
                _native.verify_index(shard.path)
                _check_hash(shard.path.with_suffix(".idx"), "sha256", shard.index_sha256)
                _check_hash(shard.path, "sha256", shard.sha256)
                _check_hash(shard.path.with_suffix(GROUPS), "sha256", shard.groups_sha256)
        for arguments in self._file_arguments.values():
            for file in _find_files(*arguments):
                if isinstance(file, MdsShard):
                    for algorithm, digest in file.hashes.items():
                        _check_hash(file.path, algorithm, digest)
                    _native.verify_mds(file)
                elif Path(file[0]).with_suffix(".idx").exists():
                    _native.verify_index(file[0])


def held_out_order(count: int, split: Split, *, divided: bool) -> NDArray[np.int64]:
    """Return the order in which a held-out split reads ``count`` rows or documents: int64, of all that are its own.

    Args:
        count: Number of rows or documents in the shards.
        split: ``validation`` or ``test``.
        divided: Whether both splits read these shards: validation then has the first third of the permutation
            (:data:`~drpruning.corpus.manifest.VALIDATION_SHARE`, at least one), test the others, from the end.

    >>> held_out_order(8, "validation", divided=True), held_out_order(8, "test", divided=True)
    (array([7, 2]), array([0, 6, 4, 1, 5, 3]))
    """
    order = _native.permuted(HELD_OUT_KEY, count, count).astype(np.int64)
    if not divided:
        return order
    validation = max(int(count * VALIDATION_SHARE), 1)
    return order[:validation] if split == "validation" else order[validation:][::-1]


def _shards_with_groups(splits: Mapping[Split, Shards]) -> frozenset[Path]:
    shards = (shard for split in splits.values() for shards in split.values() for shard in shards)
    return frozenset(shard.path for shard in shards if shard.groups_sha256 is not None)


def _open_files(
    arguments: dict[str, tuple[Any, str | None, str | None]], vocab_size: int | None, end_token: int | None
) -> Corpus:
    return Corpus(
        {name: paths for name, (paths, _, _) in arguments.items()},
        column={name: column for name, (_, column, _) in arguments.items() if column is not None},
        dtype={name: dtype for name, (_, _, dtype) in arguments.items() if dtype is not None},
        vocab_size=vocab_size,
        end_token=end_token,
    )


def _by_domain(what: str, value: str | Mapping[str, str] | None, domains: Iterable[str]) -> dict[str, str | None]:
    if value is None or isinstance(value, str):
        return dict.fromkeys(domains, value)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what} is {shown(value)}; expected a text, or a mapping from domains to texts")
    by_domain = dict.fromkeys(domains, None) | dict(value)
    unknown = sorted(set(by_domain) - set(domains))
    if unknown:
        raise ConfigError(f"{what} names {unknown[0]!r}; the domains are {', '.join(domains)}")
    return by_domain


def _find_files(paths: str | Path | Sequence[str | Path], column: str | None, dtype: str | None) -> list[_File]:
    if isinstance(paths, (str, Path)):
        paths = [paths]
    paths = list(paths) if isinstance(paths, Iterable) else [paths]
    if wrong := [path for path in paths if not isinstance(path, str | os.PathLike)]:
        raise ConfigError(f"a file of a domain is {shown(wrong[0])}; expected a path")
    files = [file for path in paths for file in _expand_path(os.fspath(path), column, dtype)]
    if not files:
        raise CorpusError("expected at least one token file for each domain, found an empty list")
    return files


def _expand_path(path: str, column: str | None, dtype: str | None) -> list[_File]:
    try:
        if b"\0" in os.fsencode(path):
            raise ValueError("NUL")
    except ValueError as error:  # NUL or a lone surrogate
        raise unreadable(shown(path), error, CorpusError) from None
    if os.path.isdir(path):  # noqa: PTH112 # 10^5 Path objects take a second and a hundred megabytes
        return _files_in_folder(path, column, dtype)
    if glob.has_magic(path) and not os.path.exists(path):  # noqa: PTH110
        matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207
        files: list[_File] = []
        for match in matches:
            if match.endswith(".bin") or os.path.isdir(match):  # noqa: PTH112
                files += _expand_path(match, column, dtype)
        if not files:
            raise CorpusError(
                f"{path}: expected .bin files or folders of that pattern, found {len(matches) or 'no'} others"
            )
        return files
    if path.endswith(f"{os.sep}{MDS_INDEX}"):
        return list(read_mds_index(Path(path).parent, column, dtype))
    if path.endswith(".mds") or ".mds." in os.path.basename(path):  # noqa: PTH119
        raise CorpusError(f"{path}: expected a folder of MDS shards, found one of them", next_step="Pass its folder.")
    if path.endswith(".bin"):
        return [(path, dtype)]
    if os.path.exists(path) and not os.path.exists(f"{path}.bin"):  # noqa: PTH110
        raise CorpusError(
            f"{shown(path)} is not a token file; expected .bin, a folder or a pattern",
            "Text: `drpruning prepare` makes a corpus of it.",
        )
    return [(f"{path}.bin", dtype)]


def _files_in_folder(folder: str, column: str | None, dtype: str | None) -> list[_File]:
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208
    except OSError as error:
        raise unreadable(folder, error, CorpusError) from None
    bins: list[_File] = [(os.path.join(folder, name), dtype) for name in names if name.endswith(".bin")]  # noqa: PTH118
    if MDS_INDEX in names:
        if bins:
            raise CorpusError(
                f"{folder}: expected MDS shards (index.json) or .bin files, found both",
                next_step=f"Pass the files you mean: {folder}/index.json or {folder}/*.bin.",
            )
        return list(read_mds_index(Path(folder), column, dtype))
    if not bins:
        raise CorpusError(f"{folder}: expected .bin files or an index.json in the folder, found neither")
    return bins


def _fingerprint(reader: _native.TokenReader, domains: Sequence[str], checksums: Shards | None) -> str:
    digest = hashlib.sha256(b"drpruning rows 1\n")
    for number, name in enumerate(domains):
        digest.update(f"domain {len(name.encode())} {name}\n".encode())
        if checksums is None:
            contents = [f"ends:{ends.hex()}" for ends in reader.ends_sha256(number)]
        else:
            contents = [shard.sha256 or "" for shard in checksums[name]]
        for (_, dtype, tokens, _, _), content in zip(reader.shards(number), contents, strict=True):
            digest.update(f"{dtype} {tokens} {content}\n".encode())
    return digest.hexdigest()


def _check_hash(path: Path, algorithm: str, expected: str | None) -> None:
    """Compare the file with a digest; skip digests of algorithms that Python does not have."""
    if expected is None or algorithm not in hashlib.algorithms_guaranteed or algorithm.startswith("shake"):
        return
    with open_file(path, CorpusError) as file:
        try:
            found = hashlib.file_digest(file, algorithm).hexdigest()
        except OSError as error:
            raise unreadable(path, error, CorpusError) from None
    if found != expected:
        name = {"sha256": "SHA-256"}.get(algorithm, algorithm)
        raise CorpusError(f"{path}: expected content with {name} {expected}, found {found}")
