"""Mutated files are read or refused, and torn writes leave the old or the new state; benches/hardening runs more."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from benches.hardening.__main__ import campaign
from benches.hardening.readers import all_readers
from benches.hardening.torn_writes import Operation, Recording

CASES = 60


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", all_readers())
def test_mutated_files_are_read_or_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRPRUNING_CACHE", str(tmp_path))
    outcome = campaign(all_readers()[name], CASES, seed=11)
    assert not outcome.untyped
    assert outcome.valid + outcome.typed == CASES


def operation(kind: str, path: str, other: str = "", content: bytes = b"") -> Operation:
    return Operation(kind, 0, f"/place/{path}", f"/place/{other}", 0, content)


def contents_after_a_crash(tmp_path: Path, *operations: Operation) -> set[bytes | None]:
    """Return what file ``a``, of content ``old``, may have after a crash; None if there is no such file."""
    (tmp_path / "a").write_bytes(b"old")
    recording = Recording(tmp_path, Path("/place"), list(operations))
    states = recording.crashes(random.Random(1), num_random=20)
    return {state.get("a") for _, state in states}


def test_a_crash_keeps_what_was_flushed(tmp_path: Path) -> None:
    create, write = operation("C", "b"), operation("W", "b", content=b"the new")
    flush, rename = operation("S", "b"), operation("R", "b", "a")
    assert contents_after_a_crash(tmp_path, create, write, flush, rename) == {b"old", b"the new"}
    assert contents_after_a_crash(tmp_path, create, write, rename) == {b"old", b"", b"the", b"the new"}
    assert contents_after_a_crash(tmp_path, operation("T", "a"), operation("W", "a", content=b"the new")) >= {
        b"",
        b"the",
        b"old",
        b"the new",
    }
    assert contents_after_a_crash(tmp_path, operation("U", "a"), create, write, flush, rename) == {
        None,
        b"old",
        b"the new",
    }


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs LD_PRELOAD and a C compiler")
def test_a_crash_leaves_the_old_or_the_new_checkpoint() -> None:
    command = [sys.executable, "-m", "benches.hardening.torn_writes", "checkpoint", "--random", "2"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert result.returncode == 0, result.stdout + result.stderr
    _, name, operations, states, *_ = (part.strip() for part in result.stdout.splitlines()[-1].split("|"))
    assert name == "checkpoint"
    assert int(states) > int(operations) > 20
