"""A tokenizer and a corpus of words, small enough for every test."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from drpruning.prepare.tokenize.tokenizer import train_tokenizer

WORDS = [f"document {number} states something about {number * number}" for number in range(60)]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(WORDS, 300).save(folder)
    return str(folder)


def write_jsonl(path: Path, texts: Iterable[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file of a corpus."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
