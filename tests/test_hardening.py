"""Mutated files: every reader returns, or raises an exception of ``errors.py``; benches/hardening runs more of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from benches.hardening.__main__ import campaign
from benches.hardening.readers import all_readers

CASES = 60


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", all_readers())
def test_mutated_files_are_read_or_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRPRUNING_CACHE", str(tmp_path))
    outcome = campaign(all_readers()[name], CASES, seed=11)
    assert not outcome.untyped
    assert outcome.valid + outcome.typed == CASES
