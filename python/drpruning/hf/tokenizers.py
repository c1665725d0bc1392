"""Tokenizers of transformers: of a model, and of a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from drpruning.errors import CorpusError
from drpruning.hf.files import TOKENIZER_FILES

if TYPE_CHECKING:
    from drpruning.corpus import Corpus


def model_tokenizer(source: str) -> Any:
    """Return the tokenizer of a Hugging Face folder or name, or None if it has none."""
    folder = Path(source).expanduser()
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None


def corpus_tokenizer(corpus: Corpus) -> Any:
    """Return the tokenizer that the corpus was prepared with, or None if its files are not in the corpus.

    Raises:
        CorpusError: transformers cannot load it.
    """
    described = corpus.tokenizer
    if described is None or described.file is None:
        return None
    if (described.file.parent / "tokenizer_config.json").is_file():
        try:
            return AutoTokenizer.from_pretrained(str(described.file.parent), trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise CorpusError(
                f"the tokenizer of the corpus, {described.file.parent}, cannot be loaded: {error}"
            ) from error
    return PreTrainedTokenizerFast(tokenizer_file=str(described.file))
