"""Held-out documents of a corpus as a model reads them: the corpus's ids, or text encoded by the model's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from drpruning.corpus import Corpus, Split, held_out_order
from drpruning.errors import ConfigError, CorpusError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DECODED_AT_ONCE = 1024  # documents: every core is busy, little is held twice
READ_AT_ONCE = 1 << 20  # tokens: 8 MiB


@dataclass(frozen=True)
class HeldOutText:
    """Held-out documents of one domain.

    Args:
        documents: int64 ids of each document, with its end token.
        sizes: int64 UTF-8 bytes of each document's text; None if the corpus has no tokenizer.
        start: Id before each document, as in training, or as the tokenizer begins a text.
        groups: int64 group of each document, the unit of standard errors; None: each document is a group.
    """

    documents: tuple[NDArray[np.int64], ...]
    sizes: NDArray[np.int64] | None
    start: int
    groups: NDArray[np.int64] | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens of all documents."""
        return sum(map(len, self.documents))


def held_out_text(
    corpus: Corpus,
    domain: str,
    *,
    max_tokens: int | None = None,
    row_len: int | None = None,
    tokenizer: Any = None,
    start: int | None = None,
    split: Split = "test",
) -> HeldOutText:
    """Return held-out documents of a domain, the same for every model, so that losses can be paired.

    Args:
        corpus: A corpus with held-out text and a known end token.
        domain: One of its domains.
        max_tokens: Maximum number of tokens of the corpus; None: all held-out text.
        row_len: Return the text of the training loop's evaluations, rows of this number of tokens, see
            :func:`documents_in_rows`. None: documents, see :func:`held_out_documents`.
        tokenizer: A tokenizer of transformers with other ids than the corpus's: the documents are decoded and encoded
            with it, each followed by its end token. None: the corpus's ids are returned.
        start: Id before each document; None: the id of the end token.
        split: ``test`` or ``validation``.

    Raises:
        ConfigError: There is no such domain, the tokenizer has no end token, or the corpus has no tokenizer to decode
            its text.
        CorpusError: The domain has no held-out text, or a file changed.
    """
    end = _end_token(corpus)
    if row_len is None:
        numbers, ids = _numbered_documents(corpus, domain, max_tokens, split)
    else:
        numbers = np.unique(row_documents(corpus, domain, row_len, max_tokens=max_tokens, split=split))
        ids = documents_in_rows(corpus, domain, row_len, max_tokens=max_tokens, split=split)
    groups = document_groups(corpus, domain, numbers, split)
    backend = corpus_backend(corpus)
    if backend is None:
        if tokenizer is not None:
            raise ConfigError(
                "the corpus has no tokenizer.json, so its text cannot be decoded for a model with another tokenizer",
                "Prepare the corpus with `drpruning prepare`, which stores tokenizer.json, or evaluate a model of "
                "these token ids.",
            )
        return HeldOutText(tuple(ids), None, end if start is None else start, groups)
    texts = decoded(backend, ids, end)
    sizes = np.array([len(text.encode("utf-8", errors="surrogatepass")) for text in texts], dtype=np.int64)
    if tokenizer is None:
        return HeldOutText(tuple(ids), sizes, end if start is None else start, groups)
    closing = tokenizer.eos_token_id
    if closing is None:
        raise ConfigError(
            f"the model's tokenizer {tokenizer.name_or_path!r} has no end token, which must follow every document",
            'Set "eos_token" in its tokenizer_config.json.',
        )
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return HeldOutText(
        documents=tuple(np.array([*item, closing], dtype=np.int64) for item in encoded),
        sizes=sizes,
        start=closing if start is None else start,
        groups=groups,
    )


def held_out_documents(
    corpus: Corpus, domain: str, *, max_tokens: int | None = None, split: Split = "test"
) -> list[NDArray[np.int64]]:
    """Return the ids of held-out documents, each with its end token, in the order of the text.

    With ``max_tokens`` they are the first of a permutation of all documents of the split, under the key of
    :data:`drpruning.corpus.HELD_OUT_KEY`: spread over all text of the split, the same on every machine. The last of the
    permutation that is taken is cut where ``max_tokens`` is reached. If only one of validation and test has shards,
    both divide its documents, see :func:`~drpruning.corpus.held_out_order`.

    Raises:
        ConfigError: There is no such domain, or ``max_tokens`` is below 1.
        CorpusError: The domain has no held-out text, or a single document for both splits; no end token is known, or a
            file changed.
    """
    return _numbered_documents(corpus, domain, max_tokens, split)[1]


def _numbered_documents(
    corpus: Corpus, domain: str, max_tokens: int | None, split: Split
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Return the documents of :func:`held_out_documents`, and before them their indices in the held-out text."""
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"max_tokens is {max_tokens}; expected at least 1")
    ends = document_ends(corpus, domain, split)
    starts = np.concatenate([[0], ends[:-1]])
    source = corpus.held_out_source(domain, split)
    order = held_out_order(len(ends), split, divided=corpus.divides_held_out(domain))
    if not len(order):
        raise CorpusError(
            f"domain {domain!r} has 1 held-out document; expected at least 2, for validation and test",
            "Prepare the corpus with a larger --holdout.",
        )
    taken = np.zeros(len(ends), np.int64)
    taken[order] = (ends - starts)[order]
    if max_tokens is not None:
        before = np.cumsum(taken[order]) - taken[order]
        taken[order] = np.clip(max_tokens - before, 0, taken[order])
    numbers = np.flatnonzero(taken)
    documents: list[NDArray[np.int64]] = []
    for group in np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1):  # adjacent documents are read together
        tokens = corpus.read_tokens(domain, int(starts[group[0]]), int(ends[group[-1]]), source)
        whole = np.split(tokens, ends[group[:-1]] - starts[group[0]])
        documents += [ids[: taken[number]] for number, ids in zip(group, whole, strict=True)]
    return numbers, documents


def document_groups(
    corpus: Corpus, domain: str, documents: NDArray[np.int64], split: Split
) -> NDArray[np.int64] | None:
    """Return the group of each held-out document, int64 ``[documents]``; None if each document is a group.

    Args:
        corpus: The corpus.
        domain: One of its domains.
        documents: int64 ``[documents]``, indices in the held-out text.
        split: ``validation`` or ``test``.
    """
    groups = corpus.held_out_groups(domain, split)
    return None if groups is None or corpus.end_token is None else groups[documents]


def documents_in_rows(
    corpus: Corpus, domain: str, seq_len: int, *, max_tokens: int | None = None, split: Split = "test"
) -> list[NDArray[np.int64]]:
    """Return the ids of the rows of :meth:`Corpus.held_out_rows`, document by document, in the order of the text.

    A document that is only partly in the rows is returned in part. Concatenated, the documents are the rows.

    Raises:
        ConfigError: As :meth:`Corpus.held_out_rows`.
        CorpusError: As :func:`held_out_documents`, or the domain has no held-out row of this length.
    """
    tokens = corpus.held_out_rows(domain, seq_len, max_tokens, split).ravel()
    owners = row_documents(corpus, domain, seq_len, max_tokens=max_tokens, split=split).ravel()
    return np.split(tokens, np.flatnonzero(np.diff(owners)) + 1)


def row_documents(
    corpus: Corpus, domain: str, seq_len: int, *, max_tokens: int | None = None, split: Split = "test"
) -> NDArray[np.int64]:
    """Return the index of the document of each token of :meth:`Corpus.held_out_rows`.

    Documents are numbered in the order of the text, as those of :meth:`Corpus.held_out_groups`. An end token belongs to
    the document it ends. If the corpus names no end token, each row is a document.

    Returns:
        int64 ``[rows, seq_len]``.

    Raises:
        ConfigError: As :meth:`Corpus.held_out_rows`.
        CorpusError: As :meth:`Corpus.held_out_rows`.
    """
    rows = corpus.held_out_row_numbers(domain, seq_len, max_tokens, split)
    if corpus.end_token is None:
        return np.repeat(rows[:, None], seq_len, axis=1)
    places = rows[:, None] * seq_len + np.arange(seq_len)
    return np.searchsorted(document_ends(corpus, domain, split), places, side="right")


def document_ends(corpus: Corpus, domain: str, split: Split = "test") -> NDArray[np.int64]:
    """Return the end of each document of :meth:`Corpus.held_out_source`, which is read once: int64 ``[documents]``.

    Raises:
        ConfigError: There is no such domain.
        CorpusError: The domain has no held-out text, no end token is known, or a file changed.
    """
    end = _end_token(corpus)
    source = corpus.held_out_source(domain, split)
    total = corpus.tokens(source)[domain]
    if total == 0:
        raise CorpusError(
            f"domain {domain!r} has no held-out text",
            "Prepare the corpus with --holdout above 0, or leave the domain out.",
        )
    parts = []
    for start in range(0, total, READ_AT_ONCE):
        tokens = corpus.read_tokens(domain, start, min(start + READ_AT_ONCE, total), source)
        parts.append(start + 1 + np.flatnonzero(tokens == end))
    ends = np.concatenate(parts)
    return ends if len(ends) and ends[-1] == total else np.append(ends, total)  # the last document has no end token


def _end_token(corpus: Corpus) -> int:
    if corpus.end_token is None:
        raise CorpusError("the corpus names no end token, so its documents have no known ends")
    return corpus.end_token


def corpus_backend(corpus: Corpus) -> Tokenizer | None:
    """Return the tokenizer of the corpus; None if the corpus has none.

    Raises:
        CorpusError: The tokenizer's file cannot be read.
    """
    described = corpus.tokenizer
    if described is None or described.file is None:
        return None
    from tokenizers import Tokenizer  # noqa: PLC0415 -- only to decode text

    try:
        return Tokenizer.from_file(str(described.file))
    except Exception as error:  # tokenizers raises plain Exception
        raise CorpusError(f"{described.file}: expected a tokenizer, found {error}") from error


def decoded(backend: Tokenizer, documents: Sequence[NDArray[np.int64]], end: int) -> list[str]:
    """Return the text of each document, without its end token."""
    bare = [ids[:-1] if len(ids) and ids[-1] == end else ids for ids in documents]
    texts: list[str] = []
    for at in range(0, len(bare), DECODED_AT_ONCE):
        part = [ids.tolist() for ids in bare[at : at + DECODED_AT_ONCE]]
        texts.extend(backend.decode_batch(part, skip_special_tokens=False))
    return texts
