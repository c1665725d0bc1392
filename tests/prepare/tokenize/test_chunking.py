"""Long documents have the tokens that the whole would have, whatever the tokenizer does at its beginning."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from drpruning.prepare.tokenize.chunking import encode_chunk, split_into_chunks
from drpruning.prepare.tokenize.encoder import Encoder

TEXTS = [
    "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n\n    return total / 12345\n",
    "It's the first day; we'll see.\n\nNaïve café — 中文字 and 日本語 text, isn't it?\n\t- one\n\t- two\n",
] * 3
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(pattern: str | None) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    if pattern is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # type: ignore[assignment]
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def llama2() -> tokenizers.Tokenizer:
    """Build a tokenizer like transformers' of Llama 2: no words, a space before the text, byte fallback."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))  # noqa: S106
    marked = [text.replace(" ", "▁") for text in TEXTS]
    words = [word for text in marked for word in text.replace("▁", " ▁").split()]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.normalizer = normalizers.Sequence(  # type: ignore[assignment]
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


def unigram() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)  # noqa: S106
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


FAMILIES: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "gpt2": lambda: byte_level(None),
    "llama3": lambda: byte_level(LLAMA3),
    "llama2": llama2,
    "unigram": unigram,
}
trained: dict[str, tokenizers.Tokenizer] = {}


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_chunks_have_the_tokens_of_the_whole(family: str, data: st.DataObject) -> None:
    tokenizer = trained.setdefault(family, FAMILIES[family]())

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    pieces = st.sampled_from([*TEXTS[:2], "word ", "\n\n", " ", "x = 1\n", "  \n", "don't ", "日本語", "\t"])
    text = "".join(data.draw(st.lists(pieces, min_size=20, max_size=120)))
    cuts = data.draw(st.integers(1, 400))
    chunks = list(split_into_chunks((text[at : at + cuts] for at in range(0, len(text), cuts)), encode, longest=300))
    assert "".join(chunk.text for chunk in chunks) == text
    assert max(len(chunk.text) for chunk in chunks) <= 300 + 256
    if all(chunk.exact for chunk in chunks):
        assert [token for chunk in chunks for token in encode_chunk(chunk, encode)] == encode(text)
    else:
        assert family == "unigram" or "日本語日本語" in text or "\t\t" in text or "  " in text


def test_text_without_any_space_is_cut_and_reported() -> None:
    encoder = Encoder(byte_level(LLAMA3), 0, 420)
    text = "ab" * 400_000
    found = list(encoder.encode_long(iter([text])))
    assert encoder.backend.decode([int(i) for ids, _ in found[:-1] for i in ids]) == text
    assert found[-1][0].tolist() == [0]
