"""Held-out documents of a corpus, as a model reads them: the corpus's ids, or text encoded again for another model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from drpruning.corpus import Corpus
from drpruning.errors import ConfigError, CorpusError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DECODED_AT_ONCE = 1024  # documents: every core is busy, little is held twice


@dataclass(frozen=True)
class HeldOutText:
    """Held-out documents of one domain.

    Args:
        documents: int64 ids of each document, with the end token that closes it.
        sizes: int64 UTF-8 bytes of each document's text; None where the corpus does not hold its tokenizer.
        start: Id that stands before each document, as in training, or as the tokenizer begins a text.
    """

    documents: tuple[NDArray[np.int64], ...]
    sizes: NDArray[np.int64] | None
    start: int

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return sum(map(len, self.documents))


def held_out_text(
    corpus: Corpus,
    domain: str,
    *,
    max_tokens: int | None = None,
    cut: bool = False,
    tokenizer: Any = None,
    start: int | None = None,
) -> HeldOutText:
    """The first held-out documents of a domain: the same ones whatever the model, so that losses can be paired.

    Args:
        corpus: A corpus with held-out text and a known end token.
        domain: One of its domains.
        max_tokens: At most so many tokens of the corpus: whole documents, unless the first alone has more.
        cut: Exactly so many tokens, the last document cut, as in the rows of the training loop.
        tokenizer: A tokenizer of transformers with other ids than the corpus's: the documents are decoded and encoded
            again, each closed by this tokenizer's end token. None: the corpus's ids are taken as they are.
        start: Id that stands before each document; None: the id of the end token.

    Raises:
        ConfigError: There is no such domain, the tokenizer has no end token, or the corpus does not hold the tokenizer
            that its text could be read with.
        CorpusError: The domain has no held-out text, or a file changed.
    """
    ids = held_out_documents(corpus, domain, max_tokens=max_tokens, cut=cut)
    end = corpus.end_token
    assert end is not None
    backend = corpus_backend(corpus)
    if backend is None:
        if tokenizer is not None:
            raise ConfigError(
                "the corpus does not hold its tokenizer, so its text cannot be read again for a model with another one",
                "Prepare the corpus with `drpruning prepare`, which keeps tokenizer.json, or evaluate a model that was "
                "trained on these ids.",
            )
        return HeldOutText(documents=tuple(ids), sizes=None, start=end if start is None else start)
    texts = decoded(backend, ids, end)
    sizes = np.array([len(text.encode("utf-8", errors="surrogatepass")) for text in texts], dtype=np.int64)
    if tokenizer is None:
        return HeldOutText(documents=tuple(ids), sizes=sizes, start=end if start is None else start)
    closing = tokenizer.eos_token_id
    if closing is None:
        raise ConfigError(
            f"the model's tokenizer {tokenizer.name_or_path!r} has no end token, which must close every document",
            'Set "eos_token" in its tokenizer_config.json.',
        )
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return HeldOutText(
        documents=tuple(np.array([*item, closing], dtype=np.int64) for item in encoded),
        sizes=sizes,
        start=closing if start is None else start,
    )


def held_out_documents(
    corpus: Corpus, domain: str, *, max_tokens: int | None = None, cut: bool = False
) -> list[NDArray[np.int64]]:
    """Ids of the first held-out documents, each with its end token; see :func:`held_out_text`.

    Raises:
        ConfigError: There is no such domain, or ``max_tokens`` is below 1.
        CorpusError: The domain has no held-out text, no end token is known, or a file changed.
    """
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"max_tokens is {max_tokens}; wanted at least 1")
    if corpus.end_token is None:
        raise CorpusError("the corpus names no end token, so its documents cannot be told apart")
    total = corpus.tokens("eval").get(domain)
    if total is None:
        raise ConfigError(f"there is no domain {domain!r}; the corpus has {', '.join(corpus.domains)}")
    if total == 0:
        raise CorpusError(
            f"domain {domain!r} has no held-out text", "Prepare the corpus with --held-out above 0, or leave it out."
        )
    length = total if max_tokens is None else min(total, max_tokens)
    tokens = corpus.read_rows(domain, [0], length, "eval")[0]
    ends = np.flatnonzero(tokens == corpus.end_token) + 1
    if len(ends) == 0 or ((cut or length == total) and ends[-1] != length):
        ends = np.append(ends, length)  # the only document is longer, or the last one was not closed
    return np.split(tokens[: ends[-1]], ends[:-1])


def corpus_backend(corpus: Corpus) -> Tokenizer | None:
    """The tokenizer that made the corpus, or None if the corpus does not hold it.

    Raises:
        CorpusError: Its file cannot be read.
    """
    described = corpus.tokenizer
    if described is None or described.file is None:
        return None
    from tokenizers import Tokenizer  # noqa: PLC0415 -- only where text is wanted

    try:
        return Tokenizer.from_file(str(described.file))
    except Exception as error:  # tokenizers raises plain Exception
        raise CorpusError(f"{described.file}: expected a tokenizer, found {error}") from error


def decoded(backend: Tokenizer, documents: Sequence[NDArray[np.int64]], end: int) -> list[str]:
    """The text of each document, without the end token that closes it."""
    bare = [ids[:-1] if len(ids) and ids[-1] == end else ids for ids in documents]
    texts: list[str] = []
    for at in range(0, len(bare), DECODED_AT_ONCE):
        part = [ids.tolist() for ids in bare[at : at + DECODED_AT_ONCE]]
        texts.extend(backend.decode_batch(part, skip_special_tokens=False))
    return texts
