"""Encoder: texts to flat token ids, in batches, and long documents in chunks.

Special tokens spelled out in a text are text. ``encode_special_tokens`` of the tokenizers library ensures this for
special tokens added to a vocabulary. A Unigram model has special tokens in the vocabulary itself (``</s>`` of XLM-R
and T5) and finds them in text like any other word, which SentencePiece does not; :func:`escape_special_tokens`
prevents it.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import pre_tokenizers

from drpruning.errors import CorpusError
from drpruning.prepare.tokenize.chunking import CHUNK_CHARACTERS, encode_chunk, split_into_chunks

BATCH_CHARACTERS = 1 << 19
"""Characters per call of the tokenizer: enough to keep every core busy, and a bound on the memory of the tokens."""

CACHED_WORDS = 1 << 15
"""Words whose tokens the tokenizer caches, per thread. The default of 10,000 keeps only the first words of the text.
This size is 3 to 6% faster (20 MB of source code) and takes some 10 MiB."""


@dataclass(frozen=True)
class Encoder:
    """The part of a tokenizer that makes tokens.

    Args:
        backend: The fast tokenizer.
        end_id: The token that ends a document.
        vocab_size: The largest id + 1.
    """

    backend: tokenizers.Tokenizer
    end_id: int
    vocab_size: int

    def __post_init__(self) -> None:
        self.backend.no_truncation()  # some models ship a tokenizer.json that cuts text at their length
        self.backend.no_padding()
        self.backend.encode_special_tokens = True  # "<|endoftext|>" in a document is text and ends nothing
        object.__setattr__(self, "backend", escape_special_tokens(self.backend))
        if hasattr(self.backend.model, "_resize_cache"):  # not public; tokenizers 0.20 has none
            self.backend.model._resize_cache(CACHED_WORDS)

    @classmethod
    def load(cls, folder: Path, end_id: int, vocab_size: int) -> Encoder:
        """Load from the folder of a saved tokenizer, without transformers."""
        return cls(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), end_id, vocab_size)

    def encode_batch(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """Return the concatenated tokens of all texts, each with the end token, and the number of tokens of each."""
        ids = array("I")
        lengths = np.empty(len(texts), np.int64)
        end = [self.end_id]
        for number, encoding in enumerate(self.backend.encode_batch_fast(list(texts), add_special_tokens=False)):
            text_ids = encoding.ids
            ids.fromlist(text_ids)
            ids.fromlist(end)
            lengths[number] = len(text_ids) + 1
        return self._check_ids(ids), lengths

    def encode_long(self, texts: Iterator[str]) -> Iterator[tuple[npt.NDArray[np.uint32], bool]]:
        """Yield the tokens of one document in chunks, the end token last; with each, whether its cut is exact."""
        for chunk in split_into_chunks(texts, self._encode):
            yield self._check_ids(array("I", encode_chunk(chunk, self._encode))), chunk.exact
        yield np.array([self.end_id], np.uint32), True

    def is_long(self, text: str) -> bool:
        """Return whether :meth:`encode_long` should tokenize a text, to bound memory."""
        return len(text) > CHUNK_CHARACTERS

    @cached_property
    def token_kinds(self) -> npt.NDArray[np.uint8]:
        """For each id: 1 for the unknown token, 2 for a byte that is not a character, 0 else."""
        kinds = np.zeros(self.vocab_size, np.uint8)
        unknown = getattr(self.backend.model, "unk_token", None)
        for token, number in self.backend.get_vocab(with_added_tokens=True).items():
            if token == unknown:
                kinds[number] = 1
            elif (len(token) == 6 and token.startswith("<0x")) or (len(token) == 1 and token in _PARTIAL_BYTES):
                kinds[number] = 2
        return kinds

    def _encode(self, text: str) -> list[int]:
        (encoding,) = self.backend.encode_batch_fast([text], add_special_tokens=False)
        return encoding.ids

    def _check_ids(self, ids: array[int]) -> npt.NDArray[np.uint32]:
        array_ids = np.frombuffer(ids, np.uint32)
        if array_ids.size and (largest := int(array_ids.max())) >= self.vocab_size:
            raise CorpusError(f"the tokenizer made the id {largest}; its vocabulary has ids below {self.vocab_size}")
        return array_ids


def escape_special_tokens(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Return a tokenizer that never parses special tokens from text: ``backend`` itself if it does not, else a copy.

    The copy cuts a spelled-out special token after its first character before the model sees it. Other text keeps its
    tokens. A special token of a single character cannot be cut and is still parsed.

    Args:
        backend: The tokenizer, with ``encode_special_tokens`` set.
    """
    parsed_tokens = [
        token.content
        for number, token in backend.get_added_tokens_decoder().items()
        if token.special and len(token.content) > 1 and _parses_special_token(backend, token.content, number)
    ]
    if not parsed_tokens:
        return backend
    copy = tokenizers.Tokenizer.from_str(backend.to_str())
    copy.encode_special_tokens = True  # not part of the serialized tokenizer
    first_characters = "|".join(f"{re.escape(text[0])}(?={re.escape(text[1:])})" for text in parsed_tokens)
    split = pre_tokenizers.Split(tokenizers.Regex(first_characters), "merged_with_previous")
    pre_tokenizer = copy.pre_tokenizer
    copy.pre_tokenizer = split if pre_tokenizer is None else pre_tokenizers.Sequence([pre_tokenizer, split])
    return copy


def _parses_special_token(backend: tokenizers.Tokenizer, text: str, number: int) -> bool:
    return any(
        number in backend.encode(context.format(text), add_special_tokens=False).ids
        for context in ("{}", "x{}", "x {} x")
    )


def _partial_bytes() -> frozenset[str]:
    """Return the characters that byte-level vocabularies (GPT-2's table) use for bytes above 127.

    Such a byte is only a part of a character.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return frozenset(table[byte] for byte in range(128, 256))


_PARTIAL_BYTES = _partial_bytes()
