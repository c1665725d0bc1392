"""Documents that resemble an earlier one are left out, by any number of workers the same ones."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

pytest.importorskip("datatrove")

from drpruning.errors import ConfigError
from drpruning.prepare import Holdout, prepare
from drpruning.prepare.readers.blocks import BLOCK_SIZE
from tests.prepare.conftest import contents, write_jsonl
from tests.prepare.test_preparation import splits


def test_the_first_of_documents_that_are_alike_is_kept(tmp_path: Path, tokenizer: str) -> None:
    from loguru import logger

    logger.disable("datatrove")
    rng = random.Random(1)  # words of letters: datatrove takes all numbers for one
    texts = [" ".join("".join(rng.choices("abcdefgh", k=5)) for _ in range(120)) for _ in range(12)]
    changed = [f"{text} and a few words more" for text in texts[:4]]
    domains = {
        "web": write_jsonl(tmp_path / "a.jsonl", [*texts[:8], "", changed[0], changed[0]]),
        "code": write_jsonl(tmp_path / "b.jsonl", [changed[1], *texts[8:], texts[0], changed[2]]),
    }
    holdout = Holdout(fraction=0.3, min_tokens=0)
    manifest = prepare(tmp_path / "one", domains, tokenizer, holdout=holdout, near_duplicates=True)
    assert manifest.domains["web"].left_out == {"duplicate": 1, "empty": 1, "near_duplicate": 1}
    assert manifest.domains["code"].left_out == {"duplicate": 1, "near_duplicate": 2}
    kept = [text for name in ("web", "code") for found in splits(tmp_path / "one", name).values() for text in found]
    assert sorted(kept) == sorted(texts)
    prepare(tmp_path / "two", domains, tokenizer, holdout=holdout, near_duplicates=True, workers=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_files_that_become_no_document_do_not_shift_the_numbers(tmp_path: Path, tokenizer: str) -> None:
    rng = random.Random(2)
    texts = [" ".join("".join(rng.choices("abcdefgh", k=5)) for _ in range(120)) for _ in range(8)]
    giant = b" " * (BLOCK_SIZE + 1)
    (tmp_path / "a.txt").write_bytes(giant)
    (tmp_path / "b.txt").write_bytes(b"\xff" + giant)
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(giant)[:-8])
    write_jsonl(tmp_path / "d.jsonl", [*texts, f"{texts[5]} and a few words more"])
    manifest = prepare(
        tmp_path / "out",
        {"web": [tmp_path / name for name in ("a.txt", "b.txt", "c.txt.gz", "d.jsonl")]},
        tokenizer,
        holdout=Holdout(fraction=0.3, min_tokens=0),
        near_duplicates=True,
        utf8="skip",
        max_errors=1,
    )
    left_out = {"damaged_file": 1, "empty": 1, "invalid_utf8_skipped": 1, "near_duplicate": 1}
    assert manifest.domains["web"].left_out == left_out
    assert sorted(text for found in splits(tmp_path / "out", "web").values() for text in found) == sorted(texts)


def test_the_standard_input_cannot_be_read_twice(tmp_path: Path, tokenizer: str) -> None:
    with pytest.raises(ConfigError, match="stdin"):
        prepare(tmp_path / "out", {"web": "-"}, tokenizer, near_duplicates=True)
