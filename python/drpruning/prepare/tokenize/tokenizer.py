"""Tokenizers of a corpus: load or train one, with the end token that ends every document."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from drpruning.errors import ConfigError, DrpruningError, MissingExtraError, install_command
from drpruning.hf.files import TOKENIZER_FILES, cached_file, unreachable_reason
from drpruning.prepare.tokenize.encoder import Encoder

TOKENIZER_ADVICE = "Pass a folder with tokenizer.json and tokenizer_config.json, or a name on the Hugging Face hub."
END_TOKEN = "<|endoftext|>"  # noqa: S105 - no password


@dataclass(frozen=True)
class DocumentTokenizer:
    """A fast tokenizer with an end token.

    Args:
        name: Name or path that the user gave.
        backend: The fast tokenizer.
        end_token: Text of the token that ends a document.
        save: Writes ``tokenizer.json`` and its configuration into a folder.

    Raises:
        ConfigError: The end token is not in the vocabulary.
    """

    name: str
    backend: tokenizers.Tokenizer
    end_token: str
    save: Callable[[Path], object]

    def __post_init__(self) -> None:
        if self.end_token not in self.vocabulary:
            raise ConfigError(f"tokenizer {self.name}: its end token {self.end_token!r} is not in its vocabulary")
        _ = self.encoder  # changes settings of the backend, which are part of its checksum

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Ids by token, added tokens included."""
        return self.backend.get_vocab(with_added_tokens=True)

    @property
    def end_id(self) -> int:
        """Id of the end token."""
        return self.vocabulary[self.end_token]

    @cached_property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included: the largest id + 1."""
        return max(self.vocabulary.values()) + 1

    @property
    def sha256(self) -> str:
        """Checksum of the serialized backend."""
        return hashlib.sha256(self.backend.to_str(pretty=True).encode()).hexdigest()

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder of this tokenizer."""
        return Encoder(self.backend, self.end_id, self.vocab_size)

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Return the token ids of each text and the end token; no other special token is added or parsed from text."""
        ids, lengths = self.encoder.encode_batch(texts)
        return np.split(ids, np.cumsum(lengths)[:-1])


def train_tokenizer(texts: Iterable[str], vocab_size: int, name: str = "byte-level BPE") -> DocumentTokenizer:
    """Train a byte-level BPE (the scheme of GPT-2, Radford et al. 2019) with one special token, :data:`END_TOKEN`.

    Args:
        texts: Training texts.
        vocab_size: Number of ids: 256 bytes, the end token, and the merges.
        name: Name written into the corpus.

    Raises:
        ConfigError: ``vocab_size`` leaves no room for merges.
    """
    if vocab_size <= 257:
        raise ConfigError(f"vocab_size is {vocab_size}; expected at least 258: 256 bytes, the end token and a merge")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_TOKEN],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)

    return DocumentTokenizer(name, backend, END_TOKEN, make_saver(backend, END_TOKEN))


def make_saver(backend: tokenizers.Tokenizer, end_token: str) -> Callable[[Path], None]:
    """Return a function that saves a backend in the format of transformers.

    Args:
        backend: The fast tokenizer.
        end_token: Text of the token that ends a document.

    Returns:
        The ``save`` of a :class:`DocumentTokenizer`: writes tokenizer.json and tokenizer_config.json into a folder.
    """

    def save(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": end_token,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    return save


def load_tokenizer(name: str, end_token: str | None = None) -> DocumentTokenizer:
    """Load a tokenizer from a folder, a file, or the Hugging Face hub.

    transformers loads folders and hub names; the tokenizer needs a fast form: ``tokenizer.json``, or SentencePiece's
    ``tokenizer.model``, which transformers converts. A file is a ``tokenizer.json``, a SentencePiece ``.model``, or a
    list of ranks in tiktoken's format, ``.tiktoken``.

    Args:
        name: The folder, file or name.
        end_token: The token that ends a document; None: the tokenizer's own.

    Raises:
        ConfigError: The tokenizer does not exist, has no fast form, or has no end token.
        MissingExtraError: The format needs a package that is not installed.
    """
    path = Path(name)
    if path.suffix == ".tiktoken":
        return _load_tiktoken(path, end_token or END_TOKEN)
    if reason := _no_tokenizer(name):
        raise ConfigError(f"cannot load tokenizer {name!r}: {reason}", TOKENIZER_ADVICE)
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 -- seconds

    try:
        loaded = _load_with_transformers(name)
    except (OSError, ValueError, ImportError) as error:
        if isinstance(error, DrpruningError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"cannot load tokenizer {name!r}: {reason}", TOKENIZER_ADVICE) from None
    if not isinstance(loaded, PreTrainedTokenizerFast):
        raise ConfigError(
            f"tokenizer {name!r} is a {type(loaded).__name__}; expected one with a fast form (tokenizer.json)"
        )
    if end_token is None and loaded.eos_token is None:
        raise ConfigError(
            f"tokenizer {name!r} has no end token, which must end every document",
            'Name one of its tokens with --end-token, or set "eos_token" in its tokenizer_config.json.',
        )
    return DocumentTokenizer(name, loaded.backend_tokenizer, end_token or str(loaded.eos_token), loaded.save_pretrained)


def _no_tokenizer(name: str) -> str | None:
    """Return why there is no tokenizer of that name, before transformers is loaded; None if there may be one."""
    path = Path(name)
    if path.suffix in {".json", ".model"}:
        return None
    if path.is_dir() and not any((path / file).is_file() for file in TOKENIZER_FILES):
        return f"the folder holds none of {', '.join(TOKENIZER_FILES)}"
    if any(cached_file(name, file) is not None for file in TOKENIZER_FILES):
        return None
    return unreachable_reason(name, "tokenizer_config.json")


def _load_with_transformers(name: str) -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415 -- seconds

    path = Path(name)
    if path.suffix in {".json", ".model"} and not path.is_file():
        raise ConfigError(f"tokenizer {name} does not exist", TOKENIZER_ADVICE)
    if path.suffix == ".json":
        if path.name != "tokenizer.json":  # transformers loads the folder and ignores the name
            raise ConfigError(
                f"tokenizer {name}: expected a file called tokenizer.json, or its folder", _folder_advice(path)
            )
        path = path.parent
    if path.suffix == ".model":
        if path.name == "tokenizer.model":
            return _load_with_transformers(str(path.parent))
        with tempfile.TemporaryDirectory() as folder:  # transformers accepts no other file name
            shutil.copyfile(path, Path(folder) / "tokenizer.model")
            return _load_with_transformers(folder)
    if not path.is_dir():
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if (path / "tokenizer.model").exists() and not (path / "tokenizer.json").exists():
        for package in (
            "sentencepiece",
            "google.protobuf",
        ):  # else transformers reads it as tiktoken ranks
            try:
                importlib.import_module(package)
            except ImportError as error:
                message = f"reading SentencePiece's {path / 'tokenizer.model'} needs sentencepiece and protobuf"
                raise MissingExtraError(message, install_command("sentencepiece", "protobuf")) from error
    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def _folder_advice(path: Path) -> str:
    """Return the next step for a JSON file that is no tokenizer."""
    has_tokenizer = any((path.parent / file).is_file() for file in TOKENIZER_FILES)
    return f"Pass the folder: {path.parent}" if has_tokenizer else TOKENIZER_ADVICE


def _load_tiktoken(path: Path, end_token: str) -> DocumentTokenizer:
    """Convert tiktoken's list of byte strings and ranks with transformers' converter.

    Texts are split by the pattern of cl100k_base and Llama 3, the converter's default.
    """
    from transformers.convert_slow_tokenizer import TikTokenConverter  # noqa: PLC0415 -- seconds

    if not path.is_file():
        raise ConfigError(f"tokenizer {path} does not exist", "Pass the path of a .tiktoken file.")
    converter = TikTokenConverter(vocab_file=str(path), extra_special_tokens=[end_token])
    converter.load_tiktoken_bpe = _read_ranks  # type: ignore[method-assign,assignment] # the default imports the tiktoken package
    return DocumentTokenizer(str(path), converter.converted(), end_token, make_saver(converter.converted(), end_token))


def _read_ranks(path: str) -> dict[bytes, int]:
    """Read lines of a byte string in base64, a space, and its rank."""
    ranks = {}
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise ConfigError(f"{path}, line {number}: expected base64 and a rank, found {line[:40]!r}") from None
    return ranks
