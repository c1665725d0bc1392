"""Special tokens spelled out in a text are text.

``encode_special_tokens`` of the tokenizers library sees to that where special tokens are added to a vocabulary. A
Unigram model has them in the vocabulary itself (``</s>`` of XLM-R and T5), and finds them there like any other word;
SentencePiece does not.
"""

from __future__ import annotations

import re

import tokenizers
from tokenizers import pre_tokenizers


def never_special(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """``backend``, or if it makes special tokens of text, a copy that does not.

    In the copy a spelled-out special token is cut after its first character before the model sees it. Other text has
    the tokens it had. A special token of a single character cannot be cut and stays.

    Args:
        backend: The tokenizer, its ``encode_special_tokens`` set.
    """
    made = [
        token.content
        for number, token in backend.get_added_tokens_decoder().items()
        if token.special and len(token.content) > 1 and _makes(backend, token.content, number)
    ]
    if not made:
        return backend
    changed = tokenizers.Tokenizer.from_str(backend.to_str())
    changed.encode_special_tokens = True  # not part of the description
    heads = "|".join(f"{re.escape(text[0])}(?={re.escape(text[1:])})" for text in made)
    cut = pre_tokenizers.Split(tokenizers.Regex(heads), "merged_with_previous")
    before = changed.pre_tokenizer
    changed.pre_tokenizer = cut if before is None else pre_tokenizers.Sequence([before, cut])
    return changed


def _makes(backend: tokenizers.Tokenizer, text: str, number: int) -> bool:
    return any(
        number in backend.encode(around.format(text), add_special_tokens=False).ids
        for around in ("{}", "x{}", "x {} x")
    )
