"""Texts to token ids, flat: the tokenizer's batch encoding, and long documents part by part."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers

from drpruning.errors import CorpusError
from drpruning.prepare.seams import LONGEST_PART, parts_of, tokens_of
from drpruning.prepare.spelled_out import never_special

BATCH_CHARACTERS = 1 << 19
"""Text tokenised at once: enough to keep every core busy, little enough for the memory that each token takes."""

CACHED_WORDS = 1 << 15
"""Words whose tokens the tokenizer remembers, for each of its threads. Its own 10,000 are soon those that came first
in the text; with this many it is 3 to 6% faster (20 MB of source code) and takes some 10 MiB."""


@dataclass(frozen=True)
class Encoder:
    """A tokenizer reduced to what making tokens needs.

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
        self.backend.encode_special_tokens = True  # "<|endoftext|>" in a document is text, it ends nothing
        object.__setattr__(self, "backend", never_special(self.backend))
        if hasattr(self.backend.model, "_resize_cache"):  # not public; tokenizers 0.20 has none
            self.backend.model._resize_cache(CACHED_WORDS)

    @classmethod
    def load(cls, folder: Path, end_id: int, vocab_size: int) -> Encoder:
        """From the folder of a saved tokenizer, without transformers."""
        return cls(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), end_id, vocab_size)

    def batch(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """Tokens of all texts back to back, each with the end token, and how many each has."""
        ids = array("I")
        lengths = np.empty(len(texts), np.int64)
        end = [self.end_id]
        for number, item in enumerate(self.backend.encode_batch_fast(list(texts), add_special_tokens=False)):
            found = item.ids
            ids.fromlist(found)
            ids.fromlist(end)
            lengths[number] = len(found) + 1
        return self._checked(ids), lengths

    def long(self, texts: Iterator[str]) -> Iterator[tuple[npt.NDArray[np.uint32], bool]]:
        """Tokens of one document, part by part, the end token last; with each whether they are those of the whole."""
        for part in parts_of(texts, self._ids):
            yield self._checked(array("I", tokens_of(part, self._ids))), part.exact
        yield np.array([self.end_id], np.uint32), True

    def is_long(self, text: str) -> bool:
        """Whether a text is better tokenised by :meth:`long`."""
        return len(text) > LONGEST_PART

    @cached_property
    def kinds(self) -> npt.NDArray[np.uint8]:
        """For each id: 1 for the unknown token, 2 for a byte that is no character, 0 else."""
        kinds = np.zeros(self.vocab_size, np.uint8)
        unknown = getattr(self.backend.model, "unk_token", None)
        for token, number in self.backend.get_vocab(with_added_tokens=True).items():
            if token == unknown:
                kinds[number] = 1
            elif (len(token) == 6 and token.startswith("<0x")) or (len(token) == 1 and token in _PARTIAL_BYTES):
                kinds[number] = 2
        return kinds

    def _ids(self, text: str) -> list[int]:
        (found,) = self.backend.encode_batch_fast([text], add_special_tokens=False)
        return found.ids

    def _checked(self, ids: array[int]) -> npt.NDArray[np.uint32]:
        found = np.frombuffer(ids, np.uint32)
        if found.size and (most := int(found.max())) >= self.vocab_size:
            raise CorpusError(
                f"the tokenizer made the id {most}; its vocabulary says that ids are below {self.vocab_size}"
            )
        return found


def _partial_bytes() -> frozenset[str]:
    """How byte-level vocabularies (GPT-2's table) write the bytes above 127, which are characters only together."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return frozenset(table[byte] for byte in range(128, 256))


_PARTIAL_BYTES = _partial_bytes()
