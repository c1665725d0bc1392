"""Documents that resemble an earlier one are left out, by any number of workers the same ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytest.importorskip("datatrove")

from drpruning.prepare import HeldOut, prepare
from tests.prepare.conftest import contents, write_jsonl
from tests.prepare.test_from_files import sides


def test_the_first_of_documents_that_are_alike_is_kept(tmp_path: Path, tokenizer: str) -> None:
    from loguru import logger

    logger.disable("datatrove")
    chosen = random.Random(1)  # words of letters: datatrove takes all numbers for one
    texts = [" ".join("".join(chosen.choices("abcdefgh", k=5)) for _ in range(120)) for _ in range(12)]
    changed = [f"{text} and a few words more" for text in texts[:4]]
    domains = {
        "web": write_jsonl(tmp_path / "a.jsonl", [*texts[:8], "", changed[0], changed[0]]),
        "code": write_jsonl(tmp_path / "b.jsonl", [changed[1], *texts[8:], texts[0], changed[2]]),
    }
    rule = HeldOut(fraction=0.3, tokens=0)
    manifest = prepare(tmp_path / "one", domains, tokenizer, held_out=rule, near_duplicates=True)
    assert manifest.domains["web"].left_out == {"duplicate": 1, "empty": 1, "near_duplicate": 1}
    assert manifest.domains["code"].left_out == {"duplicate": 1, "near_duplicate": 2}
    kept = [text for name in ("web", "code") for side in sides(tmp_path / "one", name) for text in side]
    assert sorted(kept) == sorted(texts)
    prepare(tmp_path / "two", domains, tokenizer, held_out=rule, near_duplicates=True, workers=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
