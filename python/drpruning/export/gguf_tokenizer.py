"""Write a tokenizer to a GGUF file: its tokens, its merges, and llama.cpp's name of its pre-tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from drpruning.errors import ConfigError

FILE = "tokenizer.json"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
RULES: dict[tuple[str, ...], str] = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (LLAMA3,): "llama-bpe",
    (QWEN2,): "qwen2",
}
"""Steps that split text before merges, and llama.cpp's name for them."""


def write_tokenizer(writer: Any, folder: Path, vocabulary: int) -> None:
    """Add the tokenizer in ``folder`` to an unfinished file; without a tokenizer the file reads and writes ids.

    Args:
        writer: A ``gguf.GGUFWriter``.
        folder: The folder of ``tokenizer.json``.
        vocabulary: Rows of the embedding; ids without a token get a padding token.

    Raises:
        ConfigError: llama.cpp has no pre-tokenizer that splits text alike.
    """
    import gguf  # noqa: PLC0415 - an extra

    if not (folder / FILE).is_file():
        writer.add_tokenizer_model("no_vocab")
        return
    body = json.loads((folder / FILE).read_text(encoding="utf-8"))
    if body["model"].get("byte_fallback"):  # SentencePiece's, as of Llama 2 and Mistral
        spaced = gguf.LlamaHfVocab(folder)
        tokens, scores, types = (list(part) for part in zip(*spaced.all_tokens(), strict=True))
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_add_space_prefix(adds_space(body))
        missing = vocabulary - len(tokens)
        tokens += [f"[PAD{len(tokens) + at}]".encode() for at in range(missing)]
        writer.add_token_list(tokens)
        writer.add_token_scores(scores + [-1000.0] * missing)
        writer.add_token_types(types + [gguf.TokenType.UNUSED] * missing)
        gguf.SpecialVocab(folder, n_vocab=vocabulary).add_to_gguf(writer)
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule_of(body))
    by_id = {index: (token, gguf.TokenType.NORMAL) for token, index in body["model"]["vocab"].items()}
    for added in body.get("added_tokens", ()):
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        by_id[added["id"]] = added["content"], kind
    padded = [by_id.get(at, (f"[PAD{at}]", gguf.TokenType.UNUSED)) for at in range(vocabulary)]
    writer.add_token_list([token for token, _ in padded])
    writer.add_token_types([kind for _, kind in padded])
    gguf.SpecialVocab(folder, load_merges=True, n_vocab=vocabulary).add_to_gguf(writer)


def adds_space(body: dict[str, Any]) -> bool:
    """Return whether a SentencePiece tokenizer adds a space before the text: Llama 2 does, Gemma does not.

    Example:
        >>> adds_space({"normalizer": {"type": "Prepend", "prepend": "\u2581"}, "pre_tokenizer": None})
        True
        >>> adds_space({"normalizer": {"type": "Replace"}, "pre_tokenizer": {"type": "Split"}})
        False
    """
    normalizer, splitter = body.get("normalizer") or {}, body.get("pre_tokenizer") or {}
    steps = [*normalizer.get("normalizers", [normalizer]), *splitter.get("pretokenizers", [splitter])]
    return any(
        step.get("type") == "Prepend" or (step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never")
        for step in steps
    )


def rule_of(body: dict[str, Any]) -> str:
    """Return llama.cpp's name for the pre-tokenizer of a byte-level ``tokenizer.json``.

    Raises:
        ConfigError: The pre-tokenizer is not in :data:`RULES`.

    Example:
        >>> rule_of({"model": {"type": "BPE"}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}})
        'gpt-2'
    """
    splitter = body.get("pre_tokenizer") or {}
    steps = tuple(_steps(splitter.get("pretokenizers", [splitter])))
    if body["model"]["type"] != "BPE" or steps not in RULES:
        raise ConfigError(
            f"llama.cpp has no rule for a {body['model']['type']} tokenizer that splits text by {' and '.join(steps)}",
            f"It can be byte-level BPE split as in {', '.join(RULES.values())}, or SentencePiece's BPE.",
        )
    return RULES[steps]


def _steps(splitters: list[dict[str, Any]]) -> list[str]:
    steps = []
    for splitter in splitters:
        if splitter.get("type") == "Split":
            steps.append(str(splitter["pattern"].get("Regex")))
        elif splitter.get("type") == "ByteLevel" and not splitter.get("use_regex", True):
            continue  # turns bytes into letters, splits nothing
        elif splitter.get("type") == "ByteLevel" and splitter.get("add_prefix_space"):
            steps.append("ByteLevel with a space before the text")
        elif splitter.get("type") == "Digits" and not splitter.get("individual_digits"):
            steps.append("Digits together")
        else:
            steps.append(str(splitter.get("type")))
    return steps
